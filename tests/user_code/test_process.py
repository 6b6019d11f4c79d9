"""State of the process that a user's code sets: it reaches no other job, in whichever order and process they run."""

import json
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch

import raysat.trial.train
from raysat import Sweep, fixed, mlp
from raysat.driver.plan import plan
from raysat.executor import OnRay
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trials
from raysat.user_code import process
from raysat.user_code.states import states

SWEEP = Sweep(
    name="s",
    dataset="digits",
    n_train=40,
    n_test=0,
    models=[mlp(1)],
    widths=[6],
    batch_sizes=[8],
    stepsizes=[fixed(0.05)],
    iterations=8,
)
OWN = "my_model:build"
MODEL = """
import torch
from torch import nn

def disturb():
    {disturb}

def build(width, input_shape, outputs):
    disturb()
    size = torch.Size(input_shape).numel()
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        return nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.Sigmoid(), nn.Linear(width, outputs))
"""
DISTURBANCES = {
    "default dtype": "torch.set_default_dtype(torch.float64)",
    "default device": "torch.set_default_device('meta')",
    "a device entered": "torch.device('meta').__enter__()",
    "kept tensors": "torch.autograd.graph.saved_tensors_hooks(lambda one: one, lambda one: 2 * one).__enter__()",
    "grad mode": "torch.set_grad_enabled(False)",
    "threads": "torch.set_num_threads(3)",
    "deterministic": "torch.use_deterministic_algorithms(True, warn_only=True)",
    "cudnn": "torch.backends.cudnn.benchmark = True; torch.backends.cudnn.deterministic = True",
    "matmul precision": "torch.set_float32_matmul_precision('medium')",
    "tf32": "torch.backends.cuda.matmul.allow_tf32 = True; torch.backends.cudnn.allow_tf32 = False",
    "fp32 precision": "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "denormals": "torch.set_flush_denormal(True)",
    "autocast": "torch.set_autocast_enabled('cpu', True); torch.set_autocast_dtype('cpu', torch.float16)",
    "anomalies": "torch.set_anomaly_enabled(True, False)",
    "module hooks": "nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 1.5)",
    "a patch": "nn.Linear.reset_parameters = lambda self: [nn.init.normal_(p, 0, 0.1) for p in self.parameters()]",
    "a patched function": "nn.functional.linear = lambda x, w, b=None: x @ w.T",
    "patched methods": "torch.Tensor.relu = torch.Tensor.__mod__ = torch.Tensor.__add__; nn.ReLU.__call__ = None",
    "another default": "nn.init.kaiming_uniform_.__defaults__ = (3, *nn.init.kaiming_uniform_.__defaults__[1:])",
    "patched parts": "grad = torch.autograd.grad; "
    "torch.autograd.grad = lambda *a, **k: tuple(2 * one for one in grad(*a, **k)); torch.linalg.qr = None; "
    "torch.optim.SGD.step = print; import time; time.time = time.perf_counter = lambda: 0.0",
    "generators": "import random, numpy; torch.manual_seed(7); numpy.random.seed(7); random.seed(7)",
    "start method": "torch.multiprocessing.set_start_method('spawn', force=True)",
    "numpy errors": "import numpy; numpy.seterr(all='raise')",
    "warnings": "import warnings; warnings.simplefilter('error'); warnings.showwarning = print",
    "logging": "import logging; logging.disable(50); logging.root.addHandler(logging.NullHandler())",
    "working folder": "import os; os.chdir('/')",
    "environment": "import os; os.environ['RAYSAT_DATA'] = '/nowhere'; os.environ.pop('HOME', None)",
    "umask": "import os; os.umask(0o777)",
    "sys.path": "import sys; sys.path.insert(0, '/nowhere'); sys.argv.append('x')",
    "another sys.path": "import sys; sys.path = list(sys.path)",
    "streams": "import io, sys; sys.stdout = io.StringIO(); sys.stderr = io.StringIO()",
    "recursion limit": "import sys; sys.setrecursionlimit(5000)",
    "hooks of Python": "import sys; sys.excepthook = print; sys.unraisablehook = print",
    "locale": "import locale; locale.setlocale(locale.LC_ALL, 'C')",
    "signals": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.alarm(100)",
    "decimals": "import decimal; decimal.getcontext().prec = 3",
    "garbage": "import gc; gc.disable(); gc.set_threshold(1)",
    "cores": "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])",
}


def rows(laid_out):
    """The rows of a sweep's cells, run in this process one after the other, by model; the user's own come first."""
    found = {}
    for cell in sorted(laid_out.cells, key=lambda cell: cell.init.model.builder == "mlp"):
        job = Job("s", cell.init, sources=laid_out.sources)
        statistics = compute_statistics(job)
        ((row, curve, _),) = run_trials(replace(job, cell=cell, statistics=statistics))
        names = ("status", "eta", "loss_init", "loss_final", "gamma", "k_op", "b_star")
        points = [(point["iteration"], point["train_loss"], point["distance_from_init"]) for point in curve]
        found[cell.init.model.builder] = {name: row[name] for name in names} | {"curve": points}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The row of the built-in model without a model of the user's own beside it."""
    return rows(plan(SWEEP, tmp_path_factory.mktemp("alone")))["mlp"]


@pytest.fixture
def disturbing(tmp_path):
    """Makes the plan of a sweep whose first model sets something as it is built, or as it is imported."""

    def make(disturb, where):
        model = MODEL.format(disturb=disturb)
        if where == "import":
            model = model.replace("    disturb()\n    size", "    size").replace("def build", "disturb()\n\ndef build")
        (tmp_path / "my_model.py").write_text(model)
        return plan(replace(SWEEP, models=[OWN, mlp(1)]), tmp_path)

    return make


@pytest.mark.parametrize(
    ("where", "name"),
    [
        *(("build", name) for name in DISTURBANCES),
        *(("import", name) for name in ("default dtype", "a patch", "sys.path")),
    ],
)
def test_what_user_code_sets_is_put_back_and_reaches_no_other_cell(disturbing, alone, name, where):
    before = {state.name: process._value(state) for state in states()}
    found = rows(disturbing(DISTURBANCES[name], where))
    after = {state.name: process._value(state) for state in states()}
    assert [one for one in before if before[one] != after[one]] == []
    assert process.for_good() == ()
    assert found["mlp"] == alone
    own = found[OWN]
    assert own["status"] == "completed"
    assert own["loss_init"] == own["curve"][0][1]
    assert own["loss_final"] == own["curve"][-1][1]
    assert own["loss_final"] < own["loss_init"]  # they belong to one network, which learns


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (torch.nn.modules.conv._ConvNd, "reset_parameters"),
        (torch.nn.Conv1d, "_conv_forward"),
        (torch.nn.modules.batchnorm._BatchNorm, "forward"),
        (torch.nn.Module, "_apply"),
        (torch, "float32"),
        (torch, "default_generator"),
        (raysat.trial.train, "DIVERGENCE"),
        (raysat.trial.train, "exponent"),
    ],
)
def test_so_are_methods_of_bases_those_that_are_private_constants_and_what_raysat_has(owner, name):
    method = vars(owner)[name]
    with process.undisturbed():
        setattr(owner, name, 1)
    assert vars(owner)[name] is method


def test_so_is_what_an_installed_package_sets(tmp_path, alone, monkeypatch):
    """Of which no text travels, so that nothing else says that code runs which is not raysat's."""
    package = tmp_path / "site-packages"
    package.mkdir()
    disturb = "torch.set_default_dtype(torch.float64); nn.init.normal_ = lambda one, *_, **__: one.zero_()"
    late = "nn.Sequential.forward = lambda self, x, forward=nn.Sequential.forward: (disturb(), forward(self, x))[1]"
    (package / "their_model.py").write_text(
        MODEL.format(disturb=disturb).replace("    disturb()\n    size", f"    {late}\n    size")
    )
    monkeypatch.syspath_prepend(str(package))
    laid_out = plan(replace(SWEEP, models=["their_model:build", mlp(1)]), tmp_path)
    assert not laid_out.sources
    assert rows(laid_out)["mlp"] == alone
    assert torch.get_default_dtype() == torch.float32


def test_each_network_of_a_plan_is_tried_in_the_same_process(disturbing, tmp_path):
    """What one model replaces of PyTorch does not count in what is known of the next, such as its operations."""
    laid_out = disturbing("nn.functional.relu = torch.relu = torch.Tensor.relu = None", "build")
    assert {key: of for key, of in laid_out.flops.items() if key[0].builder == "mlp"} == plan(SWEEP, tmp_path).flops


def test_each_network_of_a_job_begins_as_the_first(disturbing, tmp_path):
    """The second of two has the same weights, although the first has already imported what it needs."""
    from raysat import models
    from raysat.models.fingerprint import digest
    from raysat.trial.job import begun

    (tmp_path / "my_lazy.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\ntorch.rand(5)\n")
    laid_out = disturbing("import my_lazy; torch.set_default_dtype(torch.bfloat16)", "build")
    init = next(cell.init for cell in laid_out.cells if cell.init.model.builder == OWN)
    with begun(Job("s", init, sources=laid_out.sources)):
        networks = [models.build(init.model, 6, (1, 8, 8), 10, seed=0) for _ in range(2)]
    assert digest(networks[0]) == digest(networks[1])
    assert {str(weight.dtype) for weight in networks[0].parameters()} == {"torch.bfloat16"}  # as its builder made it


def test_a_loader_draws_the_same_in_whichever_job_it_is_called(tmp_path):
    (tmp_path / "my_data.py").write_text(
        "import torch\nfrom raysat.data import Dataset\n"
        "def load():\n    return Dataset(x=torch.randn(20, 3), y=torch.randn(20, 1))\n"
    )
    sweep = replace(SWEEP, dataset="my_data:load", n_train=None, n_test=None, seeds=2)
    laid_out = plan(sweep, tmp_path)
    inits = {cell.init.seed: cell.init for cell in laid_out.cells}
    again = plan(sweep, tmp_path)  # as another process loads them, beginning with the other seed
    first = {seed: compute_statistics(Job("s", inits[seed], sources=laid_out.sources)) for seed in (0, 1)}
    assert first[0]["gamma"] != first[1]["gamma"]
    from raysat.data import loading

    loading._load.cache_clear()
    second = {seed: compute_statistics(Job("s", inits[seed], sources=again.sources)) for seed in (1, 0)}
    for seed in (0, 1):
        assert first[seed]["gamma"] == second[seed]["gamma"]


def test_what_a_module_holds_does_not_reach_another_job(disturbing, tmp_path):
    """A builder that counts its calls in its module builds the same network in every job."""
    disturb = "global calls; calls = globals().get('calls', 0) + 1; torch.rand(calls)"
    laid_out = disturbing(disturb, "build")
    init = next(cell.init for cell in laid_out.cells if cell.init.model.builder == OWN)
    job = Job("s", init, sources=laid_out.sources)
    assert compute_statistics(job)["w0_digest"] == compute_statistics(job)["w0_digest"]


SWEEP_FILE = """
import torch
from raysat import Sweep, fixed, mlp
torch.set_default_dtype(torch.float64)
sweep = Sweep(name="s", dataset="digits", n_train=40, n_test=0, models=["my_model:build", mlp(1)], widths=[6],
              batch_sizes=[1, 8], stepsizes=[fixed(0.05)], iterations=8)
"""


def test_in_process_and_on_ray_the_same_cells_give_the_same_bits(tmp_path, alone):
    model = MODEL.format(disturb="torch.set_default_dtype(torch.float64); torch.set_num_threads(2)")
    (tmp_path / "my_model.py").write_text(model)
    (tmp_path / "sweep.py").write_text(SWEEP_FILE)
    curves = {}
    for results, arguments in {"inline": ["--inline"], "ray": []}.items():
        command = [sys.executable, "-m", "raysat.sweep", str(tmp_path / "sweep.py"), "--quiet", *arguments]
        done = subprocess.run(
            [*command, "--results", str(tmp_path / results)], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        root = tmp_path / results / "s"
        table = pd.read_parquet(root / "curves").drop(columns="seconds")
        curves[results] = table.sort_values(["cell_id", "iteration"], ignore_index=True)
        trials = pd.read_parquet(root / "trials")
        files = trials.set_index("model")["user_files"]
        assert list(json.loads(files[OWN].iloc[0])) == ["my_model.py"]
        assert files["mlp"].isna().all()
    pd.testing.assert_frame_equal(curves["inline"], curves["ray"], check_exact=True)
    trials = trials.set_index(["model", "batch_size"])
    assert trials.loc[("mlp", 8), "loss_final"] == alone["loss_final"]


class Work:
    """Cells of one initialization, and what comes of them."""

    def __init__(self, cells):
        self.shared, self.cells = Job("s", cells[0].init), list(cells)
        self.waiting, self.starts, self.outcomes = False, [], []

    def next(self):
        cell = self.cells.pop() if self.cells else None
        return cell and Job("s", cell.init, cell)

    def on_start(self, job):
        self.starts.append(job.key)

    def on_progress(self, job, iteration, losses):
        pass

    def on_tick(self):
        pass

    def on_end(self, outcome):
        self.outcomes.append(outcome)


def lasting(job):
    """A job that changes what PyTorch lets be set once a process; the number of its process."""
    import os

    import torch

    from raysat.user_code import process

    with process.undisturbed():
        torch.set_num_interop_threads(torch.get_num_interop_threads() + 1)
    return os.getpid()


def test_what_cannot_be_put_back_ends_the_process_after_its_job(tmp_path, make_cell):
    work = Work([make_cell(batch_size=b) for b in range(1, 4)])
    with OnRay(tmp_path / "tune") as executor:
        executor.run(work, lasting, work)
    assert [outcome.error for outcome in work.outcomes if outcome.error] == []
    assert len({outcome.value for outcome in work.outcomes}) == 3  # each in a process of its own
    assert len(work.starts) == 3  # and none counted as tried again


def test_in_process_it_is_said(caplog, monkeypatch):
    monkeypatch.setattr(process, "_for_good", [])
    holding = {"value": 1}
    stubborn = process.State("something stubborn", lambda: holding["value"], lambda _: None)
    monkeypatch.setattr(process, "states", lambda: (stubborn,))
    with process.undisturbed():
        holding["value"] = 2
    assert process.for_good() == ("something stubborn",)
    assert "something stubborn: changed by the sweep's own code, and cannot be put back" in caplog.text
