"""Which modules, how fast, how exact: the table of the documentation, from the cases of `tests/zoo`.

    python benchmarks/modules.py [--kind KIND]... [--name NAME]... [--no-peer]

For each network: how its per-sample quantities were computed (`method`), the largest relative error of gamma,
gamma_mean, k_op, b_star and noise_scale in float64 and in float32, at k_tolerance = 1e-9, against plain reverse-mode
autograd of one sample and one output at a time in float64; the seconds that `ntk_statistics` took in float32 at its
defaults; and whether curvlinops' GGN operator under scipy's `eigsh` has k_op right to 1e-3, where it is installed (see
`benchmarks/ntk.py`). It is given the network that is meant: random layers off, batch statistics held. The samples are
few and the networks tiny, so that the seconds are those of looking, not of computing. It needs the extra `test` for
hypothesis and transformers, and takes some ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import oracles
from zoo import CASES, Case, cast

from raysat import ntk_statistics
from raysat.errors import InputError

QUANTITIES = ("gamma", "gamma_mean", "k_op", "b_star", "noise_scale")


def measured(case: Case) -> list[str]:
    """The cells of a case's row: method, errors, seconds, what the peer says."""
    network, x = case.made()
    case.meant(network, x)
    y = case.targets(oracles.outputs(network, x))
    expected = oracles.statistics(network, x, y, case.loss)
    cells, method = [], ""
    for dtype in (torch.float64, torch.float32):
        network, x = case.made(dtype)
        try:
            found = ntk_statistics(network, x, cast(y, dtype), loss=case.loss, k_tolerance=1e-9, **case.options)
            method = found.method if not found.method_reason else f"{found.method}; {found.method_reason}"
            error = max(abs(getattr(found, name) - expected[name]) / abs(expected[name]) for name in QUANTITIES)
            cells.append(f"{error:.0e}")
        except InputError as error:
            cells.append(f"refused: {error}")
        except Exception as error:
            cells.append(f"{type(error).__name__}: {error}")
    begun = time.perf_counter()
    try:
        ntk_statistics(network, x, cast(y, torch.float32), loss=case.loss, **case.options)
        seconds = f"{time.perf_counter() - begun:.2f}"
    except Exception:
        seconds = ""
    return [method, *cells, seconds, by_peer(case, y, expected["k_op"]) if PEER else ""]


PEER = find_spec("curvlinops") is not None


def by_peer(case: Case, y: torch.Tensor, expected: float) -> str:
    """Whether curvlinops has k_op right."""
    from curvlinops import GGNLinearOperator
    from scipy.sparse.linalg import eigsh

    network, x = case.made()
    case.meant(network, x)
    n = len(x)
    if case.loss == "mse":
        loss, scale = torch.nn.MSELoss(reduction="sum"), 2 * n  # its Hessian in the outputs is 2 I
    elif y.ndim == 1:
        loss, scale = torch.nn.CrossEntropyLoss(reduction="sum"), n
    else:
        return "no loss of sequences"
    weights = [p for p in network.parameters() if p.requires_grad]
    try:
        sizes = {} if isinstance(x, torch.Tensor) else {"batch_size_fn": len}
        ggn = GGNLinearOperator(network, loss, weights, [(x, y)], check_deterministic=False, **sizes)
        found = eigsh(ggn.to_scipy(), k=1, which="LA", tol=1e-6)[0][0] / scale
    except Exception as error:
        return f"raises {type(error).__name__}"
    return "right" if abs(found - expected) <= 1e-3 * expected else f"wrong: {found / expected:.3g} times"


def main() -> None:
    """Print the table."""
    global PEER
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", help="one of the headings")
    parser.add_argument("--name", action="append", help="one of the networks")
    parser.add_argument("--no-peer", action="store_true", help="without curvlinops")
    options = parser.parse_args()
    PEER = PEER and not options.no_peer
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("| kind | network | method | error, float64 | error, float32 | seconds | curvlinops |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES.values():
        if case.kind in (options.kind or [case.kind]) and case.name in (options.name or [case.name]):
            if case.needs and find_spec(case.needs) is None:
                continue
            cells = [case.kind, case.name, *measured(case)]
            print(
                "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|")[:200] for cell in cells) + " |", flush=True
            )


if __name__ == "__main__":
    main()
