"""`python -m raysat.sweep FILE`: from a sweep file to rows, figures and an answer."""

from __future__ import annotations

import argparse
import gc
import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from raysat import data
from raysat.compute import matmul
from raysat.driver import sweepfile
from raysat.driver.dry_run import show_cost
from raysat.driver.earlier import earlier_results, no_longer_beaten, set_aside_changed
from raysat.driver.loop import run, stored_statistics
from raysat.driver.plan import Plan, plan
from raysat.driver.provenance import about
from raysat.driver.queue import CellQueue, groups
from raysat.errors import InputError
from raysat.executor import ExecutorDied, InProcess, OnRay
from raysat.messages import ending
from raysat.messages.command import command, program
from raysat.messages.failures import by_cause, named, said, traced
from raysat.messages.terminal import Terminal
from raysat.sgd.engine import maker
from raysat.spec.engines import needs_gpu
from raysat.spec.sweep import Sweep
from raysat.status import other_driver
from raysat.storage.files import Remote, location
from raysat.storage.store import Store, storage_errors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("raysat.sweep"),
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
    parser.add_argument(
        "--results",
        default="results",
        metavar="FOLDER",
        help="parent of the sweep's folder, or its address, such as s3://bucket/path [results]",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="the best answer in so much time: cheap cells run first, and what runs after M minutes is stopped",
    )
    parser.add_argument("--inline", action="store_true", help="run in this process, without Ray")
    parser.add_argument("--dry-run", action="store_true", help="print the cells and what they cost, and run nothing")
    parser.add_argument("--quiet", action="store_true", help="say only what goes wrong, and the result")
    parser.add_argument("--fresh", action="store_true", help="delete what the results folder has of this sweep first")
    parser.add_argument("--address", help="address of a running Ray cluster [one is started on this machine]")
    return parser


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: one of `raysat.messages.ending`, or 128 + n after signal n."""
    options = _parser().parse_args(arguments)
    console = Terminal(file=sys.stdout)
    # Its warnings are in the rows, and shown from there.
    logging.getLogger("raysat.ntk").setLevel(logging.ERROR)
    with ending.signals(for_good=arguments is None) as signals:
        try:
            return _main(options, console, signals)
        except KeyboardInterrupt:
            signals.close()
            code, sentence = signals.how_it_ended()
            console.print(f"\n{sentence}", soft_wrap=True)
            return code
        except ExecutorDied as death:
            _say(f"{death}. {ending.AGAIN}")
            return ending.NO_CLUSTER
        except InputError:
            raise
        except Exception as error:  # an error of this process, such as exhausted memory
            print(traced(error), file=sys.stderr)
            _say(f"the driver failed ({named(error)}). {ending.AGAIN}")
            return ending.BROKEN
        finally:
            signals.close()


def _say(sentence: str) -> None:
    print(f"raysat: {sentence}", file=sys.stderr)


def _main(options: argparse.Namespace, console: Console, signals: ending.Signals) -> int:
    begun = time.monotonic()
    sweep = sweepfile.override(sweepfile.load(options.file), options.set)
    if options.minutes is not None:
        sweep = replace(sweep, minutes=options.minutes)
    matmul.requested_backend()  # if it names no library, every trial would fail
    store = Store(location(options.results) / sweep.name)
    before = None if options.fresh else store.record()
    laid_out = plan(sweep, options.file.parent, before and before["resolved"].get("code"))
    if not options.dry_run and (busy := other_driver(store)):
        raise InputError(busy)
    store.parts.keep()
    with storage_errors(store.root):
        if options.fresh and store.root.exists():
            _start_over(store, console, really=not options.dry_run)
        else:
            store.check(sweep, laid_out.data)
        stale = set_aside_changed(store, laid_out, console, really=not options.dry_run)
        found = earlier_results(store, sweep) if store.root.exists() else {}
        found = {cell_id: finding for cell_id, finding in found.items() if cell_id not in stale}
        unbeaten = no_longer_beaten(store, laid_out, found)
        if unbeaten and not options.dry_run:
            store.set_aside(unbeaten)
        found = {cell_id: finding for cell_id, finding in found.items() if cell_id not in unbeaten}
    if options.dry_run:
        show_cost(laid_out, {cell.cell_id for cell in laid_out.cells} & set(found), console)
        return 0

    elsewhere = not options.inline and bool(options.address or os.environ.get("RAY_ADDRESS"))
    if not elsewhere:
        _check_machine(sweep)
    proposing = groups(sweep, laid_out.cells, laid_out.weight)
    queue = CellQueue(proposing, laid_out.weight, found, cheapest_first=sweep.minutes is not None)
    failed: list[tuple[str, str]] = []
    known, outdated = stored_statistics(store, queue)
    again = len(outdated)
    if not queue.weights:  # else they are computed with the cells that need them
        again += len({cell.init.init_id for cell in queue.requested} - set(known) - set(outdated))
    if queue.weights or again:
        failed = _run(options, laid_out, queue, store, again, begun, elsewhere, console, signals)
    else:
        console.print(f"Sweep {sweep.name}: all {len(queue.requested)} cells are finished.")
        if store.record() is None:  # the record was lost, and all rows are there
            _open(store, options, laid_out)
        with suppress(InputError, OSError):  # a read-only folder stays unchanged
            # an earlier raysat's record has no files; other targets are of the same cells
            code, targets = laid_out.data["code"], list(sweep.targets)
            if before and (before["resolved"].get("code"), before["sweep"].get("targets") or []) != (code, targets):
                _open(store, options, laid_out)
            else:
                store.settle()
    store.parts.let_go()
    for line in queue.stop_reasons:
        console.print(line, highlight=False, soft_wrap=True)
    reported = _report(store, console)
    signals.close()
    if failed:
        _say_failed(failed)
        return ending.CELLS_FAILED
    return ending.FINISHED if reported else ending.NO_REPORT


def _run(
    options: argparse.Namespace,
    laid_out: Plan,
    queue: CellQueue,
    store: Store,
    again: int,
    begun: float,
    elsewhere: bool,
    console: Console,
    signals: ending.Signals,
) -> list[tuple[str, str]]:
    """Run the queued cells, on Ray or in this process.

    Args:
        options: The command-line options.
        laid_out: The plan.
        queue: The cells to run.
        store: Where results go.
        again: Initializations whose statistics are computed again.
        begun: The start of the command, on the clock of `time.monotonic`.
        elsewhere: Whether the cluster is not on this machine.
        console: Where progress is shown.
        signals: The handlers of signals that end the sweep.

    Returns:
        The name of each cell that failed, and its error.
    """
    sweep = laid_out.sweep
    with ExitStack() as stack:
        executor = InProcess()
        if not options.inline:
            tune = Path(stack.enter_context(_scratch()))
            executor = OnRay(tune, sweep.cpus_per_trial, sweep.gpus_per_trial, options.address, sweep.ranks_per_trial)
        stack.enter_context(executor)
        signals.arm()  # Ray has replaced them by its own handlers
        if not options.quiet:
            statistics = f"statistics of {again} initializations to compute again, " * bool(again)
            cells = f"{len(queue.weights)} of {len(queue.requested)} cells to run{' to begin with' * sweep.grows}"
            within = f", within {sweep.minutes:g} minutes" if sweep.minutes else ""
            console.print(f"Sweep {sweep.name}: {cells}, {statistics}{executor.where}{within}.")
        _open(store, options, laid_out)
        if shares := isinstance(store.data, Remote) or elsewhere:
            with suppress(OSError):  # workers with internet do not need it
                data.put(sweep.dataset, store.data)
        # The report's libraries are loaded while trials run, and not during Ray's shutdown: a thread that then frees an
        # object of Ray would end this process.
        beside = stack.enter_context(ThreadPoolExecutor(1))
        load = partial(beside.submit, partial(import_module, "raysat.report"))
        deadline = begun + 60 * (sweep.minutes or math.inf)
        until = {"check": signals.check, "deadline": deadline}
        failed = run(
            laid_out, queue, store, executor, console, options.quiet, shares=shares, on_first_trial=load, **until
        )
    signals.arm()
    if sweep.minutes and (left := sum(cell.cell_id not in queue.results for cell in queue.requested)):
        console.print(
            f"{sweep.minutes:g} minutes are over, and {left} of the cells that are wanted so far have not ended: the "
            "answer is of those that have. The same command goes on from there.",
            soft_wrap=True,
        )
    return failed


def _open(store: Store, options: argparse.Namespace, laid_out: Plan) -> None:
    """Prepare the results folder, and record the command in it."""
    store.open(laid_out.sweep, about(options.file, options.set, options.results), laid_out.data)


def _start_over(store: Store, console: Console, *, really: bool) -> None:
    """Delete this sweep's files from the results folder, unless it contains others."""
    if strangers := any(store.root.iterdir()) and store.strangers():
        raise InputError(
            f"{store.root} has {strangers[0]}, which is no part of results: move it, delete it by hand, or use another "
            "--results or --set name=NAME."
        )
    console.print(f"--fresh: deleting {store.root} with {len(store.finished())} finished cells.")
    if really:
        store.clear()


def _check_machine(sweep: Sweep) -> None:
    """Raise `InputError` if the sweep needs something that this machine, on which it is to run, lacks."""
    for field, needed in (("precision", sweep.precision == "tf32"), ("engine", needs_gpu(sweep.engine))):
        if needed and not torch.cuda.is_available():
            value, default = getattr(sweep, field), next(f.default for f in fields(Sweep) if f.name == field)
            raise InputError(f"{field}={value!r} needs a GPU, and this machine has none: set {field}={default!r}.")
    on_gpu = torch.cuda.is_available() and sweep.gpus_per_trial != 0
    maker(sweep.engine).check_device(torch.device("cuda" if on_gpu else "cpu"))


def _say_failed(failed: Sequence[tuple[str, str]]) -> None:
    """Print the failed cells, each kind of error once."""
    _say(f"{len(failed)} cells failed; the same command tries them again:")
    for why, names in by_cause(failed).items():
        first = names[0] if len(names) == 1 else f"{len(names)} cells, the first {names[0]}"
        _say(f"  {why} ({first})")


def _report(store: Store, console: Console) -> bool:
    """Make the report, or print why there is none, which leaves the results valid. Return whether there is one."""
    try:
        from raysat import report  # imported here, because it loads matplotlib: bad input is reported before

        report.finish(store.root, console)
    except Exception as error:  # a full disk, or a defect: the results do not depend on it
        if not isinstance(error, (OSError, InputError)):
            print(traced(error), file=sys.stderr)
        again = f"python -m raysat.report {store.root}"
        _say(f"the report could not be made ({named(error)}). The results stand; make it again by {again}")
        return False
    return True


def _scratch() -> TemporaryDirectory:
    """Return a temporary folder for Tune's files.

    Raises:
        ExecutorDied: There is no space for one.
    """
    try:
        return TemporaryDirectory(prefix="raysat-tune-")
    except OSError as error:
        raise ExecutorDied(
            f"Ray has no folder for temporary files ({said(error)}): make room, or name another one by TMPDIR, or run "
            "without Ray by --inline"
        ) from None


def from_shell() -> int:
    """Run the command in its own process, and end the process with it."""
    gc.freeze()  # else each collection scans all of torch's objects: a second in total
    code = main()
    gc.freeze()  # else the interpreter scans them once more as it exits
    if code == ending.NO_CLUSTER:  # the remains of Ray in this process would wait for dead processes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(from_shell())
