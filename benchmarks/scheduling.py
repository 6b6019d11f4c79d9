"""What a sweep costs beside its trials: the real driver, store and Ray, and trials that only sleep.

    python -W ignore benchmarks/scheduling.py [CELLS SECONDS]...

Default: 200 cells of 0.1 s, and 5,000 of 0.01 s; three minutes on two cores. The page and the figures are left out.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

import raysat.sweep as command
from raysat import report
from raysat.driver import loop as driver
from raysat.trial.job import Job
from raysat.trial.train import failed_row

SWEEP = """
from raysat import Sweep, fixed, mlp
sweep = Sweep(name="many", dataset="digits", n_train=64, models=[mlp(1)], widths=[8], batch_sizes=range(1, 51),
              stepsizes=[fixed(0.01 * k) for k in range(1, {policies} + 1)], iterations=10)
"""
EVALUATIONS = 30


def sleeper(seconds: float):
    def trials(job: Job):
        begun = time.time()
        time.sleep(seconds)
        cell_id = job.cell.cell_id
        curve = [{"cell_id": cell_id, "iteration": t, "train_loss": 1 / (1 + t)} for t in range(EVALUATIONS)]
        row = failed_row(job, None) | {"status": "completed", "eta": job.cell.stepsize.value, "h": 0.1}
        row |= {"loss_init": 1.0, "loss_final": 1 / EVALUATIONS, "hostname": str(os.getpid())}
        now = time.time()
        row |= {"seconds": now - begun, "finished_at": datetime.fromtimestamp(now, UTC)}
        return [(row, curve, [])]

    return trials


def gaps(trials: pd.DataFrame) -> pd.Series:
    """Seconds from a trial's end to the start of the next one in the same process, in the order of the ends."""
    trials = trials.sort_values("finished_at")
    began = trials["finished_at"] - trials["seconds"].map(lambda seconds: timedelta(seconds=seconds))
    idle = began - trials.groupby("hostname")["finished_at"].shift()
    return idle.dt.total_seconds().dropna()


def measure(cells: int, seconds: float) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "many.py"
        file.write_text(SWEEP.format(policies=cells // 50))
        driver.run_trials = sleeper(seconds)
        report.finish = lambda *_: None
        begun = time.perf_counter()
        assert command.main([str(file), "--results", folder, *sys.argv[3:]]) == 0
        wall = time.perf_counter() - begun
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        begun = time.perf_counter()
        trials = pd.read_parquet(Path(folder) / "many" / "trials")
        curves = pd.read_parquet(Path(folder) / "many" / "curves")
        reading = time.perf_counter() - begun
        files = sum(1 for _ in Path(folder, "many").glob("*/*.parquet"))
    assert len(trials) == trials["cell_id"].nunique() == cells
    assert len(curves) == cells * EVALUATIONS
    idle = gaps(trials)
    tenth = len(idle) // 10
    ends = (idle.iloc[tenth : 2 * tenth].median(), idle.iloc[-tenth:].median())
    own = trials["seconds"].sum() / trials["hostname"].nunique()
    print(
        f"{cells} cells of {seconds:g} s: between trials median {1e3 * idle.median():.1f} ms "
        f"(second tenth {1e3 * ends[0]:.1f}, last tenth {1e3 * ends[1]:.1f}); {wall:.1f} s in all, "
        f"{wall - own:.1f} s beyond their own; driver {memory:.2f} GiB; {files} files, read in {reading:.2f} s"
    )


if __name__ == "__main__":
    numbers = sys.argv[1:3] or None
    for cells, seconds in [(int(numbers[0]), float(numbers[1]))] if numbers else [(200, 0.1), (5000, 0.01)]:
        measure(cells, seconds)
