"""`python -m raysat.sweep FILE`: from a sweep file to rows, figures and an answer."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysat import cost, report, sweepfile
from raysat.executor import InProcess, OnRay, Outcome
from raysat.losses import LOSSES
from raysat.plan import Plan, network_of, plan
from raysat.progress import View, duration, last_line, trial_line
from raysat.schema import FAILED
from raysat.spec import Cell, InputError
from raysat.store import Store
from raysat.trial import Job, compute_statistics, failed_row, load_dataset, run_trial


def show_cost(laid_out: Plan, finished: set[str], console: Console) -> None:
    """The dry run: the cells, what each costs in operations, and about how long the whole would take here."""
    sweep = laid_out.sweep
    dataset = load_dataset(laid_out.cells[0].init)
    torch.set_num_threads(sweep.cpus_per_trial)
    firsts = {(cell.init.model, cell.init.width): cell.init for cell in reversed(laid_out.cells)}
    paces = {
        key: cost.calibrate(network_of(init, dataset), dataset.x, dataset.y, LOSSES[sweep.loss], sweep.engine)
        for key, init in firsts.items()
    }
    table = Table(title=f"{sweep.name}: {len(laid_out.cells)} cells, {len(finished)} finished; T = {sweep.iterations}")
    for name in ("model", "width", "stepsize", "b", "seeds", "step FLOP", "eval FLOP", "time"):
        table.add_column(name, justify="left" if name in ("model", "stepsize") else "right", no_wrap=True)
    groups: dict[tuple, list[Cell]] = {}
    for cell in sorted(laid_out.cells, key=lambda cell: (cell.init.width, cell.stepsize.label, cell.batch_size)):
        groups.setdefault((cell.init.model, cell.init.width, cell.stepsize, cell.batch_size), []).append(cell)
    steps = evaluations = seconds = hours = 0.0
    for (model, width, policy, batch_size), cells in groups.items():
        flops, pace = laid_out.flops[model, width], paces[model, width]
        table.add_row(
            *(model.label, str(width), f"{policy.policy}({policy.value:g})", str(batch_size), str(len(cells))),
            *(f"{flops.of_steps(cells[0]):.1e}", f"{flops.of_evaluations(cells[0]):.1e}"),
            duration(pace.seconds(cells[0])),
        )
        left = [cell for cell in cells if cell.cell_id not in finished]
        steps += sum(map(flops.of_steps, left))
        evaluations += sum(map(flops.of_evaluations, left))
        seconds += sum(map(pace.seconds, left))
        hours += sum(cost.gpu_hours(cell, flops) for cell in left)
    console.print(table)
    workers = max(1, (os.cpu_count() or 1) // sweep.cpus_per_trial)
    console.print(
        "FLOP and time are of one cell.\n"
        f"To be done: {steps:.2e} floating-point operations in steps, {evaluations:.2e} in evaluations.\n"
        f"About {duration(seconds / workers)} with {workers} trials at a time on this machine "
        f"({sweep.cpus_per_trial} thread{'s' * (sweep.cpus_per_trial > 1)} each), from a calibration of a few steps.\n"
        f"About {hours:.2g} hours of one H100-class GPU, assuming {cost.GPU_RATE:.1e} operations a second and "
        f"{1e3 * cost.GPU_LAUNCH:g} ms to launch a step. The statistics at initialization are not counted."
    )


class Recorder:
    """Writes what comes back from the executor, and shows it."""

    def __init__(self, store: Store, view: View) -> None:
        self.store, self.view = store, view
        self.errors: dict[str, str] = {}
        self.told: set[str] = set()

    def started(self, job: Job) -> None:
        """Nothing is shown before a job ends."""

    def ended(self, outcome: Outcome) -> None:
        """Store and show an outcome."""
        if outcome.job.cell is None:
            self._statistics(outcome)
        else:
            self._trial(outcome)

    def _statistics(self, outcome: Outcome) -> None:
        key = outcome.job.init.init_id
        if outcome.error:
            self.errors[key] = outcome.error
            self.view.job_ended(key, f"{outcome.job.name}: [bold red]failed[/]: {escape(last_line(outcome.error))}")
            return
        row = outcome.value
        self.store.write_ntk(row)
        self.view.job_ended(
            key,
            f"{row['model']} width {row['width']}, seed {row['seed']}: gamma {row['gamma']:.4g}, k_op "
            f"{row['k_op']:.4g}, b_star {row['b_star']:.3g}, {duration(row['seconds'])}",
        )
        if (reason := row["method_reason"]) and reason not in self.told:
            self.told.add(reason)
            self.view.note(f"{row['model']}: {reason}; its statistics come from per-sample Jacobians, which is slower.")

    def _trial(self, outcome: Outcome) -> None:
        key = outcome.job.cell.cell_id
        rows = (failed_row(outcome.job, outcome.error), []) if outcome.error else outcome.value
        row = rows[0]
        self.store.write_trial(*rows)
        if row["status"] == FAILED:
            self.errors[key] = outcome.error
        self.view.job_ended(key, trial_line(row))


def run(laid_out: Plan, store: Store, executor: InProcess | OnRay, console: Console) -> int:
    """Run what is missing: first the statistics at initialization, then the trials. Returns how many cells failed."""
    finished = store.finished()
    cells = [cell for cell in laid_out.cells if cell.cell_id not in finished]
    known = store.statistics()
    sweep = laid_out.sweep
    inits = {cell.init.init_id: cell.init for cell in cells if cell.init.init_id not in known}
    shared = Job(
        sweep=sweep.name,
        init=cells[0].init,
        sources=laid_out.sources,
        checkpoints=str(store.checkpoints.resolve()),
        checkpoint_seconds=sweep.checkpoint_seconds,
        threads=sweep.cpus_per_trial,
        engine=sweep.engine,
    )
    errors: dict[str, str] = {}
    if inits:
        weights = {key: float(max(init.width, 1)) ** 2 for key, init in inits.items()}
        with View(console, "statistics at initialization", weights) as view:
            recorder = Recorder(store, view)
            jobs = [replace(shared, init=init) for init in inits.values()]
            executor.statistics(jobs, compute_statistics, recorder)
        known, errors = store.statistics(), recorder.errors
    with View(console, "trials", {cell.cell_id: laid_out.weight(cell) for cell in cells}) as view:
        recorder = Recorder(store, view)
        jobs = [replace(shared, init=cell.init, cell=cell) for cell in cells]
        for job in jobs:
            if job.init.init_id in errors:
                recorder.ended(Outcome(job, error=errors[job.init.init_id]))
        ready = [replace(job, statistics=known[job.init.init_id]) for job in jobs if job.init.init_id in known]
        if ready:
            executor.trials(ready, run_trial, recorder)
    return len(recorder.errors)


def about(path: Path) -> dict[str, object]:
    """Versions, machine and commit, for `sweep.json`."""
    packages = ("torch", "ray", "numpy", "pandas", "pyarrow", "scipy", "matplotlib")
    git = ["git", "-C", str(path.resolve().parent)]
    commit = _output([*git, "rev-parse", "HEAD"])
    return {
        "raysat": version("raysat"),
        "file": path.name,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": commit,
        "git_changed": bool(_output([*git, "status", "--porcelain", "--untracked-files=no"])) if commit else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "machine": {
            "hostname": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _output(command: Sequence[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m raysat.sweep",
        description="Run a sweep. The same command again runs only what is missing.",
    )
    parser.add_argument("file", type=Path, help="a sweep file: plain Python that ends with 'sweep = Sweep(...)'")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="replace a field of the sweep, such as iterations=300 or 'widths=[64,128]' or 'stepsizes=[theory()]'",
    )
    parser.add_argument("--results", type=Path, default=Path("results"), help="parent of the sweep's folder [results]")
    parser.add_argument("--inline", action="store_true", help="run in this process, without Ray")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and what they cost, and run nothing")
    parser.add_argument("--fresh", action="store_true", help="delete what the results folder has of this sweep first")
    parser.add_argument("--address", help="address of a running Ray cluster [one is started on this machine]")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code: 0; 1 where cells failed; 2 for bad input; 130 where it was interrupted."""
    options = _parser().parse_args(arguments)
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("raysat.ntk").setLevel(
        logging.ERROR
    )  # what it would warn of is in its rows, and shown from there
    try:
        return _main(options, console)
    except InputError as error:
        print(f"raysat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        console.print("\nStopped. What is finished stays; run the same command again to go on.")
        return 130


def _main(options: argparse.Namespace, console: Console) -> int:
    if "RAYSAT_DATA" in os.environ:  # workers have other working folders
        os.environ["RAYSAT_DATA"] = os.path.abspath(os.environ["RAYSAT_DATA"])
    sweep = sweepfile.override(sweepfile.load(options.file), options.set)
    store = Store(options.results / sweep.name)
    laid_out = plan(sweep, options.file.parent)
    if options.fresh and store.root.exists():
        if store.record() is None and any(store.root.iterdir()):
            raise InputError(f"{store.root} is no results folder: delete it by hand, or use another --results.")
        console.print(f"--fresh: deleting {store.root} with {len(store.finished())} finished cells.")
        if not options.dry_run:
            store.clear()
    else:
        store.check(sweep, laid_out.data)
    finished = (store.finished() if store.root.exists() else set()) & {cell.cell_id for cell in laid_out.cells}
    if options.dry_run:
        show_cost(laid_out, finished, console)
        return 0

    failed = 0
    left = len(laid_out.cells) - len(finished)
    if left:
        with ExitStack() as stack:
            executor = InProcess()
            if not options.inline:
                tune = store.root / ".tune"
                executor = OnRay(tune, sweep.cpus_per_trial, sweep.gpus_per_trial, options.address)
            stack.enter_context(executor)
            console.print(f"Sweep {sweep.name}: {left} of {len(laid_out.cells)} cells to run, {executor.where}.")
            store.open(sweep, about(options.file), laid_out.data)
            failed = run(laid_out, store, executor, console)
    else:
        console.print(f"Sweep {sweep.name}: all {len(laid_out.cells)} cells are finished.")
    report.finish(store.root, console)
    if failed:
        print(f"raysat: {failed} cells failed, named above; the same command tries them again.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
