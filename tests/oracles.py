"""Dense float64 references, written as plainly as possible, that the package's results are held against."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from raysat.data.fields import Fields, Inputs


def jacobians(network: nn.Module, x: Inputs) -> Tensor:
    """J_i of every sample by `.backward()`, one sample and one output at a time. Shape: [n, outputs, p].

    Nothing else is asked of autograd. Each pass starts from the same weights, buffers and gradients, which is how the
    network is left: a network may change them as it runs.
    """
    state = {name: tensor.detach().clone() for name, tensor in _state(network)}
    parameters = [p for p in network.parameters() if p.requires_grad]
    kept = [p.grad for p in parameters]
    rows, outputs = [], math.inf
    for i in range(len(x)):
        c = 0
        while c < outputs:
            for p in parameters:
                p.grad = None
            values = network(_sample(x, i)).flatten()
            outputs = len(values)
            if values[c].requires_grad:
                values[c].backward()
            rows.append(torch.cat([_dense(p).flatten() for p in parameters]))
            with torch.no_grad():
                for name, tensor in _state(network):
                    tensor.copy_(state[name])
            c += 1
    for p, gradient in zip(parameters, kept, strict=True):
        p.grad = gradient
    return torch.stack(rows).view(len(x), outputs, -1)


def _state(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _sample(x: Inputs, i: int) -> Inputs:
    """One sample, of its own memory: a network may change its input in place."""
    sample = x[i : i + 1]
    return sample.map(Tensor.clone) if isinstance(sample, Fields) else sample.clone()


def _dense(p: nn.Parameter) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p)
    return p.grad.to_dense() if p.grad.is_sparse else p.grad


def outputs(network: nn.Module, x: Inputs) -> Tensor:
    """f(w, x_i) of every sample, one at a time, the network left as it was."""
    state = {name: tensor.detach().clone() for name, tensor in _state(network)}
    found = []
    for i in range(len(x)):
        found.append(network(_sample(x, i)).detach())
        with torch.no_grad():
            for name, tensor in _state(network):
                tensor.copy_(state[name])
    return torch.cat(found)


def statistics(
    network: nn.Module, x: Inputs, y: Tensor, loss: str | Callable[[Tensor, Tensor], Tensor] = "mse"
) -> dict[str, float]:
    """Every NTK statistic from the Jacobians themselves, each behind the root of the Hessian of its sample's loss.

    The loss is one by name, or a function of a sample's outputs and target.
    """
    by_name = {"mse": _squared_error, "cross_entropy": nn.functional.cross_entropy}
    function = by_name[loss] if isinstance(loss, str) else loss
    values, j = outputs(network, x), jacobians(network, x)
    weighed, gradients, losses = [], [], []
    for i in range(len(x)):

        def value(z, i=i):
            return function(z.view(values.shape[1:]), y[i])

        z = values[i].flatten()
        eigenvalues, vectors = torch.linalg.eigh(torch.func.hessian(value)(z))
        root = vectors @ torch.diag(eigenvalues.clamp_min(0).sqrt()) @ vectors.T
        weighed.append(root @ j[i])
        gradients.append(j[i].T @ torch.func.grad(value)(z))
        losses.append(value(z).item())
    weighed, gradients, n = torch.stack(weighed), torch.stack(gradients), len(x)
    operator_norms = torch.linalg.eigvalsh(weighed @ weighed.mT)[:, -1]
    flat = weighed.flatten(0, 1)
    flat = flat if len(flat) < flat.shape[1] else flat.T  # of both products the smaller
    gamma, k_op = operator_norms.max().item(), torch.linalg.eigvalsh(flat @ flat.T)[-1].item() / n
    mean = gradients.mean(0)
    return {
        "loss_init": sum(losses) / n,
        "gamma": gamma,
        "gamma_mean": operator_norms.mean().item(),
        "gamma_frobenius": weighed.square().sum((1, 2)).max().item(),
        "k_op": k_op,
        "b_star": gamma / k_op,
        "b_star_thm33": 4 * gamma / k_op,
        "noise_scale": ((gradients - mean).square().sum(1).mean() / mean.square().sum()).item(),
    }


def _squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square().sum() / 2


def least_squares_recursion(x: np.ndarray, errors: np.ndarray, eta: float, b: int, steps: int) -> np.ndarray:
    """The exact E L(w_t) of SGD on least squares, t = 0..steps, for batches of b distinct samples.

    With e = w - w_bar and H = E x x^T, one step is e <- (I - eta H_S) e, H_S the batch's second moment, so that
    M = E e e^T obeys M <- M - eta (H M + M H) + eta^2 E[H_S M H_S]. Of the pairs (i, j) in S, the diagonal ones have
    weight 1/b and the others (b-1)/b, each other pair of distinct samples being equally likely.

    Args:
        x: The n samples. Shape: [n, d].
        errors: w_0 - w_bar, one row a run. Shape: [runs, d].
        eta: Stepsize.
        b: Batch size.
        steps: T.
    """
    n = len(x)
    h = x.T @ x / n
    m = errors.T @ errors / len(errors)
    losses = [np.trace(h @ m) / 2]
    for _ in range(steps):
        own = np.einsum("ni,n,nj->ij", x, np.einsum("ni,ij,nj->n", x, m, x), x) / n
        pairs = h @ m @ h if n == 1 else (n * h @ m @ h - own) / (n - 1)
        m = m - eta * (h @ m + m @ h) + eta**2 * (own / b + (b - 1) / b * pairs)
        losses.append(np.trace(h @ m) / 2)
    return np.array(losses)


def normal_sgd(
    eigenvalues: np.ndarray,
    start: np.ndarray,
    eta: float,
    b: int,
    steps: int,
    runs: int,
    outputs: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """The losses of runs of SGD whose samples are drawn anew for each batch, with normal entries of eigenvectors.

    A sample's residual is `g a`, g the entries of the eigenvectors there, `[outputs, eigenvalues]` of variance
    1/outputs, a the residual's coefficients, and one step is `a <- a - eta diag(eigenvalues) mean_s g_s^T g_s a`.

    Args:
        eigenvalues: Of K.
        start: The coefficients at the start, by sample: their squares sum to 2 L.
        eta: Stepsize.
        b: Batch size.
        steps: T.
        runs: How many.
        outputs: C.
        seed: Of the draws.

    Returns:
        A row an iteration, a column a run.
    """
    draw = np.random.default_rng(seed)
    a = np.tile(start, (runs, 1))
    losses = [(a**2).sum(1) / 2]
    for _ in range(steps):
        g = draw.normal(size=(runs, b, outputs, len(start))) / math.sqrt(outputs)
        residuals = np.einsum("rbck,rk->rbc", g, a)
        a = a - eta * eigenvalues * np.einsum("rbck,rbc->rk", g, residuals) / b
        losses.append((a**2).sum(1) / 2)
    return np.array(losses)


def least_squares_sgd(
    x: np.ndarray, error: np.ndarray, eta: float, b: int, steps: int, runs: int, seed: int = 0
) -> np.ndarray:
    """The losses of runs of SGD on least squares, with batches of b distinct samples.

    Args:
        x: The samples. Shape: [n, d].
        error: w_0 - w_bar. Shape: [d].
        eta: Stepsize.
        b: Batch size.
        steps: T.
        runs: How many.
        seed: Of the batches.

    Returns:
        A row an iteration, a column a run.
    """
    draw, n, w = np.random.default_rng(seed), len(x), np.tile(error, (runs, 1))
    losses = [((w @ x.T) ** 2).sum(1) / (2 * n)]
    for _ in range(steps):
        batch = np.argsort(draw.random((runs, n)), axis=1)[:, :b]
        w = w - eta / b * np.einsum("rbd,rb->rd", x[batch], np.einsum("rbd,rd->rb", x[batch], w))
        losses.append(((w @ x.T) ** 2).sum(1) / (2 * n))
    return np.array(losses)


def geometric_steps(losses: np.ndarray, eps: float) -> tuple[float, float]:
    """The geometric mean over runs of the first iteration at which the loss is at most eps, and its relative error.

    Args:
        losses: A row an iteration, a column a run; log L is linear between them.
        eps: The target, which every run reaches.
    """
    logs = []
    for path in losses.T:
        k = int(np.argmax(path <= eps))
        assert path[k] <= eps < path[0]
        logs.append(math.log(k - 1 + math.log(path[k - 1] / eps) / math.log(path[k - 1] / path[k])))
    return math.exp(np.mean(logs)), float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
