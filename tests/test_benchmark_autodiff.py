"""The benchmark of ways to a Jacobian tells right, wrong and missing apart, where it is known which."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import Function

FOLDER = Path(__file__).parents[1] / "benchmarks"
WAYS = ("vmap(jacrev)", "vmap(jacfwd)", "double reverse", "forward mode")


@pytest.fixture(scope="module")
def autodiff():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import autodiff

        yield autodiff


class Cube(Function):
    """Right in every way; its children each break one rule."""

    @staticmethod
    def forward(h):
        return h**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g

    @staticmethod
    def jvp(ctx, t):
        return 3 * ctx.saved_tensors[0] ** 2 * t

    @classmethod
    def vmap(cls, info, in_dims, h):
        return cls.apply(h), in_dims[0]


class WrongForward(Cube):
    @staticmethod
    def jvp(ctx, t):
        return 3 * ctx.saved_tensors[0] ** 2 * t * (1 + 1e-6)


class WrongForFour(Cube):
    @staticmethod
    def jvp(ctx, t):
        return 3 * ctx.saved_tensors[0] ** 2 * t.roll(int(len(t) == 4), 0)


class WrongVmap(Cube):
    @classmethod
    def vmap(cls, info, in_dims, h):
        return 2 * cls.apply(h), in_dims[0]


class NoForward(Cube):
    @staticmethod
    def jvp(ctx, t):
        raise NotImplementedError("no forward mode\nhere")


class WrongBackward(Cube):
    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] ** 2 * g


class Opaque(Function):
    """A backward whose graph is lost, without a word."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0].data ** 2 * g.data


def cells(autodiff, build, shape=(3,), **options):
    return autodiff.evaluate(autodiff.Case("made", build, shape, **options))


def words(found):
    return {name: str(cell) for name, cell in found.items()}


@pytest.mark.parametrize(
    "build", [lambda: nn.Linear(3, 2), lambda: Cube.apply, lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh())]
)
def test_what_is_right_in_every_way_is_called_right(autodiff, build):
    assert words(cells(autodiff, build)) == dict.fromkeys(("plain autograd", *WAYS), "right")
    assert torch.get_default_dtype() == torch.float32


def test_a_wrong_rule_for_forward_mode_is_seen_where_it_is_used(autodiff):
    found = words(cells(autodiff, lambda: WrongForward.apply))
    assert found == {
        "plain autograd": "right",
        "vmap(jacrev)": "right",
        "vmap(jacfwd)": "wrong",
        "double reverse": "right",
        "forward mode": "wrong",
    }


def test_what_is_wrong_at_one_batch_size_only_is_found_where_a_dimension_has_it(autodiff):
    assert words(cells(autodiff, lambda: WrongForFour.apply, (4,)))["forward mode"] == "wrong at n = 4"
    assert words(cells(autodiff, lambda: WrongForFour.apply, (3,)))["forward mode"] == "right"


def test_a_wrong_value_under_vmap_is_found_inside_a_network_only(autodiff):
    found = words(cells(autodiff, lambda: WrongVmap.apply))
    assert found["vmap(jacrev)"] == found["vmap(jacfwd)"] == "wrong inside at n = 1, 2, 3, 7"
    assert {found["plain autograd"], found["double reverse"], found["forward mode"]} == {"right"}


def test_what_raises_is_missing_with_the_first_line_of_its_error(autodiff):
    found = cells(autodiff, lambda: NoForward.apply)
    assert str(found["forward mode"]) == str(found["vmap(jacfwd)"]) == "missing"
    assert found["forward mode"].error == "NotImplementedError: no forward mode"
    assert str(found["double reverse"]) == str(found["vmap(jacrev)"]) == "right"


def test_a_backward_without_a_graph_is_missing_alone_and_wrong_beside_another_path(autodiff):
    assert str(cells(autodiff, lambda: Opaque.apply)["double reverse"]) == "missing"
    assert str(cells(autodiff, lambda: lambda h: h + Opaque.apply(h))["double reverse"]) == "wrong"


def test_where_plain_autograd_is_wrong_the_ways_are_held_to_differences(autodiff):
    found = words(cells(autodiff, lambda: WrongBackward.apply))
    assert found["plain autograd"] == found["vmap(jacrev)"] == found["double reverse"] == "wrong"
    assert found["forward mode"] == found["vmap(jacfwd)"] == "right"


def test_what_is_held_constant_is_judged_by_plain_autograd(autodiff):
    def build():
        return lambda h: h * h.detach()

    assert str(cells(autodiff, build)["plain autograd"]) == "wrong"
    assert set(words(cells(autodiff, build, stops=True)).values()) == {"right"}


def test_a_case_that_does_not_depend_on_its_parameters_is_refused(autodiff):
    with pytest.raises(ValueError, match="made does not depend"):
        cells(autodiff, lambda: torch.ones_like)


def test_cases_apart_do_not_end_the_run(autodiff):
    cases = [
        autodiff.Case("right", lambda: nn.Linear(3, 2), (3,)),
        autodiff.Case("dies", lambda: lambda h: os._exit(3), (3,)),
        autodiff.Case("raises", lambda: lambda h: h.no_such_method(), (3,)),
    ]
    rows = autodiff.evaluate_apart(cases)
    assert list(rows) == ["right", "dies", "raises"]
    assert words(rows["right"]) == dict.fromkeys(("plain autograd", *WAYS), "right")
    assert rows["dies"]["plain autograd"].error == "the process ended with 3"
    assert rows["raises"]["forward mode"].error == "AttributeError: 'Tensor' object has no attribute 'no_such_method'"
    assert "dies" in autodiff.table(rows)
    assert autodiff.summary(rows).splitlines()[1].split() == ["plain", "autograd", "1", "0", "2"]


def test_cases_are_many_and_each_is_of_single_samples(autodiff):
    names = [case.name for case in autodiff.CASES]
    assert len(set(names)) == len(names) >= 120
    before, mixing = torch.get_default_dtype(), []
    torch.set_default_dtype(torch.float64)
    try:
        for case in autodiff.CASES:
            for position, network, x in autodiff.networks(case):
                together = network(x[:3])
                if not torch.allclose(together, torch.cat([network(x[k : k + 1]) for k in range(3)]), atol=1e-12):
                    mixing.append((case.name, position))
    finally:
        torch.set_default_dtype(before)
    assert mixing == []


def test_the_command_prints_the_table_and_the_counts():
    command = [sys.executable, str(FOLDER / "autodiff.py"), "--only", "Linear, no bias", "branch on", "--markdown"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| Linear, no bias | right | right | right | right | right |" in printed
    assert "- branch on values: `RuntimeError: " in printed
    assert f"2 cases, torch {torch.__version__}:" in printed
    assert "| vmap(jacrev) | 1 | 0 | 1 |" in printed
