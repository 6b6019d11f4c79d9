"""What the parts of `benchmarks/gpu.py` share: rows of the table, checks against a bound, and times on a GPU."""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
ROUNDS = 3
"""Rounds of a rate, whose median counts. Default: 3, for eight minutes in all."""

T = TypeVar("T")


class Row(NamedTuple):
    """A row of the table.

    Attributes:
        part: Which part it is of.
        what: What was looked at.
        found: What was found.
        wanted: What it is held against; empty for a figure.
        verdict: `OK`, `FAILED` or `SKIPPED`; empty for a figure.
    """

    part: str
    what: str
    found: str = ""
    wanted: str = ""
    verdict: str = ""

    def __str__(self) -> str:
        return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in self)} |"


class Bench:
    """What a part is given: where it runs, whom it tells, and the clock.

    Args:
        part: The part's name.
        device: Where it runs. On a CPU, sizes are tiny: there it is the code that is tried, and not the machine.
        tell: Is given each row as soon as it is known.
    """

    def __init__(self, part: str, device: torch.device, tell: Callable[[Row], object]) -> None:
        self.part, self.device, self.tell = part, device, tell
        self.cuda = device.type == "cuda"

    def size(self, full: T, tiny: T) -> T:
        """One of two sizes, that of a GPU or that of a CPU."""
        return full if self.cuda else tiny

    def say(self, what: str, found: str) -> None:
        """A figure, which nothing is held against."""
        self.tell(Row(self.part, what, found))

    def check(self, what: str, found: float, most: float) -> None:
        """A number that should be no larger than `most`, and is a number."""
        self.tell(Row(self.part, what, f"{found:.2g}", f"at most {most:g}", OK if found <= most else FAILED))

    def holds(self, what: str, found: object, wanted: str, right: bool) -> None:
        """Something that is right or not."""
        self.tell(Row(self.part, what, str(found), wanted, OK if right else FAILED))

    def skip(self, what: str, why: str = "needs CUDA") -> None:
        """Say that something is left out."""
        self.tell(Row(self.part, what, why, "", SKIPPED))

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What fails inside is one row, with the last line of its error; its traceback is on stderr."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.tell(Row(self.part, what, last_line(error), "", FAILED))
        finally:
            if self.cuda:
                torch.cuda.empty_cache()  # of graphs, whose memory is their own

    def wait(self) -> None:
        """Wait until the GPU has done all that it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], repeats: int = 1) -> float:
        """Seconds of so many calls, from an idle GPU to an idle GPU."""
        self.wait()
        begun = time.perf_counter()
        for _ in range(repeats):
            call()
        self.wait()
        return time.perf_counter() - begun

    def rate(self, call: Callable[[], object], steps: int = 1) -> float:
        """Steps a second of a call that takes so many: the median of `ROUNDS`, each some half a second long.

        Two calls come before. In the first, graphs are recorded, and libraries choose their algorithms and take their
        memory; the second tells how many calls a round has.
        """
        call()
        repeats = math.ceil(self.size(0.4, 0.01) / max(self.seconds(call), 1e-6))
        return steps * repeats / statistics.median(self.seconds(call, repeats) for _ in range(ROUNDS))


def last_line(error: BaseException) -> str:
    """The last line of an error, with its type, of at most 200 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"[:200]


def weights(network: nn.Module) -> Tensor:
    """All parameters in one row, in float64 on the CPU."""
    return torch.cat([p.detach().flatten() for p in network.parameters()]).double().cpu()


def apart(one: nn.Module, other: nn.Module, start: nn.Module) -> float:
    """How far two networks are from each other, relative to how far the second has moved from the start."""
    moved = (weights(other) - weights(start)).norm().item()
    return (weights(one) - weights(other)).norm().item() / moved if moved > 0 else math.nan


def copies(network: nn.Module, count: int) -> list[nn.Module]:
    """Networks of the same weights, each with its own."""
    return [copy.deepcopy(network) for _ in range(count)]
