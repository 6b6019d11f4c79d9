import math

import numpy as np
import oracles
import pyarrow as pa
import pytest
from analysis.test_analysis import SIZES, analyzed, full, refused_ntk, tables, trial, without_statistics

from raysat import Sweep, data, linear, models, theory
from raysat.analysis import READING, analyze
from raysat.analysis.foreseen import HORIZON
from raysat.analysis.predictors import BY_CONSTRUCTION, COMPARISON
from raysat.saturation.fits import fit_saturation
from raysat.saturation.formulas import beta
from raysat.saturation.targets import steps_to_target
from raysat.storage.schema import ANALYSIS, arrow_schema
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trial

EIGENVALUES = np.geomspace(0.5, 0.01, 12)
MASSES = np.geomspace(3.0, 1.0, 12)
SAMPLES, T = 1000, 300


def recursion(eta, b, steps):
    """The mean-field recursion of the expected loss, one eigenvalue at a time."""
    phi = 1 / b
    v, losses = list(MASSES), []
    for _ in range(steps + 1):
        total = sum(v)
        losses.append(total / 2)
        v = [
            (1 - eta * eigenvalue) ** 2 * own + eta**2 * phi * eigenvalue**2 * (total + own)
            for eigenvalue, own in zip(EIGENVALUES, v, strict=True)
        ]
    return losses


def statistics(**changes):
    """A row of `ntk` with these spectra exactly: each eigenvalue once among the 1000 of one output."""
    row = {"init_id": "init", "iteration": 0, "n": SAMPLES, "k_samples": SAMPLES, "n_outputs": 1}
    row |= {"residual_nodes": EIGENVALUES.tolist(), "residual_weights": (SAMPLES * MASSES).tolist()}
    row |= {"density_nodes": EIGENVALUES.tolist(), "density_weights": [1 / SAMPLES] * 12, **changes}
    return pa.Table.from_pylist([row], schema=arrow_schema("ntk")).to_pandas()


def exact(b, stepsize, eta, losses=None, **changes):
    """A trial whose loss is the recursion's, evaluated at every iteration."""
    losses = recursion(eta, b, T) if losses is None else losses
    ended = {"status": "diverged", "rate": 0.0} if losses[-1] > losses[0] else {"rate": 0.0}
    ended |= {"h": math.log(losses[0] / losses[-1]) / T} if losses[-1] <= losses[0] else {}
    ended |= {"init_id": "init", "n": SAMPLES, "sampling": "with_replacement", "loss_init": losses[0]}
    row, _ = trial(b, changes.pop("seed", 0), stepsize, eta, **{**ended, **changes})
    return row, [{"cell_id": row["cell_id"], "iteration": t, "train_loss": loss} for t, loss in enumerate(losses)]


def sampled(b, stepsize, etas, seeds=12):
    """Trials of SGD of which every sample is drawn, one a seed and stepsize."""
    for eta in etas:
        with np.errstate(over="ignore", invalid="ignore"):
            losses = oracles.normal_sgd(EIGENVALUES, np.sqrt(MASSES), eta, b, T, seeds, seed=b)
        for seed, path in enumerate(losses.T):
            if np.isfinite(path).all() and path[-1] < path[0]:
                yield exact(b, stepsize, eta, path.tolist(), seed=seed)


def compared(made, ntk, targets=(3.0, 1.0)):
    trials, curves = tables(made)
    return analyze(trials, curves, targets, ntk).comparison


def forecasts(made, ntk, targets=(3.0, 1.0)):
    rows = compared(made, ntk, targets)
    return rows[rows["predictor"] == "forecast"].set_index(["tuning", "quantity", "target"])


GRID = [exact(b, "grid", eta) for b in SIZES for eta in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.9, 4.5)]
THEORY = [exact(b, "theory(1)", 1 / (6 / b + 0.5)) for b in SIZES]


class TestForecast:
    @pytest.mark.parametrize("made", [GRID, THEORY], ids=["grid", "theory"])
    def test_of_h_is_the_measured_value_where_the_recursion_is_the_truth(self, made):
        """Tuned in the same way, at the same T: what follows from equal curves is equal."""
        rows = forecasts(made, statistics()).query("quantity == 'b_h'")
        assert len(rows) == (2 if made is GRID else 1)  # two readings of the grid
        assert rows["ratio"].to_numpy() == pytest.approx(np.ones(len(rows)), rel=1e-6)
        assert rows["predicted_min"].to_numpy() == pytest.approx(rows["predicted"].to_numpy(), rel=1e-6)  # of one seed

    @pytest.mark.parametrize(("stepsize", "target"), [("grid", 0.5), ("theory(1)", 1.0)])
    def test_of_n_is_what_runs_show_that_draw_every_sample(self, stepsize, target):
        """Single runs are ahead of the mean loss at small b, where noise is large."""
        made = []
        for b in (1, 2, 4, 8, 16, 64):
            tuned = 1 / (6 / b + 0.5)
            etas = tuned * 2.0 ** np.arange(-1.5, 1.5, 0.5) if stepsize == "grid" else [tuned]
            made += sampled(b, stepsize, etas)
        rows = forecasts(made, statistics(), targets=(target,)).query("quantity == 'b_N'")
        assert len(rows) == (2 if stepsize == "grid" else 1)
        assert rows["ratio"].to_numpy() == pytest.approx(np.ones(len(rows)), rel=0.06)

    def test_of_n_is_evaluated_when_the_trials_were(self):
        """Seen at each iteration a run is below the target sooner than seen at every twentieth."""
        made = [cell for b in SIZES for cell in sampled(b, "theory(1)", [1 / (6 / b + 0.5)], seeds=4)]
        seldom = [(row, [point for point in curve if point["iteration"] % 20 == 0]) for row, curve in made]
        often, late = (
            forecasts(one, statistics(), targets=(0.1,)).query("quantity == 'b_N'") for one in (made, seldom)
        )
        assert often["predicted"].iloc[0] != late["predicted"].iloc[0]

    def test_of_a_free_reading_stays_among_stable_stepsizes(self):
        """A finite network may survive beyond 2/k_op; there the forecast keeps the best of the stable stepsizes."""
        survivors = [exact(b, "grid", 4.5, status="completed", h=1.0) for b in SIZES]
        survivors = [(row, [{**point, "train_loss": 9.0 * math.exp(-point["iteration"])} for point in curve])
                     for row, curve in survivors]  # fmt: skip
        made = [*(cell for cell in GRID if cell[0]["eta"] < 4), *survivors]
        rows = forecasts(made, statistics(), targets=(1.0,))
        free, stable = rows.loc[("free", "b_N", 1.0)], rows.loc[("stable", "b_N", 1.0)]
        assert math.isnan(free["value"])  # every b takes the same few steps
        assert free["predicted"] == pytest.approx(stable["predicted"])
        assert stable["ratio"] == pytest.approx(1, rel=0.2)  # of the mean loss, where the forecast is of a typical run

    def test_has_a_value_for_a_target_that_it_reaches_after_t(self):
        slower = statistics(residual_weights=(SAMPLES * MASSES * 1.2).tolist())
        row = forecasts(THEORY, slower, targets=(recursion(1 / 6.5, 1, T)[-1],)).query("quantity == 'b_N'").iloc[0]
        assert row["predicted"] > 0
        assert row["remark"] == BY_CONSTRUCTION  # and nothing else

    def test_of_h_takes_a_diverged_trial_at_the_readings_t(self):
        """The loss falls fastest in the first steps: a trial that was cut off there would have the largest h of all."""

        def wild(done):
            return [exact(b, "grid", 3.9, status="diverged", h=None, iterations_done=done) for b in SIZES]

        made = [cell for cell in GRID if cell[0]["eta"] < 3]
        cut, whole = (forecasts(made + wild(done), statistics()).query("quantity == 'b_h'") for done in (2, T))
        assert cut["predicted"].to_list() == pytest.approx(whole["predicted"].to_list())
        short = forecasts(made + [({**row, "status": "completed"}, c) for row, c in wild(2)], statistics())
        assert short.query("quantity == 'b_h'")["predicted"].iloc[0] != pytest.approx(cut["predicted"].iloc[0], rel=0.1)

    def test_is_missing_in_words(self):
        def remark(made=THEORY, ntk=None, targets=(1.0,)):
            row = forecasts(made, statistics() if ntk is None else ntk, targets).query("quantity == 'b_N'").iloc[0]
            assert math.isnan(row["predicted"])
            assert math.isnan(row["ratio"])
            return row["remark"]

        assert "run the sweep with spectrum=64" in remark(ntk=statistics(residual_nodes=[], residual_weights=[]))
        assert "run the sweep with spectrum=64" in remark(ntk=statistics(init_id="another"))
        assert "run the sweep with spectrum=64" in remark(ntk=statistics(iteration=100))

        def changed(**changes):
            return [({**row, **changes}, curve) for row, curve in THEORY]

        assert "squared error" in remark(changed(loss="cross_entropy"))
        assert "not of epochs" in remark(changed(sampling="epochs"))
        never = statistics(residual_weights=(SAMPLES * MASSES * 1e9).tolist())
        assert f"does not reach L <= 1 in {HORIZON} T iterations at b = 1, 2, 4" in remark(ntk=never)
        assert "nothing measured" in remark(changed(status="failed", eta=None, h=None), targets=())
        below = {"budget": "300 samples", "iterations": 20}
        mixed = [({**row, "budget": "300 samples"} | (below if row["batch_size"] > 8 else {}), c) for row, c in THEORY]
        assert "h depends on T" in forecasts(mixed, statistics()).query("quantity == 'b_h'")["remark"].iloc[0]
        assert "no table ntk" in analyzed(full()).comparison.query("predictor == 'forecast'")["remark"].iloc[0]

    def test_says_where_the_grid_ends_before_its_best_stepsize(self):
        made = [cell for cell in GRID if cell[0]["eta"] <= 0.5]
        row = forecasts(made, statistics(), targets=(4.0,)).loc[("free", "b_N", 4.0)]
        assert "its best stepsize is the largest tried at b = " in row["remark"]


class TestTable:
    def test_has_a_row_for_each_fit_and_predictor(self):
        table = analyzed(full(seeds=3), targets=[0.9, 0.7]).comparison
        assert tuple(table) == COMPARISON
        assert [name for name in COMPARISON if name != "iterations_least"] == [column.name for column in ANALYSIS]
        assert len(table) == 3 * 4
        assert not table.duplicated([*READING, "quantity", "target", "predictor"]).any()
        row = table.query("quantity == 'b_N' and target == 0.7").set_index("predictor")
        assert row["predicted"].iloc[:3].to_dict() == {"b_star": 14, "b_star_thm33": 56, "noise_scale": 30}
        assert (row.at["b_star", "predicted_min"], row.at["b_star", "predicted_max"]) == (12, 16)
        assert row.at["b_star", "ratio"] == pytest.approx(14 / 12, rel=1e-2)
        assert row.at["b_star", "gamma"] == 7

    def test_b_n_under_theory_is_never_shown_as_agreement(self):
        table = analyzed(full() + full("fixed(0.1)")).comparison
        for predictor, rows in table.groupby("predictor"):
            says = rows.set_index(["stepsize", "quantity"])["remark"].groupby(level=[0, 1]).first()
            assert says["theory(1)", "b_N"].startswith(BY_CONSTRUCTION), predictor
            assert BY_CONSTRUCTION not in says["theory(1)", "b_h"] + says["fixed(0.1)", "b_N"]

    def test_without_statistics_every_predictor_says_why(self):
        table = analyze(*tables(without_statistics()), ntk=refused_ntk()).comparison
        assert table["predicted"].isna().all()
        assert set(table["remark"]) == {"bn (BatchNorm1d) mixes the samples of a batch"}

    def test_what_was_refused_has_no_ratio(self):
        rows = analyzed(full(), [1e-9]).comparison.query("quantity == 'b_N'")
        assert rows["ratio"].isna().all()
        assert "do not reach" in rows["reason"].iloc[0]


def test_on_the_linear_data_set_forecast_fit_and_truth_agree():
    """Real trials, the forecast from their statistics, and the exact recursion of least squares from their w_0."""
    n, d, eps, sizes = 64, 16, 0.15, (1, 2, 4, 8, 16, 64)
    c = 0.1  # a stepsize so small that each run stays near its mean
    sweep = Sweep(
        name="s",
        dataset=f"linear(n={n}, d={d})",
        preprocessing="none",  # the problem's constants are those of the data as they are
        models=[linear()],
        batch_sizes=sizes,
        stepsizes=[theory(c)],
        iterations=3000,
        evaluations=40,
        evaluation_budget=100.0,  # all of them, though steps are cheap here
        target_loss=eps,  # a trial ends there
        seeds=24,
        dtype="float64",
        spectrum=64,
    )
    rows, curves, ntk = [], [], {}
    for cell in sweep.cells(n, 0):
        key = cell.init.init_id
        ntk[key] = ntk.get(key) or compute_statistics(Job("s", cell.init))
        row, curve, _ = run_trial(Job("s", cell.init, cell, statistics=ntk[key]))
        rows.append(row)
        curves += curve
    made = {"trials": rows, "curves": curves, "ntk": list(ntk.values())}
    frames = {name: pa.Table.from_pylist(made[name], schema=arrow_schema(name)).to_pandas() for name in made}
    comparison = analyze(frames["trials"], frames["curves"], (eps,), frames["ntk"]).comparison
    fit = comparison.query("quantity == 'b_N' and predictor == 'forecast'").iloc[0]

    problem = data.linear_problem(n=n, d=d)
    longest = frames["trials"].groupby("batch_size")["iterations_done"].max()
    logs = []
    for seed in sweep.seeds:
        (w,) = models.build(linear(), 0, (d,), 1, seed).double().parameters()
        error = w.detach().numpy() - problem.w_bar
        steps = []
        for b in sizes:
            t = np.arange(int(1.3 * longest[b]) + 10)
            eta = c / beta(b, n, problem.gamma, problem.k_op)
            steps.append(steps_to_target(t, oracles.least_squares_recursion(problem.x, error, eta, b, t[-1]), eps))
        logs.append(np.log(steps))
    truth = float(fit_saturation(np.array(sizes), np.exp(np.mean(logs, axis=0))).b_c)
    assert fit["value"] == pytest.approx(truth, rel=0.03)
    assert fit["predicted"] == pytest.approx(truth, rel=0.03)
    assert fit["low"] <= truth <= fit["high"]
