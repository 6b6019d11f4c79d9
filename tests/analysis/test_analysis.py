import io
import json
import math
import re
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from raysat.analysis import THEORY_CAVEAT, about_intervals, analyze, main, print_summary, scatter, setting, summary
from raysat.spec.cells import Model
from raysat.spec.stepsizes import theory
from raysat.spec.sweep import Sweep
from raysat.storage.schema import CURVES, TRIALS, arrow_schema
from raysat.storage.store import Store

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
GAMMA, K_OP, LOSS_INIT = 6.0, 0.5, 1.0
ITERATIONS = np.unique(np.geomspace(1, 1000, 25).round()).astype(int)


def trial(
    b, seed=0, stepsize="theory(1)", eta=None, rate=None, b_c=12.0, status="completed", iterations=300, **changes
):
    """A trial whose loss is exp(-rate t), so that h = rate and N(b; eps) = log(1/eps) / rate follow the law exactly."""
    rate = 0.02 / (1 + b_c / b) if rate is None else rate
    eta = 0.1 if eta is None else eta
    times = [0, *ITERATIONS[iterations > ITERATIONS], iterations]
    key = f"{stepsize}-{eta}-{b}-{seed}-{changes.get('width', 64)}-{changes.get('cell', '')}"
    changes.pop("cell", None)
    ended = status in ("completed", "target_reached", "beaten")
    row = {
        **{"cell_id": key, "status": status, "dataset": "toy", "preprocessing": "center", "n": 1000, "model": "mlp"},
        **{"model_options": '{"depth": 2}', "depth": 2, "width": 64, "dtype": "float32", "seed": seed, "loss": "mse"},
        **{"gamma": GAMMA + seed, "k_op": K_OP, "b_star": (GAMMA + seed) / K_OP, "noise_scale": 30.0},
        **{"b_star_thm33": 4 * (GAMMA + seed) / K_OP, "loss_init": LOSS_INIT, "sampling": "without_replacement"},
        **{"batch_size": b, "stepsize": stepsize, "eta": eta, "eta_beta": 10 * eta, "iterations": iterations},
        **{"eta_limit": 2 / K_OP, "gpus": 0.0, "threads": 1},
        **{
            "h": rate if ended else None,
            "finished_at": datetime(2026, 1, 1, tzinfo=UTC),
            "iterations_done": iterations,
        },
        **changes,
    }
    curve = [{"cell_id": key, "iteration": t, "train_loss": LOSS_INIT * math.exp(-rate * t)} for t in times]
    return row, curve if ended else []


def tables(made):
    rows, curves = zip(*made, strict=True) if made else ((), ())
    frames = [rows, [point for curve in curves for point in curve]]
    return [
        pa.Table.from_pylist(list(frame), schema=arrow_schema(name)).to_pandas()
        for name, frame in zip(("trials", "curves"), frames, strict=True)
    ]


def analyzed(made, targets=()):
    return analyze(*tables(made), targets)


def headline(made, quantity, targets=()):
    fits = analyzed(made, targets).fits
    rows = fits[(fits["quantity"] == quantity) & fits["headline"]]
    assert len(rows) == 1
    return rows.iloc[0]


def printed(analysis, width=80):
    console = Console(file=io.StringIO(), width=width)
    print_summary(analysis, console)
    return console.file.getvalue()


def flat(text):
    return " ".join(text.split())


def full(stepsize="theory(1)", seeds=2, **changes):
    return [trial(b, seed, stepsize, **changes) for seed in range(seeds) for b in SIZES]


def grid_of(label="grid"):
    """The rate rises with eta up to 0.8 b, and what is above diverges: the best stepsize grows with b."""
    return [
        trial(b, seed, label, eta, rate=0.01 * eta, status="completed" if eta <= 0.8 * b else "diverged")
        for seed in range(2)
        for b in SIZES
        for eta in (0.5, 1.0, 2.0, 3.0, 5.0, 9.0)
    ]


class TestFits:
    def test_recover_the_law_from_both_estimators(self):
        for quantity in ("b_h", "b_N"):
            fit = headline(full(), quantity)
            assert fit["value"] == pytest.approx(12, rel=1e-3)
            # The target is 0.64, to which b N(b) = 22.3 (b + 12) samples: up to b = 32 less than n = 1,000.
            near = "the target is less than an epoch away at b = 1, 2, 4, 8, 16, 32: a lower one says more of a whole"
            assert fit["reason"].startswith(near if quantity == "b_N" else "")
            assert bool(fit["reason"]) == (quantity == "b_N")
            assert (fit["seeds"], fit["batch_sizes"], fit["n_diverged"], fit["n_failed"]) == (2, 8, 0, 0)
        assert headline(full(), "b_h")["asymptote"] == pytest.approx(0.02, rel=1e-3)

    def test_carry_the_predictions_as_means_over_seeds_with_their_ends(self):
        fit = headline(full(seeds=3), "b_N")
        assert (fit["gamma"], fit["gamma_min"], fit["gamma_max"]) == (7, 6, 8)
        assert (fit["b_star"], fit["b_star_min"], fit["b_star_max"]) == (14, 12, 16)
        assert (fit["k_op"], fit["b_star_thm33"], fit["noise_scale"]) == (0.5, 56, 30)

    def test_groups_are_kept_apart(self):
        made = full() + full(width=128, b_c=5.0) + full("fixed(0.1)", b_c=3.0)
        fits = analyzed(made).fits.query("headline and quantity == 'b_h'").set_index(["width", "stepsize"])["value"]
        assert fits[64, "theory(1)"] == pytest.approx(12, rel=1e-3)
        assert fits[128, "theory(1)"] == pytest.approx(5, rel=1e-3)
        assert fits[64, "fixed(0.1)"] == pytest.approx(3, rel=1e-3)

    def test_failed_trials_are_left_out_counted_and_named(self):
        made = [*full(), *(trial(512, seed, status="failed", eta=math.nan) for seed in (0, 1))]
        for quantity in ("b_h", "b_N"):
            fit = headline(made, quantity)
            assert fit["value"] == pytest.approx(12, rel=1e-3)
            assert (fit["batch_sizes"], fit["n_diverged"], fit["n_failed"]) == (8, 0, 2)
            assert "at b = 512 a seed has no trial that ended well: what failed there is not in" in fit["reason"]

    def test_a_group_in_which_nothing_ended_well_says_so(self):
        made = [trial(b, status="failed") for b in SIZES]
        assert "a fit needs 3" in headline(made, "b_h")["reason"]
        assert "no loss level" in headline(made, "b_N")["reason"]
        assert headline(made, "b_N")["n_failed"] == len(SIZES)

    def test_a_batch_size_at_which_all_of_a_seed_diverged_leaves_no_fit(self):
        """All of b = 1 and one seed of b = 2 diverged: h and N have no value there, and the rest is not the law's."""
        made = [
            trial(b, seed, status="diverged" if b == 1 or (b, seed) == (2, 1) else "completed")
            for seed in (0, 1)
            for b in SIZES
        ]
        analysis = analyzed(made, [0.7])
        for quantity in ("b_h", "b_N"):
            fit = analysis.fits[analysis.fits["quantity"] == quantity].iloc[0]
            assert math.isnan(fit["value"])
            assert fit["reason"].startswith("at b = 1, 2 every trial of a seed diverged")
            assert "take smaller stepsizes" in fit["reason"]
            assert (fit["batch_sizes"], fit["n_diverged"]) == (6, 3)
        points = analysis.points.pivot(index="batch_size", columns="quantity", values="value")
        assert points.index[points["h"].isna()].tolist() == points.index[points["N"].isna()].tolist() == [2]
        assert analysis.costs["batch_size"].min() == 4

    def test_diverged_stepsizes_beside_a_good_one_are_evidence_not_a_loss(self):
        made = [
            trial(b, seed, "grid", eta, status="diverged" if eta > 1 else "completed")
            for seed in (0, 1) for b in SIZES for eta in (1.0, 2.0)
        ]  # fmt: skip
        fit = analyzed(made).fits.query("quantity == 'b_N' and headline and tuning == 'free'").iloc[0]
        assert fit["value"] == pytest.approx(12, rel=1e-2)
        assert fit["n_diverged"] == 16

    def test_one_batch_size_is_not_fitted(self):
        for quantity in ("b_h", "b_N"):
            fit = headline([trial(8, seed) for seed in (0, 1)], quantity)
            assert math.isnan(fit["value"])
            assert "1 batch size with a value, a fit needs 3" in fit["reason"]

    @pytest.mark.parametrize(("seeds", "interval"), [(1, "residuals"), (2, "seeds")])
    def test_every_fit_has_its_interval_and_its_goodness(self, seeds, interval):
        rng = np.random.default_rng(0)
        made = [
            trial(b, seed, rate=0.02 / (1 + 12 / b) * math.exp(rng.normal(0, 0.05)))
            for seed in range(seeds)
            for b in SIZES
        ]
        fits = analyzed(made).fits
        assert len(fits) == 4
        assert set(fits["interval"]) == {interval}
        assert (fits["low"] < fits["value"]).all()
        assert (fits["value"] < fits["high"]).all()
        assert fits["rms_log_residual"].between(0.01, 0.1).all()
        said = fits["reason"].str.contains("one seed: the interval is of the scatter about the fit")
        assert said.all() if seeds == 1 else not said.any()

    def test_one_seed_has_intervals_of_each_point_from_its_scatter_about_the_fit(self):
        rng = np.random.default_rng(0)
        made = [trial(b, rate=0.02 / (1 + 12 / b) * math.exp(rng.normal(0, 0.05))) for b in SIZES]
        points = analyzed(made, [0.9]).points
        assert len(points) == 16
        assert (points["low"] < points["value"]).all()
        assert (points["value"] < points["high"]).all()
        ratio = points["high"] / points["low"]
        assert ratio.between(1.05, 1.5).all()  # the scatter of 5 %, twice, to both sides
        assert ratio.max() < 1.1 * ratio.min()  # one scatter for all b, and the distance between evaluations

    def test_one_seed_without_a_fit_has_no_intervals_and_says_so(self):
        analysis = analyzed([trial(b) for b in SIZES[:2]], [0.9])
        assert analysis.points["low"].isna().all()
        said = "one seed, and no fit about which it could scatter: "
        for quantity in ("h", "N"):
            fit = analysis.fits[analysis.fits["quantity"] == f"b_{quantity}"].iloc[0]
            assert f"{said}{quantity}(b) has no interval" in fit["reason"]

    def test_of_a_cell_that_was_run_twice_the_later_holds(self):
        later = [
            trial(b, seed, cell="again", b_c=5.0, finished_at=datetime(2026, 2, 1, tzinfo=UTC))
            for seed in range(2)
            for b in SIZES
        ]
        assert headline(later + full(), "b_h")["value"] == pytest.approx(5, rel=1e-3)

    def test_small_range_is_said(self):
        assert "h varies by only" in headline(full(b_c=0.2), "b_h")["reason"]
        assert "N varies by only" in headline(full(b_c=0.2), "b_N")["reason"]
        fixed = headline(full("fixed(0.1)", b_c=0.07), "b_h")
        assert fixed["range"] == pytest.approx(1.07 / (1 + 0.07 / 128), rel=1e-6)
        assert "h varies by only 6.9 %: agreement of h with h_interp says little" in fixed["reason"]

    def test_a_target_that_ends_trials_is_said(self):
        made = full(status="target_reached")
        assert "ended at the target," in headline(made, "b_h")["reason"]


class TestTargets:
    def test_are_chosen_and_the_deepest_is_the_headline(self):
        fits = analyzed(full()).fits.query("quantity == 'b_N'")
        deepest = math.exp(-300 * 0.02 / 13)  # where b = 1 ends
        levels = sorted(fits["target"])
        assert len(levels) == 3
        assert deepest <= levels[0] < deepest + 0.01
        assert fits.loc[fits["headline"], "target"].tolist() == [levels[0]]
        assert fits["value"].to_numpy() == pytest.approx(12, rel=1e-2)

    def test_given_ones_hold_and_the_smallest_that_all_reach_is_the_headline(self):
        fits = analyzed(full(), targets=[0.9, 0.7, 0.05]).fits.query("quantity == 'b_N'").set_index("target")
        assert fits.index[fits["headline"]].tolist() == [0.7]
        assert fits.at[0.7, "value"] == pytest.approx(12, rel=1e-2)

    def test_a_missed_one_names_how_many_trials_miss_it(self):
        fits = analyzed(full(), targets=[0.7, 0.05]).fits.query("quantity == 'b_N'").set_index("target")
        missing = 2 * sum(300 * 0.02 / (1 + 12 / b) < -math.log(0.05) for b in SIZES)
        assert math.isnan(fits.at[0.05, "value"])
        assert fits.at[0.05, "reason"] == f"{missing} of 16 trials do not reach L <= 0.05"

    def test_where_none_is_reached_the_easiest_stands_for_the_refusal(self):
        fit = headline(full(), "b_N", targets=[1e-9, 1e-8])
        assert fit["target"] == 1e-8
        assert "16 of 16" in fit["reason"]

    def test_one_above_the_initial_loss_is_refused(self):
        assert "target is not below the initial loss" in headline(full(), "b_N", targets=[2.0])["reason"]

    def test_a_trial_that_does_not_descend_leaves_none(self):
        made = [*full(), trial(256, 0, rate=-0.001)]
        assert "no loss level" in headline(made, "b_N")["reason"]
        assert "h is not positive at b = 256" in headline(made, "b_h")["reason"]


class TestPoints:
    def test_have_h_beside_the_interpolated_h(self):
        rows = analyzed(full()).points.query("quantity == 'h'").set_index("batch_size")
        assert rows["value"].to_numpy() == pytest.approx([0.02 / (1 + 12 / b) for b in SIZES])
        one, last = rows.at[1, "value"], rows.at[128, "value"]
        assert rows.at[8, "h_interp"] == pytest.approx(1 / (1 / 8 / one + 7 / 8 / last))
        assert set(rows["h_interp_n"]) == {128}  # b = n = 1000 was not run

    def test_h_is_not_interpolated_without_h_of_1(self):
        made = [trial(b) for b in SIZES[1:]]
        assert analyzed(made).points["h_interp"].isna().all()

    def test_average_over_seeds_geometrically_with_an_interval(self):
        made = [trial(b, seed, rate=0.01 * (1 + seed)) for seed in range(2) for b in SIZES]
        row = analyzed(made).points.query("quantity == 'h' and batch_size == 4").iloc[0]
        assert row["value"] == pytest.approx(0.01 * math.sqrt(2))
        half = stats.t.ppf(0.975, 1) * math.log(2) / 2  # two seeds have one degree of freedom
        ends = (pytest.approx(0.01 * math.sqrt(2) * math.exp(sign * half), rel=1e-3) for sign in (-1, 1))
        assert (row["low"], row["high"], row["seeds"]) == (*ends, 2)

    def test_leave_out_a_batch_size_at_which_a_seed_misses_the_target(self):
        made = [*full(), trial(256, 0), trial(256, 1, rate=1e-4)]
        rows = analyzed(made, targets=[0.7]).points.query("quantity == 'N'").set_index("batch_size")
        assert math.isnan(rows.at[256, "value"])
        assert rows.at[128, "value"] == pytest.approx(-math.log(0.7) * (1 + 12 / 128) / 0.02)


class TestGrid:
    def test_the_best_stepsize_of_each_counts(self):
        best = {1: 0.5, 2: 1, 4: 3, 8: 5, 16: 9, 32: 9, 64: 9, 128: 9}
        for quantity, value in (("h", lambda eta: 0.01 * eta), ("N", lambda eta: -math.log(0.7) / (0.01 * eta))):
            points = analyzed(grid_of(), targets=[0.7]).points
            rows = points[(points["quantity"] == quantity) & (points["tuning"] == "free")].set_index("batch_size")
            assert rows["eta"].to_dict() == best
            assert rows["value"].to_dict() == pytest.approx({b: value(eta) for b, eta in best.items()})

    def test_is_read_twice(self):
        points = analyzed(grid_of(), targets=[0.7]).points.query("quantity == 'N'")
        stable = points[points["tuning"] == "stable"].set_index("batch_size")
        assert stable["eta"].max() == 3.0  # below eta_limit = 4
        assert stable["eta_k_op"].max() == 1.5
        assert points.loc[points["tuning"] == "free", "eta_k_op"].max() == 4.5

    def test_where_the_best_stepsizes_lie_is_said(self):
        fits = analyzed(grid_of(), targets=[0.7]).fits.query("quantity == 'b_N'").set_index("tuning")
        assert "reach 2.2 times the largest" in fits.at["free", "reason"]
        assert "largest tried at b = 16, 32, 64, 128: widen the grid" in fits.at["free", "reason"]
        assert "smallest tried at b = 1" in fits.at["free", "reason"]
        assert "the best stepsize is the smallest tried at b = 1: widen the grid" in fits.at["stable", "reason"]
        assert "largest tried" not in fits.at["stable", "reason"]  # what lies above is known not to be stable
        assert fits.at["stable", "eta_k_op_max"] == 1.5
        assert (fits.at["free", "eta_beta_min"], fits.at["free", "eta_beta_max"]) == (5, 90)
        assert fits.at["free", "n_diverged"] == sum(row["status"] == "diverged" for row, _ in grid_of())

    def test_the_top_of_a_grid_that_ends_below_the_limit_is_an_edge_of_the_stable_reading_too(self):
        """The limit is 4. At b = 64 and 128 nothing at or above it was tried: a larger stable one may be better."""
        made = [(row, curve) for row, curve in grid_of() if row["eta"] < 4 or row["batch_size"] < 64]
        fits = analyzed(made, targets=[0.7]).fits.query("quantity == 'b_N'").set_index("tuning")
        assert "the best stepsize is the largest tried at b = 64, 128: widen the grid" in fits.at["stable", "reason"]

    def test_batch_sizes_without_a_stable_stepsize_are_named(self):
        made = [
            trial(b, seed, "grid", eta, eta_limit=0.4 if b == 1 else 4.0)
            for seed in (0, 1) for b in SIZES for eta in (0.5, 1.0)
        ]  # fmt: skip
        fits = analyzed(made).fits.query("quantity == 'b_N' and headline").set_index("tuning")
        assert (
            "at b = 1 a seed has no stable stepsize: what is not stable there is not in" in fits.at["stable", "reason"]
        )
        assert fits.at["stable", "batch_sizes"] == 7
        assert "no stable stepsize" not in fits.at["free", "reason"]

    def test_only_the_best_must_reach_a_target(self):
        made = [trial(b, seed, "grid", eta, rate=eta * 0.02 / (1 + 12 / b)) for seed in (0, 1) for b in SIZES
                for eta in (1e-6, 1.0)]  # fmt: skip
        fit = analyzed(made).fits.query("quantity == 'b_N' and headline and tuning == 'free'").iloc[0]
        assert fit["value"] == pytest.approx(12, rel=1e-2)
        assert fit["target"] < 0.65

    def test_one_multiple_of_beta_for_all_b_is_a_tautology_and_is_called_one(self):
        made = [trial(b, seed, "grid_relative", eta, rate=eta * 0.02 / (1 + 12 / b), eta_beta=eta)
                for seed in (0, 1) for b in SIZES for eta in (0.5, 1.0)]  # fmt: skip
        fit = analyzed(made).fits.query("quantity == 'b_N' and headline and tuning == 'free'").iloc[0]
        assert "nearly by construction" in fit["reason"]


class TestSummary:
    def test_has_a_row_for_each_reading(self):
        table = summary(analyzed(full() + full("fixed(0.1)", b_c=0.07)).fits).set_index("stepsize")
        assert table.at["theory(1)", "b_N"] == pytest.approx(12, rel=1e-2)
        assert table.at["theory(1)", "b_star"] == 13
        assert THEORY_CAVEAT in table.at["theory(1)", "notes"]
        assert THEORY_CAVEAT not in table.at["fixed(0.1)", "notes"]

    @pytest.mark.parametrize("width", [80, 100])
    def test_the_printed_table_is_whole_and_says_what_it_does_not_show(self, width):
        made = full() + full("fixed_fraction(1)", b_c=0.07) + grid_of() + [trial(256, status="diverged")]
        text = printed(analyzed(made), width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for name in ("width", "gamma", "k_op", "b_star", "b_h", "b_N", "L <=", "notes", "(stable)"):
            assert name in text
        assert re.search(r"scatter \d+ %", text)
        assert re.search(r"\[[\d.]+, [\d.]+\]", text)
        words = flat(text)
        assert "b_h: at b = 256 every trial of a seed diverged" in words
        assert THEORY_CAVEAT in words
        assert "under one stepsize for all b, h varies by only 6.9 %: agreement of h with h_interp says little" in words
        assert "depends on the number of iterations, here T = 300; b_N does not" in words
        assert "Trials left out: 1 diverged." in words

    def test_each_setting_has_its_own_table(self):
        text = printed(analyzed(full() + full(n=500)))
        assert "n = 1,000" in text
        assert "n = 500" in text
        assert text.count("b_star b_h") + flat(text).count("gamma k_op b_star") == 2

    def test_nothing_is_said_in_a_plain_sentence(self):
        analysis = analyzed([])
        assert analysis.fits.empty
        assert analysis.points.empty
        assert summary(analysis.fits).empty
        assert "No trial has ended yet" in printed(analysis)

    def test_a_setting_names_data_model_and_training(self):
        row = analyzed(full()).fits.iloc[0].to_dict()
        plain = "toy (center, n = 1,000), mlp(depth=2), mse, float32, without_replacement, T = 300"
        assert setting(row) == plain
        row = analyzed(full(training="momentum 0.9")).fits.iloc[0].to_dict()
        assert setting(row) == f"{plain}, momentum 0.9 (the prediction is for plain SGD)"

    @pytest.mark.parametrize("way", ["momentum 0.9", "adamw weight_decay=0.1, clipped to 1", "3 learners random"])
    def test_of_another_training_the_theory_says_nothing(self, way):
        """What is measured is the same; no b_star, and no stepsizes that are stable in theory."""
        plain = analyzed(grid_of())
        other = analyzed([({**row, "training": way}, curve) for row, curve in grid_of()])
        assert set(plain.fits["tuning"]) == {"free", "stable"}
        assert plain.fits["b_star"].notna().all()
        assert set(other.fits["tuning"]) == {"free"}
        for name in ("b_star", "b_star_min", "b_star_thm33"):
            assert other.fits[name].isna().all()
        assert set(other.fits["unpredicted"]) == {"the theory is of fixed-stepsize SGD"}
        measured = [
            one.fits.query("tuning == 'free' and quantity == 'b_N'")["value"].tolist() for one in (plain, other)
        ]
        assert measured[0] == measured[1]
        assert "stable" not in printed(other)
        assert "No prediction: the theory is of fixed-stepsize SGD." in flat(printed(other))

    def test_has_the_scatter_of_each_fit(self):
        rng = np.random.default_rng(0)
        made = [trial(b, rate=0.02 / (1 + 12 / b) * math.exp(rng.normal(0, 0.05))) for b in SIZES]
        fits = analyzed(made).fits.query("headline").set_index("quantity")["rms_log_residual"]
        (row,) = summary(analyzed(made).fits).to_dict("records")
        assert (row["b_h_scatter"], row["b_N_scatter"]) == (fits["b_h"], fits["b_N"])
        assert scatter(row["b_N_scatter"]) in printed(analyzed(made))

    def test_says_why_there_is_no_prediction(self):
        (row,) = summary(analyze(*tables(without_statistics()), ntk=refused_ntk()).fits).to_dict("records")
        assert row["tuning"] == "free"  # what is stable is not known
        assert "No prediction: bn (BatchNorm1d) mixes the samples of a batch." in row["notes"]
        assert not any("best stepsizes" in note for note in row["notes"])  # they have no unit

    def test_a_row_that_is_null_in_depth_and_activation_is_a_group_too(self):
        made = full(model="linear", model_options="{}", depth=None, activation=None, width=0)
        assert summary(analyzed(made).fits)["b_h"].tolist() == [pytest.approx(12, rel=1e-3)]


def without_statistics():
    """Trials of a network whose samples have no gradients of their own."""
    known = ("gamma", "k_op", "b_star", "b_star_thm33", "noise_scale", "eta_beta", "eta_limit")
    made = [trial(b, seed, "grid", eta, rate=0.2 * eta / (1 + 12 / b), init_id=f"init-{seed}")
            for seed in (0, 1) for b in SIZES for eta in (0.05, 0.1)]  # fmt: skip
    return [({**row, **dict.fromkeys(known)}, curve) for row, curve in made]


def refused_ntk():
    """The `ntk` table of `without_statistics`."""
    rows = [
        {
            key: row[key]
            for key in ("init_id", "dataset", "preprocessing", "n", "model", "model_options", "depth", "width")
        }
        | {"dtype": row["dtype"], "seed": row["seed"], "loss": "mse", "iteration": 0, "method": "refused"}
        | {"method_reason": "bn (BatchNorm1d) mixes the samples of a batch"}
        for row, _ in without_statistics()
    ]
    unique = {row["init_id"]: row for row in rows}
    return pa.Table.from_pylist(list(unique.values()), schema=arrow_schema("ntk")).to_pandas()


def results(root, made, ntk=(), **sweep):
    """A results folder with these trials, and these rows of `ntk`."""
    store = Store(root)
    fields = {"name": "toy", "dataset": "toy", "models": (Model("mlp", (("depth", 2),)),), "widths": (64,)}
    fields |= {"batch_sizes": SIZES, "stepsizes": (theory(1.0),), "iterations": 300, "seeds": 2}
    store.open(Sweep(**{**fields, **sweep}), {"versions": {"raysat": "0.1"}}, {"n": 1000, "n_test": 0})
    for row, curve in made:
        known = {column.name for column in TRIALS}
        assert set(row) <= known
        store.write_trial({**row, "cell_id": row["cell_id"]}, curve)
    for row in ntk:
        store.write_ntk(row)
    return root


class TestCommand:
    def test_prints_the_table_and_writes_the_fits(self, tmp_path, capsys):
        root = results(tmp_path / "toy", full(), targets=(0.7,))
        assert main([str(root)]) == 0
        fits = pd.read_parquet(root / "analysis.parquet")
        assert pq.read_schema(root / "analysis.parquet").equals(arrow_schema("analysis"))
        assert fits.query("quantity == 'b_N' and predictor == 'b_star'")["target"].tolist() == [0.7]
        assert fits.query("headline")["value"].to_numpy() == pytest.approx(12, rel=1e-2)
        said = flat(capsys.readouterr().out)
        assert "To reach loss 0.7 at width 64 under theory(1), b = 1 [1, 1] takes the fewest samples" in said
        assert "python -m raysat.report" in said

    def test_a_target_takes_the_place_of_the_sweeps(self, tmp_path, capsys):
        root = results(tmp_path / "toy", full(), targets=(0.7,))
        assert main([str(root), "--target", "0.9", "0.8"]) == 0
        fits = pd.read_parquet(root / "analysis.parquet").query("quantity == 'b_N' and predictor == 'b_star'")
        assert sorted(fits["target"]) == [0.8, 0.9]
        assert fits.set_index("target")["headline"].to_dict() == {0.8: True, 0.9: False}
        assert main([str(root), "--target", "-1"]) == 2
        assert "--target has -1.0: give positive, finite numbers." in capsys.readouterr().err

    def test_an_empty_folder_has_an_empty_table(self, tmp_path, capsys):
        root = results(tmp_path / "toy", [])
        assert main([str(root)]) == 0
        assert len(pd.read_parquet(root / "analysis.parquet")) == 0
        assert "No trial has ended yet" in capsys.readouterr().out

    def test_another_folder_is_refused_in_one_line(self, tmp_path, capsys):
        assert main([str(tmp_path / "nothing")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "give a results folder" in error

    def test_another_schema_is_refused(self, tmp_path, capsys):
        root = results(tmp_path / "toy", full())
        record = json.loads((root / "sweep.json").read_text())
        (root / "sweep.json").write_text(json.dumps({**record, "schema": 0}))
        assert main([str(root)]) == 2
        assert "schema version 0" in capsys.readouterr().err


def test_the_tables_made_here_use_columns_that_exist():
    rows, curves = zip(*full(), strict=True)
    assert {name for row in rows for name in row} <= {column.name for column in TRIALS}
    assert {name for point in curves[0] for name in point} <= {column.name for column in CURVES}


def test_trainings_are_measured_apart_and_budgets_of_samples_together():
    made = [trial(b, seed) for b in (1, 4, 16, 64) for seed in range(3)]
    budget = [({**row, "budget": "640 samples", "iterations": 640 // row["batch_size"]}, path) for row, path in made]

    def renamed(one, **changes):
        return {**one, "cell_id": f"m{one['cell_id']}", **changes}

    other = [(renamed(row, training="momentum 0.9"), list(map(renamed, path))) for row, path in budget]
    fits = analyzed([*budget, *other]).fits
    headline = fits[fits["headline"] & (fits["quantity"] == "b_N")]
    assert headline["training"].tolist() == ["momentum 0.9", "sgd"]
    assert headline["batch_sizes"].tolist() == [4, 4]
    assert set(headline["iterations"]) == {640}


def under_a_budget(**changes):
    """Trials of 640 samples each: T falls from 640 to 10."""
    made = [trial(b, seed, training="sgd", **changes) for b in (1, 4, 16, 64) for seed in range(3)]
    return [({**row, "budget": "640 samples", "iterations": 640 // row["batch_size"]}, path) for row, path in made]


def test_under_a_budget_of_samples_there_is_no_b_h_and_t_is_a_range():
    analysis = analyzed(under_a_budget(), [0.9])
    fits = analysis.fits.set_index("quantity")
    assert math.isnan(fits.at["b_h", "value"])
    assert "T falls with b, here from 640 to 10, and h depends on T" in fits.at["b_h", "reason"]
    assert fits.at["b_N", "value"] == pytest.approx(12, rel=1e-2)
    assert analysis.points["h_interp"].isna().all()
    assert "T = 10 to 640" in setting(fits.iloc[0].to_dict())
    assert "here T = 10 to 640; b_N does not" in flat(printed(analysis))
    remarks = analysis.comparison.query("quantity == 'b_h'").set_index("predictor")["remark"]
    assert remarks["b_star"] == ""


def test_widths_of_which_not_all_has_ended_are_one_setting():
    """Of width 128 the long trials of small batches have not ended: its largest T is smaller."""
    unfinished = [(row, path) for row, path in under_a_budget(width=128) if row["batch_size"] > 1]
    fits = analyzed([*under_a_budget(), *unfinished]).fits
    assert set(fits["iterations"]) == {640}
    assert set(fits["iterations_least"]) == {10}


def test_without_a_value_no_number_of_seeds_is_named():
    assert about_intervals(0) == "There are no intervals: no seed has a value."
    assert "one seed" in about_intervals(1)
    assert "2 seeds" in about_intervals(2)
