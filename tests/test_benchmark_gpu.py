"""The benchmark for GPUs, on the CPU at tiny sizes, where nothing but torch and numpy can be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

BARE = """
import importlib.metadata, sys

ABSENT = {"jaxtyping", "matplotlib", "pandas", "pooch", "pyarrow", "ray", "rich", "sklearn"}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        stands_in = name == "jaxtyping" and any(folder.endswith("standins") for folder in sys.path)
        absent = name.split(".")[0] in ABSENT and not stands_in
        return None if absent else self.finder.find_spec(name, path, target)

def version(name, installed=importlib.metadata.version):
    if name == "raysat":
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)

sys.meta_path[:] = map(Without, sys.meta_path)
importlib.metadata.version = version
"""
"""A `sitecustomize` that hides what a machine with a GPU may lack, raysat's own installation included."""

BROKEN = """
import os, signal, sys
import gpu

def raises(bench):
    bench.check("what was done before", 0.0, 1.0)
    raise RuntimeError("many words\\nthe last | of them")

def dies(bench):
    os.kill(os.getpid(), signal.SIGKILL)

gpu.PARTS |= {run.__name__: gpu.Part(run, 1, "") for run in (raises, dies)}
sys.exit(gpu.main(["--cpu", "--only", "raises", "dies", "nccl", "--output", sys.argv[1]]))
"""


def run(*command, path=()):
    """A command, with this Python as its `python3` and some folders before others on its path."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


def rows(text):
    """The table's rows, below its head, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All parts, run once: the finished command, and the table in its file."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(BARE)
    command = run("bash", BENCHMARKS / "gpu.sh", "--cpu", "--output", folder / "table.md", path=[folder])
    return command, (folder / "table.md").read_text()


@pytest.fixture(scope="module")
def listed():
    """The lines of the list."""
    command = run("bash", BENCHMARKS / "gpu.sh", "--list")
    assert command.returncode == 0, command.stderr
    return [line.split() for line in command.stdout.splitlines()]


def test_all_parts_run_with_torch_and_numpy_alone(done, listed):
    command, table = done
    assert command.returncode == 0, command.stdout + command.stderr
    assert table == command.stdout
    found = rows(table)
    assert {part for part, *_ in found} == {*(name for name, *_ in listed), "all"}
    assert "FAILED" not in {verdict for *_, verdict in found}
    assert ["trial", "all", "needs pyarrow", "", "skipped"] in found


def test_statistics_are_compared_in_both_types(done):
    compared = {what for part, what, _, _, verdict in rows(done[1]) if (part, verdict) == ("statistics", "ok")}
    for network in ("mlp", "conv net", "gpt", "nn.TransformerEncoder", "nn.LSTM"):
        for dtype in ("float64", "float32"):
            assert {f"{network}, {dtype}: {name}" for name in ("gamma", "k_op", "noise_scale")} <= compared


def test_what_needs_a_gpu_says_so(done):
    skipped = {(part, what) for part, what, found, *_ in rows(done[1]) if found == "needs CUDA"}
    assert skipped >= {("engines", "products in tf32"), ("precision", "b = 4, tf32"), ("memory", "graph")}


def test_the_parts_are_listed_with_their_shares_of_eight_minutes(listed):
    assert len(listed) == 8
    assert all(unit == "s" and len(words) > 2 for _, _, unit, *words in listed)
    assert 0 < sum(float(share) for _, share, *_ in listed) <= 480


def test_whole_trials_run_where_arrow_is():
    command = run("bash", BENCHMARKS / "gpu.sh", "--cpu", "--only", "trial")
    assert command.returncode == 0, command.stderr
    checked = [what for _, what, _, _, verdict in rows(command.stdout) if verdict == "ok"]
    assert {"float64: h against the CPU's", "float32: h against the CPU's"} <= set(checked)


def test_a_part_for_which_no_time_is_left_is_skipped_and_says_so():
    command = run("bash", BENCHMARKS / "gpu.sh", "--cpu", "--only", "memory", "--minutes", "0.2")
    assert command.returncode == 0
    part, _, why, _, verdict = rows(command.stdout)[0]
    assert (part, verdict) == ("memory", "skipped")
    assert why.startswith("it may take 30 s, and ")
    assert why.endswith(" of 12 are left")


def test_a_part_that_fails_is_one_row_and_the_next_goes_on(tmp_path):
    command = run(sys.executable, "-c", BROKEN, tmp_path / "table.md", path=[BENCHMARKS])
    assert command.returncode == 1, command.stderr
    found = rows((tmp_path / "table.md").read_text())
    assert ["raises", "what was done before", "0", "at most 1", "ok"] in found
    failed = [row for row in found if row[-1] == "FAILED"]
    assert failed == [
        ["raises", "the part itself", "RuntimeError: the last / of them", "", "FAILED"],
        ["dies", "the part itself", "its process ended with exit code -9", "", "FAILED"],
    ]
    assert ["nccl", "backend", "gloo", "gloo", "ok"] in found
    assert "many words" in command.stderr
