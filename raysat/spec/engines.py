"""The engines that take the steps of plain SGD. To add one, add a file to `sgd/` and an entry here."""

from __future__ import annotations

from dataclasses import dataclass

AUTO = "auto"
"""Stands for the fastest engine for the model and the device."""


@dataclass(frozen=True)
class Engine:
    """An engine, as plain data: what a sweep that names it may ask for.

    Attributes:
        maker: Import path, `module:name`, of the `raysat.sgd.protocol.Maker` that has its functions.
        wins: Where it is the fastest.
        bfloat16: Whether it computes in bfloat16 if `precision` asks for it.
        any_training: Whether a sweep that names it may have trainings other than plain SGD; their engines build on it.
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
"""The engines by the name used in sweep files and rows. `auto` takes the last one whose maker says that it wins."""


def needs_gpu(name: str) -> bool:
    """Return whether an engine needs a GPU; `auto` does not."""
    return name != AUTO and ENGINES[name].gpu
