"""Columns that the rows of several tables have in common, by name (`raysat.storage.schema`)."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Collection, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from raysat.spec.cells import Cell, Initialization
from raysat.spec.training import PLAIN, Training
from raysat.storage.initial import ASKED, INHERITED
from raysat.user_code.identity import user_files

Row = dict[str, Any]


def statistics_columns(statistics: Mapping[str, Any]) -> Row:
    """Return the columns that a trial's row takes from its initialization's statistics."""
    return {name: none_if_nan(value) for name, value in statistics.items() if name in INHERITED}


def init_columns(sweep: str, init: Initialization) -> Row:
    """Return the settings of an initialization, by column."""
    return {
        **_fields(init, ASKED),
        "init_id": init.init_id,
        "sweep": sweep,
        "evaluation_samples": init.evaluation_samples or init.n,
        "model": init.model.label,
        "model_options": json.dumps(dict(init.model.options), sort_keys=True),
        "depth": init.model.option("depth"),
        "activation": init.model.option("activation"),
    }


def cell_columns(cell: Cell) -> Row:
    """Return the settings of a cell beyond those of its initialization, by column."""
    from raysat.storage.schema import arrow_schema  # not at the top of the module: it loads pyarrow

    return {
        **_fields(cell, arrow_schema("trials").names),
        "cell_id": cell.cell_id,
        "stepsize": cell.stepsize.label,
        "training": cell.training.label,
        "learners": cell.training.learners,
    }


def _fields(of: Initialization | Cell, columns: Collection[str]) -> Row:
    """The fields that are also columns, under the same name."""
    return {field.name: getattr(of, field.name) for field in fields(of) if field.name in columns}


def provenance(device: torch.device, init: Initialization | None = None, training: Training = PLAIN) -> Row:
    """Return where and when a row was computed and, given an initialization, with which of the user's files."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "hostname": platform.node(),
        "threads": torch.get_num_threads(),
        "raysat_version": installed(),
        "user_files": user_files(init, training) if init else None,
        "finished_at": datetime.now(UTC),
    }


@cache
def installed() -> str | None:
    """The installed version of raysat; None if it runs from a source tree without being installed."""
    try:
        return version("raysat")
    except PackageNotFoundError:
        return None


def none_if_nan(value: Any) -> Any:
    """Return a value for a row: None in place of NaN, a number that is not known."""
    return None if isinstance(value, float) and math.isnan(value) else value
