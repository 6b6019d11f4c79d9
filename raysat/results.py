"""A sweep's results in a notebook.

>>> import raysat
>>> results = raysat.load("results/mnist")  # doctest: +SKIP
>>> results.trials.groupby("batch_size")["h"].median()  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

# What reads, draws and analyzes is imported where it is used: every worker imports raysat, and with it this module.
if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from raysat.analysis import Analysis
    from raysat.analysis.recommendation import Recommendation
    from raysat.storage.files import Location


def load(path: Location | str) -> Results:
    """The results of a sweep, finished or not.

    Args:
        path: Its results folder, such as `results/mnist`, or its address.

    Raises:
        InputError: The folder is not a results folder, or of another schema version.
    """
    return Results(path)


class Results:
    """The tables of a results folder, read when first asked for, and what follows from them.

    Another `load` sees what a running sweep has written since.

    Attributes:
        root: The folder.
        record: The content of `sweep.json`.
    """

    def __init__(self, path: Location | str) -> None:
        from raysat.storage.files import location
        from raysat.storage.store import Store

        self.root = location(path)
        self.record = Store(self.root).readable()

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row a cell (docs/columns.md)."""
        return self._read("trials")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row an evaluation of a cell: the loss along each trial."""
        return self._read("curves")

    @cached_property
    def ntk(self) -> pd.DataFrame:
        """One row an initialization, and one a cell and iteration of `ntk_at`."""
        return self._read("ntk")

    def fit(self, targets: Sequence[float] = ()) -> Analysis:
        """The estimates and fits of all readings, as tidy tables (`raysat.analysis.Analysis`).

        Args:
            targets: Loss levels for N(b). Default: those of the sweep; where it has none, chosen for each reading.
        """
        from raysat.analysis.tables import analyze, levels

        return analyze(self.trials, self.curves, levels(self.record, targets), self.ntk)

    @cached_property
    def recommendation(self) -> list[Recommendation]:
        """What batch size to use, for each setting: printed, the sentence of the terminal and of the report."""
        from raysat.analysis.recommendation import recommendations

        return recommendations(self._analysis.fits, self._analysis.points)

    def plot_loss_curves(self) -> list[Figure]:
        """L(w_t) against t by batch size: a matplotlib figure for each model and data set, and for many widths more."""
        return self._plot("loss-curves")

    def plot_exponents(self) -> list[Figure]:
        """h(b) with intervals and the paper's predicted curve."""
        return self._plot("exponents")

    def plot_steps(self) -> list[Figure]:
        """N(b) with its fit, perfect scaling, b_N and b_star."""
        return self._plot("steps")

    def plot_costs(self) -> list[Figure]:
        """Samples, seconds and device-hours to the target against b, each over its least."""
        return self._plot("costs")

    def _read(self, table: str) -> pd.DataFrame:
        from raysat.storage.store import Store

        return Store(self.root).read(table)

    def _plot(self, kind: str) -> list[Figure]:
        from raysat.plots import plates

        return [plate.figure for plate in plates(self.trials, self.curves, self._analysis) if plate.kind == kind]

    @cached_property
    def _analysis(self) -> Analysis:
        return self.fit()

    def __repr__(self) -> str:
        from raysat.storage.schema import FINISHED

        ended = int(self.trials["status"].isin(FINISHED).sum())
        return f"Results({str(self.root)!r}: sweep {self.record['sweep']['name']}, {ended} cells have ended)"

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer and the table of the report."""
        from raysat.analysis import summary
        from raysat.report import sections

        table = summary(self._analysis.fits)
        parts = [
            f"<h3>{escape(str(self.record['sweep']['name']))}</h3>",
            f"<p>{escape(sections.progress(self.record, self.trials))}</p>",
            sections.answer(table, self.trials, self.recommendation).html,
            sections.numbers(table),
        ]
        return "\n".join(parts)
