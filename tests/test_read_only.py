"""Commands on results that may only be read, by another user than theirs, or where nothing can be written."""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from another_user import other_user
from report.test_report import Page
from rich.console import Console

from raysat import ablation
from raysat.analysis import main as analysis_main
from raysat.report import finish
from raysat.report.__main__ import main as report_main
from raysat.status import main as status_main

AS_ANOTHER = """
import os, sys, shutil
import matplotlib, scipy.special, scipy.optimize, pyarrow.parquet, pyarrow.dataset, pandas, importlib.resources
from raysat import ablation, analysis, doctor, report, status, results, load
import raysat.report.__main__
from raysat.report.html import SCRIPTS, asset
from raysat.plots import drawing
from matplotlib.figure import Figure

drawing.DPI = 20
root, output, *warm = sys.argv[1:]
for name in ("page.html", "page.css", *SCRIPTS):  # Python itself may lie where only root reads
    asset(name)
commands = {
    "status": (status.main, [root]),
    "doctor": (doctor.main, [root]),
    "analysis": (analysis.main, [root]),
    "report": (raysat.report.__main__.main, [root]),
    "comparison": (raysat.report.__main__.main, [os.path.dirname(root)]),
    "ablation": (ablation.main, [root]),
}
for name in ("analysis", "report", "comparison", "ablation"):
    commands[f"{name} elsewhere"] = (commands[name][0], [*commands[name][1], "--output", f"{output}/{name}"])
for name in ("doctor", "report elsewhere", "ablation elsewhere"):  # whatever else is loaded when it is first used
    main, (_, *arguments) = commands[name]
    main([warm[0], *(argument.replace(output, warm[1]) for argument in arguments)])
print("as another user", flush=True)
os.setgid(12345)
os.setuid(12345)
for name, (main, arguments) in commands.items():
    print("exit code of", name, main(arguments), flush=True)
print("cells", len(load(root).trials), len(load(root).plot_steps()))
"""


def few(root):
    """Fewer cells, which are drawn sooner."""
    for path in (root / "trials").glob("[0-d]*"):
        path.unlink()


@other_user
def test_another_user_reads_and_writes_elsewhere_or_is_told_to(swept):
    few(swept)
    with TemporaryDirectory() as folder:  # pytest's own is not for other users
        own, output = Path(folder) / "results" / "swept", Path(folder) / "output"
        os.system(f"mkdir -p {own.parent} && cp -r {swept} {own} && chmod -R a+rX {folder}")
        output.mkdir()
        output.chmod(0o777)
        before = {path: path.stat().st_mtime_ns for path in own.parent.rglob("*")}
        arguments = [sys.executable, "-W", "ignore", "-c", AS_ANOTHER, str(own), str(output)]
        arguments += [str(swept), str(swept.parent.parent / "warm")]
        environment = {**os.environ, "TMPDIR": str(output), "MPLCONFIGDIR": str(output), "HOME": "/nowhere"}
        done = subprocess.run(
            arguments, env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=280
        )
        said = done.stdout.partition("as another user")[2]
        codes = dict(
            line.removeprefix("exit code of ").rsplit(" ", 1) for line in said.splitlines() if "exit c" in line
        )
        assert codes == {
            **{"status": "0", "doctor": "1"},  # for which curves lack their rows
            **dict.fromkeys(("analysis", "report", "comparison", "ablation"), "2"),
            **{f"{name} elsewhere": "0" for name in ("analysis", "report", "comparison", "ablation")},
        }, done.stderr
        sentences = [line for line in done.stderr.splitlines() if "raysat: " in line]
        assert len(sentences) == 4
        for sentence in sentences:
            assert "cannot be written ([Errno 13] " in sentence
            assert sentence.endswith("give --output FOLDER, one that can.")
        assert "Traceback" not in done.stderr
        assert {path: path.stat().st_mtime_ns for path in own.parent.rglob("*")} == before
        for name in ("report", "comparison"):
            assert Page((output / name / "report.html").read_text()).open == []
        assert "swept/report.html" not in (output / "comparison" / "report.html").read_text()
        assert len(pd.read_parquet(output / "analysis" / "analysis.parquet")) > 0
        assert list((output / "report" / "figures").glob("*.pdf"))
        assert re.search(r"^cells [1-9]", said, re.MULTILINE)


@other_user
@pytest.mark.parametrize("command", ["status", "doctor", "analysis", "report.__main__"])
def test_results_that_may_not_be_read_are_one_sentence(command):
    with TemporaryDirectory() as folder:
        (Path(folder) / "results" / "swept").mkdir(parents=True, mode=0o700)
        program = (
            f"import os, sys\nfrom raysat.{command} import main\nimport raysat.report\n"
            f"os.setuid(12345)\nsys.exit(main([{str(Path(folder) / 'results' / 'swept')!r}]))"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], cwd="/", capture_output=True, text=True, check=False
        )
    assert done.returncode == 2, done.stderr
    (sentence,) = done.stderr.splitlines()
    assert "cannot be read and written ([Errno 13] Permission denied" in sentence


@pytest.fixture
def full(monkeypatch):
    """Nothing can be written."""

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raysat.plots.render_figures", lambda *_: [])
    monkeypatch.setattr(ablation, "figure", lambda *_: None)
    monkeypatch.setattr("os.fsync", fails)


@pytest.mark.parametrize("command", [analysis_main, report_main, ablation.main])
def test_a_full_disk_is_one_sentence_after_what_can_be_said(swept, full, capsys, command):
    few(swept)
    assert command([str(swept)]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"raysat: {swept} cannot be written ([Errno 28] No space left on device): give --output FOLDER, one that can.\n"
    )
    assert [path.name for path in swept.iterdir() if path.name.startswith(".")] == []
    assert status_main([str(swept)]) == 0


def test_a_comparison_on_a_full_disk_too(swept, full, capsys):
    few(swept)
    assert report_main([str(swept.parent)]) == 2
    assert "give --output FOLDER" in capsys.readouterr().err


def test_what_is_written_elsewhere_leaves_the_results_as_they_are(swept, tmp_path, monkeypatch):
    few(swept)
    monkeypatch.setattr("raysat.plots.drawing.DPI", 20)
    before = sorted(swept.rglob("*"))
    path = finish(swept, Console(quiet=True), str(tmp_path / "a" / "b"))
    assert path == tmp_path / "a" / "b" / "report.html"
    assert {one.name for one in path.parent.iterdir()} == {"report.html", "figures", "analysis.parquet"}
    assert sorted(swept.rglob("*")) == before
