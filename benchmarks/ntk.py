"""What the statistics cost, beside the ready-made ways, in one run.

    python benchmarks/ntk.py [mnist] [resnet] [gpt] [memory]

`mnist` compares with `torch.func.vmap(jacrev)` and with curvlinops' GGN operator under scipy's `eigsh`, where that is
installed: `pip install --no-deps curvlinops-for-pytorch==3.0.1 backpack-for-pytorch einconv einops linear_operator
opt-einsum tqdm`. It needs the data sets (RAYSAT_DATA). All of it takes some fifteen minutes on two cores.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version

import numpy as np
import torch

from raysat import data, gpt, mlp, models, ntk_statistics, resnet
from raysat.losses import LOSSES
from raysat.ntk import grams
from raysat.ntk.context import differentiable
from raysat.ntk.look import looked_at
from raysat.ntk.per_sample import per_sample, ways
from raysat.ntk.survey import survey
from raysat.ntk.top import top_eigenvalue


def seconds(function) -> tuple[float, object]:
    begun = time.perf_counter()
    value = function()
    return time.perf_counter() - begun, value


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def mnist() -> None:
    """MNIST, 3 x 1000, C = 10: gamma over all samples; against jacrev; k_op against curvlinops."""
    dataset = data.load("mnist")
    network = models.build(mlp(depth=3, hidden_gain=2**0.5), 1000, dataset.input_shape, dataset.outputs, seed=0)
    x = dataset.x
    mse = LOSSES["mse"]
    with looked_at(network, x, None, mse) as look, differentiable(network):
        way = next(ways(look, survey(network, look.few), None, 1 << 30))
        took, found = seconds(lambda: per_sample(network, x, None, mse, way, 1 << 30, 1e-3))
        ours = took / len(x)
        print(f"gamma over {len(x):,} samples: {took:.1f} s, gamma = {found.operator_norms.max():.4f}")

    few = 4
    parts = grams.without_rules(network, grams.jacobians)
    took, _ = seconds(lambda: [grams.grams(network, x[k : k + 1], parts) for k in range(few)])
    print(f"vmap(jacrev), {few} samples: {took / few:.3f} s a sample, {took / few / ours:.0f} times ours")

    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:4096].sort().values
    subset = x[chosen]

    def ours_top():
        with looked_at(network, x, None, mse) as look:
            return top_eigenvalue(look, mse, chosen, 1e-3, 1 << 30)

    took, top = seconds(ours_top)
    value, residual = top.value, top.residual
    print(f"k_op on 4,096 samples: {took:.1f} s, {top.products} products, {value:.6f}, residual {residual:.1e}")
    try:
        from curvlinops import GGNLinearOperator
    except ImportError:
        print("curvlinops is not installed: no comparison of k_op")
        return
    from scipy.sparse.linalg import eigsh

    loss = torch.nn.MSELoss(reduction="sum")  # its Hessian in the outputs is 2 I
    parts = [(subset[k : k + 1024], torch.zeros(1024, 10)) for k in range(0, 4096, 1024)]
    ggn = GGNLinearOperator(network, loss, list(network.parameters()), parts, check_deterministic=False)
    scale = 2 * 4096
    took_theirs, pair = seconds(lambda: eigsh(ggn.to_scipy(), k=1, which="LA", tol=1e-3))
    theirs = pair[0][0] / scale
    v = pair[1][:, 0].astype(np.float32)
    left = np.linalg.norm(ggn.to_scipy() @ v / scale - theirs * v) / theirs
    print(f"curvlinops GGN, eigsh(tol=1e-3): {took_theirs:.1f} s, {theirs:.6f}, residual {left:.1e}")
    print(f"curvlinops / ours: {took_theirs / took:.1f}")


def resnet_28() -> None:
    """ResNet-28 on CIFAR-10, 256 samples."""
    dataset = data.load("cifar10", n_train=256, preprocessing="standardize")
    network = models.build(resnet(), 16, dataset.input_shape, dataset.outputs, seed=0)
    took, found = seconds(lambda: ntk_statistics(network, dataset.x, dataset.y))
    show("ResNet-28, width 16, 256 samples", took, found)


def nanogpt() -> None:
    """The paper's NanoGPT, 32 sequences."""
    dataset = data.load("tinyshakespeare", n_train=32)
    network = models.build(gpt(), 384, dataset.input_shape, dataset.outputs, seed=0)
    took, found = seconds(lambda: ntk_statistics(network, dataset.x, dataset.y, loss="cross_entropy"))
    show("NanoGPT 6 x 6 x 384, 32 sequences", took, found)


def show(what: str, took: float, found) -> None:
    print(
        f"{what}: {took:.0f} s, peak {peak():.2f} GiB, gamma {found.gamma:.4g}, k_op {found.k_op:.4g} "
        f"(residual {found.k_op_residual:.1e}), b_star {found.b_star:.3g}, noise scale {found.noise_scale:.3g}"
    )


def memory() -> None:
    """Peak memory of the statistics as n grows tenfold, under a bound of 256 MiB; each n in a process of its own."""
    for n in (2_000, 20_000):
        code = (
            "import resource, torch; from raysat import mlp, models, ntk_statistics; torch.manual_seed(0); "
            f"x, y = torch.randn({n}, 784), torch.randn({n}, 10); "
            "net = models.build(mlp(), 1000, (784,), 10, 0); "
            "ntk_statistics(net, x[:8], y[:8]); "
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
            "ntk_statistics(net, x, y, k_samples=512, memory=1 << 28); "
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
        )
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
        print(f"n = {n:,}: peak {float(done.stdout):.0f} MiB above the data and the network, bound 256 MiB")


PARTS = {"mnist": mnist, "resnet": resnet_28, "gpt": nanogpt, "memory": memory}


def main() -> None:
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {version('torch')}, raysat {version('raysat')}"
    )
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()
