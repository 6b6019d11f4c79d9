import copy
import itertools
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from raysat import Sweep, fixed, gpt, mlp, models, resnet
from raysat.compute import matmul
from raysat.compute.matmul import VARIABLE, Matmul, Products, backend_for_cpu
from raysat.errors import InputError
from raysat.losses import LOSSES
from raysat.models.layers import NTKLinear
from raysat.models.linearized import Linearized
from raysat.models.mlp import ACTIVATIONS
from raysat.sgd import fused
from raysat.sgd.engine import AutogradEngine, FusedEngine, GraphEngine, build, choose
from raysat.sgd.problem import Problem
from raysat.sgd.sampler import batches
from raysat.spec.engines import ENGINES
from raysat.trial import train as trial_module
from raysat.trial.initial import compute_statistics
from raysat.trial.job import Job
from raysat.trial.train import run_trial

N, INPUTS, OUTPUTS = 20, 12, 6


def problem(loss="mse", targets="one_hot", dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, 4, generator=generator, dtype=dtype)
    labels = torch.randint(OUTPUTS, (N,), generator=generator)
    return x, torch.eye(OUTPUTS, dtype=dtype)[labels] if targets == "one_hot" else labels, LOSSES[loss]


def network_of(depth=2, activation="relu", dtype=torch.float64, width=24, **gains):
    return models.build(mlp(depth, activation, **gains), width, (3, 4), OUTPUTS, seed=0).to(dtype)


def difference(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def both(network, x, y, loss, chosen, eta=0.1, other=FusedEngine, calls=1):
    """A network after autograd's steps and after another engine's, of which the second stands in the first's place."""
    reference = copy.deepcopy(network)
    AutogradEngine(Problem(reference, x, y, loss), eta).run(chosen)
    engine = other(Problem(network, x, y, loss), eta)
    for part in chosen.chunk(calls):
        engine.run(part)
    return difference(network, reference)


@pytest.fixture(params=["deferred", "immediate"])
def updates(request, monkeypatch):
    """Both ways of updating a layer, which in use its size decides."""
    monkeypatch.setattr(fused, "DEFER_FROM", 1 if request.param == "deferred" else 1 << 60)
    return request.param


@pytest.mark.parametrize("b", [1, 3, N])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_fused_is_autograd_in_double_precision(updates, depth, activation, b):
    network = network_of(depth, activation, hidden_gain=1.3, output_gain=0.7)
    start = copy.deepcopy(network)
    assert both(network, *problem(), batches(0, 0, 50, b, N)) < 1e-12
    assert difference(network, start) > 1e-3


@pytest.mark.parametrize(("loss", "targets"), [("cross_entropy", "one_hot"), ("cross_entropy", "classes")])
@pytest.mark.parametrize("b", [1, 3, N])
def test_fused_is_autograd_for_the_cross_entropy(updates, b, loss, targets):
    assert both(network_of(), *problem(loss, targets), batches(0, 0, 50, b, N)) < 1e-12


@pytest.mark.parametrize("sampling", ["with_replacement", "epochs"])
def test_fused_is_autograd_whatever_the_sampling(updates, sampling):
    assert both(network_of(), *problem(), batches(0, 0, 50, 3, N, sampling)) < 1e-12


@pytest.mark.parametrize("defer_from", [100, 24 * 24])
def test_layers_that_defer_stand_beside_layers_that_do_not(monkeypatch, defer_from):
    monkeypatch.setattr(fused, "DEFER_FROM", defer_from)  # 12 x 24, 24 x 24, 24 x 24 and 24 x 6 entries
    for activation in ACTIVATIONS:
        assert both(network_of(3, activation), *problem(), batches(0, 0, 50, 2, N)) < 1e-12


def test_fused_is_autograd_however_the_steps_are_divided_among_calls(updates):
    for calls in (2, 7, 50):
        assert both(network_of(), *problem(), batches(0, 0, 50, 1, N), calls=calls) < 1e-12


def test_fused_is_autograd_when_threads_share_a_row(updates, monkeypatch):
    monkeypatch.setattr(matmul, "SPLIT_FROM", 1)
    for threads in (2, 4, 5):
        torch.set_num_threads(threads)
        assert both(network_of(), *problem(), batches(0, 0, 50, 1, N)) < 1e-12


@pytest.fixture
def every_shape(monkeypatch):
    """Lets small weights have the products of large ones."""
    monkeypatch.setattr(matmul, "ONEDNN_FROM", 1)
    monkeypatch.setattr(matmul, "RESHAPED_FROM", 1)
    monkeypatch.setattr(matmul, "BLOCK", 4)


@pytest.mark.parametrize("b", [1, 4, 8, 16, N])
@pytest.mark.parametrize("choice", Matmul)
def test_fused_is_autograd_in_single_precision_with_every_library(updates, every_shape, monkeypatch, choice, b):
    monkeypatch.setenv(VARIABLE, choice.label)
    network = network_of(dtype=torch.float32)
    assert both(network, *problem(dtype=torch.float32), batches(0, 0, 50, b, N)) < 2e-5


@pytest.mark.parametrize("choice", Matmul)
def test_the_three_products_are_what_they_say(every_shape, choice):
    if choice.onednn and not matmul._onednn_is_right():
        pytest.skip("oneDNN cannot be reached in this build of PyTorch")
    for threads, b, (inputs, outputs) in itertools.product(
        (1, 2, 3), (1, 2, 5, 8, 16, 20, 32, 200), ((48, 40), (5, 64), (20, 37))
    ):
        a, d, w = torch.randn(b, inputs), torch.randn(b, outputs), torch.randn(outputs, inputs)
        products = Products(choice, threads)
        z, below = torch.full((b, outputs), torch.nan), torch.full((b, inputs), torch.nan)
        updated = w.clone()
        for call in [
            *products.forward(a, w, 0.5, z),
            *products.backward(d, w, 2.0, below),
            *products.update(updated, d, a, -0.1),
        ]:
            call()
        close = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(z, 0.5 * a @ w.T, **close)
        torch.testing.assert_close(below, 2 * d @ w, **close)
        torch.testing.assert_close(updated, w - 0.1 * d.T @ a, **close)
        for call in products.forward(a, w, 0.5, z, relu=True):
            call()
        torch.testing.assert_close(z, 0.5 * (a @ w.T).relu(), **close)


@pytest.mark.parametrize("engine", [AutogradEngine, FusedEngine])
def test_parameters_are_updated_where_they_are(updates, engine):
    network = network_of()
    before = [(p, p.data_ptr(), p.detach().clone()) for p in network.parameters()]
    engine(Problem(network, *problem()), 0.1).run(batches(0, 0, 7, 1, N))
    for now, (parameter, place, value) in zip(network.parameters(), before, strict=True):
        assert now is parameter
        assert now.data_ptr() == place
        assert not torch.equal(now, value)
        assert now.requires_grad
    network(problem()[0]).sum().backward()  # it can still be trained in the ordinary way


def test_two_runs_give_the_same_bits(updates):
    results = []
    for _ in range(2):
        network = network_of(dtype=torch.float32)
        FusedEngine(Problem(network, *problem(dtype=torch.float32)), 0.1).run(batches(0, 0, 50, 2, N))
        results.append(network)
    assert difference(*results) == 0


def frozen():
    network = network_of()
    next(network.parameters()).requires_grad_(False)
    return network


def tied():
    layer = NTKLinear(INPUTS, INPUTS)
    return nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer).double()


def watched():
    network = network_of()
    network[1].register_forward_hook(lambda *_: None)
    return network


class Doubled(models.mlp.MLP):
    def forward(self, x):
        return 2 * super().forward(x)


UNKNOWN = {
    "another architecture": lambda: models.build(resnet(), 4, (1, 8, 8), 3, 0),
    "a linearization": lambda: Linearized(network_of()),
    "a subclass": lambda: Doubled(24, INPUTS, OUTPUTS),
    "biases": lambda: nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, OUTPUTS)),
    "another activation": lambda: nn.Sequential(nn.Flatten(), NTKLinear(INPUTS, 8), nn.SiLU(), NTKLinear(8, OUTPUTS)),
    "an approximation": lambda: nn.Sequential(NTKLinear(INPUTS, 8), nn.GELU("tanh"), NTKLinear(8, OUTPUTS)),
    "no activation": lambda: nn.Sequential(nn.Flatten(), NTKLinear(INPUTS, 8), NTKLinear(8, OUTPUTS)),
    "a frozen weight": frozen,
    "a tied weight": tied,
    "a hook": watched,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_fused_refuses_what_it_does_not_know_and_auto_takes_autograd(name):
    network = UNKNOWN[name]()
    assert build("auto", Problem(network, *problem()), 0.1).name == "autograd"
    with pytest.raises(InputError, match=r"engine='fused' knows .* and not this \w+: set engine='auto'\.$"):
        build("fused", Problem(network, *problem()), 0.1)


def test_auto_takes_fused_for_fully_connected_networks():
    for network in (network_of(), network_of(0), nn.Sequential(NTKLinear(4, 3), nn.Tanh(), NTKLinear(3, 2))):
        assert choose(network, problem()[0]) == "fused"
    assert build("auto", Problem(network_of(), *problem()), 0.1).name == "fused"
    assert build("autograd", Problem(network_of(), *problem()), 0.1).name == "autograd"


def test_every_engine_and_library_says_where_it_wins():
    assert all(kind.wins.startswith("on ") for kind in (*ENGINES.values(), *Matmul))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_graph_needs_a_gpu():
    with pytest.raises(InputError, match=r"needs a GPU.*: set engine='auto'\.$"):
        build("graph", Problem(network_of(), *problem()), 0.1)


def test_an_unknown_engine_is_refused_with_its_names():
    axes = {"models": [mlp()], "widths": [8], "batch_sizes": [1], "stepsizes": [fixed(0.1)], "iterations": 2}
    with pytest.raises(InputError, match=f"engine='fast': use one of auto, {', '.join(ENGINES)}\\.$"):
        Sweep("s", "digits", **axes, engine="fast")


def test_the_engine_is_no_part_of_a_cells_identity():
    axes = {"models": [mlp()], "widths": [8], "batch_sizes": [1], "stepsizes": [fixed(0.1)], "iterations": 2}
    ids = {Sweep("s", "digits", **axes, engine=engine).cells(10, 0)[0].cell_id for engine in ("auto", *ENGINES)}
    assert len(ids) == 1


@pytest.mark.parametrize(("asked", "got"), [("auto", "fused"), ("fused", "fused"), ("autograd", "autograd")])
def test_a_trial_records_engine_and_library(make_cell, asked, got):
    cell = make_cell()
    job = Job("s", cell.init, cell, engine=asked)
    row, *_ = run_trial(Job("s", cell.init, cell, statistics=compute_statistics(job), engine=asked))
    assert (row["engine"], row["matmul"]) == (got, "torch")  # in double precision


def test_bfloat16_is_near_full_precision_and_another_cell(make_cell):
    full, half = (make_cell(dtype="float32", batch_size=50, iterations=30) for _ in range(2))
    half = replace(half, precision="bfloat16")
    assert half.cell_id != full.cell_id
    assert half.init.init_id == full.init.init_id  # the statistics are those of full precision
    statistics = compute_statistics(Job("s", full.init))
    rows = [run_trial(Job("s", cell.init, cell, statistics=statistics))[0] for cell in (full, half)]
    assert [row["precision"] for row in rows] == ["full", "bfloat16"]
    assert [row["engine"] for row in rows] == ["fused", "autograd"]
    assert rows[1]["h"] != rows[0]["h"]
    assert rows[1]["h"] == pytest.approx(rows[0]["h"], rel=0.05)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"precision": "half"}, "use one of full, tf32, bfloat16"),
        ({"precision": "bfloat16", "dtype": "float64"}, "set one of them"),
        ({"precision": "bfloat16", "engine": "fused"}, "set engine='auto' or precision='full'"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused(fields, words):
    axes = {"models": [mlp(1)], "widths": [4], "batch_sizes": [1], "stepsizes": [fixed(1)]}
    with pytest.raises(InputError, match=words):
        Sweep(name="s", dataset="digits", iterations=1, **axes, **fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tf32_needs_a_gpu(make_cell):
    with pytest.raises(InputError, match="precision='tf32' needs a GPU"):
        run_trial(Job("s", make_cell().init, replace(make_cell(), precision="tf32", stepsize=fixed(0.01))))


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_trial_killed_between_blocks_ends_in_the_same_bits(make_cell, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(fused, "DEFER_FROM", 1)
    cell = make_cell(batch_size=1, dtype="float32")
    plain = Job("s", cell.init, cell)
    plain = Job("s", cell.init, cell, statistics=compute_statistics(plain))
    whole, *_ = run_trial(plain)
    job = Job("s", cell.init, cell, plain.statistics, checkpoints=str(tmp_path), checkpoint_seconds=1e-9)
    calls = itertools.count()

    def killed(*arguments, advance=trial_module._advance):
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        advance(*arguments)

    monkeypatch.setattr(trial_module, "STEPS_AT_ONCE", 4)  # a few steps at a time, so that there is a between
    expected, *_ = run_trial(plain)
    with monkeypatch.context() as patch:
        patch.setattr(trial_module, "_advance", killed)
        with pytest.raises(KeyboardInterrupt):
            run_trial(job)
    resumed, *_ = run_trial(job)
    assert resumed["attempts"] == 2
    assert resumed["distance_from_init"] == expected["distance_from_init"]
    assert resumed["distance_from_init"] == pytest.approx(whole["distance_from_init"], rel=1e-5)


@pytest.mark.parametrize(
    ("vendor", "family", "wide", "choice"),
    [
        ("AuthenticAMD", 25, True, Matmul.ONEDNN),
        ("AuthenticAMD", 26, True, Matmul.ONEDNN_ALL),
        ("AuthenticAMD", 23, False, Matmul.TORCH),
        ("GenuineIntel", 6, True, Matmul.MKL),
        ("GenuineIntel", 6, False, Matmul.TORCH),
        ("", 0, False, Matmul.TORCH),
    ],
)
def test_the_library_follows_from_the_processor(vendor, family, wide, choice):
    assert backend_for_cpu(vendor, family, wide) is choice


def test_the_library_can_be_overridden_in_single_precision_only(monkeypatch):
    monkeypatch.setenv(VARIABLE, "torch")
    assert matmul.choose(torch.float32, torch.device("cpu")) is Matmul.TORCH
    monkeypatch.setattr(matmul, "_onednn_is_right", lambda: True)
    monkeypatch.setenv(VARIABLE, "onednn")
    assert matmul.choose(torch.float32, torch.device("cpu")) is Matmul.ONEDNN
    assert matmul.choose(torch.float64, torch.device("cpu")) is Matmul.TORCH
    monkeypatch.setenv(VARIABLE, "blas")
    known = "torch, mkl, onednn, onednn_all"
    with pytest.raises(InputError, match=rf"RAYSAT_MATMUL='blas': use one of {known}, or unset it\.$"):
        matmul.choose(torch.float32, torch.device("cpu"))


def test_where_onednn_cannot_be_reached_or_is_wrong_the_library_is_pytorchs_own(monkeypatch):
    def unreachable(*arguments):
        raise RuntimeError

    for stand_in in (unreachable, lambda a, w: (a.bfloat16() @ w.bfloat16().T).float()):
        monkeypatch.setattr(matmul, "_linear", stand_in)
        assert not matmul._onednn_is_right.__wrapped__()


@pytest.fixture
def pretend_graphs(monkeypatch):
    """An engine whose iterations a stand-in for CUDA graphs records, and what is being recorded."""
    recording = []

    class Graph:
        def replay(self):
            self.iterations()

    @contextmanager
    def record(graph):
        recording.append(graph)
        try:
            yield
        finally:
            recording.pop()

    class Recorded(AutogradEngine):
        def run(self, chosen):
            if recording:
                recording[-1].iterations = lambda: AutogradEngine.run(self, chosen)
            else:
                super().run(chosen)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    return Recorded, recording


@pytest.mark.parametrize("steps", [1, 31, 32, 63, 100])
def test_graph_takes_every_step_once(pretend_graphs, steps):
    def captured(*arguments):
        return GraphEngine(pretend_graphs[0](*arguments))

    for calls in (1, 2):
        assert both(network_of(), *problem(), batches(0, 0, steps, 3, N), other=captured, calls=calls) == 0


def test_what_cannot_be_recorded_is_refused_or_run_without_a_graph(pretend_graphs, caplog):
    recorded, recording = pretend_graphs

    class Reading(recorded):
        def run(self, chosen):
            if recording:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            super().run(chosen)

    chosen = batches(0, 0, 64, 3, N)
    with pytest.raises(InputError, match=r"cannot record MLP \(operation .* capturing\): set engine='autograd'\.$"):
        GraphEngine(Reading(Problem(network_of(), *problem()), 0.1)).run(chosen)

    def optional(*arguments):
        return GraphEngine(Reading(*arguments), optional=True)

    assert both(network_of(), *problem(), chosen, other=optional, calls=2) == 0
    assert "launched one by one" in caplog.text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("inner", [AutogradEngine, FusedEngine])
@pytest.mark.parametrize("b", [1, 3, N])
def test_graph_is_autograd_in_double_precision(b, inner):
    x, y, loss = problem()
    network = network_of().cuda()

    def captured(*arguments):
        return GraphEngine(inner(*arguments))

    assert both(network, x.cuda(), y.cuda(), loss, batches(0, 0, 100, b, N, device="cuda"), other=captured) < 1e-12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("model", [resnet(depth=10), gpt(1, 2)])
def test_graph_is_autograd_for_other_networks(model):
    shape, outputs, loss = ((3, 8, 8), 4, "mse") if model.builder == "resnet" else ((8,), 11, "cross_entropy")
    if loss == "mse":
        x, y = torch.randn(N, *shape).double().cuda(), torch.randn(N, outputs).double().cuda()
    else:
        x, y = torch.randint(outputs, (2, N, *shape)).cuda()
    network = models.build(model, 8, shape, outputs, seed=0).double().cuda()
    chosen = batches(0, 0, 64, 3, N, device="cuda")
    assert both(network, x, y, LOSSES[loss], chosen, 0.01, lambda *a: GraphEngine(AutogradEngine(*a))) < 1e-12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the processor's memory is its own")
@pytest.mark.parametrize("engine", ["autograd", "graph"])
def test_nothing_is_copied_to_the_host_in_the_loop(engine):
    x, y, loss = (part.cuda() if isinstance(part, torch.Tensor) else part for part in problem())
    network = network_of().cuda()
    taker = build(engine, Problem(network, x, y, loss), 0.1)
    chosen = batches(0, 0, 64, 3, N, device="cuda")
    taker.run(chosen)  # of the first run a graph is made
    before = copy.deepcopy(network)
    torch.cuda.set_sync_debug_mode("error")  # a copy to the host raises
    try:
        taker.run(chosen)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert difference(network, before) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_what_a_graph_cannot_record_is_refused_or_run_without_one():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network_of()

        def forward(self, x):
            return self.network(x) * (1 + 0 * x.sum().item())

    x, y, loss = problem()
    data = x.cuda(), y.cuda(), loss
    chosen = batches(0, 0, 64, 3, N, device="cuda")
    with pytest.raises(InputError, match=r"set engine='autograd'\.$"):
        build("graph", Problem(Reading().cuda(), *data), 0.1).run(chosen)
    engine = build("auto", Problem(Reading().cuda(), *data), 0.1)
    engine.run(chosen)
    assert engine.name == "autograd"
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


COMPILED = """
import copy, torch
from raysat import gpt, models
from raysat.losses import LOSSES
from raysat.sgd.engine import Problem, build
from raysat.sgd.sampler import batches

torch.set_num_threads(1)
x, y = torch.randint(0, 10, (20, 8)), torch.randint(0, 10, (20, 8))
network = models.build(gpt(heads=2, layers=1), 8, (8,), 10, 0).double()
start, reference = copy.deepcopy(network), copy.deepcopy(network)
for name, taken in (("compiled", network), ("autograd", reference)):
    engine = build(name, Problem(taken, x, y, LOSSES["cross_entropy"]), 0.1)
    if name == "compiled":
        engine.compile_for(2)
        assert all(map(torch.equal, taken.parameters(), start.parameters()))
    engine.run(batches(0, 0, 50, 2, 20))
    print(engine.name)
def distance(a, b):
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))
print(distance(network, reference), distance(network, start))
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler")
def test_compiled_is_autograd_in_double_precision():
    """In a process of its own: signatures that are checked cannot be compiled."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=True)
    *names, numbers = done.stdout.splitlines()
    off, moved = map(float, numbers.split())
    assert names == ["compiled", "autograd"]
    assert off < 1e-12
    assert moved > 1e-3


def test_without_a_compiler_the_engine_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler, such as g\+\+: install one, or set engine='auto'"):
        build("compiled", Problem(network_of(), *problem()), eta=0.1)
