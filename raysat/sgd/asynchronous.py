"""Asynchronous SGD with p learners, simulated exactly and deterministically in one process.

A learner computes the gradient of a batch at the weights that it read last and sends it to a server, which takes the
step at once and returns the new weights. The t-th step is then

    w_{t+1} = w_t - eta g(w_{t - tau_t}; S_t),

where the staleness tau_t is the number of steps that others took between reading and writing (Lian et al. 2015). The
order in which learners arrive determines the run, so that nothing needs to run concurrently.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int64, Real
from torch import Tensor

from raysat.sgd.autograd import AutogradEngine, OverAutograd
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import uniform
from raysat.spec.training import RANDOM, ROUND_ROBIN, Staleness

PLACES = 8
"""Past weights kept for each learner if the staleness is a measured distribution. Default: 8; with p learners that
arrive at random, a fraction `(1 - 1/p)^(8p) < exp(-8)`, 0.03 %, of the gradients is staler than 8 p - 1."""


def slots(staleness: Staleness, learners: int, seed: int, start: int, steps: int) -> Int64[Tensor, "steps 2"]:
    """Return the places of stored weights that the steps `start, ..., start + steps - 1` read and overwrite by w_{t+1}.

    All places hold w_0 at first. `round_robin`: the learners arrive in turn, t mod p, so that tau_t = min(t, p - 1).
    `random`: the learner of each step is uniform among the p, so that tau is geometric with mean p - 1. With a measured
    distribution, the places are a ring of the last weights, and tau_t is drawn from that distribution, at most t and
    less than the number of `places`: larger values count as the largest one kept.

    Args:
        staleness: `round_robin`, `random`, or how often tau = 0, 1, 2, ... was measured.
        learners: p.
        seed: The trial's seed. A draw depends on seed and step alone.
        start: The first step.
        steps: How many steps.

    Example:
        >>> slots("round_robin", 2, seed=0, start=0, steps=3).tolist()
        [[0, 0], [1, 1], [0, 0]]
    """
    t = torch.arange(start, start + steps)
    if staleness == ROUND_ROBIN:
        return torch.stack([t % learners, t % learners], 1)
    draws = uniform(seed, "staleness", t)
    if staleness == RANDOM:
        learner = (draws * learners).long()
        return torch.stack([learner, learner], 1)
    kept = places(staleness, learners)
    cumulative = torch.tensor(staleness, dtype=torch.float64).cumsum(0)
    tau = torch.searchsorted(cumulative, draws * cumulative[-1], right=True).clamp(max=kept - 1)
    return torch.stack([(t - torch.minimum(tau, t)) % kept, (t + 1) % kept], 1)


def places(staleness: Staleness, learners: int) -> int:
    """Return how many past weights are kept: p, or as many as the largest measured tau needs, at most `PLACES` p."""
    return learners if isinstance(staleness, str) else min(len(staleness), PLACES * learners)


def share_beyond(staleness: tuple[float, ...], learners: int) -> float:
    """Return the fraction of measured gradients beyond what the simulation keeps; they count as the stalest kept."""
    return sum(staleness[places(staleness, learners) :]) / sum(staleness)


class AsynchronousEngine(OverAutograd):
    """A step engine whose gradients are stale.

    Besides the network it keeps `places` copies of the parameters: p, or with a measured staleness at most `PLACES` p,
    and while it runs the newest weights. With one learner its steps are those of `AutogradEngine`, bit for bit.

    Args:
        problem: Its network holds w_t, updated in place, and its transform, if any, changes the batches. Layers with
            running averages update them as gradients are computed.
        eta: Stepsize.
        learners: p.
        staleness: `round_robin`, `random`, or how often tau = 0, 1, 2, ... was measured.
        seed: The trial's seed.
        micro_batch: Samples whose gradient is computed at a time (`raysat.compute.micro_batch`). Default: all.
        bfloat16: Whether the passes are computed in bfloat16, as by `AutogradEngine`.

    Attributes:
        counts: How often each staleness 0, 1, 2, ... has occurred so far.
    """

    name = "asynchronous"
    matmul = "torch"

    def __init__(
        self,
        problem: Problem,
        eta: float,
        learners: int,
        staleness: Staleness = ROUND_ROBIN,
        seed: int = 0,
        micro_batch: int | None = None,
        *,
        bfloat16: bool = False,
    ) -> None:
        self.network, self.inner = problem.network, AutogradEngine(problem, eta, micro_batch, bfloat16=bfloat16)
        self.eta, self.learners, self.staleness, self.seed = eta, learners, staleness, seed
        self.step, self.counts = 0, torch.zeros(0, dtype=torch.int64)
        self.stale = [self._copies() for _ in range(places(staleness, learners))]
        self.read_at = [0] * len(self.stale)  # the t of the w_t in each place

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Take one step for each row of indices."""
        parameters, newest = self.inner.parameters, self._copies()
        order = slots(self.staleness, self.learners, self.seed, self.step, len(batches)).tolist()
        for batch, (read, written) in zip(batches, order, strict=True):
            with torch.no_grad():
                torch._foreach_copy_(parameters, self.stale[read])
            gradients = self.inner.gradients(batch, None, self.step)
            torch._foreach_add_(newest, gradients, alpha=-self.eta)
            torch._foreach_copy_(self.stale[written], newest)
            self._count(self.step - self.read_at[read])  # tau_t
            self.step += 1
            self.read_at[written] = self.step
        with torch.no_grad():
            torch._foreach_copy_(parameters, newest)

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state, without the network, for a checkpoint."""
        return {"step": self.step, "counts": self.counts, "read_at": self.read_at, "stale": self.stale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.step, self.counts, self.read_at = state["step"], state["counts"], list(state["read_at"])
        for place, stored in zip(self.stale, state["stale"], strict=True):
            for weight, value in zip(place, stored, strict=True):
                weight.copy_(value)

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.inner.parameters]

    def _count(self, tau: int) -> None:
        missing = max(0, tau + 1 - len(self.counts))
        self.counts = torch.cat([self.counts, self.counts.new_zeros(missing)])
        self.counts[tau] += 1


def mean_staleness(counts: Real[Tensor, " k"]) -> float:
    """Return the mean of tau, given how often 0, 1, 2, ... occurred; 0 if nothing did."""
    total = counts.sum().item()
    return (counts * torch.arange(len(counts))).sum().item() / total if total else 0.0
