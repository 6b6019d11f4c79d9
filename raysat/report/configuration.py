"""The configuration of a sweep as the text of an equivalent sweep file, without fields at their defaults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from itertools import groupby
from typing import Any

from raysat.spec.sweep import Sweep, powers_of_two
from raysat.spec.training import Training

LONGEST = 100
"""Characters of a line beyond which a list takes one line for each entry."""


def sweep_file(record: Mapping) -> str:
    """Return the text of a sweep file.

    Args:
        record: The sweep as stored in `sweep.json`. Fields unknown to `Sweep` are left out.

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
    """Yield the fields that are not at their defaults."""
    for field in fields(Sweep):
        # by way of JSON, as the record was: tuples become lists, and objects mappings
        default = None if field.default is MISSING else json.loads(json.dumps(field.default, default=asdict))
        value = record.get(field.name, default)
        if field.name == "seeds" and value == [0]:  # the record has the seeds themselves, the default is their number
            continue
        if value != default:
            yield field.name, value


def _field(name: str, value: Any, used: set[str]) -> str:
    """Return a field's value as Python, and add the names that it imports from raysat to `used`."""
    if name == "seeds" and value == list(range(len(value))):
        return repr(len(value))
    if name == "batch_sizes" and len(value) > 2 and value == list(powers_of_two(max(value))):
        used.add("powers_of_two")
        return f"powers_of_two({max(value)})"
    if name == "models":
        return _listed(_model(one, used) for one in value)
    if name == "stepsizes":
        return _listed(_stepsizes(value, used))
    if name == "prices":
        return _plain(dict(value))
    if name == "branches":
        used.add("Branches")
        return f"Branches({_arguments({key: one for key, one in value.items() if one != []})})"
    if name == "trainings":
        return _listed(_training(one, used) for one in value)
    return _plain(value)


def _model(model: Mapping, used: set[str]) -> str:
    """Return a model as Python: `mlp(depth=3)`, or the import path of a user's own."""
    if ":" in model["builder"]:
        return _plain(model["builder"])
    options = dict(model["options"])
    linearized = options.pop("linearized", False)
    used |= {model["builder"]} | ({"linearized"} if linearized else set())
    text = f"{model['builder']}({_arguments(options)})"
    return f"linearized({text})" if linearized else text


def _stepsizes(stepsizes: Sequence[Mapping], used: set[str]) -> Iterator[str]:
    """Yield stepsizes as Python: `theory(1)`; those of one grid are a single call."""
    # the record has each stepsize of a grid by itself, one after another
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
    """Return a training as Python: `Training(optimizer="adamw", clip=1.0)`, without fields at their defaults."""
    used.add("Training")
    defaults = asdict(Training())
    # `value and`: JSON turns an empty tuple into a list, which does not equal the default
    own = {name: value for name, value in training.items() if value and value != defaults.get(name)}
    own |= {name: dict(own[name]) for name in ("options", "schedule_options") if name in own}
    return f"Training({_arguments(own)})"


def _arguments(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_plain(value)}" for name, value in options.items())


def _listed(texts: Iterable[str]) -> str:
    """Return a list on one line or, if that is too long, with one line for each entry."""
    texts = list(texts)
    one = f"[{', '.join(texts)}]"
    return one if len(one) <= LONGEST else "[\n" + "".join(f"        {text},\n" for text in texts) + "    ]"


def _plain(value: object) -> str:
    """Return a value as Python, with double quotes; the square root of 2, the gain of a ReLU, as `2**0.5`."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_plain(name)}: {_plain(one)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return "2**0.5" if value == 2**0.5 else repr(value)
