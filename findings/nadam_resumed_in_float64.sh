#!/usr/bin/env bash
# torch 2.13.0: an NAdam that is restored from its state_dict goes on in other bits than one that was not stopped, with
# float64 parameters. Its state has mu_product in float32; load_state_dict brings it to float64, and the products that
# follow are rounded otherwise. Seen: float32 before, float64 after, and weights that differ after 50 steps; Adam's,
# whose only float32 state is `step`, which load_state_dict leaves as it is, do not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import copy

import torch


def steps(weights, optimizer, first, last):
    for t in range(first, last):
        weights.grad = torch.cos(weights.detach() * (t + 1))
        optimizer.step()


def resumed_apart(kind):
    torch.manual_seed(0)
    start = torch.randn(1000, dtype=torch.float64)
    whole = start.clone().requires_grad_()
    optimizer = kind([whole], lr=0.01)
    steps(whole, optimizer, 0, 10)
    other = whole.detach().clone().requires_grad_()
    again = kind([other], lr=0.01)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    dtypes = [{k: v.dtype for k, v in o.state[w].items()} for o, w in ((optimizer, whole), (again, other))]
    steps(whole, optimizer, 10, 50)
    steps(other, again, 10, 50)
    return dtypes, (whole - other).abs().max().item()


(before, after), nadam = resumed_apart(torch.optim.NAdam)
_, adam = resumed_apart(torch.optim.Adam)
print(torch.__version__, before["mu_product"], after["mu_product"], "largest difference: NAdam", nadam, "Adam", adam)
assert before["mu_product"] is torch.float32 and after["mu_product"] is torch.float64
assert nadam > 0 and adam == 0
PYTHON
