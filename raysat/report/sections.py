"""The sections of one sweep's page, each made from the tables that it shows."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from raysat.analysis import (
    ANSWER,
    NOTHING,
    ablation,
    method,
    number,
    setting,
    target_symbol,
    usable,
    what_to_use,
)
from raysat.analysis.recommendation import Recommendation
from raysat.analysis.widths import sentences
from raysat.analysis.words import bounds
from raysat.messages.failures import by_cause, cause
from raysat.plots import StaticFigure
from raysat.plots.attempts import Attempts
from raysat.report.answer import aimed_at, answers
from raysat.report.configuration import sweep_file
from raysat.report.html import Section, failures, figure, listing, paragraphs, table, traceback
from raysat.spec.goals import METRICS
from raysat.storage.schema import BEATEN, DIVERGED, FAILED, FINISHED

LISTED = 50
"""Largest number of diverged cells to list. Default: 50; the others are counted, and `trials` contains all."""

DRAWN = "This figure is drawn by a script."

NAMED = 2
"""Number of errors that the answer names. Default: 2, those that ended most cells; a table contains all."""

FAILED_AT = {"model": "model", "width": "width", "stepsize": "stepsize", "b": "batch_size", "seed": "seed"}
"""The columns that describe the cells that an error ended: heads, and columns of `trials`."""

SYMBOLS = (
    ("b", "the batch size, in samples; n is the number of training samples."),
    ("eta", "the stepsize, also called learning rate."),
    ("T", "the number of iterations of a trial. Under a budget of samples it falls with b."),
    (
        "L",
        "the training loss, over all training samples. L ≤ 0.1 is a target: training counts until L is at most 0.1; "
        "test accuracy ≥ 0.9 is one of another metric.",
    ),
    (
        "infeasible",
        "a trial that ran all its iterations without reaching the target, and did not diverge (Shallue et al. 2019).",
    ),
    (
        "N(b)",
        "the iterations that batch size b takes until the target is reached, at its best stepsize; corrected for the "
        "delay due to the spacing of evaluations.",
    ),
    (
        "beaten",
        "a trial that was stopped before its target, because another stepsize of its seed and batch size had reached "
        "it earlier.",
    ),
    (
        "b_N",
        "the measured critical batch size: up to it twice the batch takes half the iterations, beyond it hardly fewer. "
        "It is fitted to N(b) = N_inf (1 + (b_N/b)^q)^(1/q), as where perfect scaling, N_inf b_N/b, meets the plateau "
        "N_inf.",
    ),
    (
        "q",
        "how sharply N(b) bends at b_N. It is 1 unless a sharper bend predicts left-out batch sizes better.",
    ),
    (
        "scatter",
        "by how much measured values differ from the fitted law, as a share: root mean square of the logarithm.",
    ),
    (
        "h(b)",
        "log(L(w_0)/L(w_T))/T, the convergence exponent: how fast the loss falls, per iteration. It depends on T.",
    ),
    ("b_h", "the critical batch size fitted to 1/h(b), by the law of N(b)."),
    (
        "b_star",
        "gamma/k_op, the critical batch size that theory predicts from the network at initialization (Theorems 1.1 and "
        "4.2): both terms of beta(b) are equal there.",
    ),
    (
        "gamma",
        "max_i λ_max(J_i J_iᵀ), J_i the Jacobian of sample i at initialization: it limits the stepsize at b = 1.",
    ),
    (
        "k_op",
        "λ_max(K), K = J Jᵀ/n the neural tangent kernel at initialization: it limits the stepsize at large b.",
    ),
    ("beta(b)", "gamma/b + (b-1)/b k_op, here exact for the sampling used (Lemma 3.1): eta = 1/beta(b) is stable."),
    ("eta beta(b)", "the stepsize in units of the 1/beta(b) that the theory allows."),
    ("eta k_op", "the stepsize in units of 1/k_op: gradient descent on the linearized network is stable below 2."),
    (
        "eta_limit",
        "the stepsize up to which SGD on the linearized network is stable at that b: 2/k_op at b = n, less at small b, "
        "where noise feeds itself.",
    ),
    (
        "grid, grid_relative",
        "several stepsizes were tried at each batch size, each in a trial of its own, and the best counts. Relative "
        "ones are multiples of 1/beta(b).",
    ),
    (
        "free, stable",
        "how stepsizes were tuned: the best of each b among all that were tried, which is what one trains with (free), "
        "or among those below eta_limit, the only ones that the theory covers (stable).",
    ),
    ("4 gamma/k_op", "b_star with the looser constants of Theorem 3.3 (the column b_star_thm33)."),
    ("noise scale", "tr(Σ)/‖∇L‖² at initialization (McCandlish et al. 2018): a rival prediction."),
    (
        "forecast",
        "the same trials by typical runs of SGD on the linearized network, from the spectrum of K and the initial "
        "residual, tuned and fitted in the same way.",
    ),
    ("b_20", "largest b whose samples to the target, b N(b), are at most 1.2 times the least (Zhang et al. 2024)."),
)
"""Every symbol on the page, with its meaning."""


CHOICES = {
    "least_samples": "least samples to the target",
    "least_seconds": "least seconds to the target",
    "least_device_hours": "least device-hours to the target",
    "least_money": "least money to the target, at the given prices",
    "b_20": "b_20: largest b that wastes less than 20 % of the samples",
}
"""The choices of `raysat.analysis.efficiency` in words."""

UNITS = {
    **{"least_samples": "samples", "b_20": "samples", "least_seconds": "s", "least_device_hours": "device-hours"},
    "least_money": "",
}


def progress(record: Mapping, trials: pd.DataFrame) -> str:
    """Return the number of cells that have ended, as a sentence."""
    sweep = record["sweep"]
    statuses = (*[BEATEN] * bool((trials["status"] == BEATEN).any()), DIVERGED, FAILED)
    counts = [f"{int((trials['status'] == status).sum())} {status}" for status in statuses]
    ended = int(trials["status"].isin(FINISHED).sum())
    if sweep.get("adaptive") or any(stepsize["policy"] == "grid_auto" for stepsize in sweep.get("stepsizes", ())):
        # results decide which cells are added: their number is not known before
        return f"{ended} cells have ended; their results decide how many more are run; {', '.join(counts)}."
    if sweep.get("branches"):
        return f"{ended} cells have ended, those of branches among them; {', '.join(counts)}."
    axes = ("batch_sizes", "stepsizes", "seeds", "trainings")
    per_model = math.prod(len(sweep.get(axis, [None])) for axis in axes)
    # a model without a width is trained once, not at every width
    sizes = [len(sweep.get("widths", ())) if model.get("has_width", True) else 1 for model in sweep.get("models", ())]
    asked = max(ended, per_model * sum(sizes))  # the folder may hold cells of earlier, larger axes
    return f"{ended} of {asked} cells have ended; {', '.join(counts)}."


def answer(
    summary: pd.DataFrame,
    trials: pd.DataFrame,
    recommended: Sequence[Recommendation] = (),
    targets: Sequence[Mapping] = (),
) -> Section:
    """Make the section with the batch size worth using, as far as the sweep can determine it.

    Args:
        summary: The result of `raysat.analysis.summary`.
        trials: The `trials` table.
        recommended: The recommendation for each setting, with which its answer begins.
        targets: The sliders (`raysat.report.target.sliders`), each placed below the recommendation of its setting.
    """
    moved = {(one["about"], one["metric"]): k for k, one in enumerate(targets)}
    said, leads = answers(summary), {(one.setting, one.metric): one.sentence for one in recommended}
    parts = []
    for one in said:
        metric = one.row["metric"]
        parts.append(paragraphs([one.heading], "setting"))
        if sentence := leads.get((one.setting, metric)):
            place = moved.get((one.setting, METRICS[metric]))
            parts.append(paragraphs([sentence], "said"))
            parts.append("" if place is None else f'<div data-target="{place}"></div>')
        parts.append(paragraphs([" ".join(one.sentences)], "said") + listing(one.caveats))
    measured = trials["status"].isin(FINISHED) & (trials["status"] != DIVERGED)
    if len(trials) and not measured.any():
        parts = [paragraphs(["No trial was measured: all of them failed or diverged. They are listed below."], "said")]
    elif not said:
        parts = [paragraphs([NOTHING], "said")]
    parts.append(paragraphs(_failed(trials), "warning"))
    return Section("answer", "Answer", f'<div class="answer">{"".join(parts)}</div>')


def advice(choices: pd.DataFrame) -> Section:
    """Make the section with the batch size to use by each cost, as a sentence and as a table.

    Args:
        choices: `Analysis.choices`.
    """
    title, parts = "What to use", []
    rows, sentences = what_to_use(choices)
    answers = rows.groupby(list(ANSWER), dropna=False, sort=False)
    for (_, of_setting), sentence in zip(answers, sentences, strict=True):
        metric = of_setting["metric"].iloc[0]
        at = f"at {target_symbol(metric)}".replace(" ", "\N{NO-BREAK SPACE}")
        columns = ("choice", "b", "95 % interval", "what it costs", "width", "stepsizes", at, "reservation")
        cells = [
            [
                escape(_plain(value))
                for value in (
                    *(CHOICES[row["choice"]], number(row["batch_size"]), bounds(row["low"], row["high"])),
                    *(f"{number(row['value'])} {UNITS[row['choice']]}".rstrip(), row["width"] or "none", method(row)),
                    *(number(row["target"]), row["reason"]),
                )
            ]
            for row in of_setting.to_dict("records")
        ]
        name = f"{setting(of_setting.iloc[0])}{aimed_at(metric)}"
        parts += [paragraphs([name], "setting"), paragraphs([sentence])]
        parts.append(table(columns, cells, {"choice", "stepsizes", "reservation"}, f"{title}: {name}"))
    return Section("use", title, "\n".join(parts))


def symbols() -> Section:
    """Make the glossary, to which `assets/glossary.js` links the symbols on the page; the links show their meanings."""
    entries = "".join(
        f'<div id="symbol-{k}"><dt>{escape(name)}</dt><dd id="meaning-{k}">{escape(what)}</dd></div>'
        for k, (name, what) in enumerate(SYMBOLS, 1)
    )
    return Section("symbols", "Symbols", f'<dl class="symbols">{entries}</dl>')


def figures(payload: Mapping, images: Sequence[tuple[StaticFigure, bytes]], attempt: Attempts) -> Section:
    """Make the section of interactive figures, each with its pictures for readers without scripts.

    Args:
        payload: The result of `raysat.report.figures.payload`.
        images: The static figures and their PNGs.
        attempt: The attempt that made both; the section shows its failures.
    """
    parts = []
    for one in payload["figures"]:
        name = one["name"]
        pictures = "".join(_picture(static, png) for static, png in images if static.kind == name)
        parts.append(figure(name, one["title"], one["caption"], pictures or paragraphs([DRAWN])))
    if parts:
        kept = (
            "The same figures, all widths and stepsizes side by side, are in figures/ beside this page, as PNG and PDF."
        )
        parts.append(paragraphs([kept], "soft"))
    return Section("figures", "Figures", "\n".join([*parts, failures(attempt)]))


def stopped(done: Sequence[str]) -> Section:
    """Make the section on why an adaptive sweep stopped.

    Args:
        done: A sentence for each group of its cells that is complete.
    """
    return Section("stopped", "Why the sweep stopped", listing(done))


def trainings(trials: pd.DataFrame, curves: pd.DataFrame) -> Section:
    """Make the section with the results of each training; empty for plain SGD under a budget of iterations.

    Args:
        trials: The `trials` table.
        curves: The `curves` table.
    """
    title = "Ways of training"
    # tables of earlier versions lack these values: they are of plain SGD under a budget of iterations
    by_samples = trials["budget"].fillna("").str.endswith(("samples", "epochs"))
    if (trials["training"].fillna("sgd").eq("sgd") & ~by_samples).all() or usable(trials).empty:
        return Section("trainings", title, "")
    made = ablation.ablation(trials, curves)
    columns, rows = ablation.cells(made)
    shown = table(columns, [list(map(escape, row)) for row in rows], set(ablation.NAMES), title)
    said = " ".join([f"{ablation.TITLE}.", *ablation.remarks(made)])
    return Section("trainings", title, shown + paragraphs([said], "soft"))


def widths(by_width: pd.DataFrame) -> Section:
    """Make the section on the limit of wide networks; empty if the sweep has no comparison of widths.

    Args:
        by_width: The result of `raysat.analysis.widths.by_width`.
    """
    title = "The limit of wide networks"
    if by_width.empty:
        return Section("widths", title, "")
    names = ("width", "seeds", "b_star", "kernel drift", "at iteration", "error of the linearization")
    cells = []
    for row in by_width.to_dict("records"):
        ranges = (f"[{number(row[f'{name}_min'])}, {number(row[f'{name}_max'])}]" for name in ("b_star", "drift"))
        b_star, drift = (f"{number(row[name])} {ends}" for name, ends in zip(("b_star", "drift"), ranges, strict=True))
        error = f"{number(row['h_error'])} (at most {number(row['h_error_max'])})"
        whole = (f"{row[name]:.0f}" for name in ("width", "seeds"))
        cells.append([*whole, b_star, drift, number(row["drift_iteration"]), error])
    about = (
        "Means and, in brackets, ranges over seeds and batch sizes. The drift is ‖K(w_t) - K(w_0)‖/‖K(w_0)‖, the error "
        "|h/h_lin - 1|, h_lin of the linearized network."
    )
    shown = [paragraphs(sentences(by_width)), table(names, cells, set(), title), paragraphs([about], "soft")]
    return Section("widths", title, "\n".join(shown))


def lost(trials: pd.DataFrame) -> Section:
    """Make the section with the cells that failed, by error, and those that diverged."""
    title = "Failed and diverged cells"
    failed, diverged = (trials[trials["status"] == status] for status in (FAILED, DIVERGED))
    if failed.empty and diverged.empty:
        return Section("lost", title, paragraphs(["None."]) if len(trials) else "")
    parts = [paragraphs(["They are in no fit. A failed cell is tried again by the next run of the sweep."], "soft")]
    return Section("lost", title, "\n".join([*parts, *_failures(failed), *_diverged(diverged)]))


def _failures(trials: pd.DataFrame) -> Iterator[str]:
    """Yield a table of the errors, each with the cells that it ended and the traceback of the first."""
    if trials.empty:
        return
    groups: dict[str, list[dict]] = {}
    for row in trials.to_dict("records"):
        groups.setdefault(cause(_plain(row["error"])), []).append(row)
    cells = []
    for error, own in sorted(groups.items(), key=lambda group: -len(group[1])):
        at = (escape(_several([row[name] for row in own])) for name in FAILED_AT.values())
        cells.append([escape(error) + traceback(own[0]["error"]), str(len(own)), *at])
    columns = ("error", "cells", *FAILED_AT)
    yield table(columns, cells, {"error", "model", "stepsize"}, "Failed cells by error")


def _failed(trials: pd.DataFrame) -> list[str]:
    """Return the number of failed cells and their errors, as a sentence; empty if none failed."""
    failed = trials[trials["status"] == FAILED]
    if failed.empty:
        return []
    errors = by_cause(("", _plain(error)) for error in failed["error"])
    counted = [f"{error} ({len(cells)})" if len(errors) > 1 else error for error, cells in errors.items()]
    shown, more = "; ".join(counted[:NAMED]), f"; and {len(counted) - NAMED} other errors" * (len(counted) > NAMED)
    return [f"{len(failed)} of {len(trials)} cells failed: {shown}{more}. The next run of the sweep tries them again."]


def _several(values: Sequence[Any], most: int = 6) -> str:
    """Return distinct values as text: `1, 2, 4`, or with their number if there are many, `1, 2, 4, ... (12)`."""
    # sorted before they become text, in which 16 is before 2
    ordered = sorted(values, key=str) if isinstance(values[0], str) else sorted(values)
    once = list(dict.fromkeys(map(_plain, ordered)))
    return ", ".join(once) if len(once) <= most else f"{', '.join(once[:most])}, ... ({len(once)})"


def _diverged(trials: pd.DataFrame) -> Iterator[str]:
    """Yield a table of the cells that diverged."""
    if trials.empty:
        return
    columns = {
        **{"cell_id": "cell", "model": "model", "width": "width", "stepsize": "stepsize", "eta": "eta"},
        **{"batch_size": "b", "seed": "seed", "iterations_done": "iterations done"},
    }
    rows = trials.sort_values(["width", "batch_size"], ascending=False)
    cells = [
        [escape(number(row[name]) if name == "eta" else _plain(row[name])) for name in columns]
        for row in rows.head(LISTED).to_dict("records")
    ]
    yield table(list(columns.values()), cells, {"cell", "model", "stepsize"}, "Diverged cells")
    if len(rows) > LISTED:
        yield paragraphs([f"And {len(rows) - LISTED} more, in the table trials."], "soft")


def provenance(record: Mapping) -> Section:
    """Show the content of `sweep.json`: the sweep as a sweep file, and tables of versions, machine and the rest."""
    groups = {name: value for name, value in record.items() if isinstance(value, Mapping) and name != "sweep"}
    alone = {name: value for name, value in record.items() if not isinstance(value, Mapping)}
    parts = [f"<h3>sweep</h3><pre>{escape(sweep_file(record['sweep']))}</pre>"]
    for name, values in {**groups, "other": alone}.items():
        rows = [[escape(str(key)), escape(_plain(value))] for key, value in values.items()]
        if rows:
            parts.append(f"<h3>{escape(name)}</h3>" + table(("field", "value"), rows, {"field", "value"}, name))
    return Section("configuration", "Configuration, versions, machine", "\n".join(parts))


def _picture(static: StaticFigure, png: bytes) -> str:
    source = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{source}" alt="{escape(f"{static.name}: {static.title}")}">'


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping | list | tuple):  # before `isna`, which looks at each entry of a list
        return json.dumps(value, default=str)
    if value is None or pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
