"""What is computed of a network at initialization, once for all cells that share it: a row of `ntk`."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch
from torch import Tensor, nn

from raysat import models, packing
from raysat.data.fields import Inputs
from raysat.job import Job, fitting, prepare
from raysat.losses import resolve
from raysat.ntk import coupling, ntk_statistics
from raysat.observables import Evaluator
from raysat.rows import Row, describe, known, where
from raysat.schema import REFUSED
from raysat.sgd.evaluate import evaluation_mode


def compute_statistics(job: Job) -> Row:
    """The row of `ntk` of an initialization, with what its cells would all find in their first evaluation."""
    begun = time.perf_counter()
    dataset, network, device = prepare(job)
    row = statistics_of(job, models.at_initialization(network), dataset.x, dataset.y)
    losses = Evaluator(job.init, dataset, fitting(job, dataset, network))(network)
    measured = packing.measure(network, dataset, resolve(job.init.loss), job.engine)
    return {**row, **losses, **measured, "iteration": 0, "seconds": time.perf_counter() - begun, **where(device)}


def statistics_of(job: Job, network: nn.Module, x: Inputs, y: Tensor) -> Row:
    """The row of `ntk` of a network as it is, at whatever iteration; cf. `raysat.ntk.ntk_statistics`."""
    init = job.init
    if reason := coupling(network):
        parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        with torch.no_grad(), evaluation_mode(network):
            outputs = network(x[:2]).shape[-1]
        counts = {"n_outputs": outputs, "parameters": parameters, "k_samples": 0}
        return {**describe(job.sweep, init), **counts, "method": REFUSED, "method_reason": reason}
    statistics = ntk_statistics(
        network,
        x,
        y,
        loss=init.loss,
        k_samples=init.k_samples,
        k_tolerance=init.k_tolerance,
        spectrum=init.spectrum,
        dense_samples=init.dense_samples,
    )
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(statistics).items()}
    return {**describe(job.sweep, init), **{name: known(value) for name, value in values.items()}}
