import math

import numpy as np
import pytest

from raysat import Sweep, fixed, mlp
from raysat.errors import InputError
from raysat.spec.goals import METRICS, Target, along, asked, falling

VALID = {
    **{"name": "s", "dataset": "digits", "models": [mlp(depth=1)], "widths": [8], "batch_sizes": [1, 4]},
    **{"stepsizes": [fixed(0.1)], "iterations": 10},
}


def ids(**changes):
    return [cell.cell_id for cell in Sweep(**VALID | changes).cells(20, 5)]


@pytest.mark.parametrize(
    ("given", "metric", "level", "eps", "words"),
    [
        ("test_accuracy >= 0.9", "test_accuracy", 0.9, 1 - 0.9, "test accuracy 0.9"),
        (" test_accuracy>=1 ", "test_accuracy", 1.0, 0.0, "test accuracy 1"),
        ("train_accuracy >= 5e-1", "train_accuracy", 0.5, 0.5, "training accuracy 0.5"),
        ("test_loss <= 1.6", "test_loss", 1.6, 1.6, "test loss 1.6"),
        ("train_loss <= 0.3", "train_loss", 0.3, 0.3, "loss 0.3"),
        (0.3, "train_loss", 0.3, 0.3, "loss 0.3"),
        (np.float32(0.5), "train_loss", 0.5, 0.5, "loss 0.5"),
    ],
)
def test_a_target_is_read_from_text_or_a_number(given, metric, level, eps, words):
    found = Target.of("target", given)
    assert (found.metric, found.level, found.eps, found.words) == (metric, level, eps, words)
    assert Target.of("target", str(found)) == found
    assert Target.of("target", found) is found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("test_accuracy <= 0.9", "an accuracy rises: write 'test_accuracy >= 0.9'"),
        ("test_loss >= 0.3", "a loss falls: write 'test_loss <= 0.3'"),
        ("accuracy >= 0.9", "the metrics are train_loss, test_loss, train_accuracy, test_accuracy"),
        ("test_accuracy > 0.9", "write a metric and its level"),
        ("0.3", "write a metric and its level"),
        ("test_accuracy >= 1.1", "an accuracy is at most 1"),
        ("test_accuracy >= 0", "positive"),
        ("test_loss <= -1", "positive"),
        ("test_loss <= inf", "positive"),
        ("test_loss <= nan", "positive"),
        ("test_loss <= low", "low is no number"),
        ("test_loss <= 1_0", "write a metric and its level"),
        (-1, "positive"),
        (True, "positive"),
        (["test_loss <= 1"], "positive"),
    ],
)
def test_what_is_no_target_is_refused_in_a_sentence(given, words):
    for fields in ({"target": given}, {"targets": [given]}):
        with pytest.raises(InputError, match=words.replace("(", r"\(")) as caught:
            Sweep(**VALID | fields)
        assert "\n" not in str(caught.value)


def test_every_metric_falls():
    assert set(METRICS) == {"train_loss", "test_loss", "train_accuracy", "test_accuracy"}
    assert falling("test_accuracy", np.array([0.25, 1.0])).tolist() == [0.75, 0.0]
    assert falling("test_loss", 0.25) == 0.25
    assert along("train_accuracy", [0.25, None])[:1] == [0.75]
    assert math.isnan(along("test_loss", [None])[0])
    target = Target("test_accuracy", 0.9)
    assert target.reached({"test_accuracy": 180 / 200})
    assert not target.reached({"test_accuracy": 179 / 200})
    assert not target.reached({"test_accuracy": None})


def test_the_forms_of_a_training_loss_have_the_same_ids():
    for level in (0.3, 1, 1.0, 1e-3):
        assert ids(target=f"train_loss <= {level}") == ids(target_loss=level)
    sweep = Sweep(**VALID | {"target": "train_loss <= 0.3"})
    assert (sweep.target, sweep.target_loss, sweep.goal) == (None, 0.3, Target("train_loss", 0.3))


def test_another_target_is_another_cell_and_further_targets_are_none():
    found = [ids(), ids(target_loss=0.5)]
    found += [
        ids(target=f"{metric} {sign} 0.5") for metric, sign in zip(METRICS, ("<=", "<=", ">=", ">="), strict=True)
    ]
    assert len({tuple(one) for one in found}) == 5  # target_loss twice
    assert ids(target="test_accuracy>=0.90") == ids(target="test_accuracy >= 0.9")
    assert ids(targets=["test_accuracy >= 0.9", 0.5]) == ids()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"target": "test_accuracy >= 0.9", "target_loss": 0.3}, "set one of them to None"),
        ({"target": "test_accuracy >= 0.9", "n_test": 0}, "n_test=0: set n_test"),
        ({"targets": ["test_loss <= 0.9"], "n_test": 0}, "n_test=0: set n_test"),
        ({"targets": "test_loss <= 0.9"}, "give a list"),
    ],
)
def test_fields_that_do_not_go_together(fields, words):
    with pytest.raises(InputError, match=words):
        Sweep(**VALID | fields)


@pytest.mark.parametrize(
    ("target", "target_loss", "targets", "expected"),
    [
        (None, None, (), []),
        (None, 0.3, (), []),
        (None, 0.3, (0.5, 0.4), [0.5, 0.4]),
        (None, 0.3, ("test_loss <= 1",), [0.3, "test_loss <= 1.0"]),
        ("test_accuracy >= 0.9", None, (), ["test_accuracy >= 0.9"]),
        ("test_accuracy >= 0.9", None, (0.5,), ["test_accuracy >= 0.9", 0.5]),
        (
            *("test_accuracy >= 0.9", None, (0.5, "test_accuracy >= 0.8", 0.4)),
            ["test_accuracy >= 0.8", 0.5, 0.4],
        ),
        (None, None, ("test_loss <= 1", 0.5, "test_loss <= 2"), ["test_loss <= 1.0", "test_loss <= 2.0", 0.5]),
    ],
)
def test_the_metric_at_which_trials_end_leads_the_analysis(target, target_loss, targets, expected):
    found = asked({"target": target, "target_loss": target_loss, "targets": targets})
    assert list(found) == [Target.of("expected", one) for one in expected]
    assert asked(dict.fromkeys(("target", "target_loss", "targets"))) == asked({}) == ()
