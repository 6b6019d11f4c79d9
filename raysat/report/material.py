"""The data of a sweep's page: the sweep's tables, and the results computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from raysat.analysis import Analysis, analyze, by_evidence, summary, widths
from raysat.analysis.branches import BRANCHES, branches
from raysat.analysis.ladder import Ladder, ladder
from raysat.analysis.reading import python_strings
from raysat.analysis.tables import levels, prices
from raysat.plots.attempts import once
from raysat.spec.goals import Target
from raysat.storage.store import Store


@dataclass
class Material:
    """The tables of a sweep, and the results computed from them at first access.

    Attributes:
        record: The content of `sweep.json`.
        trials: The `trials` table.
        curves: The `curves` table.
        ntk: The `ntk` table.
        done: Why an adaptive sweep stopped, one sentence for each group of its cells.
        targets: Targets for N(b); those of the sweep if empty.
    """

    record: Mapping
    trials: pd.DataFrame
    curves: pd.DataFrame
    ntk: pd.DataFrame
    done: Sequence[str] = ()
    targets: Sequence[Target] = ()

    @classmethod
    def of(cls, store: Store, targets: Sequence[Target] = ()) -> Material:
        """Read the tables of a results folder.

        Raises:
            InputError: The folder is not a results folder, has another schema version, or cannot be read.
        """
        tables = {name: python_strings(store.read(name)) for name in ("trials", "curves", "ntk")}
        return cls(store.readable(), **tables, done=(store.status() or {}).get("done") or (), targets=targets)

    @once
    def analysis(self) -> Analysis:
        """The fits and estimates."""
        asked = levels(self.record, self.targets)
        made = analyze(self.trials, self.curves, asked, self.ntk, prices(self.record))
        # `comparison`, which is also written to a file, keeps its types
        names = ("points", "fits", "costs", "choices")
        return replace(made, **{name: python_strings(getattr(made, name)) for name in names})

    @once
    def ladder(self) -> Ladder:
        """The analysis of N(b) and b_N at many targets."""
        return ladder(self.trials, self.curves, self.analysis, self.ntk)

    @once
    def summary(self) -> pd.DataFrame:
        """One row for each reading."""
        return python_strings(summary(self.analysis.fits))

    @once
    def first(self) -> Mapping | None:
        """The row of the summary that the figures show first: the best evidence, if possible with a b_N."""
        rows = self.summary[self.summary["b_N"].notna()]
        ordered = by_evidence(rows if len(rows) else self.summary)
        return ordered.iloc[0].to_dict() if len(ordered) else None

    @once
    def branches(self) -> pd.DataFrame:
        """The critical batch along training: one row for each run and iteration at which it branches."""
        asked = self.record["sweep"].get("branches")
        return branches(self.trials, asked["tolerance"], self.ntk) if asked else pd.DataFrame(columns=list(BRANCHES))

    @once
    def widths(self) -> pd.DataFrame:
        """The limit of wide networks: one row for each width."""
        return widths.by_width(self.trials, self.ntk)
