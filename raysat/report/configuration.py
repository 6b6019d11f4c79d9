"""What was asked for, as the text of a sweep file that asks for the same: fields at their defaults are left out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from itertools import groupby
from typing import Any

from raysat.spec.sweep import Sweep, powers_of_two
from raysat.spec.training import Training

LONGEST = 100
"""Characters of a line, beyond which a list has a line for each entry."""


def sweep_file(record: Mapping) -> str:
    """The text of a sweep file.

    Args:
        record: A sweep as `sweep.json` has it. Fields that a `Sweep` does not have are left out.

    Example:
        >>> print(sweep_file({"name": "toy", "widths": [64, 128], "seeds": [0, 1, 2], "adaptive": False}))
        from raysat import Sweep
        <BLANKLINE>
        sweep = Sweep(
            name="toy",
            widths=[64, 128],
            seeds=3,
        )
    """
    used = {"Sweep"}
    lines = [f"    {name}={text}," for name, value in _chosen(record) for text in [_field(name, value, used)]]
    return "\n".join([f"from raysat import {', '.join(sorted(used))}", "", "sweep = Sweep(", *lines, ")"])


def _chosen(record: Mapping) -> Iterator[tuple[str, Any]]:
    """The fields that are not at their defaults."""
    for field in fields(Sweep):
        default = None if field.default is MISSING else json.loads(json.dumps(field.default, default=asdict))
        value = record.get(field.name, default)
        if field.name == "seeds" and value == [0]:
            continue
        if value != default:
            yield field.name, value


def _field(name: str, value: Any, used: set[str]) -> str:
    """A field's value as Python; the names of raysat that stand in it are added to `used`."""
    if name == "seeds" and value == list(range(len(value))):
        return repr(len(value))
    if name == "batch_sizes" and len(value) > 2 and value == list(powers_of_two(max(value))):
        used.add("powers_of_two")
        return f"powers_of_two({max(value)})"
    if name == "models":
        return _listed(_model(one, used) for one in value)
    if name == "stepsizes":
        return _listed(_stepsizes(value, used))
    if name == "trainings":
        return _listed(_training(one, used) for one in value)
    return _plain(value)


def _model(model: Mapping, used: set[str]) -> str:
    """`mlp(depth=3)`, or the import path of a user's own."""
    if ":" in model["builder"]:
        return _plain(model["builder"])
    options = dict(model["options"])
    linearized = options.pop("linearized", False)
    used |= {model["builder"]} | ({"linearized"} if linearized else set())
    text = f"{model['builder']}({_arguments(options)})"
    return f"linearized({text})" if linearized else text


def _stepsizes(stepsizes: Sequence[Mapping], used: set[str]) -> Iterator[str]:
    """`theory(1)`; those of one grid together."""
    for policy, own in groupby(stepsizes, key=lambda one: one["policy"]):
        values = [one["value"] for one in own]
        name = "grid" if policy.startswith("grid") else policy
        used.add(name)
        if policy == "grid_auto":
            yield "grid(auto=True)"
        elif name == "grid":
            yield f"grid({_plain(values)}{', relative=True' * (policy == 'grid_relative')})"
        else:
            yield from (f"{name}({_plain(value)})" for value in values)


def _training(training: Mapping, used: set[str]) -> str:
    """`Training("adamw", options={"weight_decay": 0.1})`, without the fields that are at their default."""
    used.add("Training")
    defaults = asdict(Training())
    own = {name: value for name, value in training.items() if value and value != defaults.get(name)}
    own |= {name: dict(own[name]) for name in ("options", "schedule_options") if name in own}
    return f"Training({_arguments(own)})"


def _arguments(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_plain(value)}" for name, value in options.items())


def _listed(texts: Iterable[str]) -> str:
    """A list in one line, or of one line an entry."""
    texts = list(texts)
    one = f"[{', '.join(texts)}]"
    return one if len(one) <= LONGEST else "[\n" + "".join(f"        {text},\n" for text in texts) + "    ]"


def _plain(value: object) -> str:
    """A value as Python, in double quotes; the square root of 2, which is the gain of a ReLU, as such."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_plain(name)}: {_plain(one)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return "2**0.5" if value == 2**0.5 else repr(value)
