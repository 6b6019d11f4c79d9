#!/usr/bin/env bash
# torch 2.13.0: a backward function marked once_differentiable raises when it is differentiated, but not beside another
# path. The graph of a gradient made with create_graph=True then lacks the branch: the transposed product J v, as the
# backward pass of u -> J^T u, leaves it out in silence. Seen: 2.0 instead of 3.0 for x + f(x), f'(x) = 1 and weights 2 and 1;
# alone, the same function raises. The node torch::autograd::Error is in the graph.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.autograd.function import once_differentiable


class Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient.clone()


def transposed(function):
    w = torch.tensor(1.0, requires_grad=True)
    output = function(w)
    u = torch.zeros_like(output, requires_grad=True)
    (gradient,) = torch.autograd.grad(output, w, u, create_graph=True)
    return torch.autograd.grad(gradient, u, torch.tensor(1.0))[0].item()


found = transposed(lambda w: 2 * w + Identity.apply(w))
print(torch.__version__, 'J v by double reverse', found, 'exact', 3.0)
assert found == 2.0
try:
    transposed(Identity.apply)
except RuntimeError as error:
    print('alone it raises:', str(error)[:60])
else:
    raise SystemExit('no error')
PYTHON
