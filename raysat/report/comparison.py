"""Comparison of several sweeps: predicted and measured critical batch sizes against width, data set and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from rich.console import Console
from rich.text import Text

from raysat.analysis import (
    ANSWER,
    SETTING,
    analyze_folder,
    key_of,
    load,
    method,
    number,
    policy,
    short_settings,
    summary,
    target_label,
)
from raysat.analysis.recommendation import recommendations
from raysat.errors import InputError
from raysat.plots.attempts import Attempts
from raysat.plots.description import PALETTE, Axis, Series, View
from raysat.report.answer import EVIDENCE, answers, with_interval
from raysat.report.html import AT, Section, failures, figure, listing, page, paragraphs, parts, table
from raysat.report.sections import symbols
from raysat.report.series import Json, as_json, axis_json
from raysat.spec.goals import METRICS, TRAIN_LOSS
from raysat.storage.files import Location, location, write_aside, written
from raysat.storage.store import storage_errors

_WIDTH = [axis_json(Axis("width", "width", key="width"))]
_STAR = [axis_json(Axis("predicted b_star (samples)", "b_star", key="b_star"))]

FIGURES = {
    "b_N-width": {
        "title": "Measured b_N and predicted b_star against width",
        "caption": "b_N from iterations to a target loss, with its 95 % interval; b_star = gamma/k_op dashed. "
        "Under theory(c) the two agree nearly by construction; a grid is the evidence.",
        "x": _WIDTH,
        "y": axis_json(Axis("b_N and b_star (samples)", "b")),
    },
    "b_h-width": {
        "title": "Measured b_h and predicted b_star against width",
        "caption": "b_h from the convergence exponent h(b), with its 95 % interval; b_star = gamma/k_op dashed. "
        "b_h depends on the number of iterations.",
        "x": _WIDTH,
        "y": axis_json(Axis("b_h and b_star (samples)", "b")),
    },
    "b_N-b_star": {
        "title": "Measured b_N against predicted b_star",
        "caption": "Every width a point, with the 95 % interval of b_N; on the dotted line measurement and prediction "
        "are equal.",
        "x": _STAR,
        "y": axis_json(Axis("measured b_N (samples)", "b_N")),
    },
}
"""The figures of the page by name, without their views."""


def compare(root: Location | str, console: Console, output: Location | str | None = None) -> Location:
    """Write `RESULTS/report.html`, which compares the sweeps in a folder.

    Args:
        root: A folder with the results folders of one or more sweeps.
        console: The console on which the path is printed.
        output: The folder of the page. Default: `root`; in any other folder it has no links to the sweeps' own pages.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder contains no sweep, or a file cannot be read or written.
    """
    root = location(root)
    output = root if output is None else location(output)
    with storage_errors(root):
        inside = sorted(root.iterdir()) if root.exists() else []
    found, unread = {}, []
    for folder in inside:
        attempt = Attempts()
        try:
            one = attempt(f"The analysis of {folder}", partial(_compared, folder))
        except InputError as error:  # the page names the folder that cannot be read, and compares the others
            unread.append(str(error))
            continue
        unread += attempt.sentences
        if one is not None:
            found[folder.name] = one
    if not (found or unread):
        raise InputError(
            f"{root} holds neither a sweep (sweep.json) nor folders of sweeps: "
            "give a results folder, RESULTS/NAME, or the parent of several, RESULTS."
        )
    # links are relative to `root`; a path is resolved, because `.` has no name
    linked = {name for name in found if output == root and (root / name / "report.html").exists()}
    title = root.resolve().name if isinstance(root, Path) else root.name
    html, path = render(title, found, linked, unread), output / "report.html"
    with written(output):
        output.mkdir(parents=True, exist_ok=True)
        write_aside(path, lambda aside: aside.write_text(html, encoding="utf-8", errors="backslashreplace"))
    console.print(Text(f"Sweeps: {', '.join(found) or 'none that can be read'}\nReport: {path}"), soft_wrap=True)
    return path


@dataclass(frozen=True)
class Compared:
    """The results of one sweep on the page.

    Attributes:
        table: The result of `raysat.analysis.summary`.
        leads: The sentence of the recommendation, by setting and metric.
    """

    table: pd.DataFrame
    leads: Mapping[tuple[str, str], str]


def _compared(folder: Location) -> Compared | None:
    """Analyze the sweep in a folder; None if there is no sweep.

    Raises:
        InputError: The folder cannot be read.
    """
    with storage_errors(folder):
        if not (folder / "sweep.json").exists():
            return None
    made = analyze_folder(folder, *load(folder))
    leads = {(one.setting, one.metric): one.sentence for one in recommendations(made.fits, made.points)}
    return Compared(summary(made.fits), leads)


def render(title: str, found: Mapping[str, Compared], linked: set[str], unread: Sequence[str] = ()) -> str:
    """Render the page as HTML.

    Args:
        title: The name of the folder.
        found: The results of each sweep, by name of its folder.
        linked: The sweeps with a page of their own.
        unread: Reasons why other folders are left out.
    """
    filled = [one.table.assign(sweep=name) for name, one in found.items() if len(one.table)]
    rows = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=["sweep"])
    attempt = Attempts()
    drawn = attempt("The figures", partial(payload, rows)) if len(rows) else None
    drawn = drawn or {"choices": ["Stepsizes"], "start": [], "figures": []}
    shown = [figure(one["name"], one["title"], one["caption"], _FALLBACK) for one in drawn["figures"]]
    makes = {
        "Answers": lambda: Section("answers", "Answers", _answers(found, linked) + listing(unread)),
        "Measured and predicted": lambda: Section(
            "numbers", "Measured and predicted", _numbers(rows, linked) if len(rows) else ""
        ),
        "Figures": lambda: Section("figures", "Figures", "\n".join([*shown, failures(attempt)])),
        "Symbols": symbols,
    }
    lead = f"{len(found)} sweep{'s' * (len(found) != 1)} compared"
    lead += f", {len(unread)} left out." if unread else "."
    return page(title, lead, parts(makes), {"file": title, **drawn})


_FALLBACK = "<p>This figure is drawn by a script; its numbers are in the table above.</p>"


def payload(rows: pd.DataFrame) -> Json:
    """Make the figures of several sweeps, in the format of `raysat.report.figures`.

    Args:
        rows: The rows of `raysat.analysis.summary`, with the column `sweep`.
    """
    # critical batch sizes are comparable only under the same stepsizes, which are therefore the choice of a reader
    by_method = dict(list(rows.groupby(rows.apply(method, axis=1), sort=False)))
    names = _names(rows)
    ticks = {"width": sorted(rows["width"].unique().tolist())}
    figures = []
    for name, about in FIGURES.items():
        views = []
        for label, group in by_method.items():
            shown = _shown(name, group).dropna(subset=_axes(name)[1])
            sweeps = shown["sweep"].nunique()
            said = f"{label}: {len(shown)} critical batch sizes of {sweeps} sweep{'s' * (sweeps != 1)}."
            view = View(list(_series(name, group, names)), summary=said, ticks=ticks)
            views += [] if view.empty else [{"at": [label], **as_json(view)}]
        if views:
            figures.append({"name": name, **about, "views": views})
    # The method with the best evidence is shown first: a grid's stable reading, if there is one. A method begins with
    # the label of its stepsize, `grid (stable)`.
    first = min(by_method, key=lambda label: (policy(label.split()[0]) not in EVIDENCE, "stable" not in label))
    return {"choices": ["Stepsizes"], "start": [first], "figures": figures}


def _axes(name: str) -> tuple[str, str]:
    """Return the columns on the axes of a figure."""
    return ("b_star", "b_N") if name == "b_N-b_star" else ("width", name.split("-")[0])


def _shown(name: str, group: pd.DataFrame) -> pd.DataFrame:
    """Select the rows with a place on the horizontal axis: a model without a width has width 0, which has no log."""
    return group[group[_axes(name)[0]] > 0]


def _series(name: str, group: pd.DataFrame, names: Mapping[tuple, str]) -> Iterator[Series]:
    """Yield the series of a figure: measurements by setting, and b_star or, against it, the line of equality."""
    (x, quantity), rows = _axes(name), _shown(name, group)
    by_setting = rows.groupby(["sweep", *ANSWER], dropna=False, sort=False)
    for k, ((_, of_setting), tone) in enumerate(zip(by_setting, cycle(PALETTE), strict=False)):
        one = of_setting.sort_values(x)
        aim = one["metric"].iloc[0]
        label = f"{one['sweep'].iloc[0]} ({names[_key(one.iloc[0])]}{'' if aim == TRAIN_LOSS else f', {METRICS[aim]}'})"
        extra = {"width": one["width"]} if x != "width" else {}
        extra |= {"target": one["target"]} if quantity == "b_N" else {}
        series = Series(f"{label}: {quantity}", {x: one[x]}, one[quantity], tone=tone, mark=k, line=x == "width")
        if one[f"{quantity}_low"].notna().any():
            low, high = one[f"{quantity}_low"], one[f"{quantity}_high"]
            yield replace(series, low=low, high=high, spread="bars", extra=extra)
        else:
            yield replace(series, extra=extra)
        if series.line and one["b_star"].notna().any():
            yield replace(series, name=f"{label}: b_star", y=one["b_star"], hollow=True, dash="dashed")
    if x == "b_star" and len(rows):
        ends = [rows["b_star"].min() / 1.5, rows["b_star"].max() * 1.5]
        yield Series("equal", {x: ends}, ends, tone="soft", dash="dotted", line=True)


def _key(row: Mapping | pd.Series) -> tuple:
    return (row["sweep"], *key_of(row, SETTING))


def _names(rows: pd.DataFrame) -> dict[tuple, str]:
    """Return a name for each setting, from the columns that distinguish it within its sweep."""
    return {(sweep, *key): name for sweep, own in rows.groupby("sweep") for key, name in short_settings(own).items()}


def _answers(found: Mapping[str, Compared], linked: set[str]) -> str:
    parts = []
    for name, compared in found.items():
        parts.append(f"<h3>{_link(name, linked)}</h3>")
        said = answers(compared.table)
        for one in said:
            lead = compared.leads.get((one.setting, one.row["metric"]))
            leads = [] if lead is None else [lead]
            parts.append(f'<p class="setting">{escape(one.heading)}</p>')
            parts.append(paragraphs([*leads, " ".join(one.sentences)]) + listing(one.caveats))
        if not said:
            parts.append(paragraphs(["No trial has ended yet."]))
    return "\n".join(parts)


def _numbers(rows: pd.DataFrame, linked: set[str]) -> str:
    names = _names(rows)
    columns = ("sweep", "b_N", AT, "width", "stepsizes", "b_star", "noise scale", "b_h", "data and model")
    cells = []
    for row in rows.to_dict("records"):
        label = names[_key(row)]
        found = [with_interval(row, "b_N"), _target(row), str(row["width"] or "none"), method(row)]
        statistics = [number(row[name]) for name in ("b_star", "noise_scale")]
        cells.append(
            [_link(row["sweep"], linked), *map(escape, [*found, *statistics, with_interval(row, "b_h"), label])]
        )
    words = {"sweep", "data and model", "stepsizes"}
    return table(columns, cells, words, "Measured and predicted, all sweeps", cards=True) + paragraphs(
        ["A dash: no number can be given; the sweep's own page says why. Brackets: 95 % intervals over seeds."], "soft"
    )


def _target(row: Mapping) -> str:
    return number(row["target"]) if row["metric"] == TRAIN_LOSS else target_label(row)


def _link(name: str, linked: set[str]) -> str:
    return f'<a href="{quote(name)}/report.html">{escape(name)}</a>' if name in linked else escape(name)
