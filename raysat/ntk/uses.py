"""Uses of a network's parameters: each call of a layer that has a rule, recorded while the network runs.

A rule (`raysat.ntk.rules`) computes the rows of a layer's Jacobian from its inputs and the gradients by its outputs.
This is correct only if both belong to single samples and have the values that the layer saw. Therefore passes with two
and with three samples determine the batch axis of each input and output: the axis whose size changes. A layer that is
applied once for the whole batch, such as a table of positions, has none. Its output is then repeated for each sample,
which changes nothing downstream but gives each sample its own gradient. Tensors that are later changed in place are
copied first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from raysat.compute.sums import summed
from raysat.data.fields import Inputs
from raysat.ntk.plain import trained
from raysat.ntk.rules import Rule, Share, formed, linear_rule, rule_for


@dataclass(frozen=True)
class Axis:
    """The batch axis of a tensor.

    Attributes:
        place: Index of the axis.
        fold: Number of entries of the axis per sample: 1, or the number of positions that are folded into it.
        inner: Whether samples vary faster than positions in a folded axis, as in [length * n, ...].
    """

    place: int
    fold: int = 1
    inner: bool = False

    def to_front(self, tensor: Tensor, before: int = 0) -> Tensor:
        """Return the tensor with this axis first, a sample's positions adjacent; `before` further axes precede it."""
        moved = tensor.movedim(self.place + before, 0)
        return moved.unflatten(0, (self.fold, -1)).transpose(0, 1).flatten(0, 1) if self.inner else moved


@dataclass(frozen=True)
class Note:
    """Properties of one use, known from earlier passes.

    Attributes:
        key: Names of the parameters, in the layer and in the network.
        inputs: Batch axis of the input.
        output: Batch axis of the output.
        copy_inputs: Whether the input is changed in place later.
        copy_output: Whether the output is changed in place later.
        once: Whether the layer is applied once for the whole batch.
        serves: Whether a rule can be applied: input and output both have a batch axis, or the layer is applied once.
    """

    key: object
    inputs: Axis = Axis(0)
    output: Axis = Axis(0)
    copy_inputs: bool = False
    copy_output: bool = False
    once: bool = False
    serves: bool = True


@dataclass
class Use:
    """One use of some parameters.

    Attributes:
        key: As in `Note`.
        rule: The rule that computes its rows.
        layer: The module, or for `F.linear` a stand-in with its attributes, as the rule's first argument.
        names: Names of the network's parameters, by their names in the layer.
        inputs: Input, detached, for the rule.
        output: Output, by which the gradients are taken.
        seen: Input and output as the layer had them, before any copy or repetition.
        versions: Version counters of `seen` at that time; changes in place increase them.
    """

    key: object
    rule: Rule
    layer: object
    names: dict[str, str]
    inputs: Tensor
    output: Tensor
    seen: tuple[Tensor, Tensor]
    versions: tuple[int, int]


class Mismatch(RuntimeError):
    """The network uses its layers in another way than in earlier passes."""


class Recorder:
    """Records the uses of parameters by layers with rules, and by `F.linear`, within the context.

    Args:
        network: The network.
        notes: A note for each use, in order; None in the first passes, which yield the notes.
        n: Number of samples of the pass.
    """

    def __init__(self, network: nn.Module, notes: Sequence[Note] | None = None, n: int = 0) -> None:
        self.network, self.notes, self.n = network, notes, n
        self.names = {id(p): name for name, p in trained(network).items()}
        self.uses: list[Use] = []
        self._inside = 0  # depth of layers with rules: only the outermost one is recorded
        self._stack = ExitStack()

    def __enter__(self) -> Recorder:
        for module in self.network.modules():
            rule = rule_for(module)
            if rule is None or not any(p.requires_grad for p in module.parameters(recurse=False)):
                continue
            enter = module.register_forward_pre_hook(self._enter)
            leave = module.register_forward_hook(self._leaver(rule), with_kwargs=True)
            self._stack.callback(enter.remove)
            self._stack.callback(leave.remove)
        # Attention layers, tied outputs and the like call `F.linear` with their parameters directly. Replacing this one
        # attribute is enough, because PyTorch's own functions look it up there, too.
        self._stack.callback(setattr, F, "linear", F.linear)
        F.linear = self._linear_of(F.linear)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _enter(self, *_: object) -> None:
        self._inside += 1

    def _leaver(self, rule: Rule) -> Callable:
        """Return the forward hook of a layer with a rule; a tensor that it returns replaces the layer's output."""

        def leave(module: nn.Module, args: tuple, kwargs: dict, output: object) -> Tensor | None:
            self._inside -= 1
            inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if self._inside or inputs is None or not isinstance(output, Tensor):
                return None
            own = {name: p for name, p in module.named_parameters(recurse=False) if id(p) in self.names}
            return self._record(rule, module, own, inputs, output)

        return leave

    def _linear_of(self, linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `F.linear` with its uses recorded, unless a layer with a rule calls it."""

        def recorded(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            output = linear(input, weight, bias)
            layer = SimpleNamespace(weight=weight, bias=bias)
            own = {name: p for name, p in vars(layer).items() if id(p) in self.names}
            if self._inside or not own:
                return output
            changed = self._record(linear_rule, layer, own, input, output)
            return output if changed is None else changed

        return recorded

    def _record(
        self, rule: Rule, layer: object, own: Mapping[str, Tensor], inputs: Tensor, output: Tensor
    ) -> Tensor | None:
        """Record a use; return the tensor that replaces the layer's output, or None."""
        names = {name: self.names[id(p)] for name, p in own.items()}
        key, changed, seen = tuple(sorted(names.items())), None, (inputs, output)
        if self.notes is not None:
            k = len(self.uses)
            if k >= len(self.notes) or self.notes[k].key != key:
                raise Mismatch(f"the network uses {', '.join(names.values())} in another order than for other samples")
            note = self.notes[k]
            if note.copy_inputs:
                inputs = inputs.detach().clone()
            if note.once:  # repeat input and output for each sample
                inputs, output = (_for_each(tensor, self.n) for tensor in seen)
                changed = output
            # The copy continues in the network, so that the recorded output keeps its place in the graph.
            if note.copy_output:
                changed = output.clone()
        versions = seen[0]._version, seen[1]._version
        self.uses.append(Use(key, rule, layer, names, inputs.detach(), output, seen, versions))
        return changed


def _for_each(tensor: Tensor, n: int) -> Tensor:
    """Return a tensor repeated for each sample, without a copy: [1, ...] or [...] as [n, ...]."""
    leading = tensor.ndim > 0 and len(tensor) == 1
    return tensor.expand(n, *tensor.shape[leading:])


def rows_of(use: Use, note: Note, gradients: Float[Tensor, "..."]) -> dict[str, Share]:
    """Return the contributions of a use to the rows of its parameters, by their names in the network.

    Args:
        use: The use.
        note: Its note.
        gradients: Gradients by the output, for each of C cotangents. Shape: [C, *output].
    """
    fold = note.output.fold
    inputs = note.inputs.to_front(use.inputs)  # [n, ...]
    gradients = note.output.to_front(gradients, 1)  # [n, C, ...]
    if fold > 1 and use.rule is linear_rule:  # it accepts positions as an axis, and then forms fewer rows
        inputs = inputs.unflatten(0, (-1, fold))
        gradients, fold = gradients.unflatten(0, (-1, fold)).movedim(1, 2), 1
    found = use.rule(use.layer, inputs, gradients)
    return {
        use.names[name]: _unfolded(share, fold) if fold > 1 else share
        for name, share in found.items()
        if name in use.names
    }


def _unfolded(share: Share, fold: int) -> Tensor:
    """Return the rows summed over the positions that are folded into the batch axis."""
    return formed(share).unflatten(0, (-1, fold)).sum(1)


def record(network: nn.Module, x: Inputs, notes: Sequence[Note]) -> tuple[Tensor, list[Use]]:
    """Return the outputs for some samples, with their graph, and the uses recorded in the pass.

    Raises:
        Mismatch: The network uses its layers in another way than the notes say.
    """
    with Recorder(network, notes, len(x)) as recorder:
        outputs = network(x)
    if len(recorder.uses) != len(notes):
        raise Mismatch("the network uses fewer layers than for other samples")
    return outputs, recorder.uses


def shares_of(
    uses: Sequence[Use], notes: Sequence[Note], gradient: Callable[[int], Tensor], names: frozenset[str]
) -> Iterator[tuple[str, Share]]:
    """Yield for each of some parameters its name and its contribution to the Jacobian, summed over its uses.

    Args:
        uses: All uses.
        notes: The note of each use.
        gradient: Function from k to the gradients by the k-th use's output, called on demand. Shape: [C, *output].
        names: Names of these parameters.
    """
    places: dict[str, list[int]] = {}
    for k, use in enumerate(uses):
        for name in use.names.values():
            if name in names:
                places.setdefault(name, []).append(k)
    # Contributions computed along with another parameter of the same use, such as a bias with its weight. One parameter
    # at a time is yielded and then freed, since its explicit rows may be large.
    waiting: dict[tuple[int, str], Share] = {}
    for name, at in places.items():
        found = []
        for k in at:
            if (k, name) not in waiting:
                made = rows_of(uses[k], notes[k], gradient(k))
                waiting |= {(k, other): share for other, share in made.items() if other in names}
            found.append(waiting.pop((k, name)))
        if len(found) == 1:
            yield name, found[0]
        else:
            yield name, summed(formed(share) for share in found)
