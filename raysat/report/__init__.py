"""The page of a sweep: one self-contained HTML file, with the answer first and the evidence for it below.

    $ python -m raysat.report RESULTS/mnist     analysis.parquet, figures/, report.html, and the table on the terminal
    $ python -m raysat.report RESULTS           RESULTS/report.html, which compares the sweeps in the folder

It can be made at any time during a sweep, from the rows that exist; a part that fails is replaced by its error. The
path of the data is: tables (`material`) -> `figures` (plain data) and `sections` (HTML) -> `page`, which adds the style
and the scripts of `assets/`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context, rc_file_defaults
from PIL import Image
from rich.console import Console
from rich.text import Text

from raysat import plots
from raysat.analysis import print_summary, save, short_settings
from raysat.analysis.branches import sentences as branching
from raysat.analysis.ladder import Ladder
from raysat.analysis.recommendation import recommendations
from raysat.analysis.widths import sentences
from raysat.plots.attempts import Attempts
from raysat.report import along, sections
from raysat.report.comparison import compare
from raysat.report.figures import payload
from raysat.report.html import page, parts
from raysat.report.material import Material
from raysat.report.prediction import predictions
from raysat.report.statistics import certificates
from raysat.report.target import sliders
from raysat.spec.goals import Target
from raysat.storage.files import Location, location, write_aside, written
from raysat.storage.store import Store

__all__ = ["compare", "finish", "render"]

COLOURS = 64
"""Colors of a picture in the page. Default: 64; the files in `figures/` keep all of theirs."""

NOTHING_DRAWN = {"choices": [], "start": [], "figures": [], "targets": []}
"""The payload of a page without interactive figures."""


def finish(
    root: Location | str, console: Console, output: Location | str | None = None, targets: Sequence[Target] = ()
) -> Location:
    """Analyze a sweep, write its fits, figures and page, and print the table.

    Args:
        root: The results folder of a sweep, finished or not, or its address.
        console: The console on which the table is printed.
        output: The folder for `analysis.parquet`, `figures/` and `report.html`. Default: the results folder.
        targets: Targets for N(b). Default: those of the sweep, or else training losses that all compared readings
            share.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder is not a results folder or has another schema version, or a file cannot be read or
            written.
    """
    root = location(root)
    output = root if output is None else location(output)
    material, attempt = Material.of(Store(root), targets), Attempts()
    path = output / "report.html"
    with written(output):
        output.mkdir(parents=True, exist_ok=True)
        analysis = attempt("The analysis", lambda: material.analysis)
        if analysis is not None:
            save(analysis, output)
        with rc_context():
            rc_file_defaults()  # a user's code may have changed matplotlib's settings in this process
            made = attempt("The figures", lambda: _static_figures(material, attempt)) or []
            plots.save(made, output / "figures", attempt)
        # a figure that could not be drawn has no file
        files = {static.name: output / "figures" / f"{static.name}.png" for static in made}
        images = [(static, _small(files[static.name].read_bytes())) for static in made if files[static.name].exists()]
        html = render(material, images, attempt)
        # backslashreplace: names of files may contain bytes that UTF-8 cannot encode
        write_aside(path, lambda aside: aside.write_text(html, encoding="utf-8", errors="backslashreplace"))
        if found := attempt("The warm-up of the batch size", lambda: along.schedules(material.branches)):
            write_aside(output / "batch_schedule.json", lambda aside: aside.write_text(json.dumps(found, indent=1)))
    if analysis is not None:
        attempt("The table", lambda: print_summary(analysis, console))
    for sentence in attempt("The critical batch along training", lambda: branching(material.branches)) or ():
        console.print(Text(sentence))
    for sentence in attempt("What widths show", lambda: sentences(material.widths)) or ():
        console.print(Text(sentence))
    for sentence in attempt.sentences:
        console.print(Text(sentence))
    console.print(Text(f"Results: {root}\nFigures: {output / 'figures'}\nReport:  {path}"), soft_wrap=True)
    return path


def _small(png: bytes) -> bytes:
    """Reduce a picture to a palette, for the page: it takes a quarter of the bytes and looks the same."""
    small = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.quantize(COLOURS, Image.Quantize.FASTOCTREE).save(small, "PNG")
    return small.getvalue()


def _static_figures(material: Material, attempt: Attempts) -> list[plots.StaticFigure]:
    return plots.render_figures(material.trials, material.curves, material.analysis, attempt)


def render(material: Material, images: Sequence[tuple[plots.StaticFigure, bytes]], attempt: Attempts) -> str:
    """Render the page of a sweep as HTML.

    Args:
        material: The data of the sweep.
        images: Each static figure and its PNG.
        attempt: The attempt that made the static figures; the page shows its failures.
    """
    m, title = material, str(material.record["sweep"].get("name", "sweep"))
    lead = attempt("The count of cells", lambda: sections.progress(m.record, m.trials)) or ""
    drawn = attempt("The interactive figures", lambda: _drawn(m, attempt)) or NOTHING_DRAWN
    makes = {
        "Answer": lambda: sections.answer(
            m.summary, m.trials, recommendations(m.analysis.fits, m.analysis.points), drawn["targets"]
        ),
        "Figures": lambda: sections.figures(drawn, images, attempt),
        "What to use": lambda: sections.advice(m.analysis.choices),
        "Measured and predicted": lambda: predictions(m.analysis.comparison, m.summary, m.ntk),
        "Symbols": sections.symbols,
        "Certificates of the statistics": lambda: certificates(m.ntk),
        "Ways of training": lambda: sections.trainings(m.trials, m.curves),
        along.TITLE: lambda: along.section(m.branches),
        "The limit of wide networks": lambda: sections.widths(m.widths),
        "Why the sweep stopped": lambda: sections.stopped(m.done),
        "Failed and diverged cells": lambda: sections.lost(m.trials),
        "Configuration, versions, machine": lambda: sections.provenance(m.record),
    }
    return page(title, lead, parts(makes), {"file": title, **drawn})


def _drawn(material: Material, attempt: Attempts) -> dict[str, Any]:
    """Make the payload of the interactive figures, with the sliders of the targets."""
    m = material
    # the figures do without the ladder, and show the sweep's own targets, if it fails
    ladder = attempt("The ladder of targets", lambda: m.ladder)
    names = short_settings(m.analysis.fits)
    moved = attempt("The answers at other targets", lambda: sliders(m.record, ladder, names)) if ladder else ()
    made = payload(m.trials, m.curves, m.analysis, ladder or Ladder.own(m.analysis), m.first, attempt)
    return {**made, "targets": moved or []}
