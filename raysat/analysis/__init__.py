"""Tidy results from a sweep's tables: measured and predicted critical batch sizes, and which batch size to use.

`readings` selects the trials that are measured together, `measure` fits the critical batch sizes to them, `predictors`
compares each with its predictions from the initialization, and `efficiency` computes what a target costs at each batch
size and which one to use. `tables` does all of it for one sweep, and `summary` prints the headline:

    $ python -m raysat.analysis RESULTS/mnist     prints the table and writes RESULTS/mnist/analysis.parquet
"""

from raysat.analysis.command import main
from raysat.analysis.efficiency import what_to_use
from raysat.analysis.reading import (
    ANSWER,
    GROUP,
    READING,
    SETTING,
    best_of,
    by_evidence,
    by_h,
    comparable,
    devices,
    policy,
    readings,
    usable,
)
from raysat.analysis.summaries import print_summary, summary
from raysat.analysis.tables import Analysis, analyze, analyze_folder, load, save
from raysat.analysis.words import (
    ABOUT_SCATTER,
    NOTHING,
    THEORY_CAVEAT,
    about_h,
    about_intervals,
    estimate,
    key_of,
    method,
    network,
    no_interpolation,
    number,
    scatter,
    setting,
    short_settings,
    target_label,
    target_symbol,
)

__all__ = [
    "ABOUT_SCATTER",
    "ANSWER",
    "GROUP",
    "NOTHING",
    "READING",
    "SETTING",
    "THEORY_CAVEAT",
    "Analysis",
    "about_h",
    "about_intervals",
    "analyze",
    "analyze_folder",
    "best_of",
    "by_evidence",
    "by_h",
    "comparable",
    "devices",
    "estimate",
    "key_of",
    "load",
    "main",
    "method",
    "network",
    "no_interpolation",
    "number",
    "policy",
    "print_summary",
    "readings",
    "save",
    "scatter",
    "setting",
    "short_settings",
    "summary",
    "target_label",
    "target_symbol",
    "usable",
    "what_to_use",
]
