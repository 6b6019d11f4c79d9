"""The page of a forecast and its figures: the batch size to use, N(b), and a table with a row for each batch size."""

from __future__ import annotations

import math
import shutil
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib import rc_context, rc_file_defaults

from raysat.plots import figures, views
from raysat.plots.drawing import draw
from raysat.report.figures import about
from raysat.report.html import Section, figure, listing, page, paragraphs, table
from raysat.report.series import as_json
from raysat.saturation.forecast import Forecast
from raysat.storage.files import Location, write_aside, written
from raysat.text import number

COLUMNS = {
    "batch_size": ("b", "samples", "batch size"),
    "N": ("N", "iterations", "of a typical run to the target, with its best stable stepsize"),
    "samples": ("b N", "samples", "that these iterations take"),
    "eta": ("eta", "stepsize", "the best one of a typical run"),
    "N_mean": (
        "N mean",
        "iterations",
        "of the mean loss over all runs, which rare bad batches raise, with its best stepsize",
    ),
    "eta_max": ("eta max", "stepsize", "the largest at which the mean loss of the linearized network does not grow"),
}
"""The columns of the table on the terminal: head, unit and meaning."""

MORE = COLUMNS | {
    "eta_theory": ("1/beta", "stepsize", "stable for every network, by the theory"),
    "N_theory": ("N at 1/beta", "iterations", "of the mean loss to the target, with that stepsize"),
    "h_theory": ("h at 1/beta", "1/iterations", "log(L(w_0)/L(w_T))/T of the mean loss, with that stepsize"),
}
"""The columns of the table on the page."""

HOW = (
    "Nothing was trained: the network is linearized at initialization, and SGD on it is followed by the spectrum of "
    "its kernel and of the residual, with eigenvectors as good as random. Where the kernel moves (narrow networks, "
    "large stepsizes, long runs) real training differs: see docs/reproduction.md for by how much it did."
)

TITLE = "Iterations to the target loss, forecast"

CAPTION = (
    "Iterations N(b) to the target loss against batch size b, forecast from the network at initialization, each b with "
    "its best stable stepsize: of a typical run and of the mean loss. The law N_inf (1 + (b_N/b)^q)^(1/q) fitted to "
    "the typical run, perfect scaling N(1)/b, the forecast critical batch size b_N, where perfect scaling meets the "
    "plateau (grey: of the mean loss), and b_star = gamma/k_op."
)


def sentence(made: Forecast) -> str:
    """Return the batch size to use, or why there is none, as a sentence."""
    if math.isnan(made.typical.value):
        why = next(said for said in made.remarks if said.startswith("No b_N"))
        return f"No batch size can be advised. {why}"
    rows = made.by_batch
    first, worth = rows.iloc[0], rows[rows["batch_size"] <= made.typical.value]
    much = ""
    if len(worth) > 1:
        last = worth.iloc[-1]
        much = (
            f" b = {int(last['batch_size'])} takes {number(last['N'])} iterations where b = "
            f"{int(first['batch_size'])} takes {number(first['N'])}."
        )
    return (
        f"Use b up to about {number(made.typical.value, 2)}: beyond, larger batches cease to save iterations in "
        f"proportion.{much}"
    )


def details(made: Forecast) -> str:
    """Describe the critical batch sizes by each definition, and the target."""
    typical, mean, theory = (number(fit.value) for fit in (made.typical, made.mean, made.theory))
    return (
        f"To L <= {number(made.target)}, each b with its best stable stepsize. b_N, where perfect scaling ends: "
        f"{typical} for a typical run, {mean} for the mean loss; under 1/beta(b) {theory}, and b_h, at T = "
        f"{made.iterations:,}, {number(made.b_h_theory.value)}. b_star = gamma/k_op: {number(made.b_star)}."
    )


def cells(made: Forecast, columns: Mapping[str, object] = COLUMNS) -> list[list[str]]:
    """Format the rows of the table."""
    rows = made.by_batch.assign(samples=made.by_batch["batch_size"] * made.by_batch["N"])
    return [[number(row[name]) for name in columns] for row in rows[list(columns)].to_dict("records")]


def explained(columns: Mapping[str, tuple[str, str, str]] = COLUMNS) -> list[str]:
    """Describe each column in words."""
    return [f"{head} ({unit}): {what}." for head, unit, what in columns.values()]


def save(made: Mapping[str, Forecast], name: str, notes: Sequence[str], folder: Location) -> Location:
    """Write `forecast.html`, and the figure of each forecast as PNG and PDF, to a folder.

    Args:
        made: Forecasts by name of their network.
        name: The name of the sweep.
        notes: Notes on all forecasts.
        folder: The folder, created if missing.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder cannot be written.
    """
    with written(folder), TemporaryDirectory(prefix="raysat-") as drawn:
        folder.mkdir(parents=True, exist_ok=True)
        with rc_context():
            rc_file_defaults()  # a user's code may have changed matplotlib's settings in this process
            labels = [f"forecast-{k}" if len(made) > 1 else "forecast" for k in range(1, len(made) + 1)]
            named = zip(labels, made.items(), strict=True)
            draw({label: figures.forecast(one, title) for label, (title, one) in named}, Path(drawn))
        for file in sorted(Path(drawn).iterdir()):
            write_aside(folder / file.name, partial(shutil.copyfile, file))
        pictures = [(Path(drawn) / f"{label}.png").read_bytes() for label in labels]
        text, path = render(made, name, notes, pictures), folder / "forecast.html"
        write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8", errors="backslashreplace"))
    return path


def render(made: Mapping[str, Forecast], name: str, notes: Sequence[str], pictures: Sequence[bytes]) -> str:
    """Render the page as HTML.

    Args:
        made: Forecasts by name of their network.
        name: The name of the sweep.
        notes: Notes on all forecasts.
        pictures: A PNG of each forecast, for readers without scripts.
    """
    answers = [
        f'<p class="setting">{escape(title)}</p>'
        + paragraphs([sentence(one)], "said")
        + paragraphs([details(one)])
        + listing(one.remarks)
        for title, one in made.items()
    ]
    images = "".join(
        f'<img alt="{escape(title)}" src="data:image/png;base64,{b64encode(png).decode()}">'
        for title, png in zip(made, pictures, strict=True)
    )
    heads = [head for head, *_ in MORE.values()]
    tables = [
        f"<h3>{escape(title)}</h3>" + table(heads, cells(one, MORE), set(), f"Forecast by batch size: {title}")
        for title, one in made.items()
    ]
    sections = [
        Section("answer", "Answer", f'<div class="answer">{"".join(answers)}</div>{listing(notes)}'),
        Section("figures", "Figure", figure("foreseen", TITLE, CAPTION, images)),
        Section("table", "By batch size", "\n".join([*tables, listing(explained(MORE))])),
        Section("how", "How it was made", paragraphs([HOW])),
    ]
    # the axes of the figure `steps` of a sweep, under another name: a view for each network in place of each reading
    drawn = {**about("steps", TITLE, CAPTION), "name": "foreseen"}
    drawn["views"] = [
        {"at": [title], **as_json(views.forecast(one)), "summary": f"{sentence(one)} {details(one)}"}
        for title, one in made.items()
    ]
    payload = {"file": f"{name}-forecast", "choices": ["Network"], "start": [next(iter(made))], "figures": [drawn]}
    lead = "A forecast from the network at initialization: nothing was trained."
    return page(f"{name}: forecast", lead, sections, payload)
