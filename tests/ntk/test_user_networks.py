"""Networks of users, each with a sweep file and a module of its own, run by the command as the user types it.

If RAYSAT_DATA names a folder with the original data sets, these are used: tiny Shakespeare in windows of eight
characters, MNIST and CIFAR-10. Otherwise the data are synthetic, or scikit-learn's digits.
"""

import importlib
import os
import subprocess
import sys
from functools import cache

import oracles
import pandas as pd
import pytest
import torch

from raysat import data

SWEEP = """
from raysat import Sweep, fixed, grid, resnet, theory
sweep = Sweep(name="own", dataset="{dataset}", models=[{model}], widths=[{width}], batch_sizes=[{least}, 8, 32],
              stepsizes=[fixed({eta}), theory(), grid(auto=True)], loss="{loss}", n_train=32, n_test=16, iterations=40,
              seeds=1)
"""

LSTM = """
import os
from pathlib import Path

import torch
from torch import nn
from raysat.data import Dataset


def load():
    if "RAYSAT_DATA" in os.environ:
        text = Path(os.environ["RAYSAT_DATA"], "tinyshakespeare", "input.txt").read_text()[:2000]
    else:
        text = 40 * "A wind of words, that whispers as it goes, and goes."
    letters = sorted(set(text))
    windows = torch.tensor([letters.index(letter) for letter in text]).unfold(0, 9, 9)
    x, y = windows[:, :8], windows[:, 8]
    return Dataset(x=x[:160], y=y[:160], x_test=x[160:], y_test=y[160:], vocabulary=len(letters), outputs=len(letters))


class Characters(nn.Module):
    def __init__(self, width, outputs, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens):
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


def build(width, input_shape, outputs, vocabulary):
    return Characters(width, outputs, vocabulary)
"""

ENCODER = """
from torch import nn


class Patches(nn.Module):
    def __init__(self, width, input_shape, outputs):
        super().__init__()
        channels, height, side = input_shape
        self.patch = nn.Conv2d(channels, width, height // 4, stride=height // 4)
        layer = nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=1)
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.encoder(self.patch(x).flatten(2).mT).mean(1))


def build(width, input_shape, outputs):
    return Patches(width, input_shape, outputs)
"""

DROPOUT = """
from torch import nn


def build(width, input_shape, outputs):
    channels, height, side = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(4), nn.Dropout2d(0.1),
        nn.Flatten(), nn.Linear(width * (height // 4) * (side // 4), 16), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(16, outputs),
    )
"""

BATCH = """
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.second, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.relu(self.norm1(self.first(x)))
        h = self.norm2(self.second(h))
        h += x
        return self.relu(h)


def build(width, input_shape, outputs):
    stem = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    pool = nn.AdaptiveAvgPool2d(4)
    return nn.Sequential(*stem, pool, Block(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, outputs))


def flat(width, input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width), nn.Linear(width, outputs))
"""

FROZEN = ", ".join([*(f"blocks.{i}.norm{k}" for i in range(3) for k in (1, 2)), "norm"])
REAL = "RAYSAT_DATA" in os.environ
CASES = {
    "lstm": (LSTM, "my_nets:load", "'my_nets:build'", "cross_entropy", 0.5, "", ""),
    "encoder": (
        *(ENCODER, "cifar10" if REAL else "digits", "'my_nets:build'", "cross_entropy", 0.02),
        "encoder.layers.0.self_attn, encoder.layers.0.dropout, encoder.layers.0.dropout1, encoder.layers.0.dropout2",
        "",
    ),
    "dropout": (DROPOUT, "mnist" if REAL else "digits", "'my_nets:build'", "mse", 0.05, "3, 7", ""),
    "batchnorm": (BATCH, "digits", "'my_nets:build'", "mse", 0.05, "", "1, 4.norm1, 4.norm2"),
    "resnet": (None, "cifar10" if REAL else "digits", "resnet(10, norm='batch')", "mse", 0.05, "", FROZEN),
}


def command(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "raysat.sweep", "sweep.py", "--inline", "--results", "results", *arguments],
        **{"cwd": folder, "capture_output": True, "text": True, "timeout": 300, "check": False},
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return done


def written(folder, module, **fields):
    (folder / "sweep.py").write_text(SWEEP.format(**{"width": 4, "least": 1, "eta": 0.05, "loss": "mse"} | fields))
    if module:
        (folder / "my_nets.py").write_text(module)
    return folder


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Return a function from a case to the finished sweep command and its results folder; each sweep runs once."""

    @cache
    def run(case):
        module, dataset, model, loss, eta, *_ = CASES[case]
        folder = tmp_path_factory.mktemp(case)
        done = command(written(folder, module, dataset=dataset, model=model, loss=loss, eta=eta))
        return done, folder / "results" / "own"

    return run


@pytest.mark.parametrize("case", CASES)
def test_every_cell_of_a_users_network_ends_and_there_is_an_answer(swept, case):
    done, root = swept(case)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    trials = pd.read_parquet(root / "trials")
    assert not (trials["status"] == "failed").any()
    assert set(trials["stepsize"]) == {f"fixed({CASES[case][4]})", "theory(1)", "grid_relative"}
    assert trials.groupby("stepsize")["batch_size"].nunique().tolist() == [3, 3, 3]
    for where in (done.stdout, (root / "report.html").read_text()):
        assert "b_star" in where
        assert "takes the fewest samples" in " ".join(where.split()), "what to use"


@pytest.mark.parametrize("case", CASES)
def test_its_statistics_are_certified_and_what_approximates_is_said(swept, case):
    done, root = swept(case)
    off, frozen = CASES[case][5:]
    (row,) = pd.read_parquet(root / "ntk").to_dict("records")
    assert row["gamma"] >= row["k_op"] > 0
    assert row["k_op_upper"] >= row["k_op"] * (1 - 1e-3)
    for name in ("gamma_check", "k_op_check", "noise_check"):
        assert 0 <= row[name] <= 1e-3, name
    assert (set(row["off"].split(", ")), row["frozen_norms"]) == (set(off.split(", ")), frozen)
    trials = pd.read_parquet(root / "trials")
    for name in ("gamma", "k_op", "noise_scale", "off", "frozen_norms"):
        assert (trials[name] == row[name]).all(), name
    for where in (done.stdout, (root / "report.html").read_text()):
        words = " ".join(where.split())
        assert ("random layers turned off: " in words) == bool(off)
        assert ("statistics of the training set held constant: " in words) == bool(frozen)
        assert ("The prediction is an approximation" in words) == bool(off or frozen)


@pytest.mark.parametrize("case", ["lstm", "encoder", "dropout"])
def test_its_statistics_are_those_of_plain_autograd(swept, case, monkeypatch):
    """They are those of the network in evaluation mode, at the weights that its builder draws with the sweep's seed."""
    _, root = swept(case)
    _, dataset, _, loss, *_ = CASES[case]
    (row,) = pd.read_parquet(root / "ntk").to_dict("records")
    monkeypatch.syspath_prepend(root.parents[1])
    nets = importlib.import_module("my_nets")
    samples = data.load(dataset, n_train=32, dtype="float64", keep=False)
    told = {"vocabulary": samples.vocabulary} if samples.vocabulary else {}
    torch.manual_seed(0)
    network = nets.build(4, samples.input_shape, samples.outputs, **told).double().eval()
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", bool)  # the fast path has no derivative
    right = oracles.statistics(network, samples.x, samples.y, loss)
    for name in ("gamma", "k_op", "gamma_mean", "noise_scale"):
        assert row[name] == pytest.approx(right[name], rel=1e-4), name


def test_a_batch_of_one_that_a_network_cannot_take_is_refused_before_any_work(tmp_path):
    folder = written(tmp_path, BATCH, dataset="digits", model="'my_nets:flat'")
    done = command(folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "batch_sizes has 1, and the network runs on two samples but not on one (ValueError: Exp" in done.stderr
    assert not (folder / "results").exists()
    done = command(folder, "--set", "batch_sizes=[2,8,32]", "--set", "stepsizes=[fixed(0.05)]")
    assert done.returncode == 0, done.stderr
