"""Check a sweep against its data and its models before any work starts, so that mistakes show here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raysat import data
from raysat.errors import InputError
from raysat.losses import as_targets, resolve
from raysat.messages.failures import cause, in_words, named
from raysat.ntk import reason_against
from raysat.sgd import cost, optimizers
from raysat.sgd.engine import maker
from raysat.sgd.problem import Problem
from raysat.sgd.stacked import LARGEST_BATCH
from raysat.sgd.transform import Transform
from raysat.spec.cells import Cell, Initialization, Model
from raysat.spec.goals import METRICS, on_test_samples, rises
from raysat.spec.stepsizes import OF_STATISTICS
from raysat.spec.sweep import Sweep
from raysat.spec.training import Training
from raysat.trial.job import initial_network
from raysat.user_code import plugins, process
from raysat.user_code.identity import Code, Present, folders, recorded, references_of

FEW = 4
"""Samples on which a plan checks whether a network can have statistics."""


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked against its data and its models.

    Attributes:
        sweep: The sweep.
        cells: Its cells, those that take longest first, so that none of them starts last.
        flops: Floating-point operations of one sample, by (model, width).
        sources: The user's own modules.
        data: Resolved values: sizes of the data set, and the user's code (`raysat.user_code.identity.Code`).
        codes: The digests of the user's code in the identity of a model's initializations.
        present: The user's files as they are now, compared with those of stored results.
    """

    sweep: Sweep
    cells: list[Cell]
    flops: dict[tuple[Model, int], cost.Flops]
    sources: plugins.Sources
    data: dict[str, Any]
    codes: dict[Model, str]
    present: Present

    def weight(self, cell: Cell) -> float:
        """Return the cell's share of the time."""
        return self.flops[cell.init.model, cell.init.width].weight(cell)

    def stacks(self, cell: Cell, gpus: float | None) -> bool:
        """Return whether a cell's seeds are trained by the stacked engine, in jobs with `gpus` GPUs.

        Depends only on measured thresholds (`raysat.sgd.stacked`) and the sweep's `engine`, never on which seeds are
        left to run, because the choice changes the last bits of the result.
        """
        sweep = self.sweep
        on_cpu = not (torch.cuda.is_available() if gpus is None else gpus)
        if not on_cpu or sweep.ranks_per_trial > 1 or not cell.training.is_plain:
            return False
        if sweep.engine != "auto":
            return sweep.engine == "stacked"
        measured = sweep.cpus_per_trial == 1 and cell.batch_size <= LARGEST_BATCH
        wanted = len(sweep.each_seed) > 1 and cell.precision == "full"
        return measured and wanted and self.flops[cell.init.model, cell.init.width].stackable


def plan(sweep: Sweep, folder: Path, code: object = None) -> Plan:
    """Load the data, build each network once, and list the cells, so that mistakes show here.

    Changes that the user's code makes to this process are undone.

    Args:
        sweep: The sweep.
        folder: Where the sweep file lies.
        code: The code recorded in the results folder (`raysat.user_code.identity.Code`), if any.

    Raises:
        InputError: Something that the user wrote cannot be run.
    """
    with process.undisturbed(), plugins.forgotten():
        return _plan(sweep, folder, code)


def _plan(sweep: Sweep, folder: Path, before: object, *further: str) -> Plan:
    """Return the plan; `further` are references that the sweep does not name itself."""
    own = (*(model.builder for model in sweep.models), *(name for one in sweep.trainings for name in one.names))
    references = references_of(sweep.dataset, sweep.loss, *own, *further)
    sources = plugins.gather(folder, references)
    earlier = plugins.earlier_digest(folder, references) if before and isinstance(before, str) else ""
    if not references:
        plugins.install(sources)
        return _laid_out(sweep, sources, before, earlier)
    data.forget_own()  # loading again shows what the loader imports
    with plugins.anew(sources), recorded() as executed:
        transform = _dataset_of(sweep).transform or ""
        if transform in ("", *references) or transform.partition(":")[0] in sources:
            laid_out = _laid_out(sweep, sources, before, earlier)
            sources |= plugins.imported_from(executed)  # for example under a computed name
            references = references_of(*references, transform)
            return replace(laid_out, sources=sources, present=Present(sources, folders(sources), references))
    return _plan(sweep, folder, before, transform)  # again, with the module of the transform


def _laid_out(sweep: Sweep, sources: plugins.Sources, before: object, earlier: str) -> Plan:
    dataset = _dataset_of(sweep)
    _check_targets(sweep, dataset)
    _check_goals(sweep, dataset)
    groups = {model: references_of(sweep.dataset, sweep.loss, model.builder) for model in sweep.models}
    sweep, asked = _with_transform(sweep, dataset), sweep
    own = [references_of(*training.names) for training in sweep.trainings]
    code = Code.of(sources, [*groups.values(), *own], before, earlier)
    codes = {model: code.ids[" ".join(group)] for model, group in groups.items()}
    cells = sweep.cells(dataset.n, dataset.n_test, codes.__getitem__)
    cells = [replace(cell, training=_with_code(cell.training, code)) for cell in cells]
    flops = {}
    for cell in cells:
        key = cell.init.model, cell.init.width
        if key not in flops:
            with process.undisturbed():  # as in its own job, independent of the networks before it
                flops[key] = _tried(sweep, cell.init, dataset)
    cells = [flops[cell.init.model, cell.init.width].within_budget(cell, sweep.evaluation_budget) for cell in cells]
    resolved = {"n": dataset.n, "n_test": dataset.n_test, "code": code.plain(before)}
    laid_out = Plan(asked, cells, flops, sources, resolved, codes, Present(sources, (), ()))
    cells.sort(key=laid_out.weight, reverse=True)
    return laid_out


def _with_code(training: Training, code: Code) -> Training:
    """Return a training with the digest of the user's own code that it reaches."""
    group = references_of(*training.names)
    return replace(training, code=code.ids[" ".join(group)]) if group else training


def _tried(sweep: Sweep, init: Initialization, dataset: data.Dataset) -> cost.Flops:
    """Return the operations of a network, after trying all that a trial asks of it."""
    network = network_of(init, dataset)
    maker(sweep.engine).check(network)
    _check_batch_of_one(sweep, network, dataset)
    _check_statistics(sweep, network, dataset)
    with in_words(
        lambda why: (
            f"model {init.model.label} at width {init.width} has no gradient on {init.dataset} ({why}): fix the model "
            "or the loss."
        )
    ):
        flops = cost.count(network, dataset.x, dataset.y, resolve(sweep.loss))
    problem = Problem(network, dataset.x, dataset.y, resolve(sweep.loss))
    for training in sweep.trainings:
        iterations = {b: sweep.iterations_at(b, dataset.n, training) for b in sweep.batch_sizes}
        optimizers.check(training, problem, iterations)
        if sweep.branches:
            b = max(sweep.batch_sizes)
            last = sweep.branches.of(sweep.cell(init, b, sweep.stepsizes[0], training, iterations[b]))[-1]
            optimizers.check(last.training, problem, {b: last.iterations})
    return flops


def _with_transform(sweep: Sweep, dataset: data.Dataset) -> Sweep:
    """Return the sweep with the data set's transform in its trainings, after trying all on the smallest batch sizes.

    Raises:
        InputError: A transform cannot be used, or both the data set and a training have one.
    """
    if (transform := dataset.transform) is not None:
        if any(training.transform for training in sweep.trainings):
            raise InputError(
                f"{sweep.dataset!r} has transform={transform!r}, and trainings has one too: leave one of them out."
            )
        sweep = replace(sweep, trainings=[replace(one, transform=transform) for one in sweep.trainings])
    smallest = [b for b in sorted(sweep.batch_sizes)[:2] if b <= dataset.n]
    for name in dict.fromkeys(training.transform for training in sweep.trainings):
        if name:
            Transform(name, sweep.each_seed[0]).try_on(dataset.x, dataset.y, smallest)
    return sweep


def _dataset_of(sweep: Sweep) -> data.Dataset:
    """Load the sweep's data, possibly by a user's function."""
    with in_words(lambda why: f"dataset={sweep.dataset!r} cannot be loaded ({why}): fix it."):
        return data.load_shared(
            sweep.dataset,
            n_train=sweep.n_train,
            n_test=sweep.n_test,
            preprocessing=sweep.preprocessing,
            dtype=sweep.dtype,
        )


def _check_targets(sweep: Sweep, dataset: data.Dataset) -> None:
    """Raise `InputError` if the loss cannot use the data set's targets."""
    if sweep.loss == "cross_entropy" and dataset.y.is_floating_point() and not dataset.classes:
        raise InputError(
            f"loss='cross_entropy' needs classes, {sweep.dataset!r} has numbers for targets: set loss='mse', or say "
            "classes=True in the Dataset where a row weighs the classes."
        )
    for name, y in (("y", dataset.y), ("y_test", dataset.y_test)):
        if y is not None:
            as_targets(y, _outputs_shape(y, dataset), resolve(sweep.loss), name=f"dataset={sweep.dataset!r}: {name}")


def _check_goals(sweep: Sweep, dataset: data.Dataset) -> None:
    """Raise `InputError` if the data set has no metric to which iterations shall be counted."""
    for target in filter(None, (*sweep.measured, sweep.goal)):
        if on_test_samples(target.metric) and not dataset.n_test:
            raise InputError(
                f"the target {target} needs test samples, and {sweep.dataset!r} has none: give its Dataset x_test and "
                "y_test, or set a target of the training samples."
            )
        if rises(target.metric) and not dataset.classes:
            raise InputError(
                f"the target {target} needs classes, and {sweep.dataset!r} has numbers for targets: set one of the "
                f"{METRICS[target.metric.replace('accuracy', 'loss')]}."
            )


def _outputs_shape(y: torch.Tensor, dataset: data.Dataset) -> tuple[int, ...]:
    """Return the shape of a network's outputs for the samples of some targets."""
    return (*(y.shape[:-1] if y.is_floating_point() else y.shape), dataset.outputs)


def _check_statistics(sweep: Sweep, network: torch.nn.Module, dataset: data.Dataset) -> None:
    """Raise `InputError` if the sweep needs statistics that the network cannot have, as a few samples show."""
    made = [stepsize.name for stepsize in sweep.stepsizes if stepsize.policy in OF_STATISTICS]
    asked = [name for name in ("ntk_at", "spectrum", "dense_samples") if getattr(sweep, name)]
    if not (made or asked):
        return
    if not (reason := reason_against(network, dataset.x[:FEW], dataset.y[:FEW], loss=sweep.loss)):
        return
    if made:
        raise InputError(
            f"stepsizes has {made[0]}, made of gamma and k_op, which this network does not have ({cause(reason)}): "
            "use fixed(), grid([...]) or grid(auto=True), or fix the network."
        )
    raise InputError(
        f"{asked[0]} asks for statistics, which this network does not have ({cause(reason)}): leave it out, or fix "
        "the network."
    )


def network_of(init: Initialization, dataset: data.Dataset) -> torch.nn.Module:
    """Build the network of an initialization, and try it with its loss on two samples."""
    with in_words(
        lambda why: (
            f"model {init.model.label} at width {init.width} does not run on {init.dataset} ({why}): fix the model or "
            "choose other data."
        )
    ):
        network = initial_network(init, dataset, torch.device("cpu"))
        with torch.no_grad():
            outputs = network(dataset.x[:2])
    if not isinstance(outputs, torch.Tensor):
        raise InputError(
            f"model {init.model.label} returns {type(outputs).__name__}: wrap it in a module that returns one tensor."
        )
    wanted = _outputs_shape(dataset.y[:2], dataset)
    if outputs.shape != wanted:
        raise InputError(
            f"model {init.model.label} returns shape {list(outputs.shape)} for two samples: return {list(wanted)}."
        )
    _check_loss(init, outputs, dataset.y[:2])
    return network


def _check_batch_of_one(sweep: Sweep, network: torch.nn.Module, dataset: data.Dataset) -> None:
    """Raise `InputError` if b = 1 is asked of a network that needs more samples, as `BatchNorm1d` does."""
    if 1 not in sweep.batch_sizes:
        return
    try:
        with torch.no_grad():
            network(dataset.x[:1])
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also the SystemExit of a user's sys.exit
        raise InputError(
            f"batch_sizes has 1, and the network runs on two samples but not on one ({named(error)}): "
            f"leave 1 out, or use GroupNorm or LayerNorm where it normalizes by the batch."
        ) from error


def _check_loss(init: Initialization, outputs: torch.Tensor, y: torch.Tensor) -> None:
    """Raise `InputError` if a user's loss does not return one loss for each sample."""
    with in_words(
        lambda why: (
            f"loss={init.loss!r} fails for outputs of shape {list(outputs.shape)} and targets of shape {list(y.shape)} "
            f"({why}): fix the function."
        )
    ):
        resolve(init.loss).check(outputs, y)
