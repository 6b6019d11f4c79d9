"""A long sweep of short trials under Ray, of which processes are killed: what is lost, and what grows.

    python -W ignore benchmarks/soak.py [--cells 20000] [--seconds 0.1] [--worker 180]

The real driver, store and Ray, and trials that only sleep. Killed are a worker every three minutes, and early the
driver once and the raylet twice, without which a driver on its own cluster cannot go on. After each end the same
command is run again. Memory is the resident one, in MiB; what processes share, as Ray's store of objects, counts in
each.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import scheduling

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults import victims

BATCH_SIZES = 50
"""Those of `scheduling.SWEEP`."""

DRIVER = """
import sys
import scheduling
import raysat.sweep as command
from raysat import report
from raysat.driver import loop as driver
driver.run_trials = scheduling.sleeper(float(sys.argv.pop(1)))
report.finish = lambda *_: None
sys.exit(command.main(sys.argv[1:]))
"""
KILLS = (0.02, "driver"), (0.1, "raylet"), (0.2, "raylet")
"""The share of the cells that have ended when each is killed: early, so that the last run is long."""

INTERVAL = 10.0
"""Seconds between two looks."""


def processes(driver: int) -> dict[int, str]:
    """The driver and the processes below it, with the name of each, such as `driver`, `raylet`, `worker`."""
    return {driver: "driver"} | {process: _role(process) for process in victims.descendants(driver)}


def _role(process: int) -> str:
    name = victims.program(process)
    agent = name.endswith("Agent")  # of the raylet's, which ends without it
    return "worker" if name.startswith("ray::") and not agent else name


def memory(process: int) -> float:
    """Resident memory in MiB; 0 where the process has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def open_files(process: int) -> int:
    try:
        return len(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return 0


def look(driver: int, root: Path, begun: float) -> dict[str, float]:
    """What there is of everything now."""
    there = processes(driver)
    workers = [process for process, name in there.items() if name == "worker"]
    parts = {table: sum(1 for _ in root.glob(f"{table}/[!._]*.parquet")) for table in ("trials", "curves", "ntk")}
    return {
        "seconds": time.monotonic() - begun,
        "driver": memory(driver),
        "worker": max(map(memory, workers), default=0.0),
        "gcs": sum(memory(process) for process, name in there.items() if name == "gcs_server"),
        "raylet": sum(memory(process) for process, name in there.items() if name == "raylet"),
        "files": open_files(driver),
        "worker files": max(map(open_files, workers), default=0),
        "parts": sum(parts.values()),
    }


def ended(log: Path) -> int:
    """How many cells have ended, from the driver's lines, whichever run they are of."""
    return sum(" iterations, " in line for line in log.read_text(errors="replace").splitlines())


def soak(options: argparse.Namespace) -> int:
    """Run it. Returns 1 where a row was lost or is there twice."""
    with TemporaryDirectory(prefix="soak-") as folder:
        file, log, root = Path(folder) / "many.py", Path(folder) / "log", Path(folder) / "many"
        file.write_text(scheduling.SWEEP.format(policies=options.cells // BATCH_SIZES))
        command = [sys.executable, "-W", "ignore", "-c", DRIVER, str(options.seconds), str(file), "--results", folder]
        here = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
        kills = [(share * options.cells, victim) for share, victim in KILLS]
        begun, looks, runs = time.monotonic(), [], 0
        while True:
            with open(log, "a") as out:
                driver = subprocess.Popen(
                    command, env=os.environ | {"PYTHONPATH": here}, stdout=out, stderr=subprocess.STDOUT
                )
            runs += 1
            watch(driver, kills, looks, log, root, begun, options)
            print(f"run {runs} ended with {driver.returncode} after {time.monotonic() - begun:.0f} s", flush=True)
            if driver.returncode == 0 or runs == 10:
                break
        return judge(root, looks, options.cells)


def watch(
    driver: subprocess.Popen,
    kills: list[tuple[float, str]],
    looks: list[dict[str, float]],
    log: Path,
    root: Path,
    begun: float,
    options: argparse.Namespace,
) -> None:
    """Look at a run until it ends, and kill what is due."""
    spared = time.monotonic()
    while True:
        try:
            driver.wait(options.interval)
            return
        except subprocess.TimeoutExpired:
            pass
        done = ended(log)
        looks.append({"run": driver.pid, "cells": done, **look(driver.pid, root, begun)})
        if options.verbose:
            print(*(f"{name} {value:.0f}" for name, value in looks[-1].items()), flush=True)
        victim = ""
        if kills and done >= kills[0][0]:
            victim = kills.pop(0)[1]
        elif time.monotonic() - spared > options.worker:
            victim, spared = "worker", time.monotonic()
        for process in [process for process, name in processes(driver.pid).items() if victim and name == victim][:1]:
            print(f"{victim} killed after {done} cells", flush=True)
            os.kill(process, signal.SIGKILL)


def judge(root: Path, looks: list[dict[str, float]], cells: int) -> int:
    """Say what was lost and what grew."""
    trials, curves = (pd.read_parquet(root / table) for table in ("trials", "curves"))
    lost = cells - trials["cell_id"].nunique() + (cells * scheduling.EVALUATIONS - len(curves.drop_duplicates()))
    twice = int(trials.duplicated("cell_id").sum() + curves.duplicated(["cell_id", "iteration"]).sum())
    print(f"{cells} cells: {lost} rows lost, {twice} twice, {int((trials['status'] == 'failed').sum())} failed")
    table = pd.DataFrame(looks)
    rows = []
    for share in (0.05, 0.25, 0.5, 0.75, 1.0):
        until = table[table["cells"] <= share * cells]
        if len(until):
            rows.append(until.iloc[-1])
    print(pd.DataFrame(rows).drop(columns="run").round(0).astype(int).to_string(index=False))
    last = table[table["run"] == table["run"].iloc[-1]]
    quarter = last[last["cells"] >= 0.25 * cells]
    if len(quarter) > 1:
        first, end = quarter["driver"].iloc[0], quarter["driver"].iloc[-1]
        print(f"driver, last run: {first:.0f} MiB at {quarter['cells'].iloc[0]} cells, {end:.0f} at the end")
    return int(lost > 0 or twice > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=20_000, help="a multiple of 50")
    parser.add_argument("--seconds", type=float, default=0.1, help="of a trial")
    parser.add_argument("--worker", type=float, default=180.0, help="seconds between two workers that are killed")
    parser.add_argument("--interval", type=float, default=INTERVAL, help="seconds between two looks")
    parser.add_argument("--verbose", action="store_true", help="print each look")
    options = parser.parse_args()
    if options.cells % BATCH_SIZES:
        parser.error(f"--cells {options.cells}: give a multiple of {BATCH_SIZES}.")
    sys.exit(soak(options))
