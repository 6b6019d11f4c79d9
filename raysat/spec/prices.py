"""Prices of devices: what an hour of each costs, in a currency of the user's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysat.errors import InputError, positive
from raysat.text import shown

Prices = tuple[tuple[str, float], ...]
"""Pairs of a device's name, or a part of it, and the price of one device-hour; sorted."""

EXAMPLE = '{"H200": 3.5}'


def as_prices(name: str, value: Any) -> Prices:
    """Return prices from a dictionary, from pairs, or from a YAML file with one.

    Args:
        name: The setting, for messages.
        value: Prices of a device-hour by a part of the device's name (the column `device` of `trials`; `cpu` is a
            core), such as `{"H200": 3.5}`; or the path of a file with a line `H200: 3.5` for each.

    Raises:
        InputError: It is none of these.

    Example:
        >>> as_prices("prices", {"H200": 3.5, "cpu": 0.05})
        (('H200', 3.5), ('cpu', 0.05))
    """
    given = _read(name, value) if isinstance(value, str | Path) else value
    try:
        pairs = list(given.items() if isinstance(given, Mapping) else given)
        made = {device: price for device, price in pairs}
    except (TypeError, ValueError):
        raise InputError(f"{name}={shown(value)}: give prices of a device-hour by device, as {EXAMPLE}.") from None
    for device, price in made.items():
        if not isinstance(device, str) or not device.strip():
            raise InputError(f"{name} has {shown(device)}: name devices by text, as in {EXAMPLE}.")
        positive(f"{name}[{device!r}]", price)
    return tuple(sorted((device, float(price)) for device, price in made.items()))


def from_words(name: str, words: Sequence[str]) -> Prices:
    """Return prices from a command line: `H200=3.5 cpu=0.05`, or the path of a YAML file.

    Raises:
        InputError: They are neither.

    Example:
        >>> from_words("--prices", ["H200=3.5"])
        (('H200', 3.5),)
    """
    if len(words) == 1 and "=" not in words[0]:
        return as_prices(name, words[0])
    pairs = {}
    for word in words:
        device, _, price = word.rpartition("=")
        try:
            pairs[device] = float(price)
        except ValueError:
            raise InputError(f"{name} has {shown(word)}: give NAME=PRICE, such as H200=3.5.") from None
    return as_prices(name, pairs)


def _read(name: str, path: str | Path) -> Any:
    import yaml  # needed for such a file alone

    try:
        return yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{name}={shown(str(path))} cannot be read as YAML ({said}): give prices as {EXAMPLE}."
        ) from None


def price_of(prices: Prices, device: object) -> float:
    """Return the price of an hour of a device: that of the longest name in its own, whatever the case; else nan.

    Example:
        >>> price_of((("A100", 1.5), ("A100 80", 2.0)), "NVIDIA A100 80GB PCIe")
        2.0
    """
    own = device.casefold() if isinstance(device, str) else ""  # else missing
    fitting = [(len(name), price) for name, price in prices if name.casefold() in own]
    return max(fitting)[1] if fitting else math.nan
