#!/usr/bin/env bash
# torch 2.13.0: torch.func.functional_call leaves a module that is registered under two names with the weights of the
# call, instead of its own, for it ties the names and restores them one after the other. Seen: after the call the network
# returns the output of the replaced weights, and its weight is a plain tensor. With tie_weights=False and each place of a
# parameter named once, the network is left as it was.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.alias = self.layer

    def forward(self, x):
        return self.alias(self.layer.weight * x)


torch.manual_seed(0)
network, x = Twice(), torch.ones(1, 2)
before = network(x).item()
torch.func.functional_call(network, {'layer.weight': torch.full((1, 2), 3.0)}, (x,))
after = network(x).item()
print(torch.__version__, 'before', before, 'after', after, type(network.layer.weight).__name__)
assert after == 18.0 and before != after
assert not isinstance(network.layer.weight, nn.Parameter)

network = Twice()
before = network(x).item()
torch.func.functional_call(network, {'layer.weight': torch.full((1, 2), 3.0)}, (x,), tie_weights=False)
assert network(x).item() == before and isinstance(network.layer.weight, nn.Parameter)
print('tie_weights=False: as before')
PYTHON
