"""Certificates of the statistics: the method, the deviation from plain autograd, or why there are no statistics."""

from __future__ import annotations

from html import escape

import pandas as pd

from raysat.analysis import network, number
from raysat.messages.failures import by_cause
from raysat.ntk.words import WAYS, approximations
from raysat.report.html import Section, footnoted, paragraphs, traceback
from raysat.report.prediction import NETWORK
from raysat.storage.schema import FAILED, REFUSED

CHECKS = {"gamma": "gamma_check", "k_op": "k_op_check", "noise scale": "noise_check", "kernel": "kernel_check"}
"""The columns of `ntk` with the certificates, by statistic."""

ABOUT = (
    "The number under a statistic is its relative deviation from plain autograd, for the worst seed. k_op ≤ is an "
    "upper bound of all eigenvalues that holds with probability 99 %, divided by k_op."
)


def certificates(ntk: pd.DataFrame) -> Section:
    """Make the section with the certificates of each network's statistics, and the networks without statistics.

    Args:
        ntk: The `ntk` table.
    """
    rows = ntk[ntk["iteration"] == 0]
    lacking = rows["method"].isin([REFUSED, FAILED])
    certified = rows[~lacking & rows["gamma_check"].notna()]
    parts = []
    if len(certified):
        columns = ("network", "width", "computed by", "products with K", *CHECKS, "k_op ≤", "in")
        cells = [_row(own) for _, own in certified.groupby(list(NETWORK), dropna=False, sort=False)]
        words = {"network", "computed by", "products with K", "in"}
        parts += [footnoted(columns, cells, words, "Certificates", "certified"), paragraphs([ABOUT], "soft")]
    parts += _lacking(rows[lacking])
    return Section("certificates", "Certificates of the statistics", "\n".join(parts))


def _row(own: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the row of a network, with the worst certificates of its seeds, and its notes."""
    first = own.iloc[0].to_dict()
    ways = [" and ".join(dict.fromkeys(own[name].dropna())) for name in ("method", "way", "statistics_dtype")]
    ways[0] = WAYS.get(ways[0], ways[0])
    upper = (own["k_op_upper"] / own["k_op"]).max()
    # the worst seed: one that fails must not vanish in a mean
    checks = [number(own[column].astype(float).max()) for column in CHECKS.values()]
    cells = [network(first), str(first["width"] or "none"), *ways[:2], *checks, number(upper), ways[2]]
    notes = dict.fromkeys(f"{one}." for row in own.to_dict("records") for one in approximations(row))
    return list(map(escape, cells)), list(notes)


def _lacking(rows: pd.DataFrame) -> list[str]:
    """Return each reason for missing statistics once, with the number of initializations that it concerns."""
    said = []
    for method, what in ((REFUSED, "has no statistics"), (FAILED, "has no statistics because of an error")):
        own = rows[rows["method"] == method]
        names = [f"{row['model']} width {row['width']}, seed {row['seed']}" for row in own.to_dict("records")]
        errors = dict(zip(own["method_reason"], own["error"], strict=True))
        for reason, some in by_cause(zip(names, own["method_reason"], strict=True)).items():
            more = f" (and {len(some) - 1} more)" if some[1:] else ""
            said += [paragraphs([f"{some[0]}{more} {what}: {reason}."]), traceback(errors.get(reason))]
    return said
