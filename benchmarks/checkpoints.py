"""What checkpoints cost of a trial's time, on networks of 11, 2 and 43 MB, stored in a folder of this machine.

    RAYSAT_DATA=... python -W ignore benchmarks/checkpoints.py        # four minutes on two cores

The trials are on MNIST, CIFAR-10 and tiny Shakespeare. A checkpoint is due every five seconds, a twelfth of what a
sweep asks for unless it says otherwise: at the default the share is a twelfth of this one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from raysat import Sweep, fixed, gpt, mlp, resnet
from raysat.driver.plan import plan
from raysat.storage.checkpoint import Checkpoint, Progress
from raysat.trial.job import Job
from raysat.trial.train import run_trial

COMMON = {"name": "checkpoints", "stepsizes": [fixed(1e-3)], "seeds": 1, "evaluation_samples": 64, "n_test": 0}
SWEEPS = {
    "three hidden layers of 1000": {
        **{"dataset": "mnist", "models": [mlp(3)], "widths": [1000], "batch_sizes": [64], "iterations": 6000},
    },
    "ResNet-28, width 16": {
        **{"dataset": "cifar10", "models": [resnet(28)], "widths": [16], "batch_sizes": [8], "iterations": 900},
    },
    "NanoGPT 6 x 6 x 384": {
        **{"dataset": "tinyshakespeare", "models": [gpt(6, 6)], "widths": [384], "batch_sizes": [1], "iterations": 250},
        **{"loss": "cross_entropy"},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds from one checkpoint to the next")
    interval = parser.parse_args().interval
    spent: list[float] = []

    def timed(checkpoint: Checkpoint, progress: Progress, save: Callable[..., bool] = Checkpoint.save) -> bool:
        begun = time.perf_counter()
        stored = save(checkpoint, progress)
        spent.append(time.perf_counter() - begun)
        return stored

    Checkpoint.save = timed
    print("| network | trial, s | checkpoints | one takes, ms | share |\n" + "| --- " + "| ---: " * 4 + "|")
    for name, fields in SWEEPS.items():
        spent.clear()
        with TemporaryDirectory(prefix="raysat-") as folder:
            (cell,) = plan(Sweep(**COMMON, **fields), Path(folder)).cells
            job = Job("checkpoints", cell.init, cell, checkpoints=folder, checkpoint_seconds=interval)
            row, *_ = run_trial(job)
        seconds, each = row["seconds"], 1e3 * sum(spent) / max(len(spent), 1)
        print(f"| {name} | {seconds:.1f} | {len(spent)} | {each:.0f} | {sum(spent) / seconds:.2%} |", flush=True)


if __name__ == "__main__":
    main()
