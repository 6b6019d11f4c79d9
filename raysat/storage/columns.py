"""The page of all columns, `docs/columns.md`."""

from __future__ import annotations

from raysat.storage.schema import ANALYSIS, TABLES
from raysat.storage.versions import present

_TITLES = {
    "trials": "One row a cell: what was asked, the statistics at initialization, and how training ended.",
    "curves": "One row an evaluation of a cell: about 30 log-spaced iterations, the first and the last.",
    "ntk": "One row an initialization: the statistics that its cells have in common; and one a cell and `ntk_at`.",
    "analysis.parquet": "One file: one row for each measured critical batch size and each predictor of it.",
}


def as_markdown() -> str:
    """The page `docs/columns.md`."""
    lines = [
        "# Columns",
        "",
        f"Schema version {present()}. Made by `python -m raysat.schema > docs/columns.md`.",
        "",
        "Every table but the last is a folder of Parquet part-files, one a cell (or an initialization), merged as they",
        'become many, that can be read at any moment of a sweep: `pd.read_parquet("results/mnist/trials")`. Units are',
        "also in the metadata of the Arrow fields.",
        "A statistic in units of 1/eta is one whose product with a stepsize is a pure number; losses are in the",
        "squared units of the targets, halved (eq. 2.1).",
    ]
    for table, columns in {**TABLES, "analysis.parquet": ANALYSIS}.items():
        lines += ["", f"## {table}", "", _TITLES[table], ""]
        lines += ["| column | type | unit | meaning |", "| --- | --- | --- | --- |"]
        lines += [f"| `{c.name}` | {c.type} | {c.unit} | {_cell(c.doc)} |" for c in columns]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Escape text for a cell of a table, which a bar would end."""
    return text.replace("||", "‖").replace("|", "\\|")
