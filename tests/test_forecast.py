import json
import math
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

from raysat import InputError, data, linearized, mlp, models, ntk_statistics
from raysat.forecast import main
from raysat.losses import LOSSES
from raysat.messages.terminal import Terminal
from raysat.saturation.fits import fit_saturation
from raysat.saturation.forecast import GRID, forecast, tuned_steps
from raysat.saturation.formulas import beta
from raysat.saturation.recursion import Spectrum, largest_stable, loss_curves, noise_factor, stable_below
from raysat.saturation.targets import steps_to_target
from raysat.sgd.engine import AutogradEngine
from raysat.sgd.evaluate import evaluate
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trial

MODEL = mlp(2, "relu", 2**0.5)


def prepared(width=64, n=120):
    dataset = data.load("digits", n_train=n, n_test=0, dtype="float64")
    network = models.build(MODEL, width, dataset.input_shape, 10, seed=0).double()
    return dataset, asdict(ntk_statistics(network, dataset.x, dataset.y, spectrum=60, probes=6))


@pytest.fixture(scope="module")
def digits():
    return prepared()


def linear_row(n=64, d=16):
    """The statistics of the linear data set from w_0 = 0, exact, as a row."""
    problem = data.linear_problem(n=n, d=d)
    values, vectors = np.linalg.eigh(problem.x @ problem.x.T / n)
    row = {"n": n, "k_samples": n, "n_outputs": 1, "gamma": problem.gamma, "k_op": problem.k_op}
    row |= {"residual_nodes": values, "residual_weights": (vectors.T @ problem.y) ** 2}
    return problem, row | {"density_nodes": values, "density_weights": np.full(n, 1 / n)}


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.9])
def test_full_batch_gradient_descent_is_exact(eta):
    problem, row = linear_row()
    curve = loss_curves(Spectrum.of(row), np.array([eta]), np.array([noise_factor(64, 64)]), 50)[0]
    expected = oracles.least_squares_recursion(problem.x, -problem.w_bar[None], eta, 64, 50)
    np.testing.assert_allclose(curve, expected, rtol=1e-9)


@pytest.mark.parametrize("b", [1, 4, 16])
def test_on_least_squares_it_is_near_the_exact_recursion(b):
    """Gaussian features are nearly delocalized: what the approximation costs shows against the exact recursion."""
    problem, row = linear_row(n=256, d=64)
    eta = 1 / beta(b, 256, problem.gamma, problem.k_op)
    curve = loss_curves(Spectrum.of(row), np.array([eta]), np.array([noise_factor(b, 256)]), 200)[0]
    expected = oracles.least_squares_recursion(problem.x, -problem.w_bar[None], eta, b, 200)
    np.testing.assert_allclose(curve, expected, rtol=0.08)


@pytest.mark.parametrize("b", [1, 8, 32, 120])
def test_it_is_the_mean_of_linearized_sgd(digits, b):
    dataset, statistics = digits
    eta = 1 / beta(b, 120, statistics["gamma"], statistics["k_op"])
    steps, runs = 80, 1 if b == 120 else 12
    forecasted = loss_curves(Spectrum.of(statistics), np.array([eta]), np.array([noise_factor(b, 120)]), steps)[0, -1]
    losses = []
    for seed in range(runs):
        network = models.build(linearized(MODEL), 64, dataset.input_shape, 10, seed=0).double()
        AutogradEngine(Problem(network, dataset.x, dataset.y, LOSSES["mse"]), eta).run(batches(seed, 0, steps, b, 120))
        losses.append(evaluate(network, dataset.x, dataset.y, LOSSES["mse"], classes=False).loss)
    if b == 120:
        assert forecasted == pytest.approx(losses[0], rel=1e-6)  # quadrature is all that is between them
    else:
        error = np.std(losses, ddof=1) / runs**0.5
        assert abs(forecasted - np.mean(losses)) <= 0.03 * np.mean(losses) + 3 * error
        assert error < 0.05 * np.mean(losses)


def test_against_trained_networks_the_error_falls_with_width(make_cell):
    errors = []
    for width in (16, 512):
        off = []
        for seed in range(3):
            cell = make_cell(model=MODEL, width=width, batch_size=16, n=80, n_test=0, iterations=60, seed=seed)
            init = replace(cell.init, spectrum=50)
            row = compute_statistics(Job("s", init))
            eta = 1 / beta(16, 80, row["gamma"], row["k_op"])
            curve = loss_curves(Spectrum.of(row), np.array([eta]), np.array([noise_factor(16, 80)]), 60)[0]
            h = run_trial(Job("s", init, replace(cell, init=init), statistics=row))[0]["h"]
            off.append(abs(np.log(curve[0] / curve[-1]) / 60 / h - 1))
        errors.append(np.mean(off))
    assert errors[1] < 0.7 * errors[0]
    assert errors[1] < 0.1


def test_the_largest_stable_stepsize_divides_decay_from_growth(digits):
    spectrum = Spectrum.of(digits[1])
    limit = 2 / digits[1]["k_op"]
    assert largest_stable(spectrum, 0.0) == pytest.approx(limit, rel=1e-6)
    for b in (1, 4, 16):
        phi = noise_factor(b, 120)
        eta = largest_stable(spectrum, phi)
        assert eta <= limit * (1 + 1e-9)
        curves = loss_curves(spectrum, np.array([0.9, 1.1]) * eta, np.array([phi, phi]), 3000)
        assert curves[0, -1] < curves[0, 0] < curves[1, -1]


@pytest.mark.parametrize(
    ("b", "n", "replacement", "expected"), [(1, 9, False, 1), (9, 9, False, 0), (4, 9, True, 0.25)]
)
def test_the_noise_factor_has_the_right_ends(b, n, replacement, expected):
    assert noise_factor(b, n, replacement=replacement) == expected
    assert noise_factor(1, 1) == 0


def test_the_noise_factor_is_the_variance_of_a_batchs_mean():
    z = np.random.default_rng(0).normal(size=10)
    means = z[batches(0, 0, 200_000, 3, 10).numpy()].mean(1)
    assert means.var() == pytest.approx(z.var() * noise_factor(3, 10), rel=0.02)


def test_tuned_steps_are_the_best_of_those_tried(digits):
    spectrum = Spectrum.of(digits[1])
    tuned = tuned_steps(spectrum, np.array([1, 8, 120]), 1.0, 500)
    assert (np.diff(tuned.steps) < 0).all()
    assert (tuned.steps[:2] < tuned.mean_steps[:2]).all()
    assert tuned.steps[2] == pytest.approx(tuned.mean_steps[2], rel=1e-4)  # at b = n there is one run
    for b, n, share in zip((1, 8, 120), tuned.mean_steps, tuned.mean_share, strict=True):
        eta = share * largest_stable(spectrum, noise_factor(b, 120))
        curve = loss_curves(spectrum, np.array([eta]), np.array([noise_factor(b, 120)]), 500)[0]
        assert curve[int(np.ceil(n))] <= 1.0 < curve[int(np.floor(n)) - 1]
    none = tuned_steps(spectrum, np.array([1]), 1e-9, 10)
    assert np.isnan([none.steps, none.share, none.mean_steps, none.mean_share]).all()


def test_a_forecast_has_every_sense_of_the_critical_batch(digits):
    made = forecast(digits[1], [1, 2, 4, 8, 16, 32, 64, 120], 300)
    assert made.b_star == digits[1]["gamma"] / digits[1]["k_op"]
    assert made.theory.value == pytest.approx(made.b_star, rel=0.5)
    assert 1 < made.typical.value < made.mean.value  # single runs are ahead of the mean where noise is large
    assert made.b_h_theory.value > 1
    assert made.by_batch["N_theory"].iloc[0] == pytest.approx(300)
    assert (made.by_batch["N_mean"] <= made.by_batch["N_theory"] * 1.02).all()
    assert (made.by_batch["N"] <= made.by_batch["N_mean"] * 1.02).all()
    assert (made.by_batch["eta"] < made.by_batch["eta_max"]).all()
    again = forecast(digits[1], [1, 2, 4, 8, 16, 32, 64, 120], 300)
    assert again.by_batch.equals(made.by_batch)  # runs are drawn, but always the same


def test_what_a_fit_cannot_say_is_refused_in_words(digits):
    row = digits[1]
    assert not any(remark.startswith("No ") for remark in forecast(row, [1, 4, 16, 64, 120], 300).remarks)

    small = forecast(row, [1, 2, 3], 300)  # b_N lies beyond them
    assert math.isnan(small.typical.value)
    assert any(re.match(r"No b_N: .*beyond the largest batch size run \(3\)", remark) for remark in small.remarks)
    few = forecast(row, [1, 4], 300)
    assert math.isnan(few.typical.value)
    assert math.isnan(few.b_h_theory.value)
    assert sum("2 batch sizes with a value, a fit needs 3" in remark for remark in few.remarks) == 4

    reached = forecast(row, [1, 4, 16, 64, 120], 300).by_batch.set_index("batch_size")["N"]
    short = int(reached[16]) + 1  # what b = 16 reaches in so few steps b = 1 and 4 do not
    target = forecast(row, [1, 4, 16, 64, 120], 300).target
    missed = forecast(row, [1, 4, 16, 64, 120], short, target)
    assert math.isnan(missed.typical.value)
    said = f"No b_N: in T = {short} iterations L <= {target:.3g} is not reached at b = 1, 4."
    assert said in missed.remarks


def test_a_best_stepsize_at_an_end_of_those_tried_is_warned_of():
    """Where one eigenvalue decides, the fastest descent is just below the limit."""
    row = {"n": 64, "k_samples": 64, "n_outputs": 1, "gamma": 20.0, "k_op": 1.0}
    row |= {"residual_nodes": [0.01, 1.0], "residual_weights": [64.0, 1e-9]}
    row |= {"density_nodes": [0.01, 1.0], "density_weights": [63 / 64, 1 / 64]}
    made = forecast(row, [1, 8, 64], 2000)
    assert made.by_batch["eta"].iloc[-1] == pytest.approx(GRID[-1] * 2.0)
    assert any(re.match(r"At b = .*64 the best stepsize is the largest tried, 0.96 of", said) for said in made.remarks)


def test_on_least_squares_b_n_is_that_of_the_exact_recursion():
    problem, row = linear_row(n=128, d=32)
    sizes = [1, 2, 4, 8, 16, 32, 64, 128]
    made = forecast(row, sizes, 200)
    steps, tuned, single = [], [], []
    for b in sizes:
        eta = 1 / beta(b, 128, problem.gamma, problem.k_op)
        curve = oracles.least_squares_recursion(problem.x, -problem.w_bar[None], eta, b, 240)
        steps.append(steps_to_target(np.arange(241), curve, made.target))
        own = made.by_batch[made.by_batch["batch_size"] == b].iloc[0]
        tried = [
            oracles.least_squares_recursion(problem.x, -problem.w_bar[None], own["eta_max"] * share, b, 400)
            for share in own["eta_mean"] / own["eta_max"] * np.array([2**-0.25, 1, 2**0.25])
        ]
        tuned.append(np.nanmin([steps_to_target(np.arange(401), curve, made.target) for curve in tried]))
        runs = oracles.least_squares_sgd(problem.x, -problem.w_bar, own["eta"], b, 200, 1 if b == 128 else 120)
        single.append(oracles.geometric_steps(runs, made.target)[0] if b < 128 else own["N"])
    b = np.array(sizes)
    for found, exact, within in (("N_theory", steps, 0.03), ("N_mean", tuned, 0.04), ("N", single, 0.05)):
        fits = [float(fit_saturation(b, np.array(n)).b_c) for n in (made.by_batch[found], exact)]
        assert fits[0] == pytest.approx(fits[1], rel=within), found


def test_without_a_spectrum_it_says_what_to_set():
    network = models.build(MODEL, 8, (4,), 2, seed=0)
    statistics = asdict(ntk_statistics(network, torch.randn(10, 4), torch.randn(10, 2)))
    with pytest.raises(InputError, match="set spectrum=64"):
        Spectrum.of(statistics)


@pytest.fixture
def sweep_file(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sweep.py"
    path.write_text(
        "from raysat import Sweep, mlp, theory\n"
        "sweep = Sweep(name='s', dataset='digits', n_train=60, models=[mlp(1)], widths=[8, 16],"
        " batch_sizes=[1, 2, 4, 8, 16, 32, 60], stepsizes=[theory()], iterations=50, seeds=2)\n"
    )
    return str(path)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_the_command(sweep_file, capsys):
    assert main([sweep_file]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Use b up to about")
    flat = " ".join(out.split())
    answers = re.findall(
        r"Use b up to about ([\d.]+): .*?ends: ([\d.]+) for a typical run, ([\d.]+) for the mean", flat
    )
    assert len(answers) == 2  # one a width
    for lead, typical, _ in answers:
        assert float(lead) == pytest.approx(float(typical), rel=0.06)  # two digits of the same number
    assert flat.count("N (iterations): of a typical run") == 1
    assert "eta max (stepsize)" in flat
    assert out.rstrip().splitlines()[-1] == "Page and figure: results/s-forecast/forecast.html"

    folder = Path("results/s-forecast")
    assert sorted(file.name for file in folder.iterdir()) == [
        *("forecast-1.pdf", "forecast-1.png", "forecast-2.pdf", "forecast-2.png", "forecast.html")
    ]
    assert (folder / "forecast-1.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "forecast-2.pdf").read_bytes().startswith(b"%PDF")
    page = (folder / "forecast.html").read_text()
    payload = json.loads(re.search(r'id="payload">(.*?)</script>', page, re.DOTALL)[1])
    (figure,) = payload["figures"]
    assert len(figure["views"]) == 2
    for view, (_, typical, _) in zip(figure["views"], answers, strict=True):
        assert f"b_N = {typical}, forecast" in [mark["name"] for mark in view["marks"]]
        assert view["series"][0]["x"]["b"] == [1, 2, 4, 8, 16, 32, 60]
        assert f"ends: {typical} for a typical run" in page
    assert "N at 1/beta (iterations): " in page
    assert not re.search(r'(?:src|href)="http', page)  # it fetches nothing


def test_the_command_counts_to_the_target_that_it_is_given(sweep_file, capsys):
    assert main([sweep_file, "--set", "widths=[8]", "--target", "0.9", "--output", "elsewhere"]) == 0
    near = said(capsys)
    assert "To L <= 0.9," in near
    assert (Path("elsewhere") / "forecast.pdf").exists()
    assert not Path("results").exists()
    assert main([sweep_file, "--set", "widths=[8]", "--set", "targets=[0.8, 2.0]"]) == 0
    assert "To L <= 0.8," in said(capsys)
    assert main([sweep_file, "--target", "-1"]) == 2
    assert "--target has -1" in capsys.readouterr().err


def test_batch_sizes_above_n_are_left_out_with_a_note(sweep_file, capsys):
    assert main([sweep_file, "--set", "widths=[8]", "--set", "batch_sizes=[1, 4, 16, 60, 64, 1024]"]) == 0
    out = said(capsys)
    assert "Left out: b = 64, 1,024, for there are 60 training samples." in out
    assert re.search(r" 60 +[\d.]+", out)
    assert "Left out: b = 64, 1,024" in Path("results/s-forecast/forecast.html").read_text()
    assert main([sweep_file, "--set", "batch_sizes=[64, 1024]"]) == 2
    assert "leave out what is above 60" in capsys.readouterr().err


def test_a_terminal_shows_what_is_computed(sweep_file, capsys, monkeypatch):
    monkeypatch.setattr("raysat.forecast.Terminal", partial(Terminal, force_terminal=True))
    assert main([sweep_file]) == 0
    out = capsys.readouterr().out
    for k, width in ((1, 8), (2, 16)):
        assert f"{k}/2  statistics of digits, mlp, width {width}, seed 0" in out


def test_what_the_command_refuses(sweep_file, tmp_path, capsys):
    assert main([sweep_file, "--set", "loss=cross_entropy"]) == 2
    assert "set loss='mse'" in capsys.readouterr().err
    assert main([sweep_file, "--set", "sampling=epochs"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "batches drawn independently; set sampling to 'without_replacement'" in error
    assert main([str(tmp_path / "none.py")]) == 2
    assert not Path("results").exists()


def test_without_b_n_the_command_says_so_instead(sweep_file, capsys):
    assert main([sweep_file, "--set", "batch_sizes=[1,2]"]) == 0
    out = said(capsys)
    assert out.startswith("No batch size can be advised. No b_N: 2 batch sizes with a value, a fit needs 3.")
    assert "ends: - for a typical run" in out
    assert "nan" not in out
    assert "No b_N: 2 batch sizes with a value" in Path("results/s-forecast/forecast.html").read_text()


def test_where_its_folder_cannot_be_made_the_command_says_so_and_has_answered(sweep_file, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main([sweep_file, "--set", "widths=[8]", "--output", str(tmp_path / "file")]) == 2
    out, error = capsys.readouterr()
    assert out.startswith("Use b up to about")
    assert error.count("\n") == 1
    assert "file cannot be written" in error
    assert "--output FOLDER" in error
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("b", [1, 4, 256])
def test_beyond_the_limit_the_exact_recursion_grows_and_below_that_of_the_lemma_it_falls(b):
    """Between the two, Gaussian features are noisier than delocalized ones: their residual keeps to few directions."""
    problem, row = linear_row(n=256, d=64)
    sufficient = 2 / beta(b, 256, problem.gamma, problem.k_op)
    limit = stable_below(row, b, "without_replacement")
    below, above = (
        oracles.least_squares_recursion(problem.x, -problem.w_bar[None], eta, b, 400)
        for eta in (0.98 * sufficient, 1.05 * limit)
    )
    assert sufficient <= limit * (1 + 1e-9)
    assert below[-1] < below[0] < above[-1]


def test_without_spectral_measures_the_limit_is_that_of_gradient_descent():
    _, row = linear_row()
    assert stable_below({"k_op": row["k_op"]}, 4, "without_replacement") == 2 / row["k_op"]
    assert stable_below(row, 4, "epochs") == 2 / row["k_op"]
    assert stable_below(row, 64, "without_replacement") == pytest.approx(2 / row["k_op"], rel=1e-9)
    assert stable_below(row, 4, "with_replacement") < 2 / row["k_op"]


def test_a_target_that_is_chosen_lies_where_a_run_can_come():
    made = forecast(linear_row()[1], [1, 4, 16, 64], 20_000)
    assert made.target == pytest.approx(1e-12 * sum(linear_row()[1]["residual_weights"]) / 64 / 2)  # 1e-12 L(w_0)
    assert made.typical.value > 0


@pytest.mark.filterwarnings("error")
def test_a_loss_that_vanishes_does_not_grow():
    row = linear_row(8, 8)[1] | {"residual_nodes": [1.0], "residual_weights": [8.0]}
    row |= {"density_nodes": [1.0], "density_weights": [1.0], "gamma": 1.0, "k_op": 1.0}
    made = forecast(row, [8], 3_000)
    assert "No b_h under 1/beta(b): the loss vanishes at b = 8." in made.remarks


def test_where_the_target_is_above_the_initial_loss_no_stepsize_is_the_best():
    made = forecast(linear_row()[1], [1, 4, 16, 64], 200, 1e3)
    assert (made.by_batch["N"] == 0).all()
    assert made.by_batch["eta"].isna().all()
    assert not [remark for remark in made.remarks if "smaller beyond it" in remark]
