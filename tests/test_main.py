"""The one command: what it runs is what `python -m raysat.X` runs."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import raysat
from raysat.__main__ import COMMANDS

CONSOLE = Path(sys.executable).parent / "raysat"
OWN = """
from raysat import Sweep, mlp, theory
sweep = Sweep(name="own", dataset="my_numbers:load", n_test=0, models=[mlp(1)], widths=[4], batch_sizes=[1, 4],
              stepsizes=[theory()], iterations=2)
"""
NUMBERS = """
import torch
from raysat.data import Dataset
def load():
    x = torch.eye(8)
    return Dataset(x=x, y=x)
"""


def run(*words, **options):
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_there_and_says_how_it_was_called(name, monkeypatch, capsys):
    module, function = COMMANDS[name][0].split(":")
    monkeypatch.setattr(sys, "argv", [f"raysat {name}", "--help"])
    with pytest.raises(SystemExit) as end:
        getattr(import_module(f"raysat.{module}"), function)()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: raysat {name} ")


def test_version_and_help_and_a_wrong_command():
    assert run(CONSOLE, "--version").stdout == f"raysat {raysat.__version__}\n"
    text = run(sys.executable, "-m", "raysat", "--help").stdout
    assert all(f"  {name} " in text for name in COMMANDS)
    assert len(text.splitlines()) <= 40  # one screen
    wrong = run(CONSOLE, "train")
    assert wrong.returncode == 2
    assert "choose from" in wrong.stderr


def test_a_sweep_is_the_same_by_every_spelling_and_finds_modules_in_the_working_folder(tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "own.py").write_text(OWN)
    (tmp_path / "my_numbers.py").write_text(NUMBERS)
    spellings = {
        "console": [CONSOLE, "run"],
        "package": [sys.executable, "-m", "raysat", "run"],
        "module": [sys.executable, "-m", "raysat.sweep"],
    }
    for name, words in spellings.items():
        done = run(*words, "sweeps/own.py", "--results", name, "--inline", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    losses = [raysat.load(tmp_path / name / "own").trials["loss_final"].tolist() for name in spellings]
    assert losses[0] == losses[1] == losses[2]


def test_bad_input_is_one_sentence_and_exit_code_2():
    done = run(CONSOLE, "status", "nowhere/at-all")
    assert done.returncode == 2
    assert done.stderr.startswith("raysat: nowhere/at-all holds no sweep")
