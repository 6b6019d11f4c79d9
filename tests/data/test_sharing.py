import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from another_user import other_user

from raysat import data
from raysat.data import sharing

OPTIONS = {"n_train": 100, "n_test": 20, "preprocessing": "center", "dtype": "float32"}


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine on which nothing is shared yet."""
    monkeypatch.setattr(sharing, "gettempdir", lambda: str(tmp_path))
    sharing._load.cache_clear()
    yield tmp_path
    sharing._load.cache_clear()


def again(name, **options):
    """What another process would see."""
    sharing._load.cache_clear()
    return data.load_shared(name, **options)


@pytest.mark.parametrize(("name", "changes"), [("digits", {}), ("digits", {"n_test": 0}), ("linear(n=128)", {})])
def test_what_is_shared_is_what_is_loaded(name, changes):
    options = OPTIONS | ({"n_test": 0} if name != "digits" else {}) | changes
    expected = data.load(name, **options)
    for found in (data.load_shared(name, **options), again(name, **options)):
        for field in ("x", "y", "x_test", "y_test"):
            one, other = getattr(expected, field), getattr(found, field)
            assert (one is None and other is None) or (one.dtype == other.dtype and torch.equal(one, other))
        assert (found.classes, found.vocabulary) == (expected.classes, expected.vocabulary)


def copies():
    """The folders of samples that this machine has."""
    return [path for path in sharing.folder().iterdir() if path.is_dir()]


def test_the_second_process_builds_nothing_and_shares_the_pages(monkeypatch):
    first = data.load_shared("digits", **OPTIONS)
    monkeypatch.setattr(sharing, "load", lambda *_, **__: pytest.fail("loaded again"))
    second = again("digits", **OPTIONS)
    (folder,) = copies()
    own = f"{folder}/x.npy"
    maps = Path("/proc/self/maps").read_text() if sys.platform == "linux" else own * 2
    assert maps.count(own) == 2  # both are the file
    second.x[0] = 7.0  # a trial that forgets the convention harms itself alone
    assert torch.equal(again("digits", **OPTIONS).x, first.x)


def test_other_options_or_other_code_are_another_file(machine, monkeypatch):
    data.load_shared("digits", **OPTIONS)
    again("digits", **OPTIONS | {"preprocessing": "none"})
    monkeypatch.setattr(sharing, "_code", lambda: "changed")
    again("digits", **OPTIONS)
    assert len(copies()) == 3


def emptied(path):
    path.unlink()  # not in place: this process has mapped it
    path.touch()


def shortened(path):
    array = np.load(path)
    path.unlink()
    np.save(path, array[:-1])


ARRAYS = ("x.npy", "y.npy", "x_test.npy", "y_test.npy")


@pytest.mark.parametrize(
    ("harm", "name"),
    [*((harm, name) for harm in (Path.unlink, emptied) for name in (*ARRAYS, "about.json")),
     *((shortened, name) for name in ARRAYS)],
)  # fmt: skip
def test_a_copy_that_was_cleaned_away_in_part_is_made_anew(harm, name):
    first = data.load_shared("digits", **OPTIONS)
    (copy,) = copies()
    harm(copy / name)
    second = again("digits", **OPTIONS)
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.y_test, second.y_test)
    assert second.n_test == 20
    assert copies() == [copy]
    assert sharing._read(copy) is not None


@pytest.mark.slow
def test_of_processes_at_the_same_time_one_makes_the_copy_and_the_others_wait(machine):
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from raysat.data import load_shared, sharing\n"
        f"machine, begun = Path({str(machine)!r}), time.monotonic()\n"
        "sharing.gettempdir = lambda: str(machine)\n"
        "def slow(*names, load=sharing.load, **options):\n"
        "    with open(machine / 'made', 'a') as made:\n"
        "        made.write('.')\n"
        "    while len(list(machine.glob('come-*'))) < 3 and time.monotonic() < begun + 60:\n"
        "        time.sleep(0.01)\n"
        "    return load(*names, **options)\n"
        "sharing.load = slow\n"
        "(machine / f'come-{time.monotonic_ns()}').touch()\n"
        f"print(load_shared('digits', **{OPTIONS!r}).x.double().sum().item())"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {process.communicate(timeout=120)[0] for process in processes}
    assert len(sums) == 1
    assert float(sums.pop()) == pytest.approx(data.load("digits", **OPTIONS).x.double().sum().item())
    assert (machine / "made").read_text() == "."
    assert len(copies()) == 1


def test_where_the_folder_cannot_be_used_the_data_are_loaded_as_ever(machine, monkeypatch, caplog):
    monkeypatch.setattr(sharing, "gettempdir", lambda: str(machine / "is not there"))
    assert data.load_shared("digits", **OPTIONS).n == 100
    assert "digits is not shared between processes" in caplog.text


@other_user
def test_a_user_without_a_name_or_a_home_has_a_folder_too():
    program = """
import os
import pooch
from raysat.data import sharing, sources
sharing.load_shared("digits", n_train=8, n_test=0)  # imports the rest: Python itself may lie where only root reads
os.setuid(12345)
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "RAYSAT_DATA"):
    os.environ.pop(name, None)
digits = sharing.load_shared("digits", n_train=16, n_test=0)
assert sharing.folder().name == "raysat-12345" and list(sharing.folder().iterdir())
assert all(folder.is_absolute() for folder in sources.folders())
print(tuple(digits.x.shape))
"""
    with TemporaryDirectory() as folder:  # pytest's own is not for other users
        Path(folder).chmod(0o777)
        arguments = [sys.executable, "-c", program]
        environment = {**os.environ, "TMPDIR": folder}
        done = subprocess.run(
            arguments, env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=120
        )
    assert done.stdout.split() == ["(16,", "1,", "8,", "8)"], done.stderr
