"""What a person sees while a sweep runs: a line for each cell that ends, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from raysat.schema import DIVERGED, FAILED


def duration(seconds: float) -> str:
    """A duration for a person: `0.4 s`, `42 s`, `3 min 20 s`, `5 h 10 min`, `3 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 172_800:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"


class View:
    """Shows one stage of a sweep: a live bar in a terminal, plain lines in a log file.

    Args:
        console: Where to print.
        title: The stage.
        weights: The share of the time of each job, by its key.
    """

    def __init__(self, console: Console, title: str, weights: Mapping[str, float]) -> None:
        self.console, self.weights = console, weights
        self.begun = time.monotonic()
        self.done, self.ended = 0.0, 0
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID = self.bar.add_task(title, total=len(weights), left="")

    def __enter__(self) -> View:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def job_ended(self, key: str, line: str) -> None:
        """Count a job and print its line."""
        self.done += self.weights[key]
        self.ended += 1
        left = self.left()
        self.bar.update(self.task, completed=self.ended, left=left)
        count = f"{self.ended:>{len(str(len(self.weights)))}}/{len(self.weights)}"
        tail = "" if self.console.is_terminal or not left else f"  ({left})"
        self.console.print(f"{count}  {line}{tail}", highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print something that is not a job."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def left(self) -> str:
        """How long the rest will take, by cost rather than by count."""
        rest = sum(self.weights.values()) - self.done
        if self.ended == len(self.weights) or self.done <= 0:
            return ""
        return f"{duration((time.monotonic() - self.begun) * rest / self.done)} left"


def trial_line(row: Mapping[str, object]) -> str:
    """One line for a cell that has ended."""
    where = f"{row['model']} width {row['width']}, seed {row['seed']}, {row['stepsize']}, b = {row['batch_size']}"
    if row["status"] == FAILED:
        return f"{where}: [bold red]failed[/]: {escape(last_line(str(row['error'])))}"
    text = f"{where}: loss {row['loss_init']:.4g} to {row['loss_final']:.4g} in {row['iterations_done']} iterations"
    if row["status"] == DIVERGED:
        text += ", [yellow]diverged[/]"
    return f"{text}, {duration(float(row['seconds']))}"


def last_line(text: str) -> str:
    """The last line of a traceback that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"
