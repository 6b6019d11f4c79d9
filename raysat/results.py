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

from raysat.errors import InputError, positive

# Reading, drawing and analysis are imported where they are used: every worker imports raysat, and so this module.
if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from raysat.analysis import Analysis
    from raysat.analysis.recommendation import Recommendation
    from raysat.storage.files import Location


def load(path: Location | str) -> Results:
    """Load the results of a sweep, finished or not.

    Args:
        path: Its results folder, such as `results/mnist`, or its address.

    Raises:
        InputError: The folder is not a results folder, or has another schema version.
    """
    return Results(path)


class Results:
    """The tables of a results folder, read on first use, and the analysis of them.

    Call `load` again to see what a running sweep has written since.

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
        """One row for each cell (docs/columns.md)."""
        return self._read("trials")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row for each evaluation of a cell: the loss along each trial."""
        return self._read("curves")

    @cached_property
    def ntk(self) -> pd.DataFrame:
        """One row for each initialization, and one for each cell and iteration of `ntk_at`."""
        return self._read("ntk")

    @cached_property
    def branches(self) -> pd.DataFrame:
        """The critical batch along training, of each run at each iteration of `branches` (`raysat.analysis.branches`).

        Raises:
            InputError: The sweep has no branches.
        """
        from raysat.analysis.branches import branches

        if not (asked := self.record["sweep"].get("branches")):
            raise InputError("this sweep has no branches: add branches=Branches(at=[...], samples=...), and run it.")
        return branches(self.trials, asked["tolerance"], self.ntk)

    def fit(self, targets: Sequence[float | str] = ()) -> Analysis:
        """Return the estimates and fits of all readings, as tidy tables (`raysat.analysis.Analysis`).

        Args:
            targets: Targets for N(b): training losses, or texts such as `test_accuracy >= 0.9`. Default: those of the
                sweep; if it has none, training losses are chosen for each comparison.
        """
        from raysat.analysis.tables import analyze, levels, prices
        from raysat.spec.goals import Target

        asked = [Target.of("targets", target) for target in targets]
        return analyze(self.trials, self.curves, levels(self.record, asked), self.ntk, prices(self.record))

    @cached_property
    def recommendation(self) -> list[Recommendation]:
        """The batch size to use, for each setting and metric; printed, the sentence of the terminal and the report."""
        from raysat.analysis.recommendation import recommendations

        return recommendations(self._analysis.fits, self._analysis.points)

    def plot_loss_curves(
        self, ax: Axes | None = None, *, target: float | None = None, title: str | None = None
    ) -> list[Figure]:
        """Plot L(w_t) against t by batch size: a matplotlib figure for each model and data set, more for many widths.

        Args:
            ax: Axes on which to draw only the reading of the recommendation. Their figure is returned.
            target: A loss to mark.
            title: The title. Default: a short description.
        """
        return self._plot("loss-curves", ax, target=target, title=title)

    def plot_exponents(self, ax: Axes | None = None, *, title: str | None = None) -> list[Figure]:
        """Plot h(b) with intervals and the paper's predicted curve.

        Args:
            ax: As for `plot_loss_curves`.
            title: As for `plot_loss_curves`.
        """
        return self._plot("exponents", ax, title=title)

    def plot_steps(
        self, ax: Axes | None = None, *, target: float | str | None = None, title: str | None = None
    ) -> list[Figure]:
        """Plot N(b) with its fit, perfect scaling, b_N and b_star.

        Args:
            ax: As for `plot_loss_curves`.
            target: What N(b) counts to, as for `fit`. Default: the targets of the sweep, or chosen ones.
            title: As for `plot_loss_curves`.
        """
        return self._plot("steps", ax, target=target, title=title)

    def plot_costs(
        self, ax: Axes | None = None, *, target: float | str | None = None, title: str | None = None
    ) -> list[Figure]:
        """Plot samples, seconds and device-hours to the target against b, each divided by its minimum.

        Args:
            ax: As for `plot_loss_curves`.
            target: As for `plot_steps`.
            title: As for `plot_loss_curves`.
        """
        return self._plot("costs", ax, target=target, title=title)

    def _read(self, table: str) -> pd.DataFrame:
        from raysat.storage.store import Store

        return Store(self.root).read(table)

    def _plot(
        self, kind: str, ax: Axes | None, *, target: float | str | None = None, title: str | None = None
    ) -> list[Figure]:
        from raysat.plots import render_figures

        of_curves = kind == "loss-curves"
        analysis = self._analysis if target is None or of_curves else self.fit([target])
        marked = positive("target", target) if of_curves and target is not None else None
        made = render_figures(self.trials, self.curves, analysis, kinds=[kind], ax=ax, target=marked, title=title)
        return [static.figure for static in made]

    @cached_property
    def _analysis(self) -> Analysis:
        return self.fit()

    def __repr__(self) -> str:
        from raysat.storage.schema import FINISHED

        ended = int(self.trials["status"].isin(FINISHED).sum())
        return f"Results({str(self.root)!r}: sweep {self.record['sweep']['name']}, {ended} cells have ended)"

    def _repr_html_(self) -> str:
        """Return the HTML for notebooks: the answer and the table of the report."""
        from raysat.analysis import summary
        from raysat.report import prediction, sections

        table = summary(self._analysis.fits)
        parts = [
            f"<h3>{escape(str(self.record['sweep']['name']))}</h3>",
            f"<p>{escape(sections.progress(self.record, self.trials))}</p>",
            sections.answer(table, self.trials, self.recommendation).html,
            prediction.tables(self._analysis.comparison, table, self.ntk),
        ]
        return "\n".join(parts)
