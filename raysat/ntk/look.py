"""Inspection of a network before any statistic: a few passes over a few samples, on state that is restored afterwards.

It establishes the conditions under which each sample has a Jacobian: the same input gives the same output (*random*
layers are turned off one by one), every pass starts from the given buffers (they are reset in *stateful* networks), and
a sample's output and gradient depend on that sample alone (*mixing* networks are rejected, except for batch
normalization, whose statistics are frozen). A rejection is one sentence that names the module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raysat.compute.memory import saved_per_sample
from raysat.compute.sums import summed
from raysat.data.fields import Fields, Inputs, each
from raysat.errors import InputError
from raysat.losses import Loss, as_targets
from raysat.messages.failures import in_words, named
from raysat.ntk.batchnorm import frozen_batch_norm
from raysat.ntk.context import HALVES, cast, differentiable, undisturbed
from raysat.ntk.plain import gradients, sample_gradient, trained
from raysat.ntk.random_layers import turn_off_random_layers
from raysat.ntk.refusal import NoStatistics
from raysat.ntk.stateful import State, restarted

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-7}
"""Relative differences of outputs and gradients that rounding explains if a sample is computed in a batch and alone: in
float32 10^4 units of rounding, through networks of some hundred layers; in float64 as much as networks need that
compute a part in float32, as those of Hugging Face do in their normalization layers."""


MANY = 64
"""Size of a larger batch, passed whole and in two parts, to detect layers that mix above some batch size only."""

PASS = 10
"""Memory of a pass in forward mode, as a multiple of what autograd keeps of a forward pass. Measured: 8.5 for
attention, whose softmax takes several tensors of the size of the one that is kept; 2 to 4 for convolutions and linear
layers."""


@dataclass(frozen=True)
class Look:
    """Result of `looked_at`: the network as the statistics can use it.

    Attributes:
        network: The network to compute with.
        x: The inputs; those of a network in half precision in float32.
        few: The three samples of x that were inspected.
        chosen: Indices of `few` in x.
        y: The targets; None if absent.
        shape: Shape of one sample's output.
        off: Names of the random layers that are turned off within the context.
        frozen: Names of the batch normalization layers whose statistics are frozen within the context.
        state: Buffers and attributes with which every pass starts.
        saved: Bytes that the forward pass of a sample keeps for the backward pass, with fused kernels replaced.
    """

    network: nn.Module
    x: Inputs
    few: Inputs
    chosen: Tensor
    y: Tensor | None
    shape: tuple[int, ...]
    off: tuple[str, ...]
    frozen: tuple[str, ...]
    state: State
    saved: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation: that of the first trained parameter."""
        return next(iter(trained(self.network).values())).dtype

    def chunk(self, memory: int) -> int:
        """Return the number of samples whose forward and backward passes fit in the memory."""
        return max(1, min(len(self.x), memory // (PASS * self.saved)))


@contextmanager
def looked_at(network: nn.Module, x: Inputs, y: Tensor | None, loss: Loss, memory: int = 1 << 30) -> Iterator[Look]:
    """Inspect a network and prepare it for the statistics within the context; it is restored on exit.

    Args:
        network: The network.
        x: All samples of the statistics.
        y: Their targets, if any.
        loss: The loss.
        memory: Bytes that a pass may take.

    Raises:
        NoStatistics: The network has no statistics.
        InputError: Inputs, targets and loss do not match.
    """
    check_weights(network)
    _check_kinds(x, y)
    if len(x) == 0:
        raise InputError("the statistics need at least one sample: x is empty.")
    with ExitStack() as stack:
        stack.enter_context(undisturbed(network))
        x, y = each(_of_normal_mode, x), None if y is None else _of_normal_mode(y)
        if any(p.dtype in HALVES for p in network.parameters()):
            stack.enter_context(cast(network, torch.float32))
            x = floating_to(x, torch.float32)
        _check_finite(network, x, y)
        given = State(network)  # before the first pass, which may already change it
        chosen = some_samples(x)
        few = x[chosen]
        stack.enter_context(_inputs_kept(network, few))
        # Random layers are found with batch normalization frozen at the few samples, and turned off before it is frozen
        # at all of them: their draws would enter its statistics.
        with _of_network(network, few), frozen_batch_norm(network, few):
            outputs = _run(network, few)
            off = turn_off_random_layers(network, few)
        shape = _shape_of(outputs, len(few), loss)
        frozen = tuple(stack.enter_context(frozen_batch_norm(network, x, memory=memory)))
        given.leave_out(frozen)  # otherwise every pass would reset the frozen statistics
        stack.enter_context(restarted(network, few, given))
        most = torch.randperm(len(x), generator=torch.Generator().manual_seed(4), device="cpu")[:MANY].to(x.device)
        _refuse_mixing(network, few, x[most])
        _refuse_mixed_gradients(network, few)
        if y is not None:
            y = as_targets(y, (len(x), *shape), loss, outputs.dtype)
            with _of_loss(loss):
                loss.check(outputs, y[chosen])
        with differentiable(network):
            saved = saved_per_sample(network, few)
        yield Look(network, x, few, chosen, y, shape, off, frozen, given, saved)


def some_samples(x: Inputs, count: int = 3) -> Tensor:
    """Return indices of a few samples to inspect: spread over x, with the largest in norm, since zeros show nothing."""
    spread = torch.linspace(0, len(x) - 1, count, device="cpu").round().long()
    if isinstance(x, Tensor) and x.is_floating_point():
        spread[1] = x.flatten(1).square().sum(1).argmax() if x.ndim > 1 else x.abs().argmax()
        others = [k for k in (0, len(x) - 1, len(x) // 2, 1) if k < len(x) and k != spread[1]]
        for place, k in zip((0, 2), others, strict=False):
            spread[place] = k
    return spread.to(x.device)


def _of_normal_mode(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can use: a copy, if the tensor was created in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def floating_to(values: Inputs, dtype: torch.dtype) -> Inputs:
    """Return the inputs with floating-point tensors in a dtype; integers, such as tokens and masks, are unchanged."""
    return each(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, values)


def check_weights(network: nn.Module) -> None:
    """Reject weights for which there are no statistics, before the network is run."""
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NoStatistics(
                f"{name or 'the network'} is TorchScript, whose layers cannot be looked into: "
                "give the torch.nn.Module that it was made from."
            )
    for name, p in network.named_parameters():
        if torch.nn.parameter.is_lazy(p):
            raise NoStatistics(f"parameter {name} is lazy and has no value yet: run the network once on some inputs.")
        if p.is_meta:
            raise NoStatistics(
                f"parameter {name} is on the meta device and has no value: build the network on a real one."
            )
    weights = trained(network)
    if not weights:
        raise NoStatistics("the network has no trainable parameter: give one whose parameters require a gradient.")
    for name, weight in network.named_parameters():
        if weight.is_complex():
            raise NoStatistics(f"parameter {name} is complex: the theory is of real networks; split it into two parts.")
    for name, weight in network.named_parameters():
        with torch.no_grad():
            finite = bool(weight.isfinite().all())
        if not finite:
            raise NoStatistics(f"parameter {name} is not finite: take the statistics before training diverges.")
    for name, module in network.named_modules():
        if getattr(module, "scale_grad_by_freq", False) is True:
            raise NoStatistics(
                f"{name} ({type(module).__name__}) divides its gradient by how often an entry is in the batch, which "
                "mixes the samples: set scale_grad_by_freq=False."
            )


def _check_kinds(x: Inputs, y: Tensor | None) -> None:
    """Reject inputs and targets that are not plain dense tensors of samples."""
    tensors = {f"x[{k!r}]": t for k, t in x.tensors.items()} if isinstance(x, Fields) else {"x": x}
    tensors |= {"y": y} if y is not None else {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{name} is of type {type(tensor).__name__}: give a torch.Tensor.")
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested or tensor.ndim == 0:
            raise InputError(f"{name} is no plain tensor of samples: give a dense one with values, of shape [n, ...].")


def _check_finite(network: nn.Module, x: Inputs, y: Tensor | None) -> None:
    tensors = {"y": y} if y is not None else {}
    tensors |= {f"x[{k!r}]": t for k, t in x.tensors.items()} if isinstance(x, Fields) else {"x": x}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{name} has values that are not finite: remove or replace them.")


def _of_network(network: nn.Module, few: Inputs) -> AbstractContextManager[None]:
    """Turn a failure of the network on some samples into a NoStatistics of one sentence."""
    many = "samples" if len(few) > 1 else "sample"
    return in_words(
        lambda why: (
            f"the network does not run on {len(few)} {many} ({why}){_dtype_hint(network, few)}: fix it, or give other "
            "inputs."
        ),
        NoStatistics,
    )


@contextmanager
def _inputs_kept(network: nn.Module, few: Inputs) -> Iterator[None]:
    """Pass the network copies of its inputs within the context, because it may change them in place."""

    def copied(_: nn.Module, args: tuple) -> tuple:
        return tuple(arg.clone() if isinstance(arg, Tensor) else arg.map(torch.clone) for arg in args)

    handle = network.register_forward_pre_hook(copied, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def _of_loss(loss: Loss) -> AbstractContextManager[None]:
    """Turn a failure of a user-defined loss into an InputError of one sentence."""
    return in_words(lambda why: f"loss={loss.name!r} fails on three samples ({why}): fix it.")


def _run(network: nn.Module, few: Inputs) -> Any:
    outputs = network(few)
    return outputs.detach() if isinstance(outputs, Tensor) else outputs


def _shape_of(outputs: object, n: int, loss: Loss) -> tuple[int, ...]:
    """Return the shape of one sample's output, or reject the network's outputs."""
    wanted = "[n, C]" if loss.name == "mse" else "[n, C] or [n, L, V]"
    if not isinstance(outputs, Tensor):
        raise NoStatistics(
            f"the network returns {type(outputs).__name__}, not one tensor: wrap it in a module whose forward returns "
            f"the outputs {wanted}, such as `def forward(self, x): return self.network(x).logits` or `[0]`."
        )
    if outputs.ndim < 2 or len(outputs) != n or outputs.numel() == 0 or (outputs.ndim > 2 and loss.name == "mse"):
        raise NoStatistics(f"the network's output has shape {list(outputs.shape)} for {n} samples: return {wanted}.")
    if not outputs.is_floating_point():
        raise NoStatistics(f"the network's output is of {outputs.dtype}: return real floating-point numbers.")
    if not outputs.isfinite().all():
        raise NoStatistics("the network's output is not finite: scale the inputs or the weights.")
    return tuple(outputs.shape[1:])


def _dtype_hint(network: nn.Module, few: Inputs) -> str:
    weights = {p.dtype for p in network.parameters() if p.is_floating_point()}
    if isinstance(few, Tensor) and few.is_floating_point() and weights and few.dtype not in weights:
        return f"; x is of {few.dtype} and the weights are of {', '.join(map(str, weights))}"
    return ""


# Mixing ---------------------------------------------------------------------------------------------------------------


def _refuse_mixing(network: nn.Module, few: Inputs, many: Inputs) -> None:
    """Reject a network in which a sample's output depends on the other samples of its batch.

    There are two tests. With *other* samples in a batch of the same size, most kernels round a sample's output in the
    same way, so the tolerance is small. *Alone*, or in a batch of another size, rounding differs.
    """
    others = few[torch.tensor([0, 2, 0], device=few.device)]  # the first sample stays in its place
    outputs, among_others = network(few).detach(), network(others).detach()
    allowed = ROUNDING[torch.float64 if outputs.dtype == torch.float64 else torch.float32]
    scale = outputs.abs().max().clamp_min(torch.finfo(outputs.dtype).tiny)
    mixes = (outputs[0] - among_others[0]).abs().max() > allowed / 20 * scale
    if not mixes:
        with _of_network(network, few[:1]):
            by_itself = [network(few[k : k + 1]).detach() for k in range(len(few))]
        if any(one.shape != outputs[:1].shape for one in by_itself):
            raise NoStatistics(
                f"the network's output has shape {list(by_itself[0].shape)} for one sample and {list(outputs.shape)} "
                "for three: return [n, C] for any n."
            )
        # Some layers mix only from a certain batch size on, such as mixtures of experts with a capacity.
        with _of_network(network, many):
            whole, half = network(many).detach(), len(many) // 2 + 1
            split = [many[:half], many[half:]] if half < len(many) else [many]
            parts = torch.cat([network(part).detach() for part in split])
        mixes = (outputs - torch.cat(by_itself)).abs().max() > allowed * scale
        mixes = mixes or (whole - parts).abs().max() > allowed * whole.abs().max()
    if mixes:
        raise NoStatistics(
            f"{_where_mixed(network, few, others) or 'the network'} mixes the samples of a batch, so that a sample has "
            "no gradient of its own: compute each sample from itself alone, such as by GroupNorm or LayerNorm."
        )


def _where_mixed(network: nn.Module, few: Inputs, others: Inputs) -> str:
    """Return the first module whose output for the first sample differs between two batches, at equal input."""

    def run(x: Inputs) -> list[tuple[str, Tensor | None, Tensor]]:
        calls: list[tuple[str, Tensor | None, Tensor]] = []
        handles = []
        for name, module in network.named_modules():

            def record(module: nn.Module, args: tuple, output: object, name: str = name) -> None:
                first = next((a for a in args if isinstance(a, Tensor)), None)
                if isinstance(output, Tensor):
                    label = f"{name} ({type(module).__name__})" if name else type(module).__name__
                    calls.append((label, first, output))

            handles.append(module.register_forward_hook(record))
        try:
            network(x)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def same(a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None or len(a) != len(few) or a.shape != b.shape:
            return True  # not comparable: counts neither as changed input nor as changed output
        a, b = a[0].double(), b[0].double()
        return bool((a - b).abs().max() <= 1e-4 * a.abs().max())

    for (name, x_one, one), (_, x_two, two) in zip(run(few), run(others), strict=False):
        if one.shape == two.shape and one.ndim and not same(one, two) and same(x_one, x_two):
            return name
    return ""


def _refuse_mixed_gradients(network: nn.Module, few: Inputs) -> None:
    """Reject a network whose gradient over a batch differs from the sum of its samples' gradients.

    This detects mixing that outputs of zero hide, and mixing in a custom backward function.
    """
    weights = trained(network)
    generator = torch.Generator().manual_seed(0)
    try:
        outputs = network(few)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # including SystemExit, from a user's sys.exit
        raise NoStatistics(f"the network cannot be differentiated ({named(error)}).") from error
    if not outputs.requires_grad:
        raise NoStatistics(
            "the network's output depends on no trainable parameter: take no_grad, detach and .data out of its forward."
        )
    u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    try:
        alone = [sample_gradient(network, few[k : k + 1], u[k : k + 1]) for k in range(len(few))]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # including SystemExit, from a user's sys.exit
        raise NoStatistics(
            f"the network's backward pass fails ({named(error)}): it must serve loss.backward()."
        ) from error
    if not all(g.isfinite().all() for one in alone for g in one.values()):
        raise NoStatistics("a gradient of the network's output is not finite: scale the inputs or the weights.")
    total = [summed(one[name].double() for one in alone) for name in weights]
    # One norm over all parameters: the gradient of a single one may be rounding alone.
    norm = summed(t.square().sum() for t in total).sqrt()
    together = gradients(outputs, list(weights.values()), u)
    off = summed((a.double() - b).square().sum() for a, b in zip(together, total, strict=True)).sqrt()
    allowed = ROUNDING[torch.float64 if outputs.dtype == torch.float64 else torch.float32]
    if off > allowed * norm:
        parts = zip(weights, together, total, strict=True)
        name = max(parts, key=lambda part: (part[1].double() - part[2]).norm().item())[0]
        raise NoStatistics(
            f"the gradient of {name} mixes the samples of a batch, so that a sample has no gradient of its own: "
            "compute each sample from itself alone, such as by GroupNorm or LayerNorm."
        )
