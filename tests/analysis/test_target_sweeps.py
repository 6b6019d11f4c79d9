"""Sweeps of what users bring besides rows of numbers, from a file to the answer, in this process."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from raysat.data import load
from raysat.models import build
from raysat.spec.cells import Model
from raysat.sweep import main
from raysat.trial import train as trial_module
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job

HEAD = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\nfrom raysat.data import Dataset\n"

SWEEP = """
from raysat import Sweep, fixed, theory
sweep = Sweep(name="own", dataset="my_case:load", models=["my_case:build"], widths=[8], batch_sizes=[1, 8, 32],
              stepsizes=[fixed(0.05), theory(0.5)], iterations=20, dtype="float64", n_train=32{options})
"""

TOKENS = """
def load():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(11, (80, 6), generator=generator)
    y = (x[:, 0] + x[:, 1]) % 3
    return Dataset(x=x[:60], y=y[:60].to(torch.uint8), x_test=x[60:], y_test=y[60:].to(torch.uint8), vocabulary=11)

class Classifier(nn.Module):
    def __init__(self, width, outputs, vocabulary):
        super().__init__()
        self.tokens, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.tokens(x).mean(1).tanh())

def build(width, input_shape, outputs, vocabulary):
    assert (input_shape, outputs, vocabulary) == ((6,), 3, 11)
    return Classifier(width, outputs, vocabulary)
"""

MASKED = """
def load():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 7, (60, 1), generator=generator)
    mask = (torch.arange(6) < lengths).long()
    ids = torch.randint(1, 11, (60, 6), generator=generator) * mask
    return Dataset(x={"input_ids": ids, "attention_mask": mask}, y=ids[:, 0] % 3, vocabulary=11)

class Attention(nn.Module):
    def __init__(self, width, outputs, vocabulary):
        super().__init__()
        self.tokens, self.qkv, self.head = (
            nn.Embedding(vocabulary, width), nn.Linear(width, 3 * width), nn.Linear(width, outputs)
        )
        self.pooler = nn.Linear(width, width)  # which nothing uses

    def forward(self, input_ids, attention_mask):
        q, k, v = self.qkv(self.tokens(input_ids)).chunk(3, -1)
        hidden = (attention_mask == 0)[:, None]
        seen = (q @ k.mT).masked_fill(hidden, -float("inf")).softmax(-1) @ v
        return self.head(seen[:, 0])

def build(width, input_shape, outputs, vocabulary):
    assert input_shape == {"input_ids": (6,), "attention_mask": (6,)}
    return Attention(width, outputs, vocabulary)
"""

NUMBERS = """
def load():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator)
    y = {targets}
    return Dataset(x=x[:60], y=y[:60], x_test=x[60:], y_test=y[60:]{options})

def build(width, input_shape, outputs):
    assert outputs == {outputs}
    return nn.Sequential(nn.Linear(*input_shape, width), nn.Tanh(), nn.Linear(width, outputs))
"""

LOGISTIC = """
def logistic(outputs, y):
    return F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(-1)
"""

BINARY = "torch.where(x[:, :1] > 0.3, {high}, {low})"
SEVERAL = "(x[:, :3] > 0.3).float()"
CASES = {
    "tokens of one class": (TOKENS, ", loss='cross_entropy'"),
    "tokens and a mask": (MASKED, ", loss='cross_entropy'"),
    "labels": (NUMBERS.format(targets="x.argmax(1).int()", options="", outputs=4), ", loss='cross_entropy'"),
    "several classes": (
        NUMBERS.format(targets=SEVERAL, options=", classes=True", outputs=3),
        ", loss='cross_entropy'",
    ),
    "binary": (
        NUMBERS.format(targets=BINARY.format(low=-1.0, high=1.0), options=", classes=True", outputs=1),
        "",
    ),
    "a loss of one's own": (
        NUMBERS.format(
            targets=BINARY.format(low=0.0, high=1.0), options=", classes=True, threshold=0.0", outputs=1
        ) + LOGISTIC,
        ", loss='my_case:logistic'",
    ),
}  # fmt: skip


def run(folder, module, options="", *arguments):
    (folder / "sweep.py").write_text(SWEEP.format(options=options))
    (folder / "my_case.py").write_text(HEAD + module)
    return main([str(folder / "sweep.py"), "--results", str(folder / "results"), "--inline", *arguments])


def tables(folder):
    return [pd.read_parquet(folder / "results" / "own" / table) for table in ("trials", "ntk", "curves")]


@pytest.mark.parametrize(("module", "options"), CASES.values(), ids=CASES)
def test_a_sweep_has_an_answer(tmp_path, capsys, module, options):
    assert run(tmp_path, module, options) == 0
    trials, ntk, _ = tables(tmp_path)
    assert set(trials["status"]) == {"completed"}
    assert len(trials) == 6
    assert (ntk["gamma"] >= ntk["k_op"]).all()
    assert trials["train_accuracy"].between(0.05, 1).all()
    assert trials["train_accuracy"].nunique() > 1
    assert trials["loss_final"].min() < 0.95 * trials["loss_init"].max()
    full = trials[(trials["batch_size"] == 32) & (trials["stepsize"] == "theory(0.5)")]
    assert full["eta"].tolist() == pytest.approx([0.5 / ntk["k_op"][0]])
    assert "b_star" in capsys.readouterr().out


@pytest.mark.parametrize(("low", "high", "threshold"), [(-1.0, 1.0, 0.0), (0.0, 1.0, 0.5)])
def test_binary_accuracy_is_the_share_on_the_right_side(tmp_path, monkeypatch, low, high, threshold):
    targets = BINARY.format(low=low, high=high)
    assert run(tmp_path, NUMBERS.format(targets=targets, options=", classes=True", outputs=1)) == 0
    _, _, curves = tables(tmp_path)
    found = set(curves.loc[curves["iteration"] == 0, "train_accuracy"])
    monkeypatch.syspath_prepend(tmp_path)
    data = load("my_case:load", n_train=32, dtype="float64")
    network = build(Model("my_case:build"), 8, data.input_shape, data.outputs, 0).double()
    right = (network(data.x) > threshold) == (data.y == high)
    assert found == {right.double().mean().item()}
    assert 0 < right.double().mean() < 1


def test_the_source_of_a_loss_is_part_of_the_identity(tmp_path, capsys):
    module, options = CASES["a loss of one's own"]
    assert run(tmp_path, module, options) == 0
    first = tables(tmp_path)[0]
    doubled = module.replace(".sum(-1)", ".sum(-1) * 2")
    assert run(tmp_path, doubled, options) == 2
    assert "my_case.py changed since" in capsys.readouterr().err
    assert run(tmp_path, doubled, options, "--fresh") == 0
    second = tables(tmp_path)[0]
    assert not set(first["cell_id"]) & set(second["cell_id"])
    assert second["loss_init"].tolist() == pytest.approx((2 * first["loss_init"]).tolist())


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        (TOKENS, "", "give one_hot(y, 3).float() for classes"),
        (TOKENS.replace("outputs, vocabulary):", "outputs, other):"), ", loss='cross_entropy'", "does not run"),
        (TOKENS, ", loss='my_case:missing'", "has no function missing"),
        (TOKENS, ", loss='hinge'", "loss='hinge': use one of mse, cross_entropy, 'module:function'"),
        (TOKENS.replace("mean(1)", "sigmoid()"), ", loss='cross_entropy'", "return [2, 3]"),
        (TOKENS.replace("return self.head(", "return 1, self.head("), ", loss='cross_entropy'", "returns tuple: wrap"),
        (MASKED, ", loss='cross_entropy', models=['mlp']", "mlp"),
        (
            CASES["a loss of one's own"][0].replace('reduction="none").sum(-1)', 'reduction="mean")'),
            ", loss='my_case:logistic'",
            "one loss for each",
        ),
        (
            CASES["a loss of one's own"][0].replace("(outputs, y, red", "(outputs, y[0], red"),
            ", loss='my_case:logistic'",
            "fails for outputs of shape [2, 1]",
        ),
        (CASES["several classes"][0].replace(".float()", ".float() - 0.5"), ", loss='cross_entropy'", "negative entry"),
        (CASES["several classes"][0].replace(", classes=True", ""), ", loss='cross_entropy'", "say classes=True"),
        (CASES["binary"][0], ", loss='cross_entropy'", "single class"),
    ],
)
def test_what_cannot_be_run_is_said_before_any_work(tmp_path, capsys, module, options, words):
    arguments = ("--set", "models=[mlp()]") if "models" in options else ()
    assert run(tmp_path, module, options.partition(", models")[0], *arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "results" / "own").exists()


def test_a_trial_of_several_tensors_goes_on_from_its_checkpoint(tmp_path, make_cell, monkeypatch):
    (tmp_path / "kept").mkdir()
    (tmp_path / "my_case.py").write_text(HEAD + MASKED)
    monkeypatch.syspath_prepend(tmp_path)
    init = {"dataset": "my_case:load", "n": 32, "n_test": 0, "model": Model("my_case:build"), "loss": "cross_entropy"}
    cell = make_cell(**init, k_samples=32, batch_size=4, iterations=30)
    job = Job(sweep="s", cell=cell, init=cell.init, checkpoints=str(tmp_path / "kept"), checkpoint_seconds=1e-9)
    job = replace(job, statistics=compute_statistics(job))
    _, expected, _ = trial_module.run_trial(replace(job, checkpoints=None))

    class Killed(Exception):
        pass

    advance, calls = trial_module._advance, []

    def killed(*given):
        calls.append(given)
        if len(calls) > 4:
            raise Killed
        advance(*given)

    monkeypatch.setattr(trial_module, "_advance", killed)
    with pytest.raises(Killed):
        trial_module.run_trial(job)
    monkeypatch.setattr(trial_module, "_advance", advance)
    row, curve, _ = trial_module.run_trial(job)
    assert row["attempts"] == 2
    assert [point["train_loss"] for point in curve] == [point["train_loss"] for point in expected]
    assert torch.isfinite(torch.tensor([point["train_loss"] for point in curve])).all()
