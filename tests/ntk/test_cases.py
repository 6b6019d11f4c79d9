"""Valid uses that once gave a wrong number, a traceback or no answer, from public reports on other tools."""

import subprocess
import sys

import numpy as np
import oracles
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zoo.attention import Heads
from zoo.case import Wired
from zoo.recurrent import Recurrent
from zoo.shapes import Placed

from raysat import ntk_statistics
from raysat.errors import InputError
from raysat.ntk import dense_kernel
from raysat.sweep import main

QUANTITIES = ("gamma", "gamma_mean", "k_op", "b_star", "noise_scale")


def assert_right(network, x, y, loss="mse", **options):
    """Compare the statistics with the oracle, to 1e-6 in float64 and to 2e-4 in float32, at the same weights."""
    double = x.double() if x.is_floating_point() else x
    target = y.double() if y.is_floating_point() else y
    expected = oracles.statistics(
        network.double(), double, target.long() if not y.is_floating_point() else target, loss
    )
    for dtype, slack in ((torch.float64, 1e-6), (torch.float32, 2e-4)):
        cast = [t.to(dtype) if t.is_floating_point() else t for t in (x, y)]
        found = ntk_statistics(network.to(dtype), *cast, loss=loss, k_tolerance=1e-9, **options)
        for name in QUANTITIES:
            assert getattr(found, name) == pytest.approx(expected[name], rel=slack), (name, dtype, found.method)


# opacus#841: a position embedding looked up once for the whole batch


@pytest.mark.parametrize("place", ["[t]", "[1, t]"])
def test_positions_looked_up_once_for_all_samples(place):
    torch.manual_seed(0)
    x = torch.randint(0, 7, (10, 4))
    assert_right(Placed(place, classes=7), x, torch.eye(7)[torch.randint(0, 7, (10,))])


@pytest.mark.parametrize("n", [4, 8])
def test_b_star_with_positions_is_not_n_times_too_large(n):
    """The layer is applied once for all samples: a gamma that added their gradients would grow with n."""
    torch.manual_seed(0)
    network, token = Placed("[1, t]").double(), torch.randint(0, 7, (1, 4))
    found = ntk_statistics(network, token.expand(n, -1), k_tolerance=1e-9)
    assert found.b_star == pytest.approx(1.0, rel=1e-9)


# pytorch/vision#807: ReLU(inplace=True) after each layer and x += shortcut


def convolutions(inplace, width=6, side=8):
    layers = [nn.Conv2d(1, width, 3), nn.ReLU(inplace), nn.Conv2d(width, width, 3), nn.ReLU(inplace)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * (side - 4) ** 2, 3))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        out = self.two(torch.relu(self.one(x)))
        out += x
        return self.head(torch.relu_(out))


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_in_place(inplace):
    torch.manual_seed(0)
    assert_right(convolutions(inplace), torch.randn(8, 1, 8, 8), torch.randn(8, 3))


def test_a_shortcut_added_in_place():
    torch.manual_seed(0)
    assert_right(Residual(), torch.randn(8, 4), torch.randn(8, 3))


def test_relu_in_place_takes_no_other_way_than_relu():
    """Tensors changed in place are copied, and no per-sample Jacobian is formed, even for many samples."""
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        network, x, y = convolutions(inplace, 16), torch.randn(256, 1, 8, 8), torch.randn(256, 3)
        found.append(ntk_statistics(network, x, y))
    plain, changed = found
    assert changed.method == plain.method == "gram"
    for name in QUANTITIES:
        assert getattr(changed, name) == pytest.approx(getattr(plain, name), rel=1e-4), name


# The dense kernel: lambda_min, gamma_tight


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4, bias=False), nn.Linear(4, 1)

    def forward(self, x):
        return self.outer(torch.tanh(F.linear(torch.tanh(self.inner(x)), self.inner.weight)))


def perceptron(inplace):
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace), nn.Linear(8, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "build", [lambda: perceptron(False), lambda: perceptron(True), Tied], ids=["plain", "in place", "weight again"]
)
def test_the_dense_kernel_and_what_is_read_from_it(build, dtype):
    torch.manual_seed(0)
    network, x, y = build().double(), torch.randn(12, 4).double(), torch.randn(12, 1).double()
    rows = oracles.jacobians(network, x).flatten(0, 1)
    kernel = rows @ rows.T / 12
    values = torch.linalg.eigvalsh(kernel)
    # Eq. 3.2, u^T D u <= gamma u^T u for all u in the range of the rows, D their squared norms.
    left, sizes, _ = torch.linalg.svd(rows, full_matrices=False)
    left = left[:, sizes > 1e-9 * sizes[0]]
    tight = torch.linalg.eigvalsh(left.T @ torch.diag(rows.square().sum(1)) @ left)[-1].item()
    found = ntk_statistics(network.to(dtype), x.to(dtype), y.to(dtype), dense_samples=12, k_tolerance=1e-9)
    slack = 1e-6 if dtype == torch.float64 else 2e-4
    assert found.lambda_min == pytest.approx(values[0].item(), rel=slack, abs=slack * values[-1].item())
    assert found.gamma_tight <= found.gamma * (1 + slack)
    assert found.gamma_tight == pytest.approx(tight, rel=slack)
    torch.testing.assert_close(
        dense_kernel(network, x.to(dtype)).double(), kernel, rtol=slack, atol=slack * values[-1].item()
    )
    assert found.kernel_check < (1e-7 if dtype == torch.float64 else 5e-4)


@pytest.mark.parametrize("groups", [16, 8, 7, 4, 2])
def test_samples_that_come_in_turns_of_groups(groups):
    """Sensors that report in turn, with disjoint features: a start within one group of samples never leaves it."""
    torch.manual_seed(0)
    n, x = 1024, torch.zeros(1024, 8 * groups)
    for i in range(n):
        k = i % groups
        x[i, 8 * k : 8 * k + 8] = torch.randn(8) * (1 + k)
    found = ntk_statistics(nn.Linear(8 * groups, 1, bias=False), x)
    exact = torch.linalg.eigvalsh(x.T.double() @ x.double() / n)[-1].item()
    assert exact * (1 - found.k_op_residual) <= found.k_op <= exact * (1 + 1e-5)
    assert found.k_op_residual <= 1e-3
    assert found.k_op_upper >= exact * (1 - 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_tight_gamma_of_a_kernel_without_full_rank(dtype):
    """Rounding errors in float32 do not count as the range of K."""
    torch.manual_seed(0)
    n, d = 200, 20
    x = torch.randn(n, d, dtype=torch.float64) * torch.logspace(0, -1, d, dtype=torch.float64)
    x[0] *= 3
    second, fourth = x.T @ x / n, (x * x.square().sum(1, keepdim=True)).T @ x / n
    exact = torch.linalg.eigvals(torch.linalg.solve(second, fourth)).real.max().item()
    found = ntk_statistics(nn.Linear(d, 1, bias=False).to(dtype), x.to(dtype), dense_samples=n)
    assert found.gamma_tight == pytest.approx(exact, rel=1e-6 if dtype == torch.float64 else 1e-4)
    assert abs(found.lambda_min) <= 1e-6 * found.k_op


# Laplace#144, pytorch/pytorch#7455: kinds of targets under the cross-entropy


def labelled():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    labels = torch.arange(12) % 3
    return network, torch.randn(12, 4), labels, torch.eye(3)[labels]


TARGETS = {
    "int64": lambda labels, hot: labels,
    "int32": lambda labels, hot: labels.int(),
    "int16": lambda labels, hot: labels.short(),
    "uint8": lambda labels, hot: labels.to(torch.uint8),
    "one-hot": lambda labels, hot: hot,
    "label smoothing": lambda labels, hot: hot * 0.9 + 0.1 / 3,
    "class weights": lambda labels, hot: hot * torch.tensor([1.0, 2, 10]),
    "multi-hot": lambda labels, hot: (torch.rand(12, 3) > 0.4).float(),
    "a class missing": lambda labels, hot: torch.eye(3)[labels % 2],
}


@pytest.mark.parametrize("kind", TARGETS)
def test_kinds_of_targets_under_the_cross_entropy(kind):
    network, x, labels, hot = labelled()
    assert_right(network, x, TARGETS[kind](labels, hot), loss="cross_entropy")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda labels: labels + 1, "3"),
        (lambda labels: torch.where(labels == 2, -100, labels), "-100"),
        (lambda labels: labels - 1, "-1"),
        (lambda labels: labels.bool(), "bool"),
    ],
    ids=["1..C", "ignore_index", "from -1", "bool"],
)
def test_labels_outside_of_the_classes_are_one_sentence(change, words):
    network, x, labels, _ = labelled()
    with pytest.raises(InputError, match=words) as error:
        ntk_statistics(network, x, change(labels), loss="cross_entropy")
    assert len(str(error.value).splitlines()) == 1


# pytorch/functorch#1089, pytorch/pytorch#103161, #134606: recurrent classifiers


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
def test_recurrent_classifiers(kind):
    torch.manual_seed(0)
    x, y = torch.randn(6, 5, 3), torch.eye(2)[torch.arange(6) % 2]
    assert_right(Recurrent(kind, batch_first=True), x, y)


# pytorch/pytorch#116350, #181177, #102457: scaled dot-product attention


@pytest.mark.parametrize("memory", [1, 1 << 30])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("outputs", [3, 200])
def test_attention(outputs, causal, memory):
    torch.manual_seed(0)
    n = 6 if outputs == 3 else 4
    assert_right(Heads(5, outputs=outputs, causal=causal), torch.randn(n, 5, 8), torch.randn(n, outputs), memory=memory)


ATTENTION = """
import resource, torch
from torch import nn
from torch.nn import functional as F
from raysat import ntk_statistics

torch.set_num_threads(1)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.qkv = nn.Linear(8, 32), nn.Linear(32, 96)
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x):
        h = self.inner(x)
        q, k, v = self.qkv(h).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        {attend}
        return self.head(h + self.out(z.transpose(1, 2).flatten(2))).mean(1)

torch.manual_seed(0)
network, x, y = Block(), torch.randn({n}, 64, 8), torch.randn({n}, 3)
ntk_statistics(network, x[:8], y[:8], memory=1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ntk_statistics(network, x, y, memory=1 << 26, k_tolerance=0.05)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize(
    "attend",
    ["z = F.scaled_dot_product_attention(q, k, v, is_causal=True)", "z = torch.softmax(q @ k.mT / 8**0.5, -1) @ v"],
    ids=["SDPA", "written out"],
)
def test_attention_keeps_within_the_memory(attend):
    """The attention weights, [n, heads, t, t], are no layer's output: an estimate from layers alone would miss them."""
    code = ATTENTION.format(attend=attend, n=1024)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.5 * 64


# opacus#650, #505: layers whose first dimension is not the batch


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x.transpose(0, 1))).mean(0))


class Folded(SequenceFirst):
    def forward(self, x):
        n, t, d = x.shape
        return self.head(torch.tanh(self.inner(x.reshape(n * t, d))).view(n, t, -1).mean(1))


class Patches(SequenceFirst):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv1d(1, 6, 3)

    def forward(self, x):
        n, t, d = x.shape
        return self.head(torch.tanh(self.inner(x.reshape(n * t, 1, d))).view(n, t, -1).mean(1))


@pytest.mark.parametrize("kind", [SequenceFirst, Folded, Patches], ids=lambda kind: kind.__name__)
def test_a_first_dimension_that_is_not_the_batch(kind):
    torch.manual_seed(0)
    assert_right(kind(), torch.randn(8, 5, 3), torch.randn(8, 2))


# pytorch/rl#1935, #2313, pytorch/pytorch#96655: dropout in the default mode of a new network


@pytest.mark.parametrize("outputs", [3, 200])
def test_dropout_in_training_mode_is_turned_off_alone(outputs):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, outputs))
    x, y = torch.randn(16, 4), torch.randn(16, outputs)
    one, two = (ntk_statistics(network, x, y) for _ in range(2))
    assert one.off == two.off == "2"
    assert all(module.training for module in network.modules())
    off = ntk_statistics(network.eval(), x, y)
    assert off.off == ""
    for name in QUANTITIES:
        assert getattr(one, name) == getattr(two, name) == getattr(off, name), name
    expected = oracles.statistics(network.double(), x.double(), y.double())
    for name in QUANTITIES:
        assert getattr(off, name) == pytest.approx(expected[name], rel=1e-3), name


def test_what_draws_without_a_flag_is_refused():
    network = Wired(lambda self, x: self.head(F.dropout(self.one(x))), one=nn.Linear(4, 4), head=nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"training=self\.training"):
        ntk_statistics(network, torch.randn(6, 4))


# Sweeps


def swept(folder, name, **files):
    for file, text in files.items():
        (folder / f"{file}.py").write_text(text)
    assert main([str(folder / "my_sweep.py"), "--results", str(folder / "results"), "--inline"]) == 0
    root = folder / "results" / name
    trials, ntk = pd.read_parquet(root / "trials"), pd.read_parquet(root / "ntk")
    assert set(trials["status"]) == {"completed"}
    return trials, ntk


POSITIONS = """
import torch
from torch import nn


class Rows(nn.Module):
    def __init__(self, width, rows, columns, outputs, expand):
        super().__init__()
        self.inner, self.place = nn.Linear(columns, width), nn.Embedding(rows, width)
        self.outer = nn.Linear(width, outputs)
        self.expand = expand

    def forward(self, x):
        x = x[:, 0]
        positions = torch.arange(x.shape[1], device=x.device)[None]
        if self.expand:
            positions = positions.expand(len(x), -1)
        return self.outer(torch.relu(self.inner(x) + self.place(positions)).mean(1))


def shared(width, input_shape, outputs):
    return Rows(width, *input_shape[1:], outputs, False)


def expanded(width, input_shape, outputs):
    return Rows(width, *input_shape[1:], outputs, True)
"""
POSITION_SWEEP = """
from raysat import Sweep, theory
sweep = Sweep(name="position", dataset="digits", models=["my_nets:shared", "my_nets:expanded"], widths=[16],
              batch_sizes=[1, 8, 64], stepsizes=[theory()], n_train=100, iterations=100)
"""


def test_a_sweep_with_positions_looked_up_once(tmp_path):
    """Both networks compute the same function, so their predictions and measurements agree."""
    trials, ntk = swept(tmp_path, "position", my_nets=POSITIONS, my_sweep=POSITION_SWEEP)
    assert len(trials) == 6
    for name in ("gamma", "k_op", "b_star", "noise_scale"):
        one, other = ntk[name]
        assert one == pytest.approx(other, rel=1e-3), name
    ends = trials.pivot(index="batch_size", columns="model", values="loss_final")
    np.testing.assert_allclose(*ends.to_numpy().T, rtol=1e-2)


UNUSED = """
from torch import nn


class WithAuxiliary(nn.Module):
    def __init__(self, width, inputs, outputs):
        super().__init__()
        self.body, self.head = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.auxiliary = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())


def build(width, input_shape, outputs):
    return WithAuxiliary(width, 64, outputs)
"""
UNUSED_SWEEP = """
from raysat import Sweep, fixed
sweep = Sweep(name="unused", dataset="digits", models=["my_nets:build"], widths=[16], batch_sizes=[1, 8, 64],
              stepsizes=[fixed(0.1)], n_train=100, iterations=50)
"""


def test_a_sweep_of_a_network_with_a_part_that_forward_does_not_use(tmp_path):
    trials, ntk = swept(tmp_path, "unused", my_nets=UNUSED, my_sweep=UNUSED_SWEEP)
    assert len(trials) == 3
    assert (trials["loss_final"] < trials["loss_init"]).all()
    assert np.isfinite(ntk["b_star"]).all()


OWN = """
from pathlib import Path

import numpy as np
import torch

from raysat.data import Dataset

HERE = Path(__file__).parent


def load():
    data = np.load(HERE / "data.npz")
    return Dataset(x=torch.from_numpy(data["x"]).float(), y=torch.eye(3)[torch.from_numpy(data["y"]).long()])
"""
FILE_SWEEP = """
from raysat import Sweep, fixed, mlp
sweep = Sweep(name="file", dataset="my_own:load", models=[mlp(depth=1)], widths=[16], batch_sizes=[1, 8, 64],
              stepsizes=[fixed(0.1)], n_train=100, iterations=50)
"""


def test_a_sweep_whose_loader_finds_its_file_beside_itself(tmp_path):
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 150)
    np.savez(tmp_path / "data.npz", x=generator.normal(size=(150, 8)) + y[:, None], y=y)
    trials, _ = swept(tmp_path, "file", my_own=OWN, my_sweep=FILE_SWEEP)
    assert len(trials) == 3
    assert (trials["loss_final"] < trials["loss_init"]).all()
