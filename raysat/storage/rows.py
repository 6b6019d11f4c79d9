"""What the rows of the tables have in common, under the columns' names (`raysat.storage.schema`)."""

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
from raysat.storage.initial import ASKED, INHERITED
from raysat.user_code.identity import user_files

Row = dict[str, Any]


def statistics_columns(statistics: Mapping[str, Any]) -> Row:
    """Return what a trial's row has from its initialization."""
    return {name: none_if_nan(value) for name, value in statistics.items() if name in INHERITED}


def init_columns(sweep: str, init: Initialization) -> Row:
    """Return what an initialization asks for, under the columns' names."""
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
    """Return what a cell asks for beyond its initialization, under the columns' names."""
    from raysat.storage.schema import arrow_schema  # not at the head, for it loads pyarrow

    return {
        **_fields(cell, arrow_schema("trials").names),
        "cell_id": cell.cell_id,
        "stepsize": cell.stepsize.label,
        "training": cell.training.label,
        "learners": cell.training.learners,
    }


def _fields(of: Initialization | Cell, columns: Collection[str]) -> Row:
    """The fields that have columns of their names."""
    return {field.name: getattr(of, field.name) for field in fields(of) if field.name in columns}


def provenance(device: torch.device, init: Initialization | None = None) -> Row:
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


def none_if_nan(value: Any) -> Any:
    """Return what stands in a row: null for a number that is not known."""
    return None if isinstance(value, float) and math.isnan(value) else value
