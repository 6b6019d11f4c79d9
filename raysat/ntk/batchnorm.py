"""Batch normalization in training mode, with its batch statistics held constant at those of the whole training set.

In training mode a layer normalizes by mean and variance of the batch, so that a sample's output depends on all others
and no sample has a Jacobian of its own. Held constant at the values they have where the batch is the training set, the
statistics of a batch become numbers, and the layer an affine map of each sample. The network's outputs, at its weights
and on the training set, are then exactly those of a full batch in training mode. Its gradients are not: those of
training also go through mean and variance, and batches of b samples have statistics that scatter about the training
set's. How far gradients of real batches lie from what the frozen network predicts is measured by
`benchmarks/batch_norm.py`; see `docs/definitions.md`.

Two variants are treated alike, on purpose:

- `SyncBatchNorm` has the statistics of the global batch over all ranks, which is the batch whose critical size is
  sought. As it grows they tend to the training set's, as without ranks.
- Ghost batch normalization has those of g consecutive samples, whatever the batch size. What they tend to is no full
  batch, but they are averages of g samples of the same training set, and scatter about its mean and variance: the same
  constants are the natural ones. They do not get better with b, only with g.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeGuard

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from raysat.compute.memory import retry_on_oom
from raysat.data.fields import Inputs
from raysat.models.ghost import GhostBatchNorm
from raysat.ntk.refusal import NoStatistics

PART = 1 << 20
"""Numbers that are cast to float64 at a time. Default: 2^20, 8 MiB, beside which activations are large."""

LIBRARIES = 2
"""Times the tensors' bytes that a pass takes. Default: 2. oneDNN's convolutions take copies of theirs: the peak of
ResNet-10 was 1.7 times that of its tensors."""

KNOWN = (_BatchNorm.forward, nn.SyncBatchNorm.forward, GhostBatchNorm.forward)
"""Forward functions that are known to normalize by the batch in training mode and by their buffers in evaluation."""

REMEDY = "call network.eval(), or use GroupNorm"


@contextmanager
def frozen_batch_norm(network: nn.Module, x: Inputs, memory: int = 1 << 30) -> Iterator[tuple[str, ...]]:
    """Hold the batch statistics of batch normalization constant at those of the training set, while the context lasts.

    Each layer that normalizes by its batch gets mean and biased variance of each channel over all of x as running
    averages, and is turned to evaluation, alone. Where all samples pass at once it is one pass, each layer frozen as it
    is reached; else one for each layer, all before it frozen, cut off where it is reached, and a last one which sees
    that none was missed. Afterwards modes, buffers (identity and values) and hooks are as found.

    Random layers before a normalization must have been turned off by the caller, and compiled parts must run eagerly
    (`torch.compiler.set_stance("force_eager")`), for they do not call hooks. A layer that no sample reaches is left
    alone. So is a subclass whose training mode does not normalize by the batch. Where a subclass mixes samples in
    evaluation too it does so within the context.

    Args:
        network: The network, in the mode in which it trains.
        x: The inputs of the whole training set.
        memory: Bytes that the values of a forward pass may take, measured on four samples; where memory runs out all
            the same, half as many samples pass at a time. Default: 1 GiB, that of `ntk_statistics`.

    Yields:
        The names of the layers whose statistics are held constant, in the network's order; none where no layer
        normalizes by its batch, at no cost.

    Raises:
        NoStatistics: A layer is applied more than once in a forward pass, saw one number a channel, is a subclass that
            in evaluation does not normalize by `running_mean` and `running_var`, or its turn depends on the samples
            where they do not fit into memory at once.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> x = torch.randn(8, 3)
        >>> with frozen_batch_norm(network, x) as names:
        ...     alone = network(x[:1])
        >>> names, network[1].training, torch.allclose(alone, network(x)[:1], atol=1e-5)
        (('1',), True, True)
    """
    layers: dict[_BatchNorm, str] = {module: name for name, module in network.named_modules() if by_batch(module)}
    if not layers:
        yield ()
        return
    freezer = _Freezer(network, layers)
    try:
        # Buffers made in inference mode could not be saved for a backward pass.
        with torch.inference_mode(False), torch.no_grad():
            freezer.freeze(x, memory)
        yield tuple(name for module, name in layers.items() if module in freezer.frozen)
    finally:
        freezer.thaw()


def by_batch(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a layer normalizes by the statistics of the batch: in training mode, or without running averages."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


class Moments:
    """Count, mean and squared deviations of the numbers of each channel, part by part, in float64.

    Two parts' deviations from their own means are joined by `M = M_1 + M_2 + d^2 n_1 n_2 / (n_1 + n_2)`, d the
    difference of the means (Chan, Golub and LeVeque 1979, eq. 2.1), which cancels nothing.

    Attributes:
        count: Numbers a channel.
        mean: Shape: [channels].
        dtype: Of the numbers, or float32 where they have half precision.
    """

    def __init__(self) -> None:
        self.count, self.dtype = 0, torch.float32
        self.mean = self._deviations = torch.zeros(0, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Take in a batch of shape [n, channels, ...]."""
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        for part in x.split(max(1, PART // max(1, x[:1].numel()))):
            over = [axis for axis in range(x.ndim) if axis != 1]
            self._join(part.numel() // part.shape[1], *torch.var_mean(part.double(), over, correction=0))

    def _join(self, count: int, variance: Float64[Tensor, " channels"], mean: Float64[Tensor, " channels"]) -> None:
        if not self.count:
            self.count, self.mean, self._deviations = count, mean, count * variance
            return
        total, apart = self.count + count, mean - self.mean
        self.mean = self.mean + apart * (count / total)
        self._deviations = self._deviations + count * variance + apart.square() * (self.count * count / total)
        self.count = total

    @property
    def variance(self) -> Float64[Tensor, " channels"]:
        """The mean square deviation from the mean: biased, as batch normalization has it. Shape: [channels]."""
        return self._deviations / self.count


class _Reached(BaseException):
    """Ends a forward pass where nothing beyond is needed; no `except Exception` of a network's own catches it."""


class _Freezer:
    """The layers of a network that normalize by their batch, and which of them are frozen.

    Args:
        network: The network.
        layers: Their names.
    """

    def __init__(self, network: nn.Module, layers: dict[_BatchNorm, str]) -> None:
        self.network, self.layers = network, layers
        self.frozen: set[nn.Module] = set()
        self._found = {m: (m.training, m.track_running_stats, dict(m._buffers)) for m in layers}
        self._judged: dict[nn.Module, bool] = {}  # whether a layer is one to freeze

    def freeze(self, x: Inputs, memory: int) -> None:
        """Freeze every layer that x reaches."""
        at_once = len(x) if len(x) <= 4 else max(1, min(len(x), self._fitting(x, memory)))
        retry_on_oom(lambda size: self._freeze_in_parts(x, size), at_once)

    def thaw(self) -> None:
        """Put back what was found."""
        for module, (training, track, buffers) in self._found.items():
            module.training, module.track_running_stats = training, track
            module._buffers.update(buffers)
        self.frozen.clear()

    def _freeze_in_parts(self, x: Inputs, size: int) -> None:
        self.thaw()
        if size >= len(x):
            self._assert_variances(self._pass([x], cut=False))
            return
        while reached := self._pass(x.split(size), cut=True):
            self._assert_variances(reached)
            if len(reached) > 1:
                one, other = (self.layers[module] for module in list(reached)[:2])
                raise NoStatistics(
                    f"whether {one} or {other} comes first depends on the samples, which do not fit into memory at "
                    f"once, so that their statistics cannot be held constant: give more memory, {REMEDY}."
                )
            for module, moments in reached.items():
                self._set(module, moments)

    def _assert_variances(self, moments: dict[_BatchNorm, Moments]) -> None:
        for module, found in moments.items():
            if found.count < 2:
                raise NoStatistics(
                    f"{self._title(module)} saw one number a channel in the whole training set, which has no variance: "
                    f"give more samples, {REMEDY}."
                )

    def _pass(self, parts: Iterable[Inputs], *, cut: bool) -> dict[_BatchNorm, Moments]:
        """Pass parts through the network, each of them up to the first layer that is not frozen.

        Args:
            parts: The samples.
            cut: End a part's pass there. Otherwise freeze the layer by this part alone, and go on.

        Returns:
            Where parts met a layer that was not frozen, and the moments of what they brought.
        """
        moments: dict[_BatchNorm, Moments] = {}
        calls: Counter[nn.Module] = Counter()

        def reach(module: _BatchNorm, args: tuple, kwargs: dict) -> None:
            values = args[0] if args else next(iter(kwargs.values()))
            if not self._is_to_freeze(module, values):
                return
            calls[module] += 1
            if calls[module] > 1:
                raise NoStatistics(
                    f"{self._title(module)} is applied more than once in a forward pass, and each call has batch "
                    f"statistics of its own, which cannot be held constant: give each call its own layer, {REMEDY}."
                )
            if module in self.frozen:
                return
            moments.setdefault(module, Moments()).add(values)
            if cut:
                raise _Reached
            self._set(module, moments[module])

        handles = [module.register_forward_pre_hook(reach, with_kwargs=True) for module in self.layers]
        try:
            for part in parts:
                calls.clear()
                with self._borrowed_buffers(), suppress(_Reached):
                    self.network(part)
        finally:
            for handle in handles:
                handle.remove()
        return moments

    def _set(self, module: _BatchNorm, moments: Moments) -> None:
        _evaluate_by(module, moments.mean, moments.variance, moments.dtype)
        self.frozen.add(module)

    def _title(self, module: _BatchNorm) -> str:
        return f"{self.layers[module] or 'the network'} ({type(module).__name__})"

    def _is_to_freeze(self, module: _BatchNorm, x: Tensor) -> bool:
        """Whether a layer is one to freeze: a subclass with a forward of its own is tried on a few samples, once.

        Raises:
            NoStatistics: It normalizes by the batch, but in evaluation not by running_mean and running_var.
        """
        if module not in self._judged:
            if getattr(module.forward, "__func__", None) in KNOWN:
                self._judged[module] = True
            else:
                alone = _standardizing_copy(module)
                self._judged[module] = _ignores_shifts(alone, x[:16].double())
                if self._judged[module] and not _evaluates_by_buffers(alone, x[:16].double()):
                    raise NoStatistics(
                        f"{self._title(module)} does not normalize by running_mean and running_var in evaluation mode, "
                        f"so that its statistics cannot be held constant: {REMEDY}."
                    )
        return self._judged[module]

    @contextmanager
    def _borrowed_buffers(self) -> Iterator[None]:
        """Copies stand in for the buffers of layers that are not frozen, so that a forward pass changes none."""
        found = [(m, dict(m._buffers)) for m in self.network.modules() if m._buffers and m not in self.frozen]
        copies: dict[int, Tensor] = {}  # a buffer that two modules share stays one
        for module, buffers in found:
            for name, buffer in buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        try:
            yield
        finally:
            for module, buffers in found:
                if module not in self.frozen:  # not even in this pass
                    module._buffers.update(buffers)

    def _fitting(self, x: Inputs, memory: int) -> int:
        """How many samples may pass at a time: after each operation the live bytes are an affine function of them."""
        memory, timelines = memory // LIBRARIES, []
        there = (*self.network.parameters(), *self.network.buffers(), *tree_leaves(x))
        for count in (2, 4):
            with _Live(there) as live:
                self._pass([x[:count]], cut=False)
            timelines.append(live.timeline)
            self.thaw()
        two, four = timelines
        if len(two) != len(four):  # what is done depends on the samples
            return memory * 4 // max(1, *four)
        growing = [(2 * a - b, b - a) for a, b in zip(two, four, strict=True) if b > a]
        return min((2 * (memory - fixed) // per_two for fixed, per_two in growing), default=len(x))


def _evaluate_by(module: _BatchNorm, mean: Tensor, variance: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Turn a layer alone to evaluation, by given statistics, in the dtype of its tensors, else in a given one."""
    dtype = next((t.dtype for t in (module.weight, module.running_mean) if t is not None), dtype)
    module.training, module.track_running_stats = False, True
    module._buffers |= {"running_mean": mean.to(dtype), "running_var": variance.to(dtype)}


def _standardizing_copy(module: _BatchNorm) -> _BatchNorm:
    """A copy in float64 with weight 1 and bias 0, to be tried without hooks by its `forward`."""
    alone = copy.copy(module)
    values = {"weight": torch.ones_like, "bias": torch.zeros_like}
    for registry in ("_parameters", "_buffers"):
        tensors = {
            name: t if t is None else values.get(name, torch.clone)(t.double() if t.is_floating_point() else t)
            for name, t in getattr(module, registry).items()
        }
        vars(alone)[registry] = tensors
    return alone


def _ignores_shifts(alone: _BatchNorm, x: Tensor) -> bool:
    """Whether the output in training mode is the same for `x + c`: what takes the batch's own mean away has it so."""
    with suppress(RuntimeError, ValueError):  # such as one that synchronizes between GPUs: it cannot be tried here
        shift = 1 + x.abs().max()
        return _close(alone.forward(x.clone()), alone.forward(x + shift))
    return True


def _evaluates_by_buffers(alone: _BatchNorm, x: Tensor) -> bool:
    """Return whether mean m and variance v do to x what 0 and 1 do to `(x - m) sqrt((1 + eps) / (v + eps))`."""
    moments = Moments()
    moments.add(x)
    mean, variance = moments.mean, moments.variance + 1
    _evaluate_by(alone, mean, variance)
    by_buffers = alone.forward(x.clone())
    _evaluate_by(alone, torch.zeros_like(mean), torch.ones_like(mean))
    shape = (-1, *[1] * (x.ndim - 2))
    scale = ((1 + alone.eps) / (variance + alone.eps)).sqrt()
    return _close(by_buffers, alone.forward((x - mean.view(shape)) * scale.view(shape)))


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * (1 + b.abs().max()))


class _Live(TorchDispatchMode):
    """Bytes that tensors take which were not there before, after each operation.

    Args:
        there: What was there before.

    Attributes:
        timeline: The bytes.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.timeline: list[int] = []
        self._old = {tensor.untyped_storage()._cdata for tensor in there if tensor.layout is torch.strided}
        self._sizes = WeakIdKeyDictionary()  # of storages, whose Python object lives as long as they do

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled within. PyTorch's own True imports its compiler, 70 MB and two seconds, to say so."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._old:
                    self._sizes[storage] = storage.nbytes()
        self.timeline.append(sum(self._sizes.values()))
        return result
