import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from raysat.errors import InputError, NoStatistics
from raysat.losses import LOSSES, Custom, hits, resolve
from raysat.losses import custom as custom_module


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def huber(outputs, y):
    return F.huber_loss(outputs, y, reduction="none").sum(-1)


def binary(outputs, y):
    return F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(-1)


def labelled(outputs, y):
    return F.cross_entropy(outputs, y, reduction="none", label_smoothing=0.1)


def heteroscedastic(outputs, y):
    """The negative log-likelihood of a mean and a log variance: not convex in the two."""
    mean, log_variance = outputs.unbind(-1)
    return (log_variance + (mean - y[:, 0]).square() * (-log_variance).exp()) / 2


CROSS, SQUARED = LOSSES["cross_entropy"], LOSSES["mse"]
TOKENS = double(4, 3, 5), torch.randint(5, (4, 3))
LABELS = double(4, 5), torch.randint(5, (4,))
CLASSES = double(4, 5), torch.eye(5, dtype=torch.float64)[torch.randint(5, (4,))]
WEIGHTED = double(4, 5), CLASSES[1] * torch.tensor([1, 2, 10, 0.5, 3.0], dtype=torch.float64)
SEVERAL = double(4, 5), torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1.0]]).double()
MASKED = double(4, 3, 5), (torch.rand(4, 3, 5) * (torch.rand(4, 3, 1) > 0.4)).double()
NUMBERS = double(4, 5), double(4, 5)
CASES = {
    "tokens": (CROSS, *TOKENS),
    "labels": (CROSS, *LABELS),
    "one_hot": (CROSS, *CLASSES),
    "weighted": (CROSS, *WEIGHTED),
    "several": (CROSS, *SEVERAL),
    "masked": (CROSS, *MASKED),
    "squared": (SQUARED, *NUMBERS),
    "huber": (resolve(huber), *NUMBERS),
    "binary": (resolve(binary), double(4, 1), torch.tensor([[0], [1], [1], [0.0]]).double()),
    "own labels": (resolve(labelled), *LABELS),
}
ALL = pytest.mark.parametrize(("loss", "outputs", "y"), CASES.values(), ids=CASES)


def one(loss, outputs, y):
    """The loss of one sample, as plainly as possible."""
    if loss is SQUARED:
        return sum((f - t) ** 2 for f, t in zip(outputs, y, strict=True)) / 2
    if isinstance(loss, Custom):
        return loss.function(outputs[None], y[None])[0]
    positions = outputs.view(-1, outputs.shape[-1])
    rows = y.view(-1, y.shape[-1]) if y.is_floating_point() else torch.eye(outputs.shape[-1]).double()[y.flatten()]
    logs = torch.stack([torch.log(f.exp() / f.exp().sum()) for f in positions])
    return -sum(w * log for w, log in zip(rows.flatten(), logs.flatten(), strict=True)) / len(positions)


@ALL
def test_the_total_is_the_sum_over_the_samples(loss, outputs, y):
    torch.testing.assert_close(loss.total(outputs, y), sum(one(loss, f, t) for f, t in zip(outputs, y, strict=True)))


@pytest.mark.parametrize("case", ["tokens", "labels", "one_hot"])
def test_the_cross_entropy_is_pytorchs(case):
    loss, outputs, y = CASES[case]
    flat = (outputs.mT, y) if case == "tokens" else (outputs, y)
    torch.testing.assert_close(
        loss.total(outputs, y), F.cross_entropy(*flat, reduction="sum") / outputs[0, ..., 0].numel()
    )


@ALL
def test_the_residual_is_the_gradient(loss, outputs, y):
    for f, t, found in zip(outputs, y, loss.residual(outputs, y), strict=True):
        at = f.clone().requires_grad_()
        (expected,) = torch.autograd.grad(one(loss, at, t), at)
        torch.testing.assert_close(found, expected)


@ALL
def test_the_factor_is_one_of_the_hessian(loss, outputs, y):
    """S S^T is the Hessian of each sample's loss in its outputs, and `factor_transposed` is the transpose."""
    size = outputs[0].numel()
    for f, t in zip(outputs, y, strict=True):
        hessian = torch.autograd.functional.hessian(lambda z, t=t: one(loss, z, t), f).reshape(size, size)
        columns = torch.eye(size, dtype=torch.float64).view(size, *f.shape)
        here, there = f.expand(size, *f.shape), t.expand(size, *t.shape)
        s = loss.factor(here, there, columns).reshape(size, size).T
        torch.testing.assert_close(s @ s.T, hessian)
        torch.testing.assert_close(loss.factor_transposed(here, there, columns).reshape(size, size), s)


@ALL
def test_several_u_may_be_given_at_once(loss, outputs, y):
    u = double(2, 3, *outputs.shape)
    for product in (loss.factor, loss.factor_transposed):
        for k in range(2):
            for j in range(3):
                torch.testing.assert_close(product(outputs, y, u)[k, j], product(outputs, y, u[k, j]))


@pytest.mark.parametrize("case", ["tokens", "one_hot", "squared"])
def test_without_targets_each_row_weighs_1(case):
    loss, outputs, y = CASES[case]
    u = torch.randn_like(outputs)
    torch.testing.assert_close(loss.factor(outputs, None, u), loss.factor(outputs, y, u))
    torch.testing.assert_close(loss.factor_transposed(outputs, None, u), loss.factor_transposed(outputs, y, u))


@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from([(), (3,)]))
def test_the_hessian_is_linear_in_the_row_of_weights(seed, classes, positions):
    generator = torch.Generator().manual_seed(seed)
    outputs, rows, u = (torch.randn(3, *positions, classes, generator=generator).double() for _ in range(3))
    rows = rows.abs()

    def hessian_times_u(y):
        return CROSS.factor(outputs, y, CROSS.factor_transposed(outputs, y, u))

    parts = [hessian_times_u(rows * torch.eye(classes).double()[c]) for c in range(classes)]
    torch.testing.assert_close(hessian_times_u(rows), sum(parts))


def test_hits():
    outputs = torch.tensor([[[2.0, 1], [0, 1]], [[0, 1], [0, 1]]])
    assert hits(outputs, torch.tensor([[0, 0], [1, 1]])).item() == 0.5 + 1
    assert hits(outputs, torch.eye(2)[torch.tensor([[0, 0], [1, 1]])]).item() == 0.5 + 1
    assert hits(outputs[0], torch.eye(2)).item() == 2
    assert hits(outputs[0], torch.tensor([0, 0])).item() == 1


def test_of_several_classes_any_of_the_largest_is_right_and_equal_rows_name_none():
    outputs = torch.tensor([[3.0, 2, 1]]).expand(5, 3)
    rows = torch.tensor([[1.0, 1, 0], [0, 1, 1], [0, 0, 0], [0.9, 0.05, 0.05], [0.1, 10, 0.1]])
    found = [hits(outputs[k : k + 1], rows[k : k + 1]).item() for k in range(5)]
    assert found == [1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("threshold", "y", "right"),
    [(0.0, [-1.0, -1, 1, 1], 2), (0.5, [0.0, 0, 1, 1], 3), (0.0, [0.0, 0, 1, 1], 2)],
)
def test_one_output_is_cut_at_the_threshold(threshold, y, right):
    outputs = torch.tensor([[0.2], [-3.0], [0.7], [-0.4]])
    assert hits(outputs, torch.tensor(y)[:, None], threshold).item() == right


# Losses by name, and of one's own


def test_losses_are_found_by_name_path_or_function(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text("def absolute(outputs, y):\n    return (outputs - y).abs().sum(-1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("mse") is SQUARED
    assert resolve(CROSS) is CROSS
    assert resolve(huber).name == "huber"
    found = resolve("my_losses:absolute")
    assert found.name == "my_losses:absolute"
    assert found.total(torch.tensor([[1.0, -2], [0, 3]]), torch.zeros(2, 2)).item() == 6


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("hinge", "'hinge': use one of mse, cross_entropy, or 'module:function'"),
        (3, "loss=3"),
        ("my_missing:f", "put my_missing.py next to"),
    ],
)
def test_what_is_no_loss_is_refused(loss, words):
    with pytest.raises(InputError, match=words):
        resolve(loss)


def mean(outputs, y):
    return (outputs - y).square().mean()


def columns(outputs, y):
    return (outputs - y).square()


def number(outputs, y):
    return 1.0


def mixing(outputs, y):
    return ((outputs - outputs.mean(0)) - y).square().sum(-1)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (mean, r"'mean' returns shape \[\] for 4 samples: return one loss for each"),
        (columns, r"returns shape \[4, 5\] for 4 samples"),
        (number, "returns float for 4 samples"),
        (mixing, "a sample another loss alone .* its own outputs"),
    ],
)
def test_a_function_that_gives_no_loss_of_each_sample_is_refused(function, words):
    with pytest.raises(InputError, match=words):
        resolve(function).check(*NUMBERS)


@ALL
def test_what_gives_one_passes(loss, outputs, y):
    loss.check(outputs, y)
    assert math.isfinite(loss.total(outputs, y))


def test_a_loss_that_is_not_convex_has_no_factor():
    outputs, y = torch.tensor([[0.0, 0], [3, 0]], dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    loss = resolve(heteroscedastic)
    with pytest.raises(NoStatistics, match=r"'heteroscedastic' is not convex in the outputs .* fixed"):
        loss.factor(outputs, y, torch.ones_like(outputs))
    # at the mean it is convex: its Hessian is diagonal, 1 and (f - y)^2 / 2 e^-s
    found = loss.factor(outputs[:1], y[:1], torch.ones(1, 2, dtype=torch.float64))
    assert found.norm().item() == pytest.approx(1)

    def alone(f, t):
        return loss.factor(f[None], t[None], torch.ones(1, 2, dtype=torch.float64))[0]

    under_vmap = torch.func.vmap(alone)(outputs, y)  # where nothing can be raised, it is no number
    assert under_vmap[0].norm().item() == pytest.approx(1)
    assert under_vmap[1].isnan().all()


@pytest.mark.parametrize("function", [huber, binary])
def test_factors_are_the_same_under_transforms_and_in_inference_mode(function):
    loss, outputs = resolve(function), double(6, 3)
    y, u = torch.rand(6, 3).double(), double(6, 3)
    expected = loss.factor(outputs, y, u)
    with torch.no_grad():
        alone = torch.func.vmap(lambda f, t, v: loss.factor(f[None], t[None], v[None])[0])(outputs, y, u)
    torch.testing.assert_close(alone, expected)
    with torch.inference_mode():
        torch.testing.assert_close(loss.residual(outputs + 0, y + 0), loss.residual(outputs, y))
        torch.testing.assert_close(loss.factor(outputs + 0, y + 0, u), expected)


def test_many_hessians_are_taken_in_parts(monkeypatch):
    outputs, y, u = double(7, 3), double(7, 3), double(7, 3)
    whole = resolve(huber).factor(outputs, y, u)
    monkeypatch.setattr(custom_module, "AT_ONCE", 2 * 9)
    assert torch.equal(resolve(huber).factor(outputs, y, u), whole)


def test_the_hessian_is_taken_in_double_precision():
    """An eigenvalue of 1e-9 beside one of 1 is not noise."""

    def skewed(outputs, y):
        return (outputs * torch.tensor([1.0, 1e-9])).square().sum(-1).div(2)

    found = resolve(skewed).factor(torch.ones(1, 2), torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))
    assert sorted(found[0].abs().tolist()) == pytest.approx([1e-9, 1], rel=1e-4)


@pytest.mark.parametrize(
    ("y", "size", "words"), [(None, 3, "give y"), (double(2, 300), 300, "300 outputs a sample.*at most 256")]
)
def test_statistics_that_a_loss_cannot_have_are_refused(y, size, words):
    with pytest.raises(NoStatistics, match=words):
        resolve(huber).factor(double(2, size), y, double(2, size))
