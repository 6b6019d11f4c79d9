"""The display of a running sweep: what has ended, what runs, and how long the rest will take."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from raysat.messages.failures import cause
from raysat.storage.schema import BEATEN, COMPLETED, DIVERGED, FAILED
from raysat.text import duration, number

SHOWN = 8
"""The number of running jobs that are listed, those that have run longest. Default: 8; a cluster may run hundreds."""

LOG_SECONDS = 60.0
"""Seconds between two lines about running jobs in a log file."""


@dataclass
class Running:
    """A running job.

    Attributes:
        name: The name shown to users.
        iterations: The number of its iterations; 0 if they are not counted.
        since: Its start, on the clock of `time.monotonic`.
        iteration: The iterations done; None before the first report.
        loss: The loss at its last evaluation.
        unit: The name of what is counted.
    """

    name: str
    iterations: int
    since: float
    iteration: int | None = None
    loss: float | None = None
    unit: str = "iteration"

    def __str__(self) -> str:
        return running_line(vars(self) | {"seconds": time.monotonic() - self.since})


class View:
    """Shows one stage of a sweep: live in a terminal, plain lines in a log file, a record for `raysat.status`.

    Args:
        console: Where to print.
        title: The stage.
        weights: Each job's share of the time, by key. Jobs may be added while the stage runs.
        running: The running jobs, by key, possibly shared with another stage. Default: none yet.
        grows: Whether jobs will be added, so that the total is a lower bound.
        quiet: Whether only failures are printed.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        weights: Mapping[str, float],
        running: dict[str, Running] | None = None,
        *,
        grows: bool = False,
        quiet: bool = False,
    ) -> None:
        self.console, self.title, self.weights = console, title, weights
        self.grows, self.quiet = grows, quiet
        self.begun = self.said = time.monotonic()
        self.done, self.counts = 0.0, Counter()
        self.running = {} if running is None else running
        self.cluster = ""
        columns = TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self.bar = Progress(*columns, console=console)
        self.task: TaskID = self.bar.add_task(title, total=len(weights))
        self.live = Live(console=console, get_renderable=self._picture, transient=True, refresh_per_second=2)

    def __enter__(self) -> View:
        self.begun = time.monotonic()
        if self.console.is_terminal and not self.quiet:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    @property
    def ended(self) -> int:
        """The number of jobs that have ended."""
        return self.counts.total()

    def job_started(self, key: str, name: str, iterations: int = 0, unit: str = "iteration") -> None:
        """Count a job as running."""
        self.running[key] = Running(name, iterations, time.monotonic(), unit=unit)

    def job_told(self, key: str, iteration: int, loss: float | None) -> None:
        """Note the progress of a job."""
        if key in self.running:
            self.running[key].iteration, self.running[key].loss = iteration, loss

    def job_ended(self, key: str, line: str | Text, status: str = COMPLETED) -> None:
        """Count a job as ended and print its line, as plain text without markup."""
        self.running.pop(key, None)
        self.done += self.weights[key]
        self.counts[status] += 1
        self.bar.update(self.task, completed=self.ended, total=len(self.weights))
        if self.quiet and status != FAILED:
            return
        count = f"{self.ended:>{len(str(len(self.weights)))}}/{len(self.weights)}{'+' * self.grows}"
        left = self.left()
        tail = "" if self.console.is_terminal or left is None else f"  ({left_text(left, self.grows)})"
        self._print(Text.assemble(f"{count}  ", line, tail))

    def note(self, text: str) -> None:
        """Print a message that is not about a job."""
        self._print(Text(text))

    def _print(self, text: Text) -> None:
        with suppress(
            Exception
        ):  # an error of rich must lose no result; for the stream see `raysat.messages.expendable`
            self.console.print(text, highlight=False, soft_wrap=True)

    def tick(self, cluster: str) -> None:
        """Note the cluster's size and, in a log file, print the running jobs every `LOG_SECONDS`."""
        self.cluster = cluster
        if self.console.is_terminal or self.quiet or time.monotonic() - self.said < LOG_SECONDS:
            return
        self.said = time.monotonic()
        for line in (self.summary(), *self._lines()):
            self.note(line)

    def left(self) -> float | None:
        """Return the seconds that the rest will take, by cost rather than by count; None if unknown."""
        part = sum(
            self.weights.get(key, 0.0) * job.iteration / job.iterations
            for key, job in list(self.running.items())
            if job.iteration and job.iterations
        )
        done = self.done + part
        if done <= 0 or self.ended == len(self.weights):
            return None
        return (time.monotonic() - self.begun) * max(0.0, sum(self.weights.values()) - done) / done

    def summary(self) -> str:
        """Return the state of the stage in one line."""
        return summary_line(self.record())

    def record(self) -> dict[str, Any]:
        """Return the state of the stage as plain data, for `raysat.status`."""
        now = time.monotonic()
        return {
            "stage": self.title,
            "total": len(self.weights),
            "ended": self.ended,
            "failed": self.counts[FAILED],
            "diverged": self.counts[DIVERGED],
            "seconds_left": self.left(),
            "grows": self.grows,
            "cluster": self.cluster,
            "running": [
                {
                    "name": job.name,
                    "iteration": job.iteration,
                    "iterations": job.iterations,
                    "loss": job.loss,
                    "unit": job.unit,
                    "seconds": now - job.since,
                }
                for job in list(self.running.values())
            ],
        }

    def _lines(self) -> list[str]:
        jobs = sorted(list(self.running.values()), key=lambda job: job.since)
        more = [f"  and {len(jobs) - SHOWN} more"] * (len(jobs) > SHOWN)
        return [f"  {job}" for job in jobs[:SHOWN]] + more

    def _picture(self) -> Group:
        return Group(self.bar, *(Text(line, no_wrap=True) for line in (self.summary(), *self._lines())))


def left_text(seconds: float, grows: bool) -> str:
    """Return how long the rest will take, in words."""
    return f"{'at least ' * grows}{duration(seconds)} left"


def summary_line(record: Mapping) -> str:
    """Return a view's record in one line."""
    ended, running = record["ended"], len(record["running"])
    parts = [f"{record['stage']}: {ended} of {record['total']} ended", f"{running} running"]
    parts += [f"{record[what]} {what}" for what in (FAILED, DIVERGED)]
    if record["seconds_left"] is not None:
        parts.append(left_text(record["seconds_left"], record["grows"]))
    return ", ".join([*parts, *filter(None, [record["cluster"]])])


def running_line(job: Mapping) -> str:
    """Return a running job in one line."""
    text = f"{job['name']}: {duration(job['seconds'])}"
    if job["iteration"] is not None:
        text += f", {job.get('unit', 'iteration')} {job['iteration']} of {job['iterations']}"
    return text + (f", loss {number(job['loss'], 4)}" if job["loss"] is not None else "")


COLOURS = {FAILED: "bold red", DIVERGED: "yellow", COMPLETED: "yellow", BEATEN: "dim"}


def mishap(name: str, status: str, why: str, what: str = "") -> Text:
    """Return a line for a job that did not end as it should, with the reason: `name: failed: why`."""
    return Text.assemble(f"{name}: ", (what or status, COLOURS[status]), f": {why}")


def trial_line(row: Mapping[str, Any]) -> Text:
    """Return one line for an ended cell; any of its numbers may be missing, zero or infinite."""
    stepsize, eta = row["stepsize"], row.get("eta")
    if stepsize.startswith("grid") and eta is not None:  # which stepsize of the grid
        stepsize += f", eta = {number(eta)}"
    where = f"{row['model']} width {row['width']}, seed {row['seed']}, {stepsize}, b = {row['batch_size']}"
    if row["training"] != "sgd":
        where += f", {row['training']}"
    if row["status"] == FAILED:
        return mishap(where, FAILED, cause(str(row["error"])))
    losses = " to ".join(number(row.get(name), 4) for name in ("loss_init", "loss_final"))
    short = [", ", (row["status"], COLOURS[row["status"]])] if row["status"] in (DIVERGED, BEATEN) else []
    iterations = f": loss {losses} in {row['iterations_done']} iterations"
    return Text.assemble(where, iterations, *short, f", {duration(row.get('seconds'))}")
