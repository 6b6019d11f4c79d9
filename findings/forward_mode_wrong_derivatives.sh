#!/usr/bin/env bash
# torch 2.13.0: forward mode is wrong for some functions whose reverse mode is right. Seen: torch.cholesky_inverse and
# scatter_reduce(..., 'prod') give other directional derivatives than central differences, by 5 and 100 percent, without an
# error; and the tangent of an embedding does not leave out padding_idx, as its gradient does.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.nn import functional as F

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def off(function, x, direction):
    _, forward = torch.func.jvp(function, (x,), (direction,))
    step = 1e-6
    central = (function(x + step * direction) - function(x - step * direction)) / (2 * step)
    y = x.clone().requires_grad_()
    cotangent = torch.randn_like(central)
    (gradient,) = torch.autograd.grad(function(y), y, cotangent)
    reverse = ((gradient * direction).sum() - (cotangent * central).sum()).abs() / (cotangent * central).sum().abs()
    return ((forward - central).norm() / central.norm()).item(), reverse.item()


factor = torch.linalg.cholesky(torch.eye(3) * 4 + torch.ones(3, 3))
inverse = off(lambda l: torch.cholesky_inverse(l.tril()), factor, torch.randn(3, 3).tril())
index = torch.tensor([0, 1, 0, 1])
product = off(lambda v: torch.ones(2).scatter_reduce(0, index, v, 'prod'), torch.tensor([1.5, 2.0, 0.5, 3.0]), torch.randn(4))
print(torch.__version__, 'forward and reverse off: cholesky_inverse', inverse, 'scatter_reduce prod', product)
assert inverse[0] > 0.01 and inverse[1] < 1e-6
assert product[0] > 0.05 and product[1] < 1e-6

weight, tokens = torch.randn(3, 2), torch.tensor([0, 1])
_, tangent = torch.func.jvp(lambda w: F.embedding(tokens, w, padding_idx=1), (weight,), (torch.ones(3, 2),))
w = weight.clone().requires_grad_()
(gradient,) = torch.autograd.grad(F.embedding(tokens, w, padding_idx=1).sum(), w)
print('embedding, padding token: tangent', tangent[1].tolist(), 'gradient', gradient[1].tolist())
assert tangent[1].tolist() == [1.0, 1.0] and gradient[1].tolist() == [0.0, 0.0]
PYTHON
