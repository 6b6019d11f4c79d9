"""Targets and losses as users bring them: looked at, counted, and their statistics against dense references."""

import math

import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysat import ntk_statistics
from raysat.data import Dataset
from raysat.data.loading import _subset
from raysat.errors import InputError, NoStatistics
from raysat.losses import LOSSES, as_targets, resolve
from raysat.sgd.evaluate import evaluate

CROSS, SQUARED = LOSSES["cross_entropy"], LOSSES["mse"]
N, INPUTS, C = 12, 4, 3


def network_of(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 8), nn.Tanh(), nn.Linear(8, C)).to(dtype)


def inputs(dtype=torch.float64):
    return torch.randn(N, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


LABELS = torch.arange(N) % C
HOT = torch.eye(C, dtype=torch.float64)[LABELS]
SEVERAL = (torch.rand(N, C, generator=torch.Generator().manual_seed(2)) > 0.4).double()


# Targets, looked at


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type_are_labels(dtype):
    found = as_targets(LABELS.to(dtype), (N, C), CROSS)
    assert found.dtype == torch.int64
    assert torch.equal(found, LABELS)
    assert torch.equal(as_targets(LABELS.to(dtype).view(4, 3), (4, 3, C), CROSS), LABELS.view(4, 3))
    assert torch.equal(Dataset(inputs(), LABELS.to(dtype)).y, LABELS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("loss", [CROSS, SQUARED])
def test_numbers_get_the_type_of_the_outputs(loss, dtype):
    found = as_targets(HOT / 3, (N, C), loss, dtype)
    assert found.dtype == dtype
    assert torch.equal(found, (HOT / 3).to(dtype))


NAN = torch.full((N, C), math.nan)
SEQUENCE = (4, 6, C)


@pytest.mark.parametrize(
    ("loss", "y", "shape", "words"),
    [
        (CROSS, LABELS + 1, (N, C), "labels from 1 to 3 for 3 classes, which are 0 to 2: give y - 1"),
        (CROSS, torch.where(LABELS == 2, -100, LABELS), (N, C), "labels from -100 to 1 .* rows? of zeros"),
        (CROSS, LABELS * 3, (N, C), "return 7 outputs, or number"),
        (CROSS, LABELS[:, None], (N, C), r"y has shape \[12, 1\].*give y.squeeze\(-1\)"),
        (CROSS, LABELS.double(), (N, C), r"y.long\(\) for labels"),
        (CROSS, HOT, (N, C + 1), r"give a weight for each output"),
        (CROSS, HOT - 0.5, (N, C), "negative entry -0.5.*at least 0"),
        (CROSS, NAN, (N, C), "not finite: remove or replace"),
        (CROSS, HOT / 0, (N, C), "not finite"),
        (CROSS, LABELS[:4], SEQUENCE, r"return \[n, C\], or give a label for each position"),
        (CROSS, torch.zeros(4, 3).long(), SEQUENCE, "classes last"),
        (CROSS, torch.zeros(4, 5).long(), SEQUENCE, r"give labels of shape \[4, 6\]"),
        (CROSS, LABELS * 0, (N, 1), "single class is 0 .* an output for each class"),
        (CROSS, HOT.bool(), (N, C), r"y is of torch.bool: give y.float\(\)"),
        (SQUARED, LABELS, (N, C), r"give one_hot\(y, 3\).float\(\) for classes, y.float\(\) for numbers"),
        (SQUARED, HOT[:, 0], (N, 1), r"y has shape \[12\].*give y\[:, None\]"),
        (SQUARED, HOT, (N, 2), "make them agree"),
        (SQUARED, NAN, (N, C), "not finite"),
        (SQUARED, 1e300 * HOT, (N, C), "torch.float32 cannot hold: scale"),
        (SQUARED, HOT[:5], (N, C), "there are 12 samples: give a target for each"),
        (SQUARED, torch.tensor(1.0), (N, C), "give a target for each"),
        (resolve(F.cosine_similarity), NAN, (N, C), "not finite"),
    ],
)
def test_targets_that_cannot_be_used_are_refused_in_a_sentence(loss, y, shape, words):
    with pytest.raises(InputError, match=words) as caught:
        as_targets(y, shape, loss, torch.float32)
    assert ": " in str(caught.value)
    assert str(caught.value).endswith(".")


# Statistics


def agree(found, expected, rtol=1e-6):
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=rtol), name


ROWS = {
    "one-hot": HOT,
    "smoothed": HOT * 0.9 + 0.1 / C,
    "class weights": HOT * torch.tensor([1.0, 2, 10], dtype=torch.float64),
    "sample weights": HOT * torch.linspace(0, 2, N, dtype=torch.float64)[:, None],
    "several classes": SEVERAL,
    "one class missing": torch.eye(C, dtype=torch.float64)[LABELS % 2],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_statistics_of_the_cross_entropy_are_those_of_its_rows(rows):
    network, x = network_of(), inputs()
    found = ntk_statistics(network, x, rows, loss="cross_entropy", k_tolerance=1e-9)
    agree(found, oracles.statistics(network, x, rows, "cross_entropy"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_statistics_of_labels_are_those_of_their_rows(dtype):
    network, x = network_of(), inputs()
    found = ntk_statistics(network, x, LABELS.to(dtype), loss="cross_entropy", k_tolerance=1e-9)
    agree(found, oracles.statistics(network, x, HOT, "cross_entropy"))


def test_statistics_with_masked_positions_are_those_of_their_rows():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).double()
    x = torch.randint(5, (6, 3))
    rows = torch.eye(5, dtype=torch.float64)[torch.randint(5, (6, 3))] * (torch.rand(6, 3, 1) > 0.5)
    found = ntk_statistics(network, x, rows, loss="cross_entropy", k_tolerance=1e-9)
    expected = oracles.statistics(network, x, rows, "cross_entropy")
    agree(found, {name: expected[name] for name in ("gamma", "k_op", "noise_scale", "loss_init")})


def binary(outputs, y):
    return F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(-1)


def log_cosh(outputs, y):
    return (outputs - y).cosh().log().sum(-1)


@pytest.mark.parametrize(("function", "y"), [(binary, SEVERAL), (log_cosh, HOT - 0.2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_of_a_loss_of_ones_own(function, y, dtype):
    network, x = network_of(), inputs()
    expected = oracles.statistics(network, x, y, lambda outputs, target: function(outputs[None], target[None])[0])
    close = 1e-6 if dtype == torch.float64 else 2e-4
    found = ntk_statistics(network.to(dtype), x.to(dtype), y, loss=function, k_tolerance=1e-9 if close < 1e-4 else 1e-5)
    agree(found, expected, close)


def test_a_loss_of_ones_own_that_is_the_cross_entropy_has_its_statistics():
    network, x = network_of(), inputs()

    def own(outputs, y):
        return F.cross_entropy(outputs, y, reduction="none")

    options = {"k_tolerance": 1e-9, "spectrum": 8}
    one, other = (ntk_statistics(network, x, LABELS, loss=loss, **options) for loss in (own, "cross_entropy"))
    for name in ("gamma", "gamma_mean", "gamma_frobenius", "k_op", "noise_scale", "loss_init"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-6), name


def test_a_loss_that_is_not_convex_has_no_statistics():
    def welsch(outputs, y):
        return 1 - (-(outputs - y).square().sum(-1)).exp()

    with pytest.raises(NoStatistics, match=r"'welsch' is not convex .* fixed\(\) or grid\(\)"):
        ntk_statistics(network_of(), inputs(), 3 * HOT, loss=welsch)


# Outputs, vocabulary and thresholds


IDS = torch.randint(7, (N, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("fields", "outputs", "classes"),
    [
        ({"x": IDS, "y": LABELS, "vocabulary": 7}, 3, True),
        ({"x": IDS, "y": LABELS, "vocabulary": 7, "outputs": 4}, 4, True),
        ({"x": IDS, "y": HOT, "vocabulary": 7}, 3, True),
        ({"x": IDS, "y": IDS, "vocabulary": 7}, 7, True),
        ({"x": IDS, "y": IDS % 4, "vocabulary": 7, "outputs": 4}, 4, True),
        ({"x": inputs(), "y": LABELS}, 3, True),
        ({"x": inputs(), "y": LABELS.view(N, 1).expand(N, 2)}, 3, True),
        ({"x": inputs(), "y": LABELS, "x_test": inputs(), "y_test": LABELS + 2}, 5, True),
        ({"x": inputs(), "y": 2 * SEVERAL, "classes": True}, 3, True),
        ({"x": inputs(), "y": HOT.view(4, 3, 3).repeat(3, 1, 1), "classes": True}, 3, True),
        ({"x": inputs(), "y": HOT[:, :1], "outputs": 2}, 2, False),
    ],
)
def test_outputs_are_counted_or_said(fields, outputs, classes):
    data = Dataset(**fields)
    assert (data.outputs, data.classes) == (outputs, classes)
    assert _subset("own", data, 2, None).outputs == outputs  # though two samples have fewer classes


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"x": IDS, "y": IDS[:, :3], "vocabulary": 7}, r"one label for each token, or one for each sample, \[n\]"),
        ({"x": IDS[:, 0][:, None, None], "y": LABELS, "vocabulary": 7}, r"give tokens as \[n, L\]"),
        ({"x": IDS, "y": IDS % 4, "vocabulary": 7, "outputs": 3}, "labels from 0 to 3 for 3 classes"),
        ({"x": inputs(), "y": LABELS + 1}, r"by y - 1, or give outputs="),
        ({"x": inputs(), "y": torch.where(LABELS == 0, -100, LABELS)}, "from -100 to 2 .* zeros"),
    ],
)
def test_labels_that_do_not_fit_are_refused(fields, words):
    with pytest.raises(InputError, match=words):
        Dataset(**fields)


@pytest.mark.parametrize(("low", "high", "threshold"), [(-1.0, 1.0, 0.0), (0.0, 1.0, 0.5), (2.0, 5.0, 3.5)])
def test_one_output_of_classes_has_a_threshold(low, high, threshold):
    y = torch.where(LABELS == 0, low, high).double()[:, None]
    data = Dataset(inputs(), y, classes=True)
    assert data.threshold == threshold
    first = _subset("own", data, 1, None)  # of one class alone
    assert (first.threshold, first.n) == (threshold, 1)
    network = nn.Linear(INPUTS, 1).double()
    outputs = network(inputs())
    found = evaluate(network, data.x, data.y, SQUARED, classes=data.classes, threshold=data.threshold, chunk=5)
    right = [(f.item() > threshold) == (t.item() == high) for f, t in zip(outputs, y, strict=True)]
    assert found.accuracy == sum(right) / N
    assert 0 < found.accuracy < 1
