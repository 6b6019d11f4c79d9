"""Which of PyTorch's ways to a Jacobian is right for which function: reverse and forward, vectorized or transposed.

    python benchmarks/autodiff.py [--only NAME ...] [--markdown]

Every case of `autodiff_cases` is held to plain autograd (one sample and one output at a time, `backward()`), and plain
autograd to central differences, in float64 on the CPU. What is compared are products `J_i V` of each sample's Jacobian
with respect to all parameters with two random directions: an error in any entry shows in them with probability one.

A case is tried *alone* (a module on the samples; a function f as `f(w * x_i)` with a parameter w) and *inside* a
network (`sin(f(w * x_i))`), for there the cotangents depend on the sample too; and at several batch sizes, among them 1
and whatever dimension, number of outputs or number of parameters the case has, for what is wrong by a confusion of
dimensions is wrong only where they agree. A verdict is

- `right`: equal to plain autograd at every batch size, in both positions;
- `wrong`: silently another number at some of them, which are named;
- `missing`: an error, whose first line is given. Some sizes may work: then those that do not are named.

Where plain autograd disagrees with central differences it is called wrong, and the ways are held to these instead.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import multiprocessing.connection
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from autodiff_cases import CASES, Case
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev, jvp, vmap

TOLERANCE = 1e-8
"""Relative to the largest entry of J V. Two right ways differ by some 1e-13 for all cases but ill-conditioned ones."""

DIFFERENCE_STEP, DIFFERENCE_TOLERANCE = 1e-5, 1e-5
"""Central differences are off by some step^2 = 1e-10, and by rounding of 1e-16 / step = 1e-11."""

LARGEST_BATCH = 40
"""Dimensions beyond are not tried as batch sizes: the reference needs a backward pass for each output and sample."""


def parameters(network: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def split(network: nn.Module, direction: Tensor) -> dict[str, Tensor]:
    """A direction in the space of all parameters as one tensor for each of them. Shape: [p]."""
    trained = parameters(network)
    parts = direction.split([p.numel() for p in trained.values()])
    return {name: part.view_as(p) for (name, p), part in zip(trained.items(), parts, strict=True)}


def plain(network: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
    """J_i V by a backward pass for each sample and output: what serves whatever can be trained. Shape: [n, C, 2]."""
    trained, products = parameters(network).values(), []
    for sample in x.split(1):
        outputs = network(sample).flatten()
        for output in outputs:
            network.zero_grad()
            # Not torch.autograd.grad, which reentrant checkpointing refuses.
            output.backward(retain_graph=True)
            row = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in trained]
            products.append(torch.cat([g.flatten() for g in row]) @ directions)
    network.zero_grad()
    return torch.stack(products).view(len(x), -1, directions.shape[1])


@torch.no_grad()
def differences(network: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
    """J_i V by central differences, one sample at a time. Shape: [n, C, 2]."""
    trained = parameters(network)
    start = {name: p.clone() for name, p in trained.items()}

    def outputs(offset: Tensor) -> Tensor:
        for name, part in split(network, offset).items():
            trained[name].copy_(start[name] + part)
        found = torch.stack([network(sample).flatten() for sample in x.split(1)])
        for name, p in trained.items():
            p.copy_(start[name])
        return found

    h = DIFFERENCE_STEP
    return torch.stack([(outputs(h * v) - outputs(-h * v)) / (2 * h) for v in directions.T], -1)


def _by_jacobian(transform: Callable[..., Callable], network: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
    weights = {name: p.detach() for name, p in parameters(network).items()}

    def outputs(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(network, weights, (sample[None],)).flatten()

    rows = vmap(transform(outputs), (None, 0))(weights, x)
    return torch.cat([rows[name].flatten(2) for name in weights], 2) @ directions


def vmap_jacrev(network: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
    """All rows of a sample's Jacobian at once, all samples at once, in reverse mode."""
    return _by_jacobian(jacrev, network, x, directions)


def vmap_jacfwd(network: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
    """All columns of a sample's Jacobian at once, all samples at once, in forward mode."""
    return _by_jacobian(jacfwd, network, x, directions)


def double_reverse(network: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
    """J V as the transpose of the graph of u -> J^T u, on the batch. Source: J. Townsend, "A new trick", 2017."""
    trained, outputs = parameters(network), network(x)
    # Any u will do, for J^T u is linear in it; zero will not through logcumsumexp, whose backward takes log |u|.
    u = torch.randn_like(outputs, requires_grad=True)
    gradients = torch.autograd.grad(outputs, list(trained.values()), u, create_graph=True, materialize_grads=True)
    products = []
    for v in directions.T:
        along = sum((g * part).sum() for g, part in zip(gradients, split(network, v).values(), strict=True))
        products.append(torch.autograd.grad(along, u, retain_graph=True)[0].reshape(len(x), -1))
    return torch.stack(products, -1)


def forward_mode(network: nn.Module, x: Tensor, directions: Tensor) -> Tensor:
    """J V by `torch.func.jvp`, on the batch."""
    weights = {name: p.detach() for name, p in parameters(network).items()}

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        return functional_call(network, weights, (x,))

    tangents = [jvp(outputs, (weights,), (split(network, v),))[1].reshape(len(x), -1) for v in directions.T]
    return torch.stack(tangents, -1)


WAYS = {
    "vmap(jacrev)": vmap_jacrev,
    "vmap(jacfwd)": vmap_jacfwd,
    "double reverse": double_reverse,
    "forward mode": forward_mode,
}
PLAIN = "plain autograd"


@dataclass
class Cell:
    """What is found of one way in one case: where each verdict holds, as (position, batch size), and the last error."""

    tried: dict[str, list[tuple[str, int]]] = field(
        default_factory=lambda: {"wrong": [], "missing": [], "right": []}  # the worst first
    )
    error: str = ""

    @property
    def verdict(self) -> str:
        """The worst."""
        return next(verdict for verdict, where in self.tried.items() if where)

    def __str__(self) -> str:
        """The verdict; where it differs, what is not right and at which batch sizes n."""
        if sum(map(bool, self.tried.values())) == 1:
            return self.verdict
        return "; ".join(f"{word} {_at(where)}" for word, where in self.tried.items() if where and word != "right")


def _at(where: list[tuple[str, int]]) -> str:
    sizes: dict[str, list[str]] = {}
    for position, n in where:
        sizes.setdefault(position, []).append(str(n))
    if len(sizes) == 2 and sizes["alone"] == sizes["inside"]:  # the usual case
        return f"at n = {', '.join(sizes['alone'])}"
    return ", ".join(f"{position} at n = {', '.join(n)}" for position, n in sizes.items())


class Inside(nn.Module):
    """`sin(f(w * x_i))`: f with a layer before and a non-linearity behind, whose derivatives depend on the sample."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor):
        super().__init__()
        self.function = function
        self.w = nn.Parameter(1 + 0.1 * torch.randn(x.shape[1:])) if x.is_floating_point() else None

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x if self.w is None else self.w * x).sin()


class Alone(Inside):
    """`f(w * x_i)`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.w * x)


def networks(case: Case) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """The case in each position, with its samples, as many as the largest of `batch_sizes`; the same at every call."""
    for position in ("alone", "inside"):
        torch.manual_seed(zlib.crc32(case.name.encode()))
        x, function = case.draw(LARGEST_BATCH, *case.shape), case.build()
        if position == "inside":
            function = Inside(function, x)
        elif not isinstance(function, nn.Module) or not parameters(function):
            function = Alone(function, x)
        yield position, function, x


def batch_sizes(networks: list[tuple[str, nn.Module, Tensor]]) -> list[int]:
    """1, 2, 7 (which is none of the dimensions), and every dimension, number of outputs and parameters."""
    sizes = {1, 2, 7}
    for _, network, x in networks:
        with torch.no_grad():
            outputs = network(x[:1])
        weights = parameters(network).values()
        sizes |= {size for tensor in (x[0], outputs[0], *weights) for size in tensor.shape}
        sizes |= {outputs.numel(), sum(p.numel() for p in weights)}
    return sorted(n for n in sizes if 1 <= n <= LARGEST_BATCH)


def agree(found: Tensor, right: Tensor, tolerance: float) -> bool:
    scale = right.abs().max()
    return found.shape == right.shape and bool(((found - right).abs() <= tolerance * scale).all())


def evaluate(case: Case) -> dict[str, Cell]:
    """The cells of one case, by `PLAIN` and `WAYS`.

    Raises:
        ValueError: The case does not depend on its parameters, so that nothing could be seen in it.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    cells = {name: Cell() for name in (PLAIN, *WAYS)}
    try:
        tried = list(networks(case))
        sizes = batch_sizes(tried)
        for position, network, x in tried:
            _evaluate(case, position, network, x[: sizes[-1]], sizes, cells)
    finally:
        torch.set_default_dtype(before)
    return cells


def _evaluate(case: Case, position: str, network: nn.Module, x: Tensor, sizes, cells: dict[str, Cell]) -> None:
    directions = torch.randn(sum(p.numel() for p in parameters(network).values()), 2)
    truth = plain if case.stops else differences
    right, tolerance = truth(network, x, directions), DIFFERENCE_TOLERANCE
    if not right.abs().max() > 0:
        raise ValueError(f"{case.name} does not depend on its parameters.")
    _try(plain, network, x, directions, right, tolerance, cells[PLAIN], (position, 1))
    if cells[PLAIN].tried["right"][-1:] == [(position, 1)]:
        right, tolerance = plain(network, x, directions), TOLERANCE
    for name, way in WAYS.items():
        for n in sizes:
            _try(way, network, x[:n], directions, right[:n], tolerance, cells[name], (position, n))


def _try(way, network, x, directions, right, tolerance, cell, where) -> None:
    try:
        found = way(network, x, directions).detach()
    except Exception as error:
        cell.error = _first_line(error)
        cell.tried["missing"].append(where)
    else:
        cell.tried["right" if agree(found, right, tolerance) else "wrong"].append(where)


def _first_line(error: Exception) -> str:
    """The kind of an error and the first line of its message; where there are more, the last asks to file an issue."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def evaluate_apart(cases: list[Case], jobs: int = 2) -> dict[str, dict[str, Cell]]:
    """Rows by name, each from a process of its own: what one leaves behind, or dies of, does not touch the others."""
    waiting, running, rows = list(reversed(cases)), {}, {}
    importlib.import_module("torch._dynamo")  # of torch.func, at its first use: once here rather than in each process
    context = multiprocessing.get_context("fork")  # a fresh interpreter would import torch for seconds
    while waiting or running:
        while waiting and len(running) < jobs:
            case = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send, args=(case, sender))
            process.start()
            sender.close()
            running[receiver] = case, process
        for receiver in multiprocessing.connection.wait(list(running)):
            case, process = running.pop(receiver)
            try:
                rows[case.name] = receiver.recv()
            except EOFError:
                process.join()
                rows[case.name] = _failed(f"the process ended with {process.exitcode}")
            process.join()
    return {case.name: rows[case.name] for case in cases}


def _send(case: Case, sender) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        cells = evaluate(case)
    except Exception as error:  # of the function itself, on one sample
        cells = _failed(_first_line(error))
    sender.send(cells)


def _failed(error: str) -> dict[str, Cell]:
    return {name: Cell({"wrong": [], "missing": [("alone", 1)], "right": []}, error) for name in (PLAIN, *WAYS)}


def table(rows: dict[str, dict[str, Cell]], markdown: bool = False) -> str:
    """One line a case, one column a way."""
    heads = ["case", PLAIN, *WAYS]
    lines = [[name, *(str(cells[way]) for way in heads[1:])] for name, cells in rows.items()]
    if markdown:
        return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])
    widths = [max(len(line[k]) for line in [heads, *lines]) for k in range(len(heads))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [heads, *lines]
    )


def errors(rows: dict[str, dict[str, Cell]]) -> str:
    """For each way the cases that raise, by the first line of their error."""
    lines = []
    for way in (PLAIN, *WAYS):
        names: dict[str, list[str]] = {}
        for name, cells in rows.items():
            if cells[way].tried["missing"]:
                names.setdefault(cells[way].error, []).append(name)
        lines += [f"{way}, missing:"] if names else []
        lines += [f"- {'; '.join(some)}: `{textwrap.shorten(error, 160)}`" for error, some in names.items()]
    return "\n".join(lines)


def summary(rows: dict[str, dict[str, Cell]], markdown: bool = False) -> str:
    """How many cases are right, wrong and missing, by way."""
    verdicts = ("right", "wrong", "missing")
    lines = [["way", *verdicts]]
    for way in (PLAIN, *WAYS):
        found = [cells[way].verdict for cells in rows.values()]
        lines.append([way, *(str(found.count(verdict)) for verdict in verdicts)])
    if markdown:
        lines.insert(1, ["---", "---:", "---:", "---:"])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join(f"{line[0]:16}" + "".join(f"{word:>9}" for word in line[1:]) for line in lines)


def main() -> None:
    """Print the table, the errors and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases whose name contains one of these [all]")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    asked = parser.parse_args()
    chosen = [case for case in CASES if not asked.only or any(name in case.name for name in asked.only)]
    rows = evaluate_apart(chosen)
    print(table(rows, asked.markdown), errors(rows), sep="\n\n")
    print(f"\n{len(rows)} cases, torch {torch.__version__}:\n\n{summary(rows, asked.markdown)}")


if __name__ == "__main__":
    main()
