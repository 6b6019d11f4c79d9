"""The statistics of a network at initialization, computed once for all cells that share it: a row of `ntk`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

import torch
from torch import Tensor, nn

from raysat import models
from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.losses import resolve
from raysat.messages.credentials import hidden
from raysat.messages.failures import cause, named, traced
from raysat.models.fingerprint import fingerprint
from raysat.ntk import ntk_statistics
from raysat.ntk.base_stepsize import base_stepsize
from raysat.sgd.evaluate import evaluation_mode
from raysat.spec.cells import Initialization
from raysat.storage.rows import Row, init_columns, none_if_nan, provenance
from raysat.storage.schema import FAILED, REFUSED
from raysat.text import plain
from raysat.trial import packing
from raysat.trial.job import PROGRESS_INTERVAL, Job, begun, initial_network, micro_batch_of, prepare
from raysat.trial.measurements import Evaluator


def compute_statistics(job: Job) -> Row:
    """Return the row of `ntk` of an initialization, with the losses at w_0, which all its cells share.

    Without statistics the row says why, and has the base stepsize instead.
    """
    with begun(job):
        return _compute(job)


def _compute(job: Job) -> Row:
    started = time.perf_counter()
    dataset, network, device = prepare(job)
    found = {"w0_digest": fingerprint(network), "iteration": 0}
    row = statistics_of(job, models.at_initialization(network), dataset.x, dataset.y)
    if lacking := row["gamma"] is None:
        network = initial_network(job.init, dataset, device)  # the attempt may have left it in any state
    loss, micro_batch = resolve(job.init.loss), micro_batch_of(job, dataset, network)
    losses = Evaluator(job.init, dataset, micro_batch)(network)
    measured = packing.measure(network, dataset, loss, job.engine)
    if lacking:
        few = job.init.k_samples
        with suppress(Exception):  # a trial reports the error, if it occurs there too
            found["base_stepsize"] = none_if_nan(
                base_stepsize(network, dataset.x[:few], dataset.y[:few], loss, micro_batch)
            )
    return {
        **row,
        **losses,
        **measured,
        **found,
        "seconds": time.perf_counter() - started,
        **provenance(device, job.init),
    }


def statistics_of(job: Job, network: nn.Module, x: Inputs, y: Tensor) -> Row:
    """Return the row of `ntk` of a network at its present weights (see `raysat.ntk.ntk_statistics`).

    Without statistics `gamma` is null, and `method` and `method_reason` say why.
    """
    init = job.init
    try:
        statistics = ntk_statistics(
            network,
            x,
            y,
            loss=init.loss,
            k_samples=init.k_samples,
            k_tolerance=init.k_tolerance,
            spectrum=init.spectrum,
            dense_samples=init.dense_samples,
            progress=_progress_of(job),
        )
    except InputError as error:
        why = {"method": REFUSED, "method_reason": hidden(plain(str(error))).removesuffix(".")}
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        why = {"method": FAILED, "method_reason": hidden(named(error)), "error": hidden(traced(error))}
    else:
        values = {name: none_if_nan(value) for name, value in asdict(statistics).items()}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**init_columns(job.sweep, init), **values, **lists}
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    with torch.no_grad(), evaluation_mode(network):
        outputs = network(x[:2]).shape[-1]
    return {**no_statistics(job.sweep, init), "n_outputs": outputs, "parameters": parameters, **why}


def _progress_of(job: Job) -> Callable[[int], object] | None:
    """Return a function that reports the number of samples done to the driver, every `PROGRESS_INTERVAL`."""
    if (report := job.on_progress) is None:
        return None
    due = time.monotonic() + PROGRESS_INTERVAL

    def on_progress(samples: int) -> None:
        nonlocal due
        if time.monotonic() > due:
            report(samples, {job.key: None})
            due = time.monotonic() + PROGRESS_INTERVAL

    return on_progress


def no_statistics(sweep: str, init: Initialization, error: str = "") -> Row:
    """Return the row of `ntk` of an initialization without statistics, with the error if one ended them."""
    why = {"method": FAILED, "method_reason": cause(error), "error": error} if error else {}
    return {**init_columns(sweep, init), "iteration": 0, "k_samples": 0, "gamma": None, "k_op": None, **why}
