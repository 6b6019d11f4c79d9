"""Dense float64 references, written as plainly as possible, that the package's results are held against."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def jacobians(network: nn.Module, x: Tensor) -> Tensor:
    """J_i of every sample by one backward pass an output and a sample. Shape: [n, C, p]."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    rows = []
    for sample in x:
        outputs = network(sample[None])[0]
        for output in outputs:
            gradients = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(gradients, parameters, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return torch.stack(rows).view(len(x), -1, sum(p.numel() for p in parameters)).detach()


def statistics(
    network: nn.Module, x: Tensor, y: Tensor, loss: str | Callable[[Tensor, Tensor], Tensor] = "mse"
) -> dict[str, float]:
    """Every NTK statistic from the Jacobians themselves; a loss by name, or as a function of one sample."""
    if loss != "mse":
        return _gauss_newton(network, x, y, nn.functional.cross_entropy if loss == "cross_entropy" else loss)
    j = jacobians(network, x)
    n, outputs, p = j.shape
    operator_norms = torch.linalg.matrix_norm(j, ord=2) ** 2
    flat = j.reshape(n * outputs, p)
    k_op = torch.linalg.eigvalsh(flat @ flat.T / n)[-1].item()
    residual = (network(x) - y).detach()
    gradients = torch.einsum("ncp,nc->np", j, residual)
    mean = gradients.mean(0)
    spread = (gradients - mean).square().sum(1).mean()
    gamma = operator_norms.max().item()
    return {
        "loss_init": (residual.square().sum() / (2 * n)).item(),
        "gamma": gamma,
        "gamma_mean": operator_norms.mean().item(),
        "gamma_frobenius": j.square().sum((1, 2)).max().item(),
        "k_op": k_op,
        "b_star": gamma / k_op,
        "b_star_thm33": 4 * gamma / k_op,
        "noise_scale": (spread / mean.square().sum()).item(),
    }


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


def _gauss_newton(
    network: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, float]:
    """The same for other losses: each Jacobian behind the symmetric square root of the Hessian of its sample."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    rows, gradients, losses = [], [], []
    for sample, target in zip(x, y, strict=True):
        outputs = network(sample[None])[0]
        flat = outputs.flatten()
        j = [torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True) for value in flat]
        jacobian = torch.stack([torch.cat([part.flatten() for part in row]) for row in j])

        def value(z, target=target, shape=outputs.shape):
            return loss(z.view(shape), target)

        hessian = torch.func.hessian(value)(flat.detach())
        values, vectors = torch.linalg.eigh(hessian)
        root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
        rows.append(root @ jacobian)
        gradients.append(jacobian.T @ torch.func.grad(value)(flat.detach()))
        losses.append(value(flat).item())
    weighed, gradients = torch.stack(rows), torch.stack(gradients)
    n, size, p = weighed.shape
    flat = weighed.reshape(n * size, p)
    k_op = torch.linalg.eigvalsh(flat @ flat.T / n)[-1].item()
    gamma = (torch.linalg.matrix_norm(weighed, ord=2) ** 2).max().item()
    mean = gradients.mean(0)
    return {
        "loss_init": sum(losses) / n,
        "gamma": gamma,
        "gamma_mean": (torch.linalg.matrix_norm(weighed, ord=2) ** 2).mean().item(),
        "gamma_frobenius": weighed.square().sum((1, 2)).max().item(),
        "k_op": k_op,
        "b_star": gamma / k_op,
        "noise_scale": ((gradients - mean).square().sum(1).mean() / mean.square().sum()).item(),
    }
