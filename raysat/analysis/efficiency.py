"""The cost of reaching a target at each batch size, and the batch sizes to choose by it.

N(b) iterations to a target loss at s(b) seconds each cost

    samples(b) = b N(b),   seconds(b) = s(b) N(b),   device_hours(b) = devices seconds(b) / 3600,

a device being a GPU, or a CPU core if there is no GPU; times the price of a device-hour, if it is known, that is the
money (`raysat.spec.prices`). By the law N(b) = N_inf (1 + b_N/b), samples rise with b, as
N_inf (b + b_N), and iterations fall: a batch size is worth using as long as its savings outweigh its waste. Zhang et
al. (2024, arXiv 2410.21676) draw the line at an overhead of 20 %, here called `b_20`: the largest b whose samples to
target are at most 1.2 times the least. If the law was fitted to N(b), `b_20` is computed from the law, because
interpolation between two batch sizes lets the scatter of N change it by factors; without a fit it is interpolated
between the measured values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Real

from raysat.analysis.measure import Measurement, by_seed
from raysat.analysis.reading import ANSWER, READING, by_evidence, devices
from raysat.analysis.words import bounds, method, number
from raysat.saturation.intervals import geometric_mean, of_values, percentiles, replicates
from raysat.spec.goals import Target
from raysat.spec.phases import in_label
from raysat.spec.prices import Prices, price_of

WASTE = 0.2
"""The fraction of samples above the least that may be wasted. Default: 0.2, from Zhang et al. (2024)."""

COSTS = (*READING, "metric", "target", "headline", "cost", "batch_size", "value", "low", "high", "seeds")
CHOICES = (
    *(*READING, "metric", "target", "headline", "choice", "batch_size", "low", "high", "value", "seeds", "batch_sizes"),
    *("devices", "at_once", "reason"),
)


@dataclass(frozen=True)
class Costs:
    """The costs of reaching a target.

    Attributes:
        b: Batch sizes, ascending, at which every seed reaches the target. Shape: [b].
        values: `samples`, `seconds`, `device_hours` and `money`, each of shape [seeds, b].
    """

    b: Real[np.ndarray, " b"]
    values: dict[str, Float[np.ndarray, "seeds b"]]


def costs(
    b: Real[np.ndarray, " b"],
    steps: Float[np.ndarray, "seeds b"],
    seconds_per_step: Float[np.ndarray, "seeds b"],
    devices: Float[np.ndarray, "seeds b"],
    prices: Float[np.ndarray, "seeds b"] | float = math.nan,
) -> Costs:
    """Compute samples, seconds, device-hours and money to a target.

    Args:
        b: Batch sizes, ascending.
        steps: N(b); a batch size is left out if some seed's value is nan or 0.
        seconds_per_step: Seconds per iteration; nan if not measured.
        devices: Devices of a trial: GPUs or a fraction of one, or cores.
        prices: Of a device-hour. Default: not known.

    Example:
        >>> one = np.ones((1, 2))
        >>> costs(np.array([1, 8]), np.array([[800.0, 200.0]]), 0.5 * one, one).values["seconds"]
        array([[400., 100.]])
    """
    kept = (steps > 0).all(axis=0)  # false for nan too
    steps, seconds = steps[:, kept], (steps * seconds_per_step)[:, kept]
    with np.errstate(invalid="ignore"):
        hours = devices[:, kept] * seconds / 3600
    money = hours * np.broadcast_to(prices, devices.shape)[:, kept]
    values = {"samples": b[kept] * steps, "seconds": seconds, "device_hours": hours, "money": money}
    return Costs(b[kept], values)


def cheapest(b: Real[np.ndarray, " b"], means: Float[np.ndarray, "*replicates b"]) -> Float[np.ndarray, "*replicates"]:
    """The batch size of the least cost."""
    return b[means.argmin(axis=-1)].astype(float)


def largest_within(
    b: Real[np.ndarray, " b"], samples: Float[np.ndarray, "*replicates b"], waste: float = WASTE
) -> Float[np.ndarray, "*replicates"]:
    """The largest b up to which samples to target stay within `1 + waste` times the least.

    The search goes upwards from the cheapest b to the first that costs more; the result is interpolated between that
    one and the one before it, with a cost linear in b, as in samples(b) = N_inf (b + b_N).

    Args:
        b: Batch sizes, ascending.
        samples: Samples to target.
        waste: The fraction that may be wasted.

    Returns:
        The batch size; inf if no batch size above the cheapest costs more.

    Example:
        >>> b = np.array([1.0, 2, 4, 8])
        >>> round(float(largest_within(b, b + 10.0)), 6)  # 1.2 (1 + 10) - 10
        3.2
    """
    flat = samples.reshape(-1, len(b))
    limit = (1 + waste) * flat.min(axis=1, keepdims=True)
    beyond = (flat > limit) & (np.arange(len(b)) > flat.argmin(axis=1, keepdims=True))
    # the first b that costs more; any k if there is none, for which infinity is returned
    k, rows = np.clip(beyond.argmax(axis=1), 1, len(b) - 1), np.arange(len(flat))
    below, above = flat[rows, k - 1], flat[rows, k]
    with np.errstate(divide="ignore", invalid="ignore"):
        crossing = b[k - 1] + (limit[:, 0] - below) / (above - below) * (b[k] - b[k - 1])
    return np.where(beyond.any(axis=1), crossing, math.inf).reshape(samples.shape[:-1])


def within_by_law(least: float, b_c: float, q: float, waste: float = WASTE) -> float:
    """The b up to which samples to target by the law `N_inf (b^q + b_c^q)^(1/q)` are within `1 + waste` of the least.

    Args:
        least: The smallest batch size, which takes the fewest samples.
        b_c: b_N.
        q: Exponent of the law (`raysat.saturation.fits`).
        waste: The fraction that may be wasted.

    Example:
        >>> round(within_by_law(1, 10.0, 1.0), 6)  # 1.2 (1 + 10) - 10
        3.2
    """
    if not 0 < b_c < math.inf:  # samples rise in proportion to b at b_c = 0, and not at all at b_c = inf
        return math.inf if b_c else (1 + waste) * least
    ratio = q * math.log(least / b_c)  # (b/b_c)^q + 1 = (1 + waste)^q ((least/b_c)^q + 1)
    # solved in logs, in which (least/b_c)^q cannot overflow
    return b_c * math.expm1(q * math.log1p(waste) + float(np.logaddexp(0, ratio))) ** (1 / q)


def cost_rows(measured: Measurement, at_once: int = 0, prices: Prices = ()) -> tuple[list[dict], list[dict]]:
    """Return the costs of a measured target, and the choices by them: rows of `COSTS` and of `CHOICES`.

    None where batches grow along the run: neither samples nor seconds are then proportional to N.

    Args:
        measured: The measurement of N.
        at_once: The largest number of trials that ran at once on one machine (`trials_at_once`).
        prices: Of a device-hour, by device.
    """
    best = measured.best
    if in_label(measured.about["training"]):
        return [], []
    best = best.assign(seconds_per_step=1 / best["steps_per_second"].astype(float), devices=devices(best))
    best = best.assign(price=[price_of(prices, device) for device in best["device"].astype(object)])
    tables = [by_seed(best, column) for column in ("value", "seconds_per_step", "devices", "price")]
    made = costs(tables[0].columns.to_numpy(), *(table.to_numpy() for table in tables))
    head = {name: measured.about[name] for name in (*READING, "metric", "target", "headline")}
    head |= {"devices": " and ".join(sorted(set(best["device"].dropna()))), "at_once": at_once}
    head |= {"batch_sizes": len(made.b), "seeds": len(tables[0])}
    missed = ", ".join(str(b) for b in measured.asked if b not in made.b)
    left_out = f"b = {missed} left out, where N is not known for every seed" if missed else ""
    shares = _shares(best)
    rows, choices = [], []
    at = tables[0].columns.isin(made.b)
    for name, values in made.values.items():
        if not values.size or not (np.isfinite(values) & (values > 0)).all():  # not measured for every trial
            continue
        # With one seed only N varies: the cost of an iteration is taken as measured.
        alone, shared = measured.alone, measured.resolution[at]
        mean, (low, high) = geometric_mean(values), of_values(values, alone, shared)
        drawn = replicates(values, alone, shared)
        known = drawn[~np.isnan(drawn).any(axis=1)]
        rows += [
            {**head, "cost": name, "batch_size": int(b), "value": mean[k], "low": low[k], "high": high[k]}
            for k, b in enumerate(made.b)
        ]
        for choice, (rule, above_least) in RULES[name].items():
            # b_20 rises with b_N, so that the ends of the one's interval give those of the other's
            if choice == "b_20" and math.isfinite(measured.fit["value"]):
                chosen, low, high = (_by_law(measured.fit, end, made.b) for end in ("value", "low", "high"))
            else:
                # a choice is no smooth function of the means: its interval is that of the choices on replicates
                chosen = float(rule(made.b, mean))
                low, high = percentiles(rule(made.b, known)) if len(known) else (math.nan, math.nan)
            row = {"choice": choice, "batch_size": chosen, "low": float(low), "high": float(high)}
            reasons = (_reservation(choice, chosen, made.b), left_out, shares * (choice == "least_seconds"))
            row |= {"value": (1 + above_least) * mean.min(), "reason": "; ".join(filter(None, reasons))}
            choices.append({**head, **row})
    return rows, choices


def _by_law(fit: dict, end: str, b: Real[np.ndarray, " b"]) -> float:
    """b_20 by a fit, or by an end of its interval; infinite beyond the batch sizes that were run."""
    found = within_by_law(float(b.min()), fit[end], fit["q"]) if not math.isnan(fit[end]) else math.nan
    return math.inf if found > b.max() else found


RULES = {
    "samples": {"least_samples": (cheapest, 0.0), "b_20": (largest_within, WASTE)},
    "seconds": {"least_seconds": (cheapest, 0.0)},
    "device_hours": {"least_device_hours": (cheapest, 0.0)},
    "money": {"least_money": (cheapest, 0.0)},
}
"""The choices by each cost: name, the function from costs to the batch size, and the cost above the least as a
fraction."""


def _reservation(choice: str, chosen: float, b: Real[np.ndarray, " b"]) -> str:
    """Return a reservation about a choice; empty if there is none."""
    if len(b) == 1:
        return "one batch size: there is nothing to choose from"
    if math.isinf(chosen):
        return f"no batch size run, up to {b.max():g}, wastes as much"
    if choice != "least_samples" and chosen == b.max():
        return "the largest batch size run: a larger one may cost less still"
    return ""


def _shares(best: pd.DataFrame) -> str:
    """A note if seconds are a seed's share of the time of several trained together: a seed alone takes longer."""
    sizes = sorted(set(best.loc[best["engine"] == "stacked", "batch_size"]))
    return f"at b = {', '.join(map(str, sizes))} a seed's share of what several took together" if sizes else ""


def trials_at_once(trials: pd.DataFrame) -> int:
    """The largest number of trials that ran at once on one machine, from their ends and durations; 0 if not known.

    Seeds trained as one computation ended together, and took the sum of their shares: they count as one.
    """
    most = 0
    timed = trials[trials["finished_at"].notna() & np.isfinite(trials["seconds"])]
    stacked = timed["engine"] == "stacked"
    shared = timed[stacked].groupby(["hostname", "finished_at"], as_index=False)["seconds"].sum()
    for _, own in pd.concat([timed[~stacked], shared]).groupby("hostname"):
        begun = own["finished_at"] - pd.to_timedelta(own["seconds"], unit="s")
        # trials that run, changes by time; the sort is stable, so that at equal times ends come before beginnings
        change = pd.concat([pd.Series(-1, own["finished_at"]), pd.Series(1, begun)])
        most = max(most, int(change.sort_index(kind="stable").cumsum().max()))
    return most


def what_to_use(choices: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Select, for each setting and metric, the choices with the best evidence, and say in a sentence what to use.

    Args:
        choices: `Analysis.choices`.

    Returns:
        For each setting and metric (`ANSWER`), the rows of `choices` for the headline target of the best evidence
        (`raysat.analysis.reading.by_evidence`), and a sentence with its caveats.
    """
    tables, sentences = [choices.iloc[:0]], []
    headline = choices[choices["headline"].astype(bool)]
    for _, rows in headline.groupby(list(ANSWER), dropna=False, sort=False):
        # without sorting, the first group is that of the first row: the best evidence
        _, own = next(iter(by_evidence(rows).groupby(["width", "stepsize", "tuning"], sort=False)))
        tables.append(own)
        sentences.append(_sentence(own.set_index("choice")))
    return pd.concat(tables), sentences


def _sentence(own: pd.DataFrame) -> str:
    """Return which batch size to use, with caveats, from the choices of one reading by name."""
    row = own.iloc[0]
    width = f" at width {row['width']}" if row["width"] else ""
    said = f"To reach {Target.in_row(row).words}{width} under {method(row)}, "
    said += f"b = {_size(own, 'least_samples')} takes the fewest samples ({number(own.at['least_samples', 'value'])})"
    if "least_seconds" in own.index:
        seconds = number(own.at["least_seconds", "value"])
        said += f" and b = {_size(own, 'least_seconds')} the least time ({seconds} s of steps)"
    if "least_device_hours" in own.index:
        same = own["batch_size"]["least_device_hours"] == own["batch_size"]["least_seconds"]
        said += " and device-hours" if same else f", b = {_size(own, 'least_device_hours')} the fewest device-hours"
    if "least_money" in own.index:
        money = number(own.at["least_money", "value"])
        said += f"; at the given prices b = {_size(own, 'least_money')} costs least, {money}"
    if row["batch_sizes"] == 1:
        return f"{said}. There is one batch size: nothing to choose from."
    if math.isinf(own["batch_size"]["b_20"]):
        said += f"; {own.at['b_20', 'reason']} as 20 % of the samples."
    else:
        said += f"; up to b = {_size(own, 'b_20')} less than 20 % of the samples are wasted."
    for choice, reason in own.loc[own.index != "b_20", "reason"].items():
        said += f" The {str(choice).replace('_', ' ')}: {reason}." * bool(reason)
    if row["seeds"] == 1 and math.isnan(own["low"].iloc[0]):
        said += " There are no intervals: there is one seed, and no fit about which it could scatter."
    elif row["seeds"] == 1:
        said += " Intervals are from the scatter about the fit: there is one seed."
    shared = f", up to {row['at_once']} trials at once on a machine, which makes steps slower and uneven"
    shared *= int(row["at_once"] > 1)
    if "least_seconds" in own.index:
        said += f" Seconds were measured on {row['devices'] or 'an unknown device'}{shared}, evaluations not counted."
    else:
        said += " No seconds were measured."
    return f"{said} It holds only for this target, stepsize policy and machine."


def _size(own: pd.DataFrame, choice: str) -> str:
    size, low, high = (own[column][choice] for column in ("batch_size", "low", "high"))
    return " ".join(filter(None, [number(size), bounds(low, high)]))
