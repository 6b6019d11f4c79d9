"""The forecast: the measured experiment, repeated on the linearized network.

It has the same trials with the same stepsizes, tuned in the same way and fitted by the same law. For N each trial is a
typical run, evaluated at the same iterations as the trial (`raysat.saturation.typical`); for h, for which the two
hardly differ, its loss curve is the expected one (`raysat.saturation.recursion`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from raysat.analysis.measure import OF_TRAINING_LOSS, Measurement, Paths, at_edges, best_by_h, best_by_steps, by_seed
from raysat.saturation.critical import critical_batch
from raysat.saturation.fits import fit_saturation
from raysat.saturation.forecast import near
from raysat.saturation.formulas import exponent
from raysat.saturation.recursion import Spectrum, loss_curves, noise_factor
from raysat.saturation.targets import steps_to_target
from raysat.saturation.typical import LEAST_RUNS, typical_runs
from raysat.spec.goals import TRAIN_LOSS, Target
from raysat.storage.schema import DIVERGED, FAILED

HORIZON = 2
"""The multiple of T up to which the forecast searches for a target. Default: 2, so that a forecast that is a little
slower than a trial that reaches its target at T still has a value."""

RUNS = 48
"""Typical runs drawn for each trial, over all seeds together, but at least `LEAST_RUNS` for a seed. Default: 48; N
scatters between runs by 5 to 15 %, so that its mean is good to 2 %, for a second or two of a report's time."""


@dataclass(frozen=True)
class PredictedCurves:
    """The forecast of a group's trials.

    Attributes:
        paths: The expected loss along each trial, to `HORIZON` T.
        spectra: The spectral measures of the networks, by `init_id`.
        phi: Each trial's noise factor.
        evaluated: The iterations at which each trial's loss was evaluated.
        reason: Why there is no forecast; empty if there is one.
        drawn: The loss to which typical runs were drawn, and the runs; kept because readings and targets share trials.
    """

    paths: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    spectra: dict[str, Spectrum] = field(default_factory=dict)
    phi: dict[str, float] = field(default_factory=dict)
    evaluated: dict[str, Int[np.ndarray, " t"]] = field(default_factory=dict)
    reason: str = ""
    drawn: dict[str, tuple[float, tuple]] = field(default_factory=dict, repr=False)

    def typical(self, trials: pd.DataFrame, eps: float, deepest: float) -> Paths:
        """The lowest loss so far along a typical run of each trial, until it is at most the deepest target.

        Only trials are included whose stepsize is near the one with which the expected loss of their seed and batch
        size reaches eps first: no other can be the best.

        Args:
            trials: Rows of `trials`.
            eps: The target loss.
            deepest: The smallest target of later calls.
        """
        steps = [steps_to_target(*self.paths[cell_id], eps) for cell_id in trials["cell_id"]]
        expected = pd.Series(steps, trials.index, dtype=float).fillna(math.inf)
        of_size = expected.groupby([trials["seed"], trials["batch_size"]])
        # idxmin is a label of `trials`: `best` is the stepsize of the first one of its seed and batch size
        least, best = of_size.transform("min"), trials["eta"][of_size.transform("idxmin")].to_numpy()
        trials = trials[np.isfinite(least) & near(trials["eta"].to_numpy(dtype=float), best)]
        # runs that were drawn for an earlier call serve this one if they end at a loss at least as low
        known = [self.drawn.get(cell_id, (math.inf,))[0] <= eps for cell_id in trials["cell_id"]]
        missing = trials[~np.array(known, dtype=bool)]  # an array, since pandas takes an empty list for column names
        for _, own in missing.groupby("init_id"):
            self._draw(own, min(eps, deepest), max(LEAST_RUNS, RUNS // missing["init_id"].nunique()))
        return {cell_id: self.drawn[cell_id][1] for cell_id in trials["cell_id"]}

    def _draw(self, trials: pd.DataFrame, until: float, runs: int) -> None:
        """Draw typical runs of the trials of one initialization until they reach a loss."""
        ids, spectrum = trials["cell_id"].tolist(), self.spectra[trials["init_id"].iloc[0]]
        horizon = len(self.paths[ids[0]][0]) - 1
        seen = np.array([_seen(self.evaluated[cell_id], horizon) for cell_id in ids])
        eta, phi = trials["eta"].to_numpy(dtype=float), np.array([self.phi[cell_id] for cell_id in ids])
        made = typical_runs(spectrum, eta, phi, horizon, until=until, seen=seen, runs=runs)
        for cell_id, lowest, at in zip(ids, made.lowest, seen, strict=True):
            self.drawn[cell_id] = until, (np.flatnonzero(at), lowest[at])


def _seen(evaluated: Int[np.ndarray, " t"], horizon: int) -> Bool[np.ndarray, " horizon"]:
    """A mask of the iterations at which a trial was evaluated, continued at the last spacing up to the horizon."""
    seen = np.zeros(horizon + 1, bool)
    seen[evaluated[evaluated <= horizon]] = True
    far = max(1, int(evaluated[-1] - evaluated[-2])) if len(evaluated) > 1 else 1
    seen[evaluated[-1] if len(evaluated) else 0 :: far] = True
    return seen


def predict_curves(group: pd.DataFrame, ntk: pd.DataFrame, paths: Paths) -> PredictedCurves:
    """Compute the expected loss along each trial of a group, from its own seed's statistics and its own stepsize.

    Args:
        group: Rows of `trials` that share data, model and stepsize policy.
        ntk: The `ntk` table.
        paths: The measured losses along the trials.
    """
    row = group.iloc[0]
    if row["unpredicted"]:
        return PredictedCurves(reason=row["unpredicted"])
    if row["loss"] != "mse":
        return PredictedCurves(reason="the recursion is that of the squared error")
    if row.get("training", "sgd") != "sgd":
        return PredictedCurves(reason="the recursion is that of plain SGD")
    if row["sampling"] == "epochs":
        return PredictedCurves(reason="the recursion is that of batches drawn independently, not of epochs")
    trials = group[(group["status"] != FAILED) & group["eta"].notna()]
    spectra = ntk[(ntk["iteration"] == 0) & (ntk["residual_nodes"].str.len() > 0)].set_index("init_id")
    spectra = spectra[~spectra.index.duplicated(keep="last")]  # statistics that were computed again: the last count
    if not trials["init_id"].isin(spectra.index).all():
        return PredictedCurves(reason="not every seed has spectral measures in ntk: run the sweep with spectrum=64")
    horizon = HORIZON * int(row["iterations"])
    made, t, replacement = PredictedCurves(), np.arange(horizon + 1), row["sampling"] == "with_replacement"
    for init_id, own in trials.groupby("init_id"):
        spectrum = Spectrum.of(spectra.loc[init_id].to_dict())
        phi = np.array([noise_factor(int(b), spectrum.n, replacement=replacement) for b in own["batch_size"]])
        # all trials of an initialization in one call: their recursions run side by side, as rows of arrays
        curves = loss_curves(spectrum, own["eta"].to_numpy(dtype=float), phi, horizon)
        made.spectra[str(init_id)] = spectrum
        for cell_id, noise, curve in zip(own["cell_id"], phi, curves, strict=True):
            made.paths[cell_id], made.phi[cell_id] = (t, curve), float(noise)
            made.evaluated[cell_id] = paths.get(cell_id, (np.zeros(0, int),))[0]
    return made


def forecast(measured: Measurement, reading: pd.DataFrame, foreseen: PredictedCurves, deepest: float) -> dict[str, Any]:
    """The forecast of a measurement, over the same seeds and batch sizes; nan with a reason if there is none.

    Args:
        measured: The measurement.
        reading: The trials that were measured.
        foreseen: The forecast of the reading's group.
        deepest: The smallest target of all measurements of the reading.

    Returns:
        The columns `predicted`, `predicted_min`, `predicted_max` and `remark`.
    """
    none = dict.fromkeys(("predicted", "predicted_min", "predicted_max"), math.nan)
    about = measured.about
    if about["metric"] != TRAIN_LOSS:
        return {**none, "remark": OF_TRAINING_LOSS}
    if foreseen.reason or measured.best.empty or (about["quantity"] == "N" and math.isnan(about["target"])):
        return {**none, "remark": foreseen.reason or "there is nothing measured that could be forecast"}
    if about["quantity"] == "h" and about["iterations_least"] < about["iterations"]:
        return {**none, "remark": "h depends on T, which differs between batch sizes"}
    trials = reading[reading["cell_id"].isin(foreseen.paths)]
    # all stepsizes at the measured seeds and batch sizes: the forecast chooses its own best among them
    key = ["seed", "batch_size"]
    trials = trials[pd.MultiIndex.from_frame(trials[key]).isin(pd.MultiIndex.from_frame(measured.best[key]))]
    if about["quantity"] == "h":
        best = best_by_h(trials.assign(h=[_exponent(foreseen.paths, row) for row in trials.to_dict("records")]))
    else:
        paths = foreseen.typical(trials, about["target"], deepest)
        best = best_by_steps(trials, paths, Target.in_row(about))
        if late := sorted(set(best.loc[best["value"].isna(), "batch_size"])):
            sizes = ", ".join(map(str, late))
            words = f"it does not reach L <= {about['target']:g} in {HORIZON} T iterations at b = {sizes}"
            return {**none, "remark": words}
    table = by_seed(best)
    b, values = table.columns.to_numpy(), table.to_numpy()
    fit = critical_batch(b, values, about["quantity"])
    if math.isnan(fit.value):
        return {**none, "remark": fit.reason}
    # each seed's own b_c, with the q of all seeds together: the extremes show how seeds differ
    seeds = fit_saturation(b, 1 / values if about["quantity"] == "h" else values, fit.q).b_c
    known = seeds[~np.isnan(seeds)]  # nan: a seed has fewer batch sizes than a fit needs
    edges = [f"its best stepsize is the {end} tried at b = {sizes}" for end, sizes in at_edges(best, reading)]
    return {
        "predicted": fit.value,
        "predicted_min": known.min() if known.size else math.nan,
        "predicted_max": known.max() if known.size else math.nan,
        "remark": "; ".join(edges),
    }


def _exponent(paths: Paths, row: Mapping) -> float:
    """The h of a forecast trial at the iteration at which the trial itself ended, or at T if it diverged."""
    losses = paths[row["cell_id"]][1]
    done = int(row["iterations"] if row["status"] == DIVERGED else row["iterations_done"])
    return exponent(losses[0], losses[done], done)
