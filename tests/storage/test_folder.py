"""A results folder is one at every instant of its making, or the next command completes it; remedies are tried."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from raysat import report
from raysat.analysis import main as analysis_main
from raysat.report.__main__ import main as report_main
from raysat.status import main as status_main
from raysat.storage.belongings import strangers, unfinished
from raysat.storage.files import walk
from raysat.storage.store import Store
from raysat.sweep import main

TINY = """
from raysat import Sweep, fixed, mlp
sweep = Sweep(name="tiny", dataset="digits", n_train=8, n_test=4, models=[mlp(1)], widths=[2], batch_sizes=[1, 8],
              stepsizes=[fixed(0.1)], iterations=2)
"""

MORTAL = """
import os, sys
from pathlib import Path
import pyarrow.parquet as pq
import raysat.report
from raysat import sweep
from raysat.storage import store
from raysat.storage import files
from raysat.storage import partfiles

raysat.report.finish = lambda *_: None
file, results, *names = sys.argv[1:]

def run(*options):
    return sweep.main([file, "--results", results, "--inline", "--quiet", *options])

def child(action):
    if (process := os.fork()) == 0:
        os._exit(action())
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

def dying(k):
    acts = iter(range(k))
    def mortal(act, spoil=None):
        def once(*arguments, **options):
            if next(acts, None) is None:
                if spoil:  # half of what was to be written is there
                    spoil(*arguments)
                os._exit(99)
            return act(*arguments, **options)
        return once
    Path.mkdir = mortal(Path.mkdir)
    Path.write_text = mortal(Path.write_text, lambda path, text, *_: open(path, "w").write(text[: len(text) // 2]))
    Path.unlink = mortal(Path.unlink)
    os.replace = mortal(os.replace)
    os.fsync = mortal(os.fsync)
    pq.write_table = mortal(pq.write_table, lambda _, path, **__: open(path, "wb").write(b"PAR1 half"))
    return run()

for k in (*range(24), *range(24, 1000, 7)):
    results = f"{sys.argv[2]}/{k}"
    code = child(lambda: dying(k))
    left = sorted(files.walk(Path(results))) if os.path.isdir(results) else []
    print(k, code, child(run), len(store.Store(f"{results}/tiny").finished()), *left, sep="\\t", flush=True)
    if code != 99:
        break
"""


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture
def run(sweep_file, monkeypatch, capsys):
    """Gives the command, and returns its exit code and what it said."""
    monkeypatch.setattr(report, "finish", lambda *_: None)

    def command(*options, results="results"):
        code = main([str(sweep_file), "--results", str(sweep_file.parent / results), "--inline", *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return command


def rows(root):
    return pd.read_parquet(root / "trials")


def test_a_command_that_dies_at_any_act_on_the_folder_is_completed_by_the_next_one(sweep_file, tmp_path):
    arguments = [sys.executable, "-c", MORTAL, str(sweep_file), str(tmp_path / "results")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=900)
    lines = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert {line[1] for line in lines} == {"99", "0"}, done.stderr
    assert len(lines) > 24, "each act of the making, and later ones"
    assert [line for line in lines if line[2:4] != ["0", "2"]] == []
    made = [line[4:] for line in lines]
    assert made[0] == []
    first = next(names for names in made if any(not unfinished(name) and not name.endswith("/") for name in names))
    assert [name for name in first if not unfinished(name) and not name.endswith("/")] == ["tiny/sweep.json"]


def cut(path):
    path.write_text(path.read_text()[:-20])


def folder_instead(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "truncated": cut,
    "empty": lambda path: path.write_text(""),
    "gone": Path.unlink,
    "other JSON": lambda path: path.write_text('{"other": 1}'),
    "a list": lambda path: path.write_text("[1]"),
    "of other types": lambda path: path.write_text('{"schema": 1, "sweep": 3, "resolved": []}'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00{"),
    "a folder": folder_instead,
}


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_record_is_made_anew_and_all_cells_stay(run, tmp_path, harm, caplog):
    run()
    root = tmp_path / "results" / "tiny"
    before = rows(root)
    there = harm != "gone"
    DAMAGE[harm](root / "sweep.json")
    assert status_main([str(root)]) == 2
    code, said = run("--set", "seeds=2")
    assert code == 0
    assert "2 of 4 cells to run" in said
    assert Store(root).record()["sweep"]["seeds"] == [0, 1]
    assert set(before["cell_id"]) < set(rows(root)["cell_id"])
    assert (root / "set-aside" / "sweep.json-1").exists() == there
    assert ("cannot be read: it is set aside" in caplog.text) == there
    DAMAGE[harm](root / "sweep.json")
    assert run("--set", "seeds=2", "--fresh")[0] == 0
    assert len(rows(root)) == 4


def tried(run, tmp_path, options, said):
    """Each remedy that a refusal prints is given, and works."""
    remedies = {
        "--fresh": ("--fresh",),
        "--set name=NAME": ("--set", "name=another"),
        "--results": (),
    }
    printed = [remedy for remedy in remedies if remedy in said]
    assert printed
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "results", kept, symlinks=True)
    for k, remedy in enumerate(printed):
        results = f"results-{k}"
        if remedy != "--results":
            shutil.copytree(kept, tmp_path / results, symlinks=True)
        code, more = run(*options, *remedies[remedy], results=results)
        assert code == 0, (remedy, more)
        root = tmp_path / results / ("another" if "NAME" in remedy else "tiny")
        assert len(rows(root)) == 2
    return printed


def test_a_folder_without_record_whose_rows_are_of_another_sweep_is_refused_with_remedies_that_work(run, tmp_path):
    run()
    (tmp_path / "results" / "tiny" / "sweep.json").write_text("{")
    options = ("--set", "n_train=9", "--set", "batch_sizes=[1,9]")
    code, said = run(*options)
    assert code == 2
    assert "holds another sweep (n 8 there, 9 here)" in said
    assert tried(run, tmp_path, options, said) == ["--fresh", "--set name=NAME", "--results"]


@pytest.mark.parametrize("change", [{"schema": 0}, {}])
def test_another_sweep_or_schema_is_refused_with_remedies_that_work(run, tmp_path, change):
    run()
    record = tmp_path / "results" / "tiny" / "sweep.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    options = () if change else ("--set", "iterations=3")
    code, said = run(*options)
    assert code == 2
    assert tried(run, tmp_path, options, said) == ["--fresh", "--set name=NAME", "--results"]


@pytest.mark.parametrize(
    "name", ["notes.txt", "trials/notes.txt", "figures/me.svg", "data/mine/x.npy", "sub/x.parquet"]
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_something_of_somebodys_is_never_deleted(run, tmp_path, name, fresh):
    run()
    own = tmp_path / "results" / "tiny" / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("mine")
    options = ("--set", "iterations=3")
    code, said = run(*options, *["--fresh"] * fresh)
    assert code == 2
    assert ("--fresh" in said) is False
    assert (name in said) == fresh
    assert tried(run, tmp_path, options, said) == ["--set name=NAME", "--results"]
    assert own.read_text() == "mine"
    assert run()[0] == 0, "it disturbs nothing"


@pytest.mark.parametrize("name", ["chapter1.tex", "data/mnist/train-images-idx3-ubyte.gz", "figures/steps.png"])
def test_a_folder_in_which_nothing_shows_a_sweep_is_left_alone(run, tmp_path, name):
    own = tmp_path / "results" / "tiny" / name
    own.parent.mkdir(parents=True)
    own.touch()
    for options in ((), ("--fresh",)):
        code, said = run(*options)
        assert code == 2
        assert name in said
        assert own.exists()
    assert tried(run, tmp_path, (), said) == ["--set name=NAME", "--results"]


@pytest.mark.parametrize("options", [(), ("--fresh",)])
@pytest.mark.parametrize("place", ["", "trials"])
def test_a_file_in_place_of_a_folder_is_one_sentence_and_stays(run, tmp_path, place, options):
    file = tmp_path / "results" / "tiny" / place
    if place:
        run()
        shutil.rmtree(file)
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    code, said = run(*options)
    assert code == 2
    assert said.splitlines()[-1].startswith("raysat: ")
    assert file.read_text() == "mine"
    assert run(results="others")[0] == 0, "the remedy is another folder"


def test_a_folder_in_place_of_a_file_that_is_made_anew_is_one_sentence(swept, tmp_path, capsys):
    (swept / "analysis.parquet").mkdir()
    assert analysis_main([str(swept)]) == 2
    assert capsys.readouterr().err.startswith(f"raysat: {swept} cannot be written (")
    assert analysis_main([str(swept), "--output", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "analysis.parquet").is_file()


GARBAGE = (
    b"",
    b"{",
    b"[]",
    b'{"at": 3}',
    b'{"at": "2026-01-01T00:00:00+00:00", "running": 3}',
    b"\xff\xfe",
    b"[" * 10**5,
)
GARBAGE += (b'{"at": "2026-01-01"}', b'{"at": "2026-01-01T00:00:00+00:00", "pid": "x"}', b'{"done": [1], "at": "now"}')
GARBAGE += (b'{"at": "2999-01-01T00:00:00+00:00", "pid": 1e400, "ended": 1}',)


def test_garbage_of_every_kind_in_what_is_made_anew_is_passed_over(run, tmp_path, capsys, monkeypatch):
    assert run()[0] == 0
    root = tmp_path / "results" / "tiny"
    monkeypatch.undo()
    monkeypatch.setattr("raysat.plots.save", lambda *_: None)
    monkeypatch.setattr("raysat.plots.render_figures", lambda *_: [])
    for garbage in GARBAGE:
        (root / "status.json").write_bytes(garbage)
        (root / "analysis.parquet").write_bytes(garbage)
        (root / "report.html").write_bytes(garbage)
        assert status_main([str(root)]) == 0
        assert "No driver has left word" in capsys.readouterr().out
    assert report_main([str(root)]) == 0
    assert len(pd.read_parquet(root / "analysis.parquet")) > 0
    assert "</html>" in (root / "report.html").read_text()
    assert main([str(tmp_path / "tiny.py"), "--results", str(root.parent), "--inline"]) == 0


def test_what_was_left_of_writes_disturbs_nobody_and_is_gone_after_the_next_run(run, tmp_path):
    run()
    root = tmp_path / "results" / "tiny"
    left = [".sweep.json.12", ".status.json.3", "trials/.a.parquet.7", "curves/.b.parquet.7", "checkpoints/.c.pt.9"]
    for name in left:
        (root / name).write_bytes(b"half")
    assert len(rows(root)) == 2
    assert run("--set", "seeds=2")[0] == 0
    assert not [name for name in walk(root) if unfinished(name)]


def test_what_raysat_makes_is_its_own_and_nothing_else(swept, tmp_path):
    (swept / "figures").mkdir(exist_ok=True)
    names = [*walk(swept), "figures/steps-1.png", "data/mnist/train-images-idx3-ubyte.gz", "set-aside/trials/a.parquet"]
    assert strangers(names) == []
    assert strangers([*names, "a.txt", "trials/sub/a.parquet", "checkpoints/a.npy"]) == [
        *("a.txt", "checkpoints/a.npy", "trials/sub/a.parquet"),
    ]
    assert strangers(["figures/steps.png"]) == ["figures/steps.png"]
    assert strangers([".sweep.json.123"]) == []


def test_a_link_to_a_folder_is_emptied_and_stays_and_no_link_is_followed(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny").symlink_to(elsewhere)
    run()
    assert run("--set", "iterations=3", "--fresh")[0] == 0
    assert len(rows(elsewhere)) == 2
    (elsewhere / "figures").mkdir(exist_ok=True)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").touch()
    (elsewhere / "figures" / "thesis").symlink_to(thesis)
    code, said = run("--fresh")
    assert code == 2
    assert "figures/thesis" in said
    assert (thesis / "chapter1.tex").exists()
