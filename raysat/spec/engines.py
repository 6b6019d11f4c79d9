"""The engines that take the steps of plain SGD. A new one is a file in `sgd/`, and its line here: all else reads it."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"
"""Stands for the engine that wins for the model and the device."""


@dataclass(frozen=True)
class Engine:
    """An engine, as plain data: what a sweep that names it may ask for.

    Attributes:
        maker: Where its functions are, a `raysat.sgd.protocol.Maker`, as `module:name`.
        wins: Where it is the fastest.
        bfloat16: Whether it computes in bfloat16 where `precision` asks for it.
        any_training: Whether it may be named beside trainings other than plain SGD, whose engines are made of it.
        gpu: Whether it needs a GPU.
    """

    maker: str
    wins: str
    bfloat16: bool = False
    any_training: bool = False
    gpu: bool = False


ENGINES: dict[str, Engine] = {
    "autograd": Engine(
        "raysat.sgd.autograd:AUTOGRAD",
        "on a CPU, for every module that is not fully connected",
        bfloat16=True,
        any_training=True,
    ),
    "fused": Engine(
        "raysat.sgd.fused:FUSED",
        "on a CPU, for fully-connected networks: over autograd by 3 to 9 times at b <= 8, a sixth at 512",
    ),
    "stacked": Engine(
        "raysat.sgd.stacked:STACKED",
        "on a CPU, for several seeds of small fully-connected networks at b <= 32: over fused by 1.1 to 2.3",
    ),
    "compiled": Engine(
        "raysat.sgd.autograd:COMPILED",
        "on a CPU, for trials of minutes of convolutions (by a fifth) and attention (by a tenth)",
        bfloat16=True,
    ),
    "graph": Engine(
        "raysat.sgd.graph:GRAPH",
        "on a GPU, for any module: one launch for many iterations of the engine above that fits",
        bfloat16=True,
        gpu=True,
    ),
}
"""By the name that stands in a sweep file and in the rows. Of `auto` the last one counts whose maker says it wins."""


def needs_gpu(name: str) -> bool:
    """Return whether an engine needs a GPU; `auto` does not."""
    return name != AUTO and ENGINES[name].gpu
