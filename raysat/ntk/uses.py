"""Where a network uses its parameters: each call of a layer that has a rule, as it is seen while the network runs.

A rule (`raysat.ntk.rules`) makes the rows of a layer's Jacobian from what went into it and the gradients that come
back. That is right only if both belong to single samples, and are those that the layer saw. So it is looked, with two
samples and with three, which axis of each input and output is that of the samples: the one whose size changes. A layer
that is applied once for the whole batch, such as a table of positions, has none: its output is then repeated for each
sample, which changes nothing downstream but gives each sample a gradient of its own. Tensors that are changed in place
afterwards are copied first.
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
    """The axis of the samples in a tensor.

    Attributes:
        place: Its number.
        fold: How many entries of the axis belong to one sample: 1, or the positions that are folded into it.
        inner: Whether samples vary faster than positions in a folded axis, as where the sequence comes first.
    """

    place: int
    fold: int = 1
    inner: bool = False

    def to_front(self, tensor: Tensor, before: int = 0) -> Tensor:
        """The tensor with this axis first, a sample's positions next to each other; `before` axes are not counted."""
        moved = tensor.movedim(self.place + before, 0)
        return moved.unflatten(0, (self.fold, -1)).transpose(0, 1).flatten(0, 1) if self.inner else moved


@dataclass(frozen=True)
class Note:
    """What is known ahead of one use.

    Attributes:
        key: Which parameters it is of.
        inputs: The axis of the samples in the input.
        output: And in the output.
        copy_inputs: Whether the input is changed in place later.
        copy_output: Whether the output is.
        once: Whether the layer is applied once for all samples.
        serves: Whether input and output are of samples, so that a rule can be applied.
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
        rule: What makes its rows.
        layer: The module, or what stands for one, as the rule wants it.
        names: Names of the network's parameters, by their names in the layer.
        inputs: What went in.
        output: What came out; the gradients wanted are those by it.
        seen: Input and output as the layer had them.
        versions: Of these two when they were seen: changes in place count them up.
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
    """The network uses its layers otherwise than when it was looked at."""


class Recorder:
    """Records the uses of parameters by layers with rules, and by `F.linear`, while the context lasts.

    Args:
        network: The network.
        notes: What is known ahead of each use, in their order; None to find out.
        n: Samples that pass.
    """

    def __init__(self, network: nn.Module, notes: Sequence[Note] | None = None, n: int = 0) -> None:
        self.network, self.notes, self.n = network, notes, n
        self.names = {id(p): name for name, p in trained(network).items()}
        self.uses: list[Use] = []
        self._inside = 0
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
        # Attention layers, tied outputs and the like call the function with their parameters themselves. It is looked
        # up by its name in this one place, also by PyTorch's own functions.
        self._stack.callback(setattr, F, "linear", F.linear)
        F.linear = self._linear_of(F.linear)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _enter(self, *_: object) -> None:
        self._inside += 1

    def _leaver(self, rule: Rule) -> Callable:
        def leave(module: nn.Module, args: tuple, kwargs: dict, output: object) -> Tensor | None:
            self._inside -= 1
            inputs = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if self._inside or inputs is None or not isinstance(output, Tensor):
                return None
            own = {name: p for name, p in module.named_parameters(recurse=False) if id(p) in self.names}
            return self._record(rule, module, own, inputs, output)

        return leave

    def _linear_of(self, linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
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
        """Take down a use; returns what is to go on in the place of the output, if anything else."""
        names = {name: self.names[id(p)] for name, p in own.items()}
        key, changed, seen = tuple(sorted(names.items())), None, (inputs, output)
        if self.notes is not None:
            k = len(self.uses)
            if k >= len(self.notes) or self.notes[k].key != key:
                raise Mismatch(f"the network uses {', '.join(names.values())} in another order than for other samples")
            note = self.notes[k]
            if note.copy_inputs:
                inputs = inputs.detach().clone()
            if note.once:  # each sample gets the output as its own
                inputs, output = (_for_each(tensor, self.n) for tensor in seen)
                changed = output
            if note.copy_output:
                changed = output.clone()
        versions = seen[0]._version, seen[1]._version
        self.uses.append(Use(key, rule, layer, names, inputs.detach(), output, seen, versions))
        return changed


def _for_each(tensor: Tensor, n: int) -> Tensor:
    """The tensor once for each sample: [1, ...] or [...] as [n, ...]."""
    leading = tensor.ndim > 0 and len(tensor) == 1
    return tensor.expand(n, *tensor.shape[leading:])


def rows_of(use: Use, note: Note, gradients: Float[Tensor, "..."]) -> dict[str, Share]:
    """Return what a use adds to the rows of its parameters, by the network's names of them.

    Args:
        use: The use.
        note: What is known of it.
        gradients: By the output, of each of C cotangents. Shape: [C, *output].
    """
    fold = note.output.fold
    inputs = note.inputs.to_front(use.inputs)  # [n, ...]
    gradients = note.output.to_front(gradients, 1)  # [n, C, ...]
    if fold > 1 and use.rule is linear_rule:  # takes positions itself, and forms fewer rows
        inputs = inputs.unflatten(0, (-1, fold))
        gradients, fold = gradients.unflatten(0, (-1, fold)).movedim(1, 2), 1
    found = use.rule(use.layer, inputs, gradients)
    return {
        use.names[name]: _unfolded(share, fold) if fold > 1 else share
        for name, share in found.items()
        if name in use.names
    }


def _unfolded(share: Share, fold: int) -> Tensor:
    """Add up the rows of the positions that are folded into the axis of the samples."""
    return formed(share).unflatten(0, (-1, fold)).sum(1)


def record(network: nn.Module, x: Inputs, notes: Sequence[Note]) -> tuple[Tensor, list[Use]]:
    """The outputs for some samples, with their graph, and the uses on the way.

    Raises:
        Mismatch: The network uses its layers otherwise than the notes say.
    """
    with Recorder(network, notes, len(x)) as recorder:
        outputs = network(x)
    if len(recorder.uses) != len(notes):
        raise Mismatch("the network uses fewer layers than for other samples")
    return outputs, recorder.uses


def shares_of(
    uses: Sequence[Use], notes: Sequence[Note], gradient: Callable[[int], Tensor], names: frozenset[str]
) -> Iterator[tuple[str, Share]]:
    """Yield what each parameter of some adds to the Jacobian, one after the other; uses of one parameter add up.

    Args:
        uses: All uses.
        notes: What is known of each.
        gradient: By the output of the k-th, made when asked for. Shape: [C, *output].
        names: The parameters that are wanted.
    """
    places: dict[str, list[int]] = {}
    for k, use in enumerate(uses):
        for name in use.names.values():
            if name in names:
                places.setdefault(name, []).append(k)
    waiting: dict[tuple[int, str], Share] = {}  # made with another parameter of the same layer
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
