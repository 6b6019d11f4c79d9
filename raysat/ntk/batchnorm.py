"""Batch normalization in training mode, with its batch statistics frozen at those of the whole training set.

In training mode a layer normalizes by the mean and variance of the batch, so a sample's output depends on all others
and no sample has a Jacobian of its own. Frozen at their values over the whole training set, the batch statistics
become constants and the layer an affine map of each sample. On the training set, at the current weights, the network's
outputs are then exactly those of a full batch in training mode. Its gradients are not: training also differentiates
through mean and variance, and the statistics of batches of b samples scatter about those of the training set.
`benchmarks/batch_norm.py` measures how far gradients of real batches lie from what the frozen network predicts; see
`docs/definitions.md`.

Two variants are deliberately treated alike:

- `SyncBatchNorm` uses the statistics of the global batch over all ranks, the batch whose critical size is sought. As
  it grows, they tend to those of the training set, as they do without ranks.
- Ghost batch normalization uses those of g consecutive samples at any batch size. They do not tend to those of a full
  batch, but as averages over g samples of the same training set they scatter about its mean and variance, so the same
  constants are the natural choice. The approximation improves with g, not with b.
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
"""Numbers cast to float64 at a time. Default: 2^20, or 8 MiB, small compared with the activations."""

LIBRARIES = 2
"""Peak memory of a pass, as a multiple of the bytes of its tensors. Default: 2. oneDNN's convolutions copy theirs: the
peak of ResNet-10 was 1.7 times that of its tensors."""

KNOWN = (_BatchNorm.forward, nn.SyncBatchNorm.forward, GhostBatchNorm.forward)
"""Forward functions known to normalize by the batch in training mode and by the buffers in evaluation mode."""

REMEDY = "call network.eval(), or use GroupNorm"


@contextmanager
def frozen_batch_norm(network: nn.Module, x: Inputs, memory: int = 1 << 30) -> Iterator[tuple[str, ...]]:
    """Freeze the batch statistics of batch normalization at those of the training set, within the context.

    Each layer that normalizes by its batch receives the mean and biased variance of each channel over all of x as its
    running averages, and it alone is switched to evaluation mode. If all samples fit in one pass, one pass suffices and
    freezes each layer as it is reached. Otherwise there is one pass per layer, with all layers before it frozen and the
    pass cut off at it, and a last one that verifies that no layer was missed. On exit, modes, buffers (identity and
    values) and hooks are restored.

    The caller must have turned off random layers that precede a normalization, and compiled parts must run eagerly
    (`torch.compiler.set_stance("force_eager")`), because they do not call hooks. A layer that no sample reaches is left
    unchanged, and so is a subclass whose training mode does not normalize by the batch. A subclass that mixes samples
    in evaluation mode too still does so within the context.

    Args:
        network: The network, in the mode in which it trains.
        x: The inputs of the whole training set.
        memory: Bytes that the activations of a forward pass may take, as measured on four samples. If memory runs out
            nevertheless, the number of samples per pass is halved. Default: 1 GiB, that of `ntk_statistics`.

    Yields:
        The names of the frozen layers, in the network's order. If no layer normalizes by its batch, the tuple is empty
        and nothing is computed.

    Raises:
        NoStatistics: A layer is applied more than once in a forward pass, receives only one number per channel, is a
            subclass that does not normalize by `running_mean` and `running_var` in evaluation mode, or is reached in
            an order that depends on the samples while these do not fit in memory at once.

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
        # Buffers created in inference mode could not be saved for a backward pass.
        with torch.inference_mode(False), torch.no_grad():
            freezer.freeze(x, memory)
        yield tuple(name for module, name in layers.items() if module in freezer.frozen)
    finally:
        freezer.thaw()


def by_batch(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether a layer normalizes by batch statistics: in training mode, or without running averages."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


class Moments:
    """Count, mean and squared deviations of each channel, accumulated over parts in float64.

    The squared deviations of two parts from their own means combine as `M = M_1 + M_2 + d^2 n_1 n_2 / (n_1 + n_2)`, d
    the difference of the means (Chan, Golub and LeVeque 1979, eq. 2.1), a sum without cancellation.

    Attributes:
        count: Numbers per channel.
        mean: Mean of each channel. Shape: [channels].
        dtype: Dtype of the numbers; float32 if they have half precision.
    """

    def __init__(self) -> None:
        self.count, self.dtype = 0, torch.float32
        self.mean = self._deviations = torch.zeros(0, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add a batch of shape [n, channels, ...]."""
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        # In parts of whole samples: a float64 copy of all activations would take twice their memory.
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
        """The biased variance, by which batch normalization normalizes. Shape: [channels]."""
        return self._deviations / self.count


class _Reached(BaseException):
    """Ends a forward pass early. A BaseException, so that no `except Exception` inside the network catches it."""


class _Freezer:
    """The layers of a network that normalize by their batch, and the set of those already frozen.

    Args:
        network: The network.
        layers: The layers, with their names.
    """

    def __init__(self, network: nn.Module, layers: dict[_BatchNorm, str]) -> None:
        self.network, self.layers = network, layers
        self.frozen: set[nn.Module] = set()
        self._found = {m: (m.training, m.track_running_stats, dict(m._buffers)) for m in layers}
        self._judged: dict[nn.Module, bool] = {}  # cache of `_is_to_freeze`

    def freeze(self, x: Inputs, memory: int) -> None:
        """Freeze every layer that x reaches."""
        # Up to four samples are not worth a measurement, which itself passes two and four.
        at_once = len(x) if len(x) <= 4 else max(1, min(len(x), self._fitting(x, memory)))
        retry_on_oom(lambda size: self._freeze_in_parts(x, size), at_once)

    def thaw(self) -> None:
        """Restore modes and buffers of all layers."""
        for module, (training, track, buffers) in self._found.items():
            module.training, module.track_running_stats = training, track
            module._buffers.update(buffers)
        self.frozen.clear()

    def _freeze_in_parts(self, x: Inputs, size: int) -> None:
        self.thaw()
        if size >= len(x):
            self._assert_variances(self._pass([x], cut=False))
            return
        # Each pass freezes the next layer in the order of the forward pass: its inputs are final once all layers before
        # it are frozen. The last pass reaches no unfrozen layer and ends the loop.
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
        """Pass the parts through the network and collect the moments of the inputs of layers not yet frozen.

        Args:
            parts: The samples, in parts.
            cut: Whether a part's pass ends at the first layer that is not frozen. Otherwise the layer is frozen by the
                moments of this part alone, and the pass continues.

        Returns:
            The layers reached that were not frozen, each with the moments of its inputs.
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
                calls.clear()  # calls are counted within one forward pass, not over the parts
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
        """Return whether a layer is to be frozen; a subclass with its own forward is tested once, on a few samples.

        Raises:
            NoStatistics: It normalizes by the batch, but not by running_mean and running_var in evaluation mode.
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
        """Replace the buffers of modules that are not frozen by copies, so that a forward pass changes no original."""
        found = [(m, dict(m._buffers)) for m in self.network.modules() if m._buffers and m not in self.frozen]
        copies: dict[int, Tensor] = {}  # by identity: a buffer shared by two modules stays shared
        for module, buffers in found:
            for name, buffer in buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())
        try:
            yield
        finally:
            for module, buffers in found:
                if module not in self.frozen:  # a layer frozen in this very pass keeps its new buffers
                    module._buffers.update(buffers)

    def _fitting(self, x: Inputs, memory: int) -> int:
        """Return how many samples fit in one pass: the live bytes after each operation are affine in their number."""
        memory, timelines = memory // LIBRARIES, []
        there = (*self.network.parameters(), *self.network.buffers(), *tree_leaves(x))
        for count in (2, 4):
            with _Live(there) as live:
                self._pass([x[:count]], cut=False)
            timelines.append(live.timeline)
            self.thaw()
        two, four = timelines
        if len(two) != len(four):  # the operations depend on the samples: take the peak as proportional to their number
            return memory * 4 // max(1, *four)
        # With a bytes for two samples and b for four, 2 a - b are fixed and b - a come with every two samples. The
        # smallest number that some operation admits counts.
        growing = [(2 * a - b, b - a) for a, b in zip(two, four, strict=True) if b > a]
        return min((2 * (memory - fixed) // per_two for fixed, per_two in growing), default=len(x))


def _evaluate_by(module: _BatchNorm, mean: Tensor, variance: Tensor, dtype: torch.dtype = torch.float64) -> None:
    """Switch one layer to evaluation mode with the given statistics, in its tensors' dtype or, without any, `dtype`."""
    dtype = next((t.dtype for t in (module.weight, module.running_mean) if t is not None), dtype)
    module.training, module.track_running_stats = False, True
    module._buffers |= {"running_mean": mean.to(dtype), "running_var": variance.to(dtype)}


def _standardizing_copy(module: _BatchNorm) -> _BatchNorm:
    """Return a float64 copy with weight 1 and bias 0, to be tested through `forward`, which calls no hooks."""
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
    """Return whether the output in training mode is the same for `x + c`, as it is if the batch mean is subtracted."""
    with suppress(RuntimeError, ValueError):  # not testable here, e.g. a layer that synchronizes GPUs: assume True
        shift = 1 + x.abs().max()
        return _close(alone.forward(x.clone()), alone.forward(x + shift))
    return True


def _evaluates_by_buffers(alone: _BatchNorm, x: Tensor) -> bool:
    """Return whether buffers m and v act on x as buffers 0 and 1 act on `(x - m) sqrt((1 + eps) / (v + eps))`."""
    moments = Moments()
    moments.add(x)
    mean, variance = moments.mean, moments.variance + 1  # + 1: at 1, ignoring running_var would show no difference
    _evaluate_by(alone, mean, variance)
    by_buffers = alone.forward(x.clone())
    _evaluate_by(alone, torch.zeros_like(mean), torch.ones_like(mean))
    shape = (-1, *[1] * (x.ndim - 2))
    scale = ((1 + alone.eps) / (variance + alone.eps)).sqrt()
    return _close(by_buffers, alone.forward((x - mean.view(shape)) * scale.view(shape)))


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * (1 + b.abs().max()))


class _Live(TorchDispatchMode):
    """Record of the bytes held by new tensors after each operation.

    Args:
        there: Tensors that exist already and do not count.

    Attributes:
        timeline: Bytes of the live new tensors, one entry per operation.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.timeline: list[int] = []
        self._old = {tensor.untyped_storage()._cdata for tensor in there if tensor.layout is torch.strided}
        self._sizes = WeakIdKeyDictionary()  # by storage, whose Python object lives until the memory is freed

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: nothing is compiled within. PyTorch's default True imports its compiler, 70 MB and 2 s."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()  # views share it, and count once
                if storage._cdata not in self._old:
                    self._sizes[storage] = storage.nbytes()
        self.timeline.append(sum(self._sizes.values()))
        return result
