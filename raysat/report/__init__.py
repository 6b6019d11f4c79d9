"""The page of a sweep: one HTML file that opens anywhere, with the answer first and all that it rests on below.

    $ python -m raysat.report RESULTS/mnist     analysis.parquet, figures/, report.html, and the table on the terminal
    $ python -m raysat.report RESULTS           RESULTS/report.html, which compares the sweeps in the folder

It can be made at any moment of a sweep. The way of the data: tables -> `figures` (plain data) and `sections` (HTML) ->
`page`, which adds the style and the script of `assets/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from raysat import plots
from raysat.analysis import Analysis, analyze_and_save, load, print_summary, summary
from raysat.files import Location, location, write_aside
from raysat.report import sections
from raysat.report.answer import answers
from raysat.report.certificates import certificates
from raysat.report.compare import compare
from raysat.report.figures import payload
from raysat.report.page import page
from raysat.report.predictions import predictions
from raysat.store import Store
from raysat.widths import by_width, sentences

__all__ = ["compare", "finish", "render"]


def finish(root: Location | str, console: Console) -> Location:
    """All that follows a sweep: fits, figures, page, and the table on the terminal.

    Args:
        root: The results folder or its address, of a finished sweep or not.
        console: Where the table is printed.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder is not a results folder, or of another schema version.
    """
    root = location(root)
    record, trials, curves = load(root)
    store = Store(root)
    ntk, done = store.read("ntk"), (store.status() or {}).get("done") or ()
    analysis = analyze_and_save(root, record, trials, curves)
    made = plots.plates(trials, curves, analysis)
    plots.save(made, root / "figures")
    images = [(plate, (root / "figures" / f"{plate.name}.png").read_bytes()) for plate in made]
    widths = by_width(trials, ntk)
    html = render(record, trials, curves, ntk, analysis, images, widths, done)
    path = root / "report.html"
    write_aside(path, lambda aside: aside.write_text(html, encoding="utf-8"))
    print_summary(analysis, console)
    for sentence in sentences(widths):
        console.print(Text(sentence))
    console.print(Text(f"Results: {root}\nFigures: {root / 'figures'}\nReport:  {path}"), soft_wrap=True)
    return path


def render(
    record: Mapping,
    trials: pd.DataFrame,
    curves: pd.DataFrame,
    ntk: pd.DataFrame,
    analysis: Analysis,
    images: Sequence[tuple[plots.Plate, bytes]],
    widths: pd.DataFrame,
    done: Sequence[str] = (),
) -> str:
    """The page of a sweep as HTML.

    Args:
        record: The content of `sweep.json`.
        trials: The `trials` table.
        curves: The `curves` table.
        ntk: The `ntk` table.
        analysis: Their analysis.
        images: Each static figure and its PNG.
        widths: The result of `raysat.widths.by_width`.
        done: Why an adaptive sweep has run no more, a sentence for each group of its cells.
    """
    table = summary(analysis.fits)
    said = answers(table)
    first = max(said, key=lambda one: one.measured, default=None)
    drawn = payload(trials, curves, analysis, first.row if first else None)
    parts = [
        sections.answer(table, trials),
        sections.advice(analysis.choices),
        sections.figures(drawn, images),
        predictions(analysis.comparison, ntk),
        sections.measured(table),
        certificates(ntk),
        sections.trainings(trials, curves),
        sections.widths(widths),
        sections.stopped(done),
        sections.lost(trials),
        sections.provenance(record),
    ]
    name = str(record["sweep"].get("name", "sweep"))
    return page(name, sections.progress(record, trials), parts, {"file": name, **drawn})
