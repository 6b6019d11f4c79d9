import json
from dataclasses import asdict
from pathlib import Path

import pytest

from raysat.driver.sweepfile import load
from raysat.report.configuration import sweep_file
from raysat.spec.stepsizes import fixed, grid, theory
from raysat.spec.sweep import Sweep, powers_of_two
from raysat.spec.training import Training, asynchronous

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps").glob("*.py"))
PLAIN = {"name": "own", "dataset": "my_case:load", "models": ["my_case:build"], "widths": [8], "batch_sizes": [1, 8]}
OWN = {
    "grids": {"stepsizes": [theory(0.5), *grid([0.1, 0.2]), *grid([1.0, 2.0], relative=True), fixed(0.3)]},
    "trainings": {"trainings": [Training("momentum", schedule="step"), asynchronous(4)], "stepsizes": [theory()]},
    "recipes": {
        "trainings": [
            Training("adamw", options={"weight_decay": 0.1, "betas": (0.9, 0.95)}, clip=1.0, warmup_samples=256),
            Training("adam", scaling="adam_sqrt", base_batch=8),
            Training(schedule="StepLR", schedule_options={"step_size": 10}, average="uniform"),
        ],
        "stepsizes": [*grid([0.1])],
    },
    "seeds": {"seeds": [3, 5], "stepsizes": [theory()], "widths": powers_of_two(64)},
    "prices": {"stepsizes": [theory()], "prices": {"H200": 3.5, "cpu": 0.05}},
    "words": {"dataset": 'it\'s:"load"', "stepsizes": [theory()]},
}


def written(sweep, tmp_path):
    """The sweep that the text makes, and the text."""
    text = sweep_file(json.loads(json.dumps(asdict(sweep))))
    (tmp_path / "sweep.py").write_text(text)
    return load(tmp_path / "sweep.py"), text


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_text_of_a_recorded_sweep_makes_that_sweep(path, tmp_path):
    sweep = load(path)
    made, text = written(sweep, tmp_path)
    assert made == sweep
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("fields", OWN.values(), ids=OWN)
def test_of_what_users_write_too(fields, tmp_path):
    sweep = Sweep(**{**PLAIN, "iterations": 20, **fields})
    made, _ = written(sweep, tmp_path)
    assert made == sweep


def test_what_is_at_its_default_is_left_out(tmp_path):
    sweep = Sweep(**PLAIN, iterations=20, stepsizes=[theory()])
    text = written(sweep, tmp_path)[1]
    assert [line.split("=")[0].strip() for line in text.splitlines()[3:-1]] == [
        *("name", "dataset", "models", "batch_sizes", "stepsizes", "iterations", "widths"),
    ]
    assert text.startswith("from raysat import Sweep, theory\n")


def test_what_a_record_has_beside_is_passed_over():
    assert "new" not in sweep_file({"name": "toy", "new": 3, "models": [], "stepsizes": []})
