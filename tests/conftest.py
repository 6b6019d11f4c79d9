"""What all tests share."""

import os
import shutil
import sys
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
import torch
from hypothesis import settings

from raysat.spec.cells import Cell, Initialization, Model
from raysat.spec.stepsizes import Stepsize
from raysat.spec.training import PLAIN
from raysat.sweep import main as sweep_main
from raysat.user_code import plugins

settings.register_profile("raysat", deadline=None, derandomize=True)
settings.load_profile("raysat")


SLOW = (
    "analysis/test_ablation.py",
    "analysis/test_analysis.py",
    "analysis/test_beaten.py",
    "analysis/test_ladder.py",
    "analysis/test_predictors.py",
    "analysis/test_target_sweeps.py",
    "analysis/test_vanishing.py",
    "compute/test_memory.py",
    "data/test_fields.py",
    "driver/test_adaptive.py",
    "driver/test_driver.py",
    "driver/test_earlier.py",
    "driver/test_goals.py",
    "driver/test_outdated.py",
    "driver/test_race.py",
    "driver/test_transform.py",
    "executor/test_executor.py",
    "executor/test_private.py",
    "faults/test_faults.py",
    "messages/test_ending.py",
    "messages/test_expendable.py",
    "messages/test_failures.py",
    "messages/test_strange_errors.py",
    "ntk/test_cases.py",
    "ntk/test_fuzz.py",
    "ntk/test_ntk.py",
    "ntk/test_user_networks.py",
    "ntk/test_zoo.py",
    "report/test_report.py",
    "report/test_target.py",
    "sgd/test_engines.py",
    "sgd/test_optimizers.py",
    "sgd/test_parallel.py",
    "sgd/test_recipes.py",
    "sgd/test_stacked.py",
    "storage/test_folder.py",
    "test_any_rows.py",
    "test_asgd.py",
    "test_benchmark_gpu.py",
    "test_doctor.py",
    "test_forecast.py",
    "test_main.py",
    "test_read_only.py",
    "test_recorded.py",
    "test_security.py",
    "test_sweep.py",
    "test_sweeps.py",
    "trial/test_trial.py",
    "trial/test_without_statistics.py",
    "user_code/test_identity.py",
    "user_code/test_process.py",
)
"""Files whose tests take twenty seconds and more each, and together most of the time."""


ALONE = ("cluster/", "executor/")
"""Where tests lie that look at how work is shared among hosts or processes, which other tests would change."""


@pytest.fixture(scope="module")
def few_rungs():
    """Of each ladder of targets two levels beside the sweep's own, for pages that are made by the dozen."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FEWEST_RUNGS", "MEASURED"):
            patch.setattr(f"raysat.analysis.ladder.{name}", 2)
        yield


def pytest_collection_modifyitems(items):
    """Mark tests by what they need. Slow files come first, so that of two processes none waits for one at the end."""
    folder = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(folder).as_posix()
        skips = [mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")]
        marks = {
            "slow": path in SLOW,
            "cluster": path.startswith("cluster/"),
            "alone": path.startswith(ALONE),
            "browser": path == "report/test_report_browser.py",
            "gpu": any("GPU" in reason for reason in skips),
        }
        for name in (name for name, holds in marks.items() if holds):
            item.add_marker(name)
    items.sort(key=lambda item: (item.path.parent.name == "cluster", item.get_closest_marker("slow") is None))


@pytest.fixture(autouse=True)
def one_thread():
    """Rounding on a CPU depends on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_imports():
    """A user's own modules, which the tests name `my_...`, and where they were found, do not outlive a test."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    plugins.install({})
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("my_"):
            del sys.modules[name]


@pytest.fixture(scope="session")
def real_data():
    """The folder of the original data sets; tests that need them are skipped where there is none."""
    folder = os.environ.get("RAYSAT_DATA")
    if not folder:
        pytest.skip("RAYSAT_DATA does not name a folder with the original data sets")
    return folder


@pytest.fixture(scope="session")
def s3_server():
    """A server that speaks S3, at a port of its own."""
    server = pytest.importorskip("moto.server", reason="moto, of the extra 'test', stands in for S3")
    thread = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    thread.start()
    yield "http://{}:{}".format(*thread.get_host_and_port())
    thread.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """The address of an empty bucket; the credentials are in the environment."""
    environment = {"AWS_ACCESS_KEY_ID": "AKIATESTING", "AWS_SECRET_ACCESS_KEY": "whispered", "AWS_REGION": "us-east-1"}
    for name, value in {**environment, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid4().hex}"
    request = Request(f"{s3_server}/{name}", method="PUT", headers={"Host": "s3.us-east-1.amazonaws.com"})
    urlopen(request).close()
    return f"s3://{name}"


SWEPT = """
from raysat import Sweep, fixed, grid, mlp, theory
sweep = Sweep(name="swept", dataset="digits", n_train=32, n_test=16, models=[mlp(1)], widths=[4, 8],
              batch_sizes=[1, 8, 32], stepsizes=[theory(), fixed(1e-9), *grid([0.1, 1e6])], iterations=8, seeds=2,
              ntk_at=[4], spectrum=8)
"""


@pytest.fixture(scope="session")
def swept_once(tmp_path_factory):
    """A sweep file, and beside it the results of its sweep, which has several of everything; not to be changed."""
    path = tmp_path_factory.mktemp("swept") / "sweep.py"
    path.write_text(SWEPT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysat.report.finish", lambda *_: None)
        assert sweep_main([str(path), "--results", str(path.parent / "results"), "--inline", "--quiet"]) == 0
    return path


@pytest.fixture
def swept(swept_once, tmp_path):
    """A copy of the results of that sweep."""
    return Path(shutil.copytree(swept_once.parent / "results" / "swept", tmp_path / "results" / "swept"))


@pytest.fixture(scope="session")
def make_cell():
    """A small cell on digits, any part of which can be replaced."""

    def make(**changes) -> Cell:
        init = {
            "dataset": "digits",
            "preprocessing": "center",
            "n": 100,
            "n_test": 50,
            "model": Model("mlp", (("activation", "relu"), ("depth", 1))),
            "width": 16,
            "seed": 0,
            "dtype": "float64",
            "k_samples": 100,
            "k_tolerance": 1e-6,
            "loss": "mse",
        }
        cell = {
            "batch_size": 8,
            "stepsize": Stepsize("theory", 1.0),
            "iterations": 50,
            "sampling": "without_replacement",
            "evaluations": 8,
            "target_loss": None,
            "ntk_at": (),
            "training": PLAIN,
            "gradient_norm": False,
        }
        init |= {key: value for key, value in changes.items() if key in init}
        cell |= {key: value for key, value in changes.items() if key in cell}
        assert set(changes) <= {*init, *cell}
        return Cell(Initialization(**init), **cell)

    return make
