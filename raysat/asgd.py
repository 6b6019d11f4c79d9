"""Real asynchronous SGD: a parameter server and p learners as Ray actors, whose staleness goes into the simulation.

    $ python -m raysat.asgd sweeps/asgd.py --learners 4     the sweep's first cell, compared with five simulated runs

A learner sends its gradient and receives the newest weights in one call. The server takes the step at once, so that a
gradient's staleness is the number of steps by others since its learner read. A learner that dies is restarted; its
gradient is lost, and the others do not wait for it. Only weights are exchanged: networks with batch normalization,
whose running averages are not weights, are refused.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from raysat.compute.micro_batch import couples_samples
from raysat.data import Dataset
from raysat.driver import sweepfile
from raysat.driver.plan import plan
from raysat.errors import InputError, whole
from raysat.executor import OnRay, with_server
from raysat.losses import resolve
from raysat.messages.command import command, program
from raysat.messages.terminal import Terminal
from raysat.saturation.intervals import student_t
from raysat.sgd.asynchronous import AsynchronousEngine, mean_staleness, places, share_beyond
from raysat.sgd.autograd import AutogradEngine
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import Batches, batches
from raysat.sgd.schedule import evaluation_iterations
from raysat.sgd.transform import transform_of
from raysat.spec.cells import Cell
from raysat.spec.training import PLAIN
from raysat.storage.files import Location, location, write_aside
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job, micro_batch_of, prepare
from raysat.trial.measurements import Evaluator
from raysat.trial.train import stepsize_and_beta

SIMULATED = 5
"""Simulated runs for comparison with a real one. Default: 5; their spread gives the interval of one more."""

Curve = list[dict[str, float]]


class Server:
    """The parameter server: holds w_t, takes a step for each gradient that arrives, and counts its staleness.

    Args:
        weights: w_0, a tensor for each trained parameter.
        eta: Stepsize.
        iterations: T, after which learners stop.
        keep_at: Iterations whose weights are kept.
    """

    def __init__(self, weights: Sequence[Tensor], eta: float, iterations: int, keep_at: Sequence[int]) -> None:
        self.weights = [weight.detach().clone() for weight in weights]
        self.eta, self.iterations, self.keep_at = eta, iterations, set(keep_at)
        self.t = self.issued = 0
        self.counts: dict[int, int] = {}
        self.kept = {0: [weight.clone() for weight in self.weights]} if 0 in self.keep_at else {}

    def exchange(
        self, read_at: int = 0, gradients: Sequence[Tensor] | None = None
    ) -> tuple[int, int, list[Tensor]] | None:
        """Take a gradient, if any, and return the next task.

        Args:
            read_at: The t of the weights at which the gradient was taken.
            gradients: A tensor for each parameter; None from a learner that has just started.

        Returns:
            t, the number of the batch to use (each is given out once), and w_t; None after T steps.
        """
        if gradients is not None and self.t < self.iterations:
            torch._foreach_add_(
                self.weights, [g.to(w) for g, w in zip(gradients, self.weights, strict=True)], alpha=-self.eta
            )
            self.counts[self.t - read_at] = self.counts.get(self.t - read_at, 0) + 1
            self.t += 1
            if self.t in self.keep_at:
                self.kept[self.t] = [weight.clone() for weight in self.weights]
        if self.t >= self.iterations:
            return None
        self.issued += 1
        return self.t, self.issued - 1, [weight.clone() for weight in self.weights]

    def result(self) -> tuple[dict[int, list[Tensor]], list[int]]:
        """Return the weights that were kept, and how often a staleness of 0, 1, 2, ... occurred."""
        return self.kept, [self.counts.get(tau, 0) for tau in range(max(self.counts, default=-1) + 1)]


class Learner:
    """One learner: computes gradients at the weights it receives, until the server has no more tasks.

    Args:
        job: The cell.
    """

    def __init__(self, job: Job) -> None:
        cell, init = job.trained_cell, job.init
        dataset, self.network, device = prepare(job)
        micro_batch = micro_batch_of(job, dataset, self.network)
        self.engine = AutogradEngine(_problem(job, dataset, self.network, init.seed), 0.0, micro_batch)
        self.batches = Batches(init.seed, cell.iterations, cell.batch_size, init.n, cell.sampling, str(device))

    def gradients(self, number: int, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient of batch `number` at some weights, on the CPU."""
        _put(self.network, weights)
        (batch,) = self.batches.take(number, 1)
        return [gradient.cpu() for gradient in self.engine.gradients(batch, step=number)]

    def work(self, exchange: Callable[..., Any]) -> None:
        """Compute gradients until there is no further task.

        Args:
            exchange: The server's method.
        """
        task = exchange()
        while task is not None:
            t, number, weights = task
            task = exchange(t, self.gradients(number, weights))


@dataclass(frozen=True)
class Run:
    """The result of a real run.

    Attributes:
        curve: The losses at the evaluations, with their `iteration`.
        staleness: How often a staleness of 0, 1, 2, ... occurred.
        died: Learners that died and were restarted, up to `raysat.executor.RETRIES` times each.
    """

    curve: Curve
    staleness: tuple[float, ...]
    died: int


def run(job: Job, learners: int, begun: Callable[[list[int]], None] | None = None) -> Run:
    """Train a cell by p learners on the Ray cluster that this process has joined.

    Args:
        job: The cell, with its statistics if its stepsize depends on them.
        learners: p. They share the cluster's CPUs, however few there are.
        begun: Called with the ids of the learners' processes once they work.

    Raises:
        InputError: The network couples the samples of a batch.
        RuntimeError: All learners are lost.
    """
    check(job)
    dataset, network, _ = prepare(job)
    at = _evaluations(job.trained_cell)
    trained = [weight.cpu() for weight in _trained(network)]
    server = partial(Server, trained, _eta(job), job.trained_cell.iterations, at)
    (kept, counts), died = with_server(server, partial(Learner, job), learners, begun)
    if job.trained_cell.iterations not in kept:
        raise RuntimeError("all learners are lost")
    evaluate = _evaluator(job, dataset, network)
    curve = []
    for t in at:
        _put(network, kept[t])
        curve.append({"iteration": t, **evaluate(network)})
    return Run(curve, tuple(map(float, counts)), died)


def check(job: Job) -> None:
    """Raise `InputError` if the learners would hold more than weights: the running averages of batch normalization.

    These would stay with each learner, and the server's network would be evaluated with those of w_0.
    """
    _, network, _ = prepare(job)
    if couples_samples(network):
        raise InputError(
            f"model {job.init.model.label} has batch normalization, whose running averages real learners do not send "
            "to the server: use another norm, such as resnet(norm='group'), or the simulation, "
            "trainings=[asynchronous(p)]."
        )


def simulate(job: Job, learners: int, staleness: Sequence[float], seed: int) -> Curve:
    """Simulate the same cell from the same w_0; batches and staleness are drawn from a seed.

    Args:
        job: The cell.
        learners: p.
        staleness: How often 0, 1, 2, ... was measured.
        seed: Seed of the draws. The real run uses the batches of its cell's seed; another seed gives others.
    """
    dataset, network, device = prepare(job)
    cell, evaluate = job.trained_cell, _evaluator(job, dataset, network)
    problem = _problem(job, dataset, network, seed)
    engine = AsynchronousEngine(problem, _eta(job), learners, tuple(staleness), seed)
    curve, done = [], 0
    for t in _evaluations(cell):
        engine.run(batches(seed, done, t - done, cell.batch_size, cell.init.n, cell.sampling, str(device)))
        curve.append({"iteration": t, **evaluate(network)})
        done = t
    return curve


def of_one_more(losses: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % prediction interval of one more loss: Student's t interval of a new draw, in logs.

    It is `mean ± t s sqrt(1 + 1/k)` for k losses with mean log and deviation s. It is wider than the range of the
    losses, which contains a new one in only `(k - 1)/(k + 1)` of all cases, 2/3 for five.
    """
    logs, k = np.log(losses), len(losses)
    half = student_t(k - 1) * logs.std(ddof=1) * math.sqrt(1 + 1 / k)
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)


def _evaluations(cell: Cell) -> list[int]:
    return evaluation_iterations(cell.iterations, cell.evaluations)


def _problem(job: Job, dataset: Dataset, network: nn.Module, seed: int) -> Problem:
    transform = transform_of(job.trained_cell.training, seed)
    return Problem(network, dataset.x, dataset.y, resolve(job.init.loss), transform)


def _evaluator(job: Job, dataset: Dataset, network: nn.Module) -> Evaluator:
    return Evaluator(job.init, dataset, micro_batch_of(job, dataset, network))


def _eta(job: Job) -> float:
    return stepsize_and_beta(job.trained_cell, job.statistics)[0]


def _trained(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def _put(network: nn.Module, weights: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, weight in zip(_trained(network), weights, strict=True):
            parameter.copy_(weight)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog=program("raysat.asgd"), description=str(__doc__).splitlines()[0])
    parser.add_argument("file", type=Path, help="a sweep file, of which the first cell is run")
    parser.add_argument("--learners", type=int, default=4, help="p [4]")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="replace a field of the sweep")
    parser.add_argument(
        "--results", default="results", help="parent of the sweep's folder, a path or an address [results]"
    )
    parser.add_argument("--address", help="address of a running Ray cluster [one is started on this machine]")
    options = parser.parse_args(arguments)
    _main(options, Terminal())
    return 0


def _main(options: argparse.Namespace, console: Console) -> None:
    learners = whole("--learners", options.learners, 1)
    sweep = sweepfile.override(sweepfile.load(options.file), options.set)
    sweep = replace(sweep, trainings=(PLAIN,), branches=None)
    folder = location(options.results) / sweep.name
    laid_out = plan(sweep, options.file.parent)
    cell = sweep.cells(laid_out.data["n"], laid_out.data["n_test"], laid_out.codes.__getitem__)[0]
    cell = replace(cell, training=laid_out.cells[0].training)  # with the data set's transform: there is one training
    job = Job(sweep=sweep.name, init=cell.init, cell=cell, sources=laid_out.sources)
    check(job)
    job = replace(job, statistics=compute_statistics(job))
    with TemporaryDirectory(prefix="raysat-asgd-") as aside, OnRay(Path(aside), address=options.address) as cluster:
        console.print(f"{cell.name}: {learners} learners {cluster.where}.")
        real = run(job, learners)
    seeds = [cell.init.seed + k for k in range(1, SIMULATED + 1)]
    curves = [simulate(job, learners, real.staleness, seed) for seed in seeds]
    _tell(cell, learners, real, curves, console)
    record = {"cell_id": cell.cell_id, "learners": learners, "staleness": real.staleness, "died": real.died}
    record |= {"curve": real.curve, "simulated": curves}
    path = _write(folder, f"asgd-{cell.cell_id}-{learners}.json", record)
    counts = [int(count) for count in real.staleness]
    console.print(f"Curves and staleness: {path}. In a sweep: asynchronous({learners}, {counts}).")


def _tell(cell: Cell, learners: int, real: Run, curves: Sequence[Curve], console: Console) -> None:
    """Print the staleness of a real run, and its final loss next to those of simulated ones."""
    losses = [curve[-1]["train_loss"] for curve in curves]
    low, high = of_one_more(losses)
    console.print(
        f"Staleness: mean {mean_staleness(torch.tensor(real.staleness)):.2f}, largest {len(real.staleness) - 1}; "
        f"{real.died} learners died and were started anew.\n"
        f"Loss after {cell.iterations} iterations: {real.curve[-1]['train_loss']:.4g}. Simulated with this staleness, "
        f"{len(losses)} seeds: {min(losses):.4g} to {max(losses):.4g}, by which one more run ends between {low:.4g} "
        f"and {high:.4g} with a chance of 95 %."
    )
    if beyond := share_beyond(real.staleness, learners):
        kept = places(real.staleness, learners) - 1
        console.print(f"In the simulation {100 * beyond:.2g} % of the gradients, staler than {kept}, count as {kept}.")


def _write(folder: Location, name: str, record: dict) -> Location:
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / name, lambda aside: aside.write_text(json.dumps(record)))
    return folder / name


if __name__ == "__main__":
    sys.exit(main())
