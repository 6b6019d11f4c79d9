import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from analysis.test_analysis import SIZES, analyzed, full, printed, tables, trial
from hypothesis import given
from hypothesis import strategies as st

from raysat.analysis import analyze, what_to_use
from raysat.analysis.efficiency import CHOICES, COSTS, WASTE, cheapest, costs, largest_within, trials_at_once

B = np.array([1.0, 2, 4, 8, 16, 32, 64])


class TestCosts:
    def test_are_what_their_units_say(self):
        made = costs(np.array([2, 4]), np.array([[100.0, 60]]), np.array([[0.5, 0.6]]), np.array([[2.0, 2.0]]))
        assert made.values["samples"].tolist() == [[200, 240]]
        assert made.values["seconds"].tolist() == [[50, 36]]
        assert made.values["device_hours"][0] == pytest.approx([100 / 3600, 72 / 3600])

    def test_leave_out_a_batch_size_at_which_a_seed_misses_the_target(self):
        steps = np.array([[100.0, 60, 0], [90, math.nan, 10]])
        made = costs(np.array([2, 4, 8]), steps, np.ones((2, 3)), np.ones((2, 3)))
        assert made.b.tolist() == [2]
        assert made.values["samples"].tolist() == [[200], [180]]


class TestLargestWithin:
    @given(b_c=st.floats(0.1, 250))
    def test_follows_from_the_law(self, b_c):
        """Samples are N_inf (b + b_c), and 1.2 (1 + b_c) = b + b_c at b = 1.2 + 0.2 b_c."""
        assert largest_within(B, 7.0 * (B + b_c)) == pytest.approx(1.2 + 0.2 * b_c)

    @given(st.lists(st.floats(1.0, 1e3), min_size=7, max_size=7), st.floats(0.01, 1.0))
    def test_nothing_between_it_and_the_cheapest_wastes_more(self, samples, waste):
        samples = np.array(samples)
        found, first = float(largest_within(B, samples, waste)), float(cheapest(B, samples))
        assert found >= first
        within = (first <= B) & (found >= B)
        assert (samples[within] <= (1 + waste) * samples.min() * (1 + 1e-9)).all()
        if math.isfinite(found):
            assert np.interp(found, B, samples) == pytest.approx((1 + waste) * samples.min())
            assert found < B[-1] or samples[-1] > (1 + waste) * samples.min()

    def test_is_infinite_where_nothing_run_wastes_as_much(self):
        assert largest_within(B, np.linspace(100, 119, 7)) == math.inf
        assert largest_within(B[:1], np.array([5.0])) == math.inf

    def test_a_dip_beyond_it_does_not_count(self):
        assert largest_within(B, np.array([100.0, 100, 140, 110, 200, 300, 400])) == pytest.approx(3)

    def test_replicates_are_taken_each_by_itself(self):
        rows = np.stack([B + 10, B + 50, np.full(7, 3.0)])
        assert largest_within(B, rows)[:2] == pytest.approx([3.2, 11.2])
        assert largest_within(B, rows)[2] == math.inf
        assert cheapest(B, rows).tolist() == [1, 1, 1]


def timed(b, seed=0, seconds_per_step=None, **changes):
    """A trial of the law whose step takes 1 ms and another for every 16 samples."""
    per_step = 1e-3 * (1 + b / 16) if seconds_per_step is None else seconds_per_step
    return trial(b, seed, steps_per_second=1 / per_step, device="cpu", threads=2, hostname="one", **changes)


def chosen(made, target=0.7):
    return analyzed(made, [target]).choices.set_index("choice")


class TestChoices:
    def test_are_those_of_the_law(self):
        """N (1 + 12/b) steps of 1 + b/16: the time is least at b = sqrt(12 16) = 13.9, nearest on the grid at 16."""
        made = [timed(b, seed) for seed in (0, 1) for b in SIZES]
        choices, steps = chosen(made), -math.log(0.7) / 0.02  # N_inf
        assert choices["batch_size"].to_dict() == {
            "least_samples": 1,
            "b_20": pytest.approx(1.2 + 0.2 * 12),
            "least_seconds": 16,
            "least_device_hours": 16,
        }
        assert choices.at["least_samples", "value"] == pytest.approx(13 * steps, rel=1e-6)
        assert choices.at["b_20", "value"] == pytest.approx((1 + WASTE) * 13 * steps, rel=1e-6)
        assert choices.at["least_seconds", "value"] == pytest.approx(1.75 * 2e-3 * steps, rel=1e-6)
        assert choices.at["least_device_hours", "value"] == pytest.approx(2 * 1.75 * 2e-3 * steps / 3600, rel=1e-6)
        assert choices.at["b_20", "low"] == pytest.approx(3.6)  # the seeds agree
        assert choices.at["b_20", "high"] == pytest.approx(3.6)
        assert set(choices["reason"]) == {""}
        assert list(choices.reset_index()[list(CHOICES)]) == list(CHOICES)

    def test_intervals_are_over_seeds(self):
        made = [timed(b, seed, b_c=b_c) for seed, b_c in enumerate((5.0, 12.0, 40.0)) for b in SIZES]
        analysis = analyzed(made, [0.9])
        row, fit = analysis.choices.set_index("choice").loc["b_20"], analysis.fits.query("quantity == 'b_N'").iloc[0]
        for end in ("low", "high"):  # there samples by the law are 1.2 times those at b = 1
            samples = [b * (1 + (fit[end] / b) ** fit["q"]) ** (1 / fit["q"]) for b in (row[end], 1)]
            assert samples[0] == pytest.approx(1.2 * samples[1], rel=1e-6)
        assert fit["low"] < 5 < fit["value"] < 40 < fit["high"]  # three seeds that differ so much tell little
        assert row["low"] < row["batch_size"] < row["high"]

    def test_intervals_of_one_seed_are_of_its_scatter_where_there_is_a_fit(self):
        rng = np.random.default_rng(1)
        rates = [0.02 / (1 + 12 / b) * math.exp(rng.normal(0, 0.05)) for b in SIZES]
        made = [timed(b, rate=rate) for b, rate in zip(SIZES, rates, strict=True)]
        analysis = analyzed(made, [0.7])
        row = analysis.choices.set_index("choice").loc["b_20"]
        assert row["low"] < row["batch_size"] < row["high"]
        assert row["seeds"] == 1
        costs, points = analysis.costs.set_index(["cost", "batch_size"]), analysis.points.query("quantity == 'N'")
        for cost in ("samples", "seconds", "device_hours"):  # as wide as those of N, of which they are multiples
            ratio = costs.loc[cost, "high"] / costs.loc[cost, "low"]
            assert ratio.to_numpy() == pytest.approx((points["high"] / points["low"]).to_numpy())
        assert "Intervals are from the scatter about the fit: there is one seed." in what_to_use(analysis.choices)[1][0]

        without = analyzed([timed(b, b_c=1e-4) for b in SIZES], [0.7])  # nothing to see of b: no fit
        assert without.choices["low"].isna().all()
        assert without.costs["low"].isna().all()
        assert "There are no intervals: there is one seed, and no fit" in what_to_use(without.choices)[1][0]

    def test_costs_have_a_row_for_each_batch_size(self):
        table = analyzed([timed(b, seed) for seed in (0, 1) for b in SIZES], [0.7]).costs
        assert list(table) == list(COSTS)
        rows = table[table["cost"] == "seconds"].set_index("batch_size")
        expected = {b: -math.log(0.7) / 0.02 * (1 + 12 / b) * 1e-3 * (1 + b / 16) for b in SIZES}
        assert rows["value"].to_dict() == pytest.approx(expected, rel=1e-6)
        assert set(rows["seeds"]) == {2}

    def test_a_gpu_counts_as_the_share_that_a_trial_had(self):
        trials, curves = tables([timed(b) for b in SIZES])
        choices = analyze(trials.assign(device="NVIDIA H200", gpus=0.25), curves, [0.7]).choices.set_index("choice")
        hours = choices.at["least_seconds", "value"] / 3600
        assert choices.at["least_device_hours", "value"] == pytest.approx(hours / 4)
        assert choices.at["least_seconds", "devices"] == "NVIDIA H200"

    def test_prices_make_money_of_device_hours(self):
        trials, curves = tables([timed(b) for b in SIZES])
        trials = trials.assign(
            device=["NVIDIA A100" if b < 8 else "NVIDIA H200" for b in trials["batch_size"]], gpus=1.0
        )
        made = analyze(trials, curves, [0.7], prices=(("A100", 1.0), ("H200", 3.5)))
        costs = made.costs.pivot(index="batch_size", columns="cost", values="value")
        expected = [hours * (1.0 if b < 8 else 3.5) for b, hours in costs["device_hours"].items()]
        assert costs["money"].tolist() == pytest.approx(expected)
        choices = made.choices.set_index("choice")
        assert choices.at["least_money", "batch_size"] == costs["money"].idxmin() != costs["device_hours"].idxmin()
        assert choices.at["least_money", "value"] == pytest.approx(costs["money"].min())
        assert "; at the given prices b = 4 " in what_to_use(made.choices)[1][0]
        unknown = analyze(trials, curves, [0.7], prices=(("A100", 1.0),))
        assert "money" not in set(unknown.costs["cost"])
        assert "least_money" not in set(analyze(trials, curves, [0.7]).choices["choice"])

    def test_say_what_they_leave_open(self):
        made = [timed(b, seed, seconds_per_step=1e-3, b_c=650.0, iterations=1000) for seed in (0, 1) for b in SIZES]
        choices = chosen(made, 0.98)
        assert math.isinf(choices.at["b_20", "batch_size"])
        assert choices.at["b_20", "reason"] == "no batch size run, up to 128, wastes as much"
        assert choices.at["least_seconds", "reason"] == "the largest batch size run: a larger one may cost less still"
        missed = [*(timed(b) for b in SIZES), timed(256, rate=1e-4)]
        assert "b = 256 left out, where N is not known for every seed" in chosen(missed).at["b_20", "reason"]
        diverged = [timed(b, status="diverged" if b == 1 else "completed") for b in SIZES]
        assert "b = 1 left out, where N is not known for every seed" in chosen(diverged).at["b_20", "reason"]
        assert "nothing to choose from" in chosen([timed(8)]).at["least_samples", "reason"]

    def test_without_seconds_there_are_samples_alone(self):
        assert set(chosen(full()).index) == {"least_samples", "b_20"}
        assert analyzed(full(), [1e-9]).choices.empty


class TestSentence:
    def test_says_it_plainly_with_its_caveats(self):
        made = [timed(b, seed) for seed in (0, 1) for b in SIZES]
        table, (sentence,) = what_to_use(analyzed(made, [0.7, 0.9]).choices)
        assert set(table["target"]) == {0.7}
        assert "To reach loss 0.7 at width 64 under theory(1), b = 1 [1, 1] takes the fewest samples (232)" in sentence
        assert "b = 16 [16, 16] the least time (0.0624 s of steps) and device-hours" in sentence
        assert "up to b = 3.6 [3.6, 3.6] less than 20 % of the samples are wasted" in sentence
        assert "Seconds were measured on cpu" in sentence
        assert sentence.endswith("It holds only for this target, stepsize policy and machine.")
        assert sentence.split(",")[0] in " ".join(printed(analyzed(made, [0.7])).split())

    def test_the_best_evidence_speaks(self):
        grid = [timed(b, seed, stepsize="grid", eta=eta, rate=0.2 * eta / (1 + 12 / b))
                for seed in (0, 1) for b in SIZES for eta in (0.05, 0.1, 5.0)]  # fmt: skip
        _, (sentence,) = what_to_use(analyzed([*full(), *full("fixed(0.1)"), *grid], [0.7]).choices)
        assert "under grid (free)" in sentence
        _, both = what_to_use(analyzed([*full(), *full(width=128), *full(n=500)], [0.7]).choices)
        assert ["width 128" in sentence for sentence in both].count(True) == 1
        assert len(both) == 2

    def test_trials_that_shared_a_machine_are_said(self):
        begun = datetime(2026, 1, 1, tzinfo=UTC)
        made = [
            timed(b, k % 2, seconds=10.0, finished_at=begun + timedelta(seconds=10 * (k // 2 + 1)))
            for k, b in enumerate(b for b in SIZES for _ in range(2))
        ]
        _, (sentence,) = what_to_use(analyzed(made, [0.7]).choices)
        assert "up to 2 trials at once on a machine, which makes steps slower and uneven" in sentence

    def test_where_seconds_are_shares_it_says_so(self):
        made = [timed(b, seed, engine="stacked" if b <= 4 else "fused") for seed in (0, 1) for b in SIZES]
        _, (sentence,) = what_to_use(analyzed(made, [0.7]).choices)
        sizes = ", ".join(str(b) for b in SIZES if b <= 4)
        assert f"The least seconds: at b = {sizes} a seed's share of what several took together." in sentence
        _, (sentence,) = what_to_use(analyzed(full(), [0.7]).choices)
        assert "share" not in sentence

    def test_where_no_seconds_were_measured_it_says_so(self):
        _, (sentence,) = what_to_use(analyzed(full(), [0.7]).choices)
        assert "No seconds were measured." in sentence
        assert what_to_use(analyzed([]).choices)[1] == []


def test_trials_at_once_are_counted_on_each_machine():
    begun = pd.Timestamp("2026-01-01", tz="UTC")
    rows = [("one", 0, 10), ("one", 5, 15), ("one", 9, 12), ("one", 15, 20), ("two", 0, 99), ("two", 98, 99)]
    frame = pd.DataFrame(rows, columns=["hostname", "begin", "end"])
    frame["finished_at"] = begun + pd.to_timedelta(frame["end"], unit="s")
    frame["seconds"] = (frame["end"] - frame["begin"]).astype(float)
    frame["engine"] = "fused"
    assert trials_at_once(frame) == 3
    assert trials_at_once(frame[frame["hostname"] == "two"]) == 2
    assert trials_at_once(frame.iloc[[0, 3]]) == 1
    assert trials_at_once(frame.assign(seconds=math.nan)) == 0


def test_seeds_that_were_one_computation_count_as_one():
    ends = pd.to_datetime(["2026-01-01 00:00:09", "2026-01-01 00:00:09", "2026-01-01 00:00:09", "2026-01-01 00:00:12"])
    frame = pd.DataFrame({"hostname": "one", "finished_at": ends, "seconds": [3.0, 3.0, 3.0, 3.0]})
    frame["engine"] = ["stacked"] * 3 + ["fused"]
    assert trials_at_once(frame) == 1
    assert trials_at_once(frame.assign(seconds=[3.0, 3.0, 3.0, 4.0])) == 2
