"""What the rows of the tables have in common, under the columns' names (`raysat.storage.schema`)."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from raysat.spec.cells import Cell, Initialization
from raysat.user_code.identity import user_files

Row = dict[str, Any]

INHERITED = ("n_outputs", "parameters", "loss_init", "k_samples", "b_star", "b_star_thm33", "noise_scale")
INHERITED += ("gamma", "gamma_mean", "gamma_frobenius", "k_op", "k_op_residual")
INHERITED += ("statistics_dtype", "frozen_norms", "off")
"""The columns that a trial's row has from its initialization."""


def inherited(statistics: Mapping[str, Any]) -> Row:
    """What a trial's row has from its initialization."""
    return {name: known(value) for name, value in statistics.items() if name in INHERITED}


def describe(sweep: str, init: Initialization) -> Row:
    """What an initialization asks for, under the columns' names."""
    return {
        "init_id": init.init_id,
        "sweep": sweep,
        "dataset": init.dataset,
        "preprocessing": init.preprocessing,
        "n": init.n,
        "n_test": init.n_test,
        "evaluation_samples": init.evaluation_samples or init.n,
        "model": init.model.label,
        "model_options": json.dumps(dict(init.model.options), sort_keys=True),
        "depth": init.model.option("depth"),
        "width": init.width,
        "activation": init.model.option("activation"),
        "dtype": init.dtype,
        "seed": init.seed,
        "loss": init.loss,
    }


def describe_cell(cell: Cell) -> Row:
    """What a cell asks for beyond its initialization, under the columns' names."""
    return {
        "cell_id": cell.cell_id,
        "sampling": cell.sampling,
        "precision": cell.precision,
        "batch_size": cell.batch_size,
        "stepsize": cell.stepsize.label,
        "training": cell.training.label,
        "learners": cell.training.learners,
        "iterations": cell.iterations,
    }


def where(device: torch.device, init: Initialization | None = None) -> Row:
    """Where, when and, for an initialization, by which of the user's files something was computed."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "hostname": platform.node(),
        "threads": torch.get_num_threads(),
        "raysat_version": installed(),
        "user_files": user_files(init) if init else None,
        "finished_at": datetime.now(UTC),
    }


@cache
def installed() -> str | None:
    """The installed version of raysat; null where it runs from its source tree alone."""
    try:
        return version("raysat")
    except PackageNotFoundError:
        return None


def known(value: Any) -> Any:
    """What stands in a row: null for a number that is not known."""
    return None if isinstance(value, float) and math.isnan(value) else value
