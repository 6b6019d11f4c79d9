"""Where a network uses its parameters: each call of a layer that has a rule, as it is seen while the network runs.

A rule (`raysat.ntk.rules`) makes the rows of a layer's Jacobian from what went into it and the gradients that come
back. That is right only if both belong to single samples, and are those that the layer saw. So it is looked, with two
samples and with three, which axis of each input and output is that of the samples: the one whose size changes. A layer
that is applied once for the whole batch, such as a table of positions, has none: its output is then repeated for each
sample, which changes nothing downstream but gives each sample a gradient of its own. Tensors that are changed in place
afterwards are copied first. What a rule says is believed parameter by parameter, where it equals plain autograd's
gradient of each of three samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from raysat.data.fields import Inputs
from raysat.ntk.look import ROUNDING
from raysat.ntk.plain import gradients, sample_gradient, trained
from raysat.ntk.rules import Outer, Rule, Share, linear_rule, rule_for
from raysat.text import first_sentence


@dataclass(frozen=True)
class Axis:
    """The axis of the samples in a tensor.

    Attributes:
        place: Its number.
        fold: How many entries of the axis belong to one sample: 1, or the positions that are folded into it.
    """

    place: int
    fold: int = 1


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
        self, rule: Rule, layer: object, own: dict[str, Tensor], inputs: Tensor, output: Tensor
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
    """What a use adds to the rows of its parameters, by the network's names of them.

    Args:
        use: The use.
        note: What is known of it.
        gradients: By the output, of each of C cotangents. Shape: [C, *output].
    """
    fold = note.output.fold
    inputs = use.inputs.movedim(note.inputs.place, 0)  # [n, ...]
    gradients = gradients.movedim(note.output.place + 1, 0)  # [n, C, ...]
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
    rows = share.rows() if isinstance(share, Outer) else share
    return rows.unflatten(0, (-1, fold)).sum(1)


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
    """What each parameter of some adds to the Jacobian, one after the other; uses of one parameter add up.

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
            yield name, sum(share.rows() if isinstance(share, Outer) else share for share in found)


# What to believe ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """Which parameters the rules serve in a network.

    Attributes:
        notes: What is known of each use, in order.
        covered: The parameters whose rows the rules give.
        rest: The others.
        reason: Why there are others, in words that name one.
    """

    notes: tuple[Note, ...]
    covered: frozenset[str]
    rest: tuple[str, ...]
    reason: str


def survey(network: nn.Module, few: Inputs, more: Inputs | None = None, chunk: int = 64) -> Survey:
    """Find out which parameters the rules serve, against plain autograd.

    Args:
        network: As it was looked at.
        few: Three samples, each of which is compared.
        more: Samples over which sums are compared, of random functions of the outputs, for a weight that is used
            otherwise for some samples only. Default: none.
        chunk: Of these, how many at a time.
    """
    names = tuple(trained(network))
    try:
        notes = _notes(network, few)
        believed = _believed(network, few, notes)
        for first in range(0, 0 if more is None else len(more), chunk):
            believed &= _believed_of_all(network, more[first : first + chunk], notes, believed)
    except Exception as error:  # whatever it is, the ways without rules do not depend on it
        return Survey((), frozenset(), names, f"layer rules do not serve ({first_sentence(error)})")
    rest = tuple(name for name in names if name not in believed)
    return Survey(tuple(notes), frozenset(believed), rest, _why(network, rest[0]) if rest else "")


def _why(network: nn.Module, name: str) -> str:
    owner, _, _ = name.rpartition(".")
    module = network.get_submodule(owner)
    if rule_for(module) is None:
        return f"no rule for {type(module).__name__}, which holds {name}"
    return f"{name} is used otherwise than by its own layer once a sample"


def _notes(network: nn.Module, few: Inputs) -> list[Note]:
    """What the uses are, from a pass of two samples and one of three."""
    seen = []
    for n in (2, 3):
        with Recorder(network) as recorder:
            network(few[:n])
        seen.append(recorder.uses)
    two, three = seen
    if [use.key for use in two] != [use.key for use in three]:
        raise Mismatch("the network uses other layers for other samples")
    notes = []
    for one, other in zip(two, three, strict=True):
        inputs, output = (_axis(a.shape, b.shape) for a, b in zip(one.seen, other.seen, strict=True))
        later = [tensor._version != version for tensor, version in zip(other.seen, other.versions, strict=True)]
        once = inputs is None and output is None
        notes.append(
            Note(other.key, inputs or Axis(0), output or Axis(0), *later, once, once or bool(inputs and output))
        )
    return notes


def _axis(two: Sequence[int], three: Sequence[int]) -> Axis | None:
    """The axis along which a tensor of two samples differs from one of three; None where there is none."""
    if len(two) != len(three):
        raise Mismatch("a layer's tensors have other axes for other numbers of samples")
    places = [k for k, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    if not places:
        return None
    (k,) = places
    if 3 * two[k] != 2 * three[k]:
        raise Mismatch("a layer's tensors do not grow with the number of samples")
    return Axis(k, three[k] // 3)


def _believed(network: nn.Module, few: Inputs, notes: list[Note]) -> set[str]:
    """The parameters whose rows by the rules are plain autograd's gradients. Corrects the notes where need be."""
    expected = network(few).detach()
    allowed = ROUNDING[torch.float64 if expected.dtype == torch.float64 else torch.float32]
    try:
        outputs, uses = record(network, few, notes)
        same = bool((outputs - expected).abs().max() <= allowed * expected.abs().max())
    except RuntimeError:
        same = False
    if not same:  # an output that is repeated for each sample does not fit downstream
        notes[:] = [replace(note, once=False, serves=note.serves and not note.once) for note in notes]
        outputs, uses = record(network, few, notes)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    by_output = torch.autograd.grad(outputs, [use.output for use in uses], u, allow_unused=True, materialize_grads=True)
    rows: dict[str, Tensor | None] = {}
    for use, note, gradient in zip(uses, notes, by_output, strict=True):
        try:
            found = rows_of(use, note, gradient[None]) if note.serves else {}
        except (
            RuntimeError,
            ValueError,
            IndexError,
            KeyError,
            TypeError,
        ):  # a layer that is used in a shape of its own
            found = {}
        for name in use.names.values():
            share = found.get(name)
            if isinstance(share, Outer):
                share = share.rows()
            before = rows.get(name, 0)
            lost = share is None or before is None or share.shape[:2] != (len(few), 1)
            rows[name] = None if lost else before + share[:, 0].double()
    plain = [sample_gradient(network, few[k : k + 1], u[k : k + 1]) for k in range(len(few))]
    size = torch.stack([torch.stack([g.double().square().sum() for g in one.values()]).sum() for one in plain]).sqrt()
    believed = set()
    for name in trained(network):
        exact = torch.stack([one[name].flatten().double() for one in plain])
        found = rows.get(name, torch.zeros_like(exact))
        if found is not None and found.shape == exact.shape:
            # Beside a thousandth of the whole gradient, a parameter's own may be rounding alone.
            scale = torch.maximum(exact.norm(dim=1), 1e-3 * size)
            if bool(((found - exact).norm(dim=1) <= allowed * scale).all()):
                believed.add(name)
    return believed


def _believed_of_all(network: nn.Module, x: Inputs, notes: Sequence[Note], believed: set[str]) -> set[str]:
    """Of some parameters those whose rows, summed over the samples, are the gradient of the batch."""
    outputs, uses = record(network, x, notes)
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    by_output = torch.autograd.grad(outputs, [use.output for use in uses], u, allow_unused=True, materialize_grads=True)
    weights = {name: p for name, p in trained(network).items() if name in believed}
    exact = dict(zip(weights, gradients(network(x), list(weights.values()), u), strict=True))
    size = sum(gradient.double().square().sum() for gradient in exact.values()).sqrt()
    allowed = ROUNDING[torch.float64 if outputs.dtype == torch.float64 else torch.float32]
    agreed = set(weights)
    for name, share in shares_of(uses, notes, lambda k: by_output[k][None], frozenset(weights)):
        if isinstance(share, Outer):
            found = share.scale * torch.einsum("ncu,ni->ui", share.gradients, share.inputs)
        else:
            found = share.sum((0, 1))
        off = (found.flatten().double() - exact[name].flatten().double()).norm()
        if not off <= allowed * max(exact[name].double().norm(), 1e-3 * size):
            agreed.discard(name)
    return agreed
