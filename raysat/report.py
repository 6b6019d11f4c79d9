"""The page of a sweep: one HTML file that opens anywhere, with the answer first and all that it rests on below.

    $ python -m raysat.report RESULTS/mnist     analysis.parquet, figures/, report.html, and the table on the terminal

It can be made at any moment of a sweep.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from raysat import plots
from raysat.analysis import (
    NOTHING,
    SETTING,
    THEORY_CAVEAT,
    Analysis,
    about_h,
    about_intervals,
    analyze_and_save,
    estimate,
    load,
    method,
    number,
    policy,
    print_summary,
    setting,
    summary,
)
from raysat.files import write_aside
from raysat.schema import DIVERGED, FAILED, FINISHED
from raysat.spec import InputError
from raysat.store import Store
from raysat.widths import by_width, sentences

LISTED = 50
"""Failed or diverged cells that are listed one by one. Default: 50; the rest are counted, and are all in `trials`."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #5c5c5c; --line: #d9d9d9; --page: #fff; --mark: #eef4f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a3a3a3; --line: #444; --page: #161616; --mark: #1e2a33; }
}
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink); background: var(--page);
       font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; font-weight: 600; }
.answer { padding: .75rem 1rem; background: var(--mark); border-left: 4px solid #0072b2; }
.soft, figcaption { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th.text, td.text { text-align: left; }
td.text { overflow-wrap: anywhere; white-space: pre-wrap; min-width: 7rem; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; background: #fff; }
ol.notes { font-size: .875rem; padding-left: 1.5rem; }
a { color: inherit; }
@media print {
  :root { --ink: #000; --soft: #333; --line: #999; --page: #fff; --mark: #fff; }
  body { max-width: none; } figure, tr { break-inside: avoid; } .scroll { overflow: visible; }
}
"""


def answer(table: pd.DataFrame) -> list[str]:
    """One sentence a setting: the best evidence there is for a critical batch size, beside the prediction.

    Tuned stepsizes are better evidence than `theory`, and that is better than one stepsize for all b, which hides
    saturation. Of several widths the largest speaks, for the theory is one of wide networks.

    Args:
        table: The result of `raysat.analysis.summary`.
    """
    ranks = ("grid", "grid_relative", "theory", "fixed_fraction", "fixed")
    sentences = []
    for _, rows in table.groupby(list(SETTING), dropna=False, sort=False):
        rank = rows["stepsize"].map(lambda label: ranks.index(policy(label)))
        ordered = rows.assign(missing=rows["b_N"].isna(), rank=rank, narrow=-rows["width"])
        best = ordered.sort_values(["missing", "rank", "narrow", "tuning"]).iloc[0].to_dict()
        where = f"At width {best['width']} under {method(best)}" if best["width"] else f"Under {method(best)}"
        predicted = f"The prediction at initialization is b_star = {number(best['b_star'])}."
        if best["missing"]:
            why = " ".join(note for note in best["notes"] if note.startswith("b_N"))
            sentences.append(f"{where} no critical batch size can be given. {why} {predicted}")
            continue
        said = [
            f"{where} the critical batch size is b_N = {_with_interval(best, 'b_N')} samples: a batch of this size "
            f"takes twice the iterations of the largest ones to reach loss {best['target']:g}."
        ]
        if best["tuning"] == "free":
            same = (rows["width"] == best["width"]) & (rows["stepsize"] == best["stepsize"])
            for row in rows[same & (rows["tuning"] == "stable") & rows["b_N"].notna()].to_dict("records"):
                stable = f"{_with_interval(row, 'b_N')} at loss {row['target']:g}"
                said.append(f"Among stepsizes below 2/k_op, of which alone the theory speaks, it is {stable}.")
        said.append(predicted)
        if policy(best["stepsize"]) == "theory":
            said.append(THEORY_CAVEAT)
        sentences.append(" ".join(said))
    return sentences


def render(
    record: Mapping,
    trials: pd.DataFrame,
    analysis: Analysis,
    images: Iterable[tuple[plots.Plate, bytes]],
    widths: pd.DataFrame | None = None,
) -> str:
    """The page as HTML.

    Args:
        record: The content of `sweep.json`.
        trials: The `trials` table.
        analysis: Its analysis.
        images: Each figure and its PNG.
        widths: The result of `raysat.widths.by_width`, where there is one.
    """
    name = str(record["sweep"].get("name", "sweep"))
    table = summary(analysis.fits)
    sections = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="soft">{escape(progress(record, trials))}</p>',
        *(f'<p class="answer">{escape(sentence)}</p>' for sentence in answer(table) or [NOTHING]),
        *_summaries(table),
        *_widths(widths),
        *_figures(images),
        *_lost(trials),
        *_record(record),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: critical batch size</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )


def progress(record: Mapping, trials: pd.DataFrame) -> str:
    """How many of the sweep's cells have ended, in words."""
    sweep = record["sweep"]
    per_model = len(sweep.get("batch_sizes", ())) * len(sweep.get("stepsizes", ())) * len(sweep.get("seeds", ()))
    sizes = [len(sweep.get("widths", ())) if model.get("has_width", True) else 1 for model in sweep.get("models", ())]
    ended = int(trials["status"].isin(FINISHED).sum())
    asked = max(ended, per_model * sum(sizes))  # the folder may hold cells of earlier, larger axes
    counts = [f"{int((trials['status'] == status).sum())} {status}" for status in (DIVERGED, FAILED)]
    return f"{ended} of {asked} cells have ended; {', '.join(counts)}."


def _summaries(table: pd.DataFrame) -> Iterable[str]:
    columns = ("width", "stepsize", "gamma", "k_op", "b_star", "noise scale", "b_h", "b_N", "at L <=", "notes")
    for k, (_, rows) in enumerate(table.groupby(list(SETTING), dropna=False, sort=False), 1):
        records = rows.to_dict("records")
        notes = list(dict.fromkeys(note for row in records for note in row["notes"]))
        cells = []
        for row in records:
            marks = [notes.index(note) + 1 for note in row["notes"]]
            links = " ".join(f'<a href="#note-{k}-{mark}">{mark}</a>' for mark in marks)
            statistics = [number(row[name]) for name in ("gamma", "k_op", "b_star", "noise_scale")]
            fits = [_with_interval(row, name) for name in ("b_h", "b_N")]
            plain = [str(row["width"]), method(row), *statistics, *fits, number(row["target"])]
            cells.append([*map(escape, plain), links])
        yield f"<h3>{escape(setting(records[0]))}</h3>"
        yield _table(columns, cells, text={"stepsize", "notes"})
        items = [f'<li id="note-{k}-{mark}">{escape(note)}</li>' for mark, note in enumerate(notes, 1)]
        yield '<ol class="notes">' + "".join(items) + "</ol>" if items else ""
        intervals = about_intervals(max(row["seeds"] for row in records))
        yield f'<p class="soft">{escape(about_h(records[0]["iterations"]))} {escape(intervals)}</p>'
    if len(table):
        yield (
            '<p class="soft">gamma = max_i λ_max(J_i J_iᵀ) and k_op = λ_max(K) at initialization; b_star = gamma/k_op '
            "predicts the critical batch size, and so does the noise scale tr(Σ)/‖∇L‖² (McCandlish et al. 2018); "
            "b_h and b_N are measured, from 1/h(b) ∝ 1 + b_h/b and N(b) ∝ 1 + b_N/b, with 95 % intervals over seeds. "
            "A grid is read twice: free, the best of all stepsizes; stable, the best of those below 2/k_op, of which "
            "alone the theory speaks.</p>"
        )


def _widths(widths: pd.DataFrame | None) -> Iterable[str]:
    if widths is None or widths.empty:
        return
    yield "<h2>What becomes exact with width</h2>"
    names = ("width", "seeds", "b_star", "kernel drift", "at iteration", "error of the linearization")
    cells = []
    for row in widths.to_dict("records"):
        ranges = (f"[{number(row[f'{name}_min'])}, {number(row[f'{name}_max'])}]" for name in ("b_star", "drift"))
        b_star, drift = (f"{number(row[name])} {ends}" for name, ends in zip(("b_star", "drift"), ranges, strict=True))
        error = f"{number(row['h_error'])} (at most {number(row['h_error_max'])})"
        whole = (f"{row[name]:.0f}" for name in ("width", "seeds"))
        cells.append([*whole, b_star, drift, number(row["drift_iteration"]), error])
    yield _table(names, cells, text=set())
    yield (
        '<p class="soft">Means and, in brackets, ranges over seeds and batch sizes. The drift is '
        "‖K(w_t) - K(w_0)‖/‖K(w_0)‖, the error |h/h_lin - 1|, h_lin of the linearized network.</p>"
    )
    yield from (f"<p>{escape(sentence)}</p>" for sentence in sentences(widths))


def _figures(images: Iterable[tuple[plots.Plate, bytes]]) -> Iterable[str]:
    for k, (plate, png) in enumerate(images):
        if not k:
            yield "<h2>Figures</h2>"
        source = base64.b64encode(png).decode()
        yield (
            f'<figure><img src="data:image/png;base64,{source}" alt="{escape(f"{plate.name}: {plate.title}")}">'
            f"<figcaption>{escape(plate.caption)}</figcaption></figure>"
        )


def _lost(trials: pd.DataFrame) -> Iterable[str]:
    lost = trials[trials["status"].isin([FAILED, DIVERGED])].sort_values(
        ["status", "width", "batch_size"], ascending=False
    )
    if lost.empty:
        return
    columns = (
        "cell_id",
        "status",
        "model",
        "width",
        "stepsize",
        "eta",
        "batch_size",
        "seed",
        "iterations_done",
        "error",
    )
    rows = [
        [escape(number(row[name]) if name == "eta" else _plain(row[name])) for name in columns]
        for row in lost.head(LISTED).to_dict("records")
    ]
    yield "<h2>Failed and diverged cells</h2>"
    yield '<p class="soft">They are in no fit. A failed cell is tried again by the next run of the sweep.</p>'
    yield _table(columns, rows, text={"cell_id", "status", "model", "stepsize", "error"})
    if len(lost) > LISTED:
        yield f'<p class="soft">And {len(lost) - LISTED} more, in the table trials.</p>'


def _record(record: Mapping) -> Iterable[str]:
    """What `sweep.json` has, whatever it has: a table for each group of values, one for what stands alone."""
    alone = {name: value for name, value in record.items() if not isinstance(value, Mapping)}
    groups = {name: value for name, value in record.items() if isinstance(value, Mapping)}
    yield "<h2>Configuration, versions, machine</h2>"
    for name, values in {**groups, "other": alone}.items():
        rows = [[escape(str(key)), escape(_plain(value))] for key, value in values.items()]
        if rows:
            yield f"<h3>{escape(name)}</h3>" + _table(("field", "value"), rows, text={"field", "value"})


def _with_interval(row: Mapping, name: str) -> str:
    return " ".join(filter(None, estimate(row, name)))


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, default=str)
    if value is None or pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: set[str]) -> str:
    """A table that scrolls by itself on a narrow screen; its cells are HTML already."""
    kinds = [' class="text"' if name in text else "" for name in columns]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def finish(root: Path, console: Console) -> Path:
    """All that follows a sweep: fits, figures, page, and the table on the terminal.

    Args:
        root: The results folder, of a finished sweep or not.
        console: Where the table is printed.

    Returns:
        The path of the page.

    Raises:
        InputError: The folder is not a results folder, or of another schema version.
    """
    root = Path(root)
    record, trials, curves = load(root)
    analysis = analyze_and_save(root, record, trials, curves)
    made = plots.plates(trials, curves, analysis)
    figures = root / "figures"
    plots.save(made, figures)
    images = [(plate, (figures / f"{plate.name}.png").read_bytes()) for plate in made]
    page = root / "report.html"
    widths = by_width(trials, Store(root).read("ntk"))
    html = render(record, trials, analysis, images, widths)
    write_aside(page, lambda path: path.write_text(html, encoding="utf-8"))
    print_summary(analysis, console)
    for sentence in sentences(widths):
        console.print(Text(sentence))
    console.print(Text(f"Results: {root}\nFigures: {figures}\nReport:  {page}"), soft_wrap=True)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: analyze a results folder, draw its figures and write its page."""
    parser = argparse.ArgumentParser(
        prog="python -m raysat.report", description="Write the fits, the figures and the report of a sweep."
    )
    parser.add_argument("root", type=Path, metavar="RESULTS/NAME", help="the sweep's results folder")
    try:
        finish(parser.parse_args(argv).root, Console())
    except InputError as error:
        print(f"raysat: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
