"""The engine that runs any module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from raysat.compute.micro_batch import coupled_group_size, retry_on_oom
from raysat.data.fields import Inputs
from raysat.errors import InputError
from raysat.ntk.plain import gradients, is_reentrant
from raysat.sgd.problem import Problem
from raysat.sgd.protocol import Maker


class AutogradEngine:
    """Plain PyTorch autograd. It runs any module and is the reference for the other engines.

    Args:
        problem: Its network is updated in place, except parameters that the forward pass does not use.
        eta: Stepsize.
        micro_batch: Samples whose gradient is computed at a time; a larger batch is taken in parts. If memory runs
            out it is halved. Samples that must stay together are not separated
            (`raysat.compute.micro_batch.coupled_group_size`).
            Default: all.
        bfloat16: Whether the passes are computed in bfloat16 (`torch.autocast`); weights and updates are not.
        compiled: Whether the network's passes are compiled (`torch.compile`), once for each size of a part.

    Raises:
        InputError: `compiled` is set and there is no compiler.
    """

    matmul = "torch"

    def __init__(
        self,
        problem: Problem,
        eta: float,
        micro_batch: int | None = None,
        *,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        network = problem.network
        self.name, self.forward = "autograd", network
        if compiled:
            check_compiler(problem.x.device)
            self.name, self.forward = "compiled", torch.compile(network, dynamic=False)
        self.problem, self.network, self.eta, self.bfloat16 = problem, network, eta, bfloat16
        self.parameters: list[Tensor] = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.reentrant: bool | None = None  # known from the first step's graph
        self.coupled_group_size = coupled_group_size(network)
        self.micro_batch = len(problem.x) if self.coupled_group_size == 0 or micro_batch is None else micro_batch

    def run(self, batches: Int64[Tensor, "steps b"]) -> None:
        """Take a step `w <- w - eta g(w; S)` for each row S of indices, `g = 1/b sum_{S} J_i^T r_i` (section 2)."""
        for batch in batches:
            gradients = self.gradients(batch)
            with torch.no_grad():
                torch._foreach_add_(self.parameters, gradients, alpha=-self.eta)

    def block(self, b: int) -> int:
        """Return 1: every step is computed by itself."""
        return 1

    def compile_for(self, b: int) -> None:
        """Compile the passes for batches of b samples, so that no timed step compiles. The network is unchanged."""
        restore = self._buffers()
        self.gradients(torch.arange(b, device=self.problem.x.device))
        restore()

    def _buffers(self) -> Callable[[], None]:
        """Return a function that restores the network's buffers, such as running averages, to their present values."""
        before = [(buffer, buffer.clone()) for buffer in self.network.buffers()]

        def restore() -> None:
            for buffer, value in before:
                buffer.copy_(value)

        return restore

    def gradients(
        self, batch: Int64[Tensor, " b"], z: Float[Tensor, " b"] | None = None, step: int | None = None
    ) -> list[Tensor]:
        """Return `g(w; S)`, a tensor for each parameter; with z, `1/b sum_i z_i J_i^T r_i`.

        A problem with a transform needs the step whose batch it is. The whole batch is changed at once, before it is
        taken in parts.
        """
        problem = self.problem
        if problem.transform is not None:
            assert step is not None  # given by the engines that may have a transform
            problem, batch = problem.of_step(batch, step)
        unit = self.coupled_group_size or len(batch)
        if len(batch) <= unit:
            return self._gradients(problem, batch, z, len(batch))
        micro_batch = min(self.micro_batch, len(batch))
        # Parts are whole groups of coupled samples: their sizes are rounded up to multiples of `unit`.
        gradients, used = retry_on_oom(
            lambda count: self._from_here(problem, batch, z, -(-count // unit) * unit), micro_batch
        )
        if used < micro_batch:
            self.micro_batch = -(-used // unit) * unit
        return gradients

    def _from_here(
        self, problem: Problem, batch: Int64[Tensor, " b"], z: Float[Tensor, " b"] | None, micro_batch: int
    ) -> list[Tensor]:
        """Run `_gradients`; a failed attempt leaves running averages unchanged."""
        if self.coupled_group_size == 1:
            return self._gradients(problem, batch, z, micro_batch)
        restore = self._buffers()
        try:
            return self._gradients(problem, batch, z, micro_batch)
        except RuntimeError:
            restore()
            raise

    def _gradients(
        self, problem: Problem, batch: Int64[Tensor, " b"], z: Float[Tensor, " b"] | None, micro_batch: int
    ) -> list[Tensor]:
        loss, total = problem.loss, list[Tensor]()
        for k, part in enumerate(batch.split(micro_batch)):
            x, y = problem.x.index_select(0, part), problem.y.index_select(0, part)
            # No cache of casts: in a CUDA graph its copies would not follow the updates of the weights.
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=False):
                outputs = self.forward(x)
            if self.bfloat16:
                outputs = outputs.float()
            if z is None:
                value = loss.total(outputs, y) / len(batch)
                gradients = self._grad(value)
            else:
                # `sum_i z_i J_i^T r_i / b` is the gradient of the outputs along `z_i r_i / b`.
                share = z[k * micro_batch : k * micro_batch + len(part)].to(outputs) / len(batch)
                residual = loss.residual(outputs, y).detach() * share.view(-1, *[1] * (outputs.ndim - 1))
                gradients = self._grad(outputs, residual)
            if total:
                torch._foreach_add_(total, gradients)
            else:
                total = gradients
        return total

    def _grad(self, value: Tensor, along: Tensor | None = None) -> list[Tensor]:
        """Return the gradient in each parameter, 0 in those that the forward pass does not use."""
        if self.reentrant is None:
            self.reentrant = is_reentrant(value)
        return gradients(value, self.parameters, along, reentrant=self.reentrant)


def check_compiler(device: torch.device) -> None:
    """Raise `InputError` if PyTorch's compiler for this device needs a C++ compiler and there is none."""
    if device.type == "cpu" and not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++")))):
        raise InputError("engine='compiled' needs a C++ compiler, such as g++: install one, or set engine='auto'.")


class OverAutograd:
    """Base of the engines whose gradients an `AutogradEngine` computes.

    Attributes:
        inner: That engine.
    """

    inner: AutogradEngine

    @property
    def micro_batch(self) -> int:
        """Samples whose gradient is computed at a time."""
        return self.inner.micro_batch

    def block(self, b: int) -> int:
        """Return 1: every step is computed by itself."""
        return 1


def _make(*common: Any, bfloat16: bool, asked: bool) -> AutogradEngine:
    return AutogradEngine(*common, bfloat16=bfloat16)


def _make_compiled(*common: Any, bfloat16: bool, asked: bool) -> AutogradEngine:
    return AutogradEngine(*common, bfloat16=bfloat16, compiled=True)


def _always(_network: nn.Module, _x: Inputs) -> bool:
    return True


AUTOGRAD = Maker(_make, wins=_always)
COMPILED = Maker(_make_compiled, check_device=check_compiler)
