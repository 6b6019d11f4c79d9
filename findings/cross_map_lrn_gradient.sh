#!/usr/bin/env bash
# torch 2.13.0: the gradient of nn.CrossMapLRN2d is not that of its forward. Seen: it is off from central differences by
# more than 10 % with alpha = 1; nn.LocalResponseNorm, the same formula, is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
x = torch.randn(1, 4, 2, 2)


def off(layer):
    y = x.clone().requires_grad_()
    cotangent, direction = torch.randn_like(x), torch.randn_like(x)
    (gradient,) = torch.autograd.grad(layer(y), y, cotangent)
    step = 1e-6
    central = ((layer(x + step * direction) - layer(x - step * direction)) / (2 * step) * cotangent).sum()
    return ((gradient * direction).sum() - central).abs().item() / central.abs().item()


cross, local = off(nn.CrossMapLRN2d(3, alpha=1.0)), off(nn.LocalResponseNorm(3, alpha=1.0))
print(torch.__version__, 'relative difference from central differences: CrossMapLRN2d', cross, 'LocalResponseNorm', local)
assert cross > 0.1
assert local < 1e-6
PYTHON
