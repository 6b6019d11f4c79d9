"""What a user's code raises in a job is data: a failed cell with a row, whatever it is, and the sweep goes on."""

import subprocess
import sys

import pandas as pd
import pytest

from raysat.sweep import main

SWEEP = """
from raysat import Sweep, fixed
sweep = Sweep(name="strange", dataset="my_strange:load", models=["my_strange:build"], widths=[{widths}],
              batch_sizes=[2], stepsizes=[fixed(0.01)], iterations=3, evaluations=2, preprocessing="none")
"""
MODULE = r'''
"""A model whose width says what it raises in its trial; where the file `mended` lies beside it, it raises nothing."""

import pathlib
import sys
import traceback
import torch
from raysat.data import Dataset

class Own(BaseException):
    pass

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")
    __repr__ = __str__

class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__("cannot travel")
        self.first = lambda: second

def chain():
    error = None
    for k in range(2_000):
        another = ValueError(f"{k}")
        another.__cause__ = error
        error = another
    raise error

def throw(error):
    raise error

RAISES = {
    1: lambda: throw(ValueError("bad \udcff")),
    2: lambda: throw(ValueError("nul \0 and \x1b[31mred")),
    3: lambda: throw(ValueError("[bold]x[/] [/] \\")),
    4: lambda: throw(ValueError("x" * 100_000_000)),
    5: lambda: throw(Mute()),
    6: lambda: throw(Unpicklable(1, 2)),
    7: lambda: throw(Own("mine")),
    8: lambda: sys.exit(3),
    9: chain,
    10: lambda: throw(ExceptionGroup("several", [ValueError("one"), TypeError("two")])),
    12: lambda: throw(KeyboardInterrupt("nobody's")),
}

def load():
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return Dataset(x=x, y=x.sum(1, keepdim=True))

class Strange(torch.nn.Linear):
    def __init__(self, width, *sizes):
        super().__init__(*sizes)
        self.width = width

    def forward(self, x):
        mended = pathlib.Path(MENDED).exists()
        if self.width in RAISES and not mended and "run_trials" in {f.name for f in traceback.extract_stack()}:
            RAISES[self.width]()
        return super().forward(x)

def build(width, input_shape, outputs):
    return Strange(width, input_shape[0], outputs)
'''
WORDS = {
    1: r"ValueError: bad \udcff",
    2: r"ValueError: nul \x00 and \x1b[31mred",
    3: r"ValueError: [bold]x[/] [/] " + "\\",
    4: "characters left out",
    5: "Mute: <exception str() failed>",
    6: "Unpicklable: cannot travel",
    7: "Own: mine",
    8: "SystemExit: 3",
    9: "ValueError: 1999",
    10: "TypeError: two",
    12: "the sweep's own code raised KeyboardInterrupt: nobody's, and nobody pressed Ctrl-C",
}


@pytest.fixture
def strange(tmp_path):
    def make(widths):
        (tmp_path / "strange.py").write_text(SWEEP.format(widths=", ".join(map(str, widths))))
        (tmp_path / "my_strange.py").write_text(MODULE.replace("MENDED", repr(str(tmp_path / "mended"))))
        return [str(tmp_path / "strange.py"), "--results", str(tmp_path / "results")]

    return make


def rows(tmp_path):
    return pd.read_parquet(tmp_path / "results" / "strange" / "trials").set_index("width")


def expect(trials, widths):
    assert sorted(trials.index) == sorted([*widths, 11])
    assert trials.loc[11, "status"] == "completed"
    for width in widths:
        assert trials.loc[width, "status"] == "failed"
        assert WORDS[width] in trials.loc[width, "error"]
    assert trials["error"].dropna().str.len().max() < 25_000


def test_each_ends_as_a_row_with_its_words_and_runs_again(strange, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "raysat.plots.render_figures", lambda *_: []
    )  # of twelve widths, which takes longer than all the rest
    line = [*strange([*WORDS, 11]), "--inline"]
    assert main(line) == 1
    said = capsys.readouterr()
    expect(rows(tmp_path), WORDS)
    assert (tmp_path / "results" / "strange" / "report.html").exists()
    assert "11 cells failed" in said.err
    assert all(words in said.out + said.err for words in WORDS.values())
    assert "\x1b" not in said.out + said.err
    assert max(map(len, said.err.splitlines())) < 500
    (tmp_path / "mended").touch()
    assert main(line) == 0
    assert set(rows(tmp_path)["status"]) == {"completed"}


def test_on_ray_they_travel_as_text(strange, tmp_path):
    line = [sys.executable, "-m", "raysat.sweep", *strange([1, 4, 5, 6, 7, 8, 12, 11]), "--quiet"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1, done.stderr
    expect(rows(tmp_path), [1, 4, 5, 6, 7, 8, 12])
    assert rows(tmp_path)["attempts"].eq(1).all()


@pytest.mark.parametrize("where", ["build", "load", "import", "sweep file"])
def test_in_the_plan_it_is_one_sentence(strange, tmp_path, where, capsys):
    line = [*strange([11]), "--inline"]
    module = (tmp_path / "my_strange.py").read_text()
    leave = 'import sys\n    sys.exit("odd \\udcff \\x1b[31m")\n'
    marks = {"build": "outputs):\n", "load": "load():\n"}
    if where in marks:
        head, mark, tail = module.rpartition(marks[where])
        (tmp_path / "my_strange.py").write_text(f"{head}{mark}    {leave}{tail}")
    elif where == "import":
        (tmp_path / "my_strange.py").write_text(leave.replace("    ", ""))
    else:
        (tmp_path / "strange.py").write_text(leave.replace("    ", ""))
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert r"SystemExit: odd \udcff \x1b[31m" in err
