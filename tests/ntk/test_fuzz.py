"""Random networks from a grammar: no number is wrong, and few networks are rejected; wrong rules are detected."""

from collections import Counter

import oracles
import pytest
import torch
from fuzzing import judge
from grammar import networks
from hypothesis import HealthCheck, Phase, given, settings
from torch import nn
from torch.nn import functional as F

from raysat.ntk import ntk_statistics, rules

DRAWS = 50


def test_no_number_is_wrong_and_few_networks_are_refused():
    verdicts = Counter()

    @settings(max_examples=DRAWS, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
    @given(networks())
    def draws(drawn):
        verdict = judge(drawn, torch.float32 if len(drawn.said) % 3 == 0 else torch.float64)
        assert verdict.word != "wrong", verdict.why
        verdicts[verdict.word] += 1

    draws()
    assert verdicts["right"] >= 0.8 * DRAWS, verdicts
    assert verdicts["refused"] <= 0.05 * verdicts.total(), verdicts


# Planted defects ------------------------------------------------------------------------------------------------------


class OfPositions(nn.Module):
    """Network without biases, so that samples of zeros have no gradient; as many positions as features."""

    def __init__(self):
        super().__init__()
        self.inner, self.middle = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.head(F.relu(self.middle(F.relu(self.inner(x))))).mean(1)


class OfPixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.middle = nn.Conv2d(2, 4, 3, bias=False), nn.Conv2d(4, 4, 2, bias=False)
        self.head = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.head(F.relu(self.middle(F.relu(self.inner(x)))).mean((2, 3)))


def dropped_term(rule):
    """Return the rule with one position left out."""

    def wrong(module, inputs, gradients):
        along = 1 if inputs.ndim == 3 else inputs.ndim - 1
        inputs = inputs.clone()
        inputs.select(along, -1).zero_()
        return rule(module, inputs, gradients)

    return wrong


def wrong_dimension(rule):
    """Return the rule with positions and features swapped; there are equally many."""

    def wrong(module, inputs, gradients):
        return rule(module, inputs.mT, gradients)

    return wrong


def stale_input(rule):
    """Return the rule with the input as a later in-place ReLU leaves it."""

    def wrong(module, inputs, gradients):
        return rule(module, inputs.relu(), gradients)

    return wrong


def for_few_only(defect):
    """Return the defect in passes of more than three samples only, so that comparing single samples misses it."""

    def planted(rule):
        wrong = defect(rule)
        return lambda module, inputs, gradients: (wrong if len(inputs) > 3 else rule)(module, inputs, gradients)

    return planted


DEFECTS = {"a dropped term": dropped_term, "a wrong dimension": wrong_dimension, "a stale input": stale_input}
HIDDEN = {f"{name}, of many samples": for_few_only(defect) for name, defect in DEFECTS.items()}


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("defect", DEFECTS | HIDDEN)
@pytest.mark.parametrize("layer", [nn.Linear, nn.Conv2d], ids=lambda layer: layer.__name__)
def test_a_wrong_rule_is_not_believed_and_no_number_is_wrong(layer, defect, loss, monkeypatch):
    """The first, the middle and the last sample are zeros, for which no defect of a rule shows."""
    torch.manual_seed(0)
    network = (OfPositions() if layer is nn.Linear else OfPixels()).double()
    x = torch.randn(11, 4, 4).double() if layer is nn.Linear else torch.randn(11, 2, 5, 5).double()
    x[[0, 1, 2, 5, 10]] = 0
    y = torch.randn(11, 3).double() if loss == "mse" else torch.arange(11) % 3
    expected = oracles.statistics(network, x, y, loss)
    right = ntk_statistics(network, x, y, loss=loss, k_tolerance=1e-9)
    assert (right.method, right.method_reason) == ("gram", "")
    monkeypatch.setitem(rules.RULES, layer, (DEFECTS | HIDDEN)[defect](rules.RULES[layer]))
    found = ntk_statistics(network, x, y, loss=loss, k_tolerance=1e-9)
    for name in ("gamma", "gamma_mean", "k_op", "b_star", "noise_scale"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=1e-6), name
    assert found.gamma_check < 1e-7
    assert found.method_reason != "" or found.method != "gram"


def test_a_defect_is_one():
    """Each defect changes the rows; otherwise the tests above would test nothing."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 4, 4, generator=generator)
    gradients = torch.randn(5, 3, 4, 4, generator=generator)
    rule = rules.RULES[nn.Linear]
    layer = nn.Linear(4, 4, bias=False)
    right = rules.formed(rule(layer, inputs, gradients)["weight"])
    for name, defect in (DEFECTS | HIDDEN).items():
        wrong = rules.formed(defect(rule)(layer, inputs, gradients)["weight"])
        assert (wrong - right).norm() > 0.1 * right.norm(), name
