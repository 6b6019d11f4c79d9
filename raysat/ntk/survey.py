"""Survey of a network: the parameters that layer rules cover, as verified by plain autograd.

A rule is accepted for a parameter if it reproduces plain autograd's gradient for each of three samples and, summed over
more samples, that of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from raysat.compute.sums import summed
from raysat.data.fields import Inputs
from raysat.messages.failures import first_sentence
from raysat.ntk.look import ROUNDING
from raysat.ntk.plain import gradients, sample_gradient, trained
from raysat.ntk.rules import Outer, formed, rule_for
from raysat.ntk.uses import Axis, Mismatch, Note, Recorder, record, rows_of, shares_of


@dataclass(frozen=True)
class Survey:
    """Parameters of a network that the rules cover.

    Attributes:
        notes: A note for each use of parameters, in the order of the forward pass.
        covered: Names of the parameters whose rows the rules give.
        rest: Names of the other parameters.
        reason: Why the rules do not cover all parameters; empty if they do.
    """

    notes: tuple[Note, ...]
    covered: frozenset[str]
    rest: tuple[str, ...]
    reason: str


def survey(network: nn.Module, few: Inputs, more: Inputs | None = None, chunk: int = 64) -> Survey:
    """Determine which parameters the rules cover, by comparison with plain autograd.

    Args:
        network: The inspected network.
        few: Three samples, compared one by one.
        more: Samples whose sums are compared, of random functions of the outputs, to detect a weight that only some
            samples use in another way. Default: none.
        chunk: Samples of `more` per chunk.
    """
    names = tuple(trained(network))
    try:
        notes = _notes(network, few)
        confirmed = _confirmed(network, few, notes)
        for part in () if more is None else more.split(chunk):
            confirmed &= _confirmed_by_batch(network, part, notes, confirmed)
    except Exception as error:  # of any kind: the implementations without rules do not depend on it
        return Survey((), frozenset(), names, f"layer rules do not serve ({first_sentence(error)})")
    rest = tuple(name for name in names if name not in confirmed)
    return Survey(tuple(notes), frozenset(confirmed), rest, _why(network, rest[0]) if rest else "")


def _why(network: nn.Module, name: str) -> str:
    """Return why the rules do not cover a parameter."""
    owner, _, _ = name.rpartition(".")
    module = network.get_submodule(owner)
    if rule_for(module) is None:
        return f"no rule for {type(module).__name__}, which holds {name}"
    return f"{name} is used otherwise than by its own layer once a sample"


def _notes(network: nn.Module, few: Inputs) -> list[Note]:
    """Return a note for each use, from a pass of two samples and one of three."""
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
        inputs, output = (_axis(a, b) for a, b in zip(one.seen, other.seen, strict=True))
        # A tensor whose version has grown since it was recorded was changed in place later in the pass.
        changed_in, changed_out = (
            tensor._version != version for tensor, version in zip(other.seen, other.versions, strict=True)
        )
        once = inputs is None and output is None  # applied to no sample, but once for the batch
        serves = once or bool(inputs and output)  # a batch axis on one side only: no rule applies
        notes.append(Note(other.key, inputs or Axis(0), output or Axis(0), changed_in, changed_out, once, serves))
    return notes


def _axis(two: Tensor, three: Tensor) -> Axis | None:
    """Return the batch axis of a tensor, from its values for two samples and for these and a third; None if absent."""
    if two.ndim != three.ndim:
        raise Mismatch("a layer's tensors have other axes for other numbers of samples")
    places = [k for k, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
    if not places:
        return None
    (k,) = places
    if 3 * two.shape[k] != 2 * three.shape[k]:
        raise Mismatch("a layer's tensors do not grow with the number of samples")
    fold = three.shape[k] // 3  # entries per sample
    if fold == 1:
        return Axis(k)
    # In a folded axis, samples are either outermost or innermost. Unfolded as [sample, position], the first two samples
    # of both passes agree if they are outermost.
    of_two = two.detach().movedim(k, 0).unflatten(0, (2, fold)).double()
    of_three = three.detach().movedim(k, 0).unflatten(0, (3, fold))[:2].double()
    return Axis(k, fold, inner=not torch.allclose(of_two, of_three, rtol=1e-3, atol=1e-6))


def _confirmed(network: nn.Module, few: Inputs, notes: list[Note]) -> set[str]:
    """Return the parameters whose rows by the rules are plain autograd's gradients. Corrects the notes if necessary."""
    expected = network(few).detach()
    allowed = ROUNDING[torch.float64 if expected.dtype == torch.float64 else torch.float32]
    try:
        outputs, uses = record(network, few, notes)
        same = bool((outputs - expected).abs().max() <= allowed * expected.abs().max())
    except RuntimeError:
        same = False
    if not same:  # repeating the output of a `once` layer for each sample changed the network: record without it
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
        ):  # the layer is used with shapes that the rule does not know
            found = {}
        for name in use.names.values():
            share = found.get(name)
            share = None if share is None else formed(share)
            before = rows.get(name, 0)
            if share is None or before is None or share.shape[:2] != (len(few), 1):
                rows[name] = None  # not covered: one use without a rule spoils the sum
            else:
                rows[name] = before + share[:, 0].double()
    # Each sample alone by plain autograd, and the norm of its whole gradient.
    plain = [sample_gradient(network, few[k : k + 1], u[k : k + 1]) for k in range(len(few))]
    size = torch.stack([torch.stack([g.double().square().sum() for g in one.values()]).sum() for one in plain]).sqrt()
    confirmed = set()
    for name in trained(network):
        exact = torch.stack([one[name].flatten().double() for one in plain])
        found = rows.get(name, torch.zeros_like(exact))
        if found is not None and found.shape == exact.shape:
            # A gradient below a thousandth of the whole one may be rounding alone, and is compared on that scale.
            scale = torch.maximum(exact.norm(dim=1), 1e-3 * size)
            if bool(((found - exact).norm(dim=1) <= allowed * scale).all()):
                confirmed.add(name)
    return confirmed


def _confirmed_by_batch(network: nn.Module, x: Inputs, notes: Sequence[Note], confirmed: set[str]) -> set[str]:
    """Return those of some parameters whose rows, summed over the samples, are the gradient of the batch."""
    outputs, uses = record(network, x, notes)
    generator = torch.Generator().manual_seed(2)
    u = torch.randn(outputs.shape, generator=generator, dtype=torch.float64, device="cpu").to(outputs)
    by_output = torch.autograd.grad(outputs, [use.output for use in uses], u, allow_unused=True, materialize_grads=True)
    weights = {name: p for name, p in trained(network).items() if name in confirmed}
    exact = dict(zip(weights, gradients(network(x), list(weights.values()), u), strict=True))
    size = summed(gradient.double().square().sum() for gradient in exact.values()).sqrt()
    allowed = ROUNDING[torch.float64 if outputs.dtype == torch.float64 else torch.float32]
    agreed = set(weights)
    for name, share in shares_of(uses, notes, lambda k: by_output[k][None], frozenset(weights)):
        if isinstance(share, Outer):
            # The sum over samples as one product, without the rows of each sample.
            found = share.scale * torch.einsum("ncu,ni->ui", share.gradients, share.inputs)
        else:
            found = formed(share).sum((0, 1))
        off = (found.flatten().double() - exact[name].flatten().double()).norm()
        if not off <= allowed * max(exact[name].double().norm(), 1e-3 * size):
            agreed.discard(name)
    return agreed
