import dataclasses
import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysat import (
    InputError,
    Sweep,
    Training,
    asynchronous,
    fixed,
    fixed_fraction,
    gpt,
    grid,
    linear,
    linearized,
    mlp,
    powers_of_two,
    resnet,
    theory,
)
from raysat.spec.cells import Model
from raysat.spec.references import is_reference
from raysat.spec.settings import AXIS, EXECUTION, SHARED, named

VALID = {
    "name": "s",
    "dataset": "digits",
    "models": [mlp()],
    "widths": [8, 16],
    "batch_sizes": [1, 4],
    "stepsizes": [theory()],
    "iterations": 10,
}


@given(st.integers(1, 100_000))
def test_powers_of_two_are_the_powers_below_n_and_n(n):
    sizes = powers_of_two(n)
    assert sizes[-1] == n
    assert all(b == 2**k for k, b in enumerate(sizes[:-1]))
    assert len(sizes) == 1 or sizes[-2] < n <= 2 * sizes[-2]


def test_a_sweep_is_the_product_of_its_axes():
    sweep = Sweep(**VALID | {"stepsizes": [fixed(0.1), grid([0.1, 0.2])], "seeds": 3})
    cells = sweep.cells(n=20, n_test=5)
    assert len(cells) == 2 * 2 * 3 * 3
    assert len({cell.cell_id for cell in cells}) == len(cells)
    assert len({cell.init.init_id for cell in cells}) == 2 * 3
    assert {cell.init.k_samples for cell in cells} == {20}


def test_a_model_without_width_is_run_once_for_all_widths():
    cells = Sweep(**VALID | {"models": [linear(), mlp()]}).cells(20, 0)
    assert [cell.init.width for cell in cells if cell.init.model.builder == "linear"] == [0, 0]
    assert Sweep(**VALID | {"models": [linear()], "widths": []}).cells(20, 0)


def test_identity_is_stable_across_processes_and_releases():
    (cell,) = Sweep(**VALID | {"widths": [8], "batch_sizes": [1]}).cells(20, 5)
    # The canonical JSON by hand, without what is at its default; a change here is a change of every user's results.
    text = (
        '[2,"cell",{"batch_size":1,"evaluations":30,"init":{"dataset":"digits","dtype":"float32","k_samples":20,'
        '"k_tolerance":0.001,"model":{"builder":"mlp","options":[["activation","relu"],["depth",3],'
        '["hidden_gain",1.0],["output_gain",1.0]]},"n":20,"n_test":5,"preprocessing":"center","seed":0,"width":8},'
        '"iterations":10,"sampling":"without_replacement","stepsize":{"policy":"theory","value":1.0},'
        '"target_loss":null}]'
    )
    assert cell.cell_id == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("field", "value"),
    [("dataset", "mnist"), ("iterations", 11), ("sampling", "epochs"), ("preprocessing", "none"), ("k_samples", 7)],
)
def test_what_can_change_a_result_changes_the_identity(field, value):
    before = {cell.cell_id for cell in Sweep(**VALID).cells(20, 5)}
    after = {cell.cell_id for cell in Sweep(**VALID | {field: value}).cells(20, 5)}
    assert not before & after


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("name", "other"), ("cpus_per_trial", 2), ("ranks_per_trial", 2), ("checkpoint_seconds", 1.0)],
        *[("targets", [0.1]), ("adaptive", True)],
    ],
)
def test_what_cannot_does_not(field, value):
    before = [cell.cell_id for cell in Sweep(**VALID).cells(20, 5)]
    assert before == [cell.cell_id for cell in Sweep(**VALID | {field: value}).cells(20, 5)]


RECORDED = {
    "mlp": ["702e4a7591f6ca6e 792f4185a4235da3"],
    "policies": [
        "c045f5ac9b438881 890fa1ad8f0eb887",
        "c045f5ac9b438881 04bc88ec40cb0d95",
        "c045f5ac9b438881 6e4f29e5f281e01d",
        "c045f5ac9b438881 8b4cf5d848048d7b",
        "c045f5ac9b438881 c3a46f2a1dc7fdfa",
        "c045f5ac9b438881 d490718558171392",
    ],
    "images": [
        "809a0a35304af237 c5d23a3527cfc743",
        "c9832b0acb20274d 8c1cd814ba3ec66f",
        "778c6f0fe71147c5 8050c172c7562275",
        "9b16b006ee243757 d0d01d5cd70b679d",
    ],
    "text": ["e66004b00560ab54 9e2741a8404fc9e7", "e66004b00560ab54 5414de7b7c7d4277"],
}
"""Ids of initializations and cells, as the code computed them before statistics had certificates."""


def recorded_sweeps():
    small = {"name": "s", "iterations": None, "seeds": 1}
    return {
        "mlp": Sweep(**small | {"dataset": "mnist", "models": [mlp()], "widths": [64], "batch_sizes": [1],
                                "stepsizes": [fixed(0.5)], "iterations": 300}),
        "policies": Sweep(**small | {"dataset": "digits", "models": [mlp(1, "tanh", 1.5)], "widths": [16],
                                     "batch_sizes": [4], "iterations": 40, "n_train": 100, "n_test": 50,
                                     "stepsizes": [fixed_fraction(), theory(0.5), grid([0.1]), grid(auto=True)],
                                     "target_loss": 0.5}),
        "images": Sweep(**small | {"dataset": "cifar10", "widths": [8], "batch_sizes": [32], "stepsizes": [theory()],
                                   "models": [resnet(10), resnet(10, "batch", ghost=16), linearized(mlp(1)), linear()],
                                   "epochs": 2.5, "n_train": 1000, "preprocessing": "standardize",
                                   "loss": "cross_entropy", "dtype": "float64", "seeds": [3]}),
        "text": Sweep(**small | {"dataset": "tinyshakespeare", "models": [gpt()], "widths": [32], "batch_sizes": [8],
                                 "stepsizes": [theory()], "samples": 5000, "loss": "cross_entropy",
                                 "precision": "bfloat16", "spectrum": 8, "ntk_at": [5], "evaluation_samples": 64,
                                 "sampling": "with_replacement", "gradient_norm": True,
                                 "trainings": [Training("adam", schedule="cosine"), asynchronous(4)]}),
    }  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_ids_of_built_in_models_are_what_they_were(name):
    cells = recorded_sweeps()[name].cells(1000, 50)
    assert [f"{cell.init.init_id} {cell.cell_id}" for cell in cells] == RECORDED[name]


def test_numbers_may_be_numpys_and_ids_are_those_of_pythons():
    python = {
        **{"models": [mlp(2, "relu", 1.5)], "widths": [16, 32], "batch_sizes": [1, 2, 4, 8, 16], "seeds": 3},
        **{"stepsizes": [fixed(0.5), grid([0.25, 1.0])], "n_train": 100, "n_test": 50, "iterations": 20},
        **{"evaluation_samples": 64, "k_samples": 64, "k_tolerance": 0.25, "target_loss": 0.5, "ntk_at": [3]},
        **{"trainings": [Training(scaling="sqrt", base_batch=4), asynchronous(2, (3.0, 1.0))], "dense_samples": 4},
    }
    numpy = {
        **{"models": [mlp(np.int64(2), "relu", np.float32(1.5))], "widths": np.array([16, 32])},
        **{"batch_sizes": 2 ** np.arange(5), "seeds": np.int64(3), "n_train": np.int64(100), "n_test": np.int32(50)},
        **{"stepsizes": [fixed(np.float32(0.5)), grid(np.array([0.25, 1.0]))], "iterations": np.int64(20)},
        **{"evaluation_samples": np.uint8(64), "k_samples": np.int64(64), "k_tolerance": np.float32(0.25)},
        **{"target_loss": np.float64(0.5), "ntk_at": np.array([3]), "dense_samples": np.int8(4)},
        "trainings": [
            Training(scaling="sqrt", base_batch=np.int64(4)),
            asynchronous(np.int64(2), np.array([3.0, 1.0])),
        ],
    }
    ours, theirs = (Sweep(name="s", dataset="digits", **fields) for fields in (python, numpy))
    assert [cell.cell_id for cell in theirs.cells(100, 50)] == [cell.cell_id for cell in ours.cells(100, 50)]
    assert json.dumps(dataclasses.asdict(theirs)) == json.dumps(dataclasses.asdict(ours))
    assert powers_of_two(np.int64(10)) == powers_of_two(10)
    assert resnet(np.int64(10)) == resnet(10)


@pytest.mark.parametrize("bad", [np.array(3), np.array([1.5]), np.array([True]), np.array([0])])
def test_arrays_of_other_things_are_refused(bad):
    with pytest.raises(InputError, match="batch_sizes"):
        Sweep(name="s", dataset="digits", models=[linear()], batch_sizes=bad, stepsizes=[fixed(0.1)], iterations=5)


def test_what_was_added_later_changes_no_identity_at_its_default():
    """A field at its default is left out of the hash; at another value it changes it."""
    small = VALID | {"widths": [8], "batch_sizes": [1]}
    changes = ({}, {"trainings": [Training("adam")]}, {"trainings": [asynchronous(2)]}, {"gradient_norm": True})
    ids = [Sweep(**small | change).cells(20, 5)[0].cell_id for change in changes]
    assert len(set(ids)) == 4
    assert ids[0] == Sweep(**small | {"trainings": [asynchronous(1)]}).cells(20, 5)[0].cell_id


def test_a_budget_of_samples_or_epochs_gives_each_batch_size_its_iterations():
    small = VALID | {"widths": [8], "batch_sizes": [1, 3, 20], "iterations": None}
    by_samples = Sweep(**small | {"samples": 100})
    assert [cell.iterations for cell in by_samples.cells(20, 0)] == [100, 33, 5]
    by_epochs = Sweep(**small | {"epochs": 5})
    assert [cell.cell_id for cell in by_epochs.cells(20, 0)] == [cell.cell_id for cell in by_samples.cells(20, 0)]
    assert (by_samples.budget, by_epochs.budget, Sweep(**VALID).budget) == ("100 samples", "5 epochs", "10 iterations")
    adapted = Sweep(**small | {"samples": 100, "trainings": [Training(adapt_regime=True, base_batch=2)]})
    assert [cell.iterations for cell in adapted.cells(20, 0)] == [50] * 3
    early = Sweep(**small | {"samples": 100, "ntk_at": [4, 50]}).cells(20, 0)
    assert [cell.ntk_at for cell in early] == [(4, 50), (4,), (4,)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 5}, "give exactly one"),
        ({"iterations": None}, "give exactly one"),
        ({"iterations": None, "samples": 0}, "samples has 0"),
        ({"iterations": None, "epochs": -1}, "epochs has -1"),
        ({"trainings": []}, "trainings is empty"),
        ({"trainings": ["adam"]}, "use Training"),
        ({"trainings": [Training(), asynchronous(1)]}, "twice"),
        ({"trainings": [Training(adapt_regime=True, base_batch=2)]}, "give a budget of samples or epochs"),
        ({"trainings": [Training("adam")], "engine": "fused"}, "set engine='auto'"),
        (
            {"trainings": [Training(label_smoothing=0.1)]},
            "label_smoothing .* set loss='cross_entropy', or leave it out",
        ),
        ({"trainings": [Training(label_smoothing=0.1)], "loss": "m:f"}, "set loss='cross_entropy', or leave it out"),
    ],
)
def test_budgets_and_trainings_that_cannot_be_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        Sweep(**VALID | changes)


def test_code_of_the_user_is_part_of_the_identity():
    sweep = Sweep(**VALID)

    def of(code):
        return {c.cell_id for c in sweep.cells(20, 0, lambda model: code)}

    assert not of("a") & of("b")


def test_every_field_is_an_axis_or_shared_or_of_the_execution():
    names = [field.name for field in dataclasses.fields(Sweep)]
    assert sorted(names) == sorted(name for kind in (AXIS, EXECUTION, SHARED) for name in named(Sweep, kind))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a/b"}, "names a folder"),
        ({"dataset": ""}, "data set's name"),
        ({"models": []}, "models is empty"),
        ({"models": ["resnet"]}, "import path"),
        ({"models": mlp()}, "give a list"),
        ({"widths": []}, "at least one width"),
        ({"widths": [0]}, "at least 1"),
        ({"widths": [8, 8]}, "twice"),
        ({"batch_sizes": [0]}, "at least 1"),
        ({"batch_sizes": [1.5]}, "whole numbers"),
        ({"batch_sizes": [True]}, "whole numbers"),
        ({"batch_sizes": 4}, "give a list"),
        ({"stepsizes": [0.1]}, "use fixed"),
        ({"stepsizes": []}, "stepsizes is empty"),
        ({"iterations": 0}, "at least 1"),
        ({"iterations": "10"}, "whole numbers"),
        ({"seeds": 0}, "at least 1"),
        ({"seeds": [0, 0]}, "0 twice"),
        ({"n_train": 0}, "at least 1"),
        ({"preprocessing": "whiten"}, "use one of none, center"),
        ({"sampling": "shuffle"}, "use one of without_replacement"),
        ({"dtype": "bfloat16"}, "use one of float32"),
        ({"target_loss": -1.0}, "positive"),
        ({"target_loss": math.nan}, "positive"),
        ({"gpus_per_trial": -1}, "fraction"),
        ({"gpus_per_trial": 2}, "to the same number"),
        ({"gpus_per_trial": 0.5, "ranks_per_trial": 2}, "to the same number"),
        ({"ranks_per_trial": 0}, "at least 1"),
        ({"targets": [0.0]}, "positive"),
        ({"k_tolerance": 0}, "positive"),
        ({"evaluations": 1}, "at least 2"),
        ({"adaptive": 1}, "True or False"),
        ({"interval_ratio": 1.0}, "above 1"),
        ({"stepsizes": [grid(auto=True), grid([1.0], relative=True)]}, "analyzed as one"),
    ],
)
def test_bad_input_is_one_sentence_with_the_remedy(changes, words):
    with pytest.raises(InputError) as caught:
        Sweep(**VALID | changes)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_batch_above_n_is_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"powers_of_two\(3\)"):
        Sweep(**VALID).cells(3, 0)


@pytest.mark.parametrize("make", [fixed, fixed_fraction, theory])
@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, "1"])
def test_a_stepsize_is_positive_and_finite(make, value):
    with pytest.raises(InputError, match="positive, finite"):
        make(value)


def test_the_stepsizes_of_a_grid_share_its_label():
    assert {stepsize.label for stepsize in grid([0.1, 0.2])} == {"grid"}
    assert {stepsize.label for stepsize in grid([1, 2], relative=True)} == {"grid_relative"}
    assert theory(0.5).label == "theory(0.5)"


def test_an_automatic_grid_starts_at_the_theorem_and_its_cells_are_those_of_a_relative_grid():
    auto = Sweep(**VALID | {"stepsizes": [grid(auto=True)]})
    plain = Sweep(**VALID | {"stepsizes": [grid([1.0, 2**0.5, 2.0], relative=True)]})
    assert [cell.cell_id for cell in auto.cells(20, 5)] == [cell.cell_id for cell in plain.cells(20, 5)]
    assert auto.grows
    assert not plain.grows
    assert Sweep(**VALID | {"adaptive": True}).grows
    with pytest.raises(InputError, match="leave out values"):
        grid([1.0], auto=True)


@pytest.mark.parametrize(("name", "expected"), [("a:b", True), ("a.b:c", True), ("mnist", False), ("a:b:c", False)])
def test_references(name, expected):
    assert is_reference(name) is expected


def test_a_model_may_be_named_by_import_path():
    assert Sweep(**VALID | {"models": ["fashion:build"]}).models == (Model("fashion:build"),)


@pytest.mark.parametrize("bad", [{"depth": -1}, {"activation": "swish"}, {"hidden_gain": 0}, {"output_gain": "2"}])
def test_bad_options_of_the_network_are_refused(bad):
    with pytest.raises(InputError, match="mlp"):
        mlp(**bad)
