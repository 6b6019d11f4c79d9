"""The user's own change of training batches, such as data augmentation: `transform(x, y, generator) -> (x, y)`.

The function gets the samples of a step's batch as the network and the loss would: x after preprocessing, a tensor, or
for inputs of several tensors a dictionary or tuple of them; and the targets y. It returns both, changed or not, in the
same shapes and types, and may change them in place. Its random numbers come from `generator`, a `torch.Generator` on
the CPU whose state depends on the trial's seed and the step alone, so that a trial that was stopped goes on in the same
bits, whatever the size of its micro-batches.

Only the gradients of the steps are taken at changed samples. Preprocessing, statistics, and all that is measured are of
the samples as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from raysat.data.fields import Fields, Inputs, tensors_of
from raysat.errors import InputError
from raysat.messages.failures import in_words
from raysat.sgd.sampler import generator, redrawn
from raysat.spec.phases import Phase, span_at, spans
from raysat.spec.training import Training
from raysat.user_code import plugins
from raysat.user_code.states import generators


class Transform:
    """A user's transform in a trial.

    Args:
        name: Its import path.
        seed: The trial's seed.
        schedule: The phases of its batches, which may be drawn anew. Default: none.
    """

    def __init__(self, name: str, seed: int, schedule: Iterable[Phase] = ()) -> None:
        self.name, self.seed, self.function = name, seed, plugins.resolve(name)
        self.spans = spans(schedule, 1)

    def __call__(self, x: Inputs, y: Tensor, step: int) -> tuple[Inputs, Tensor]:
        """Return the samples of a step's batch, changed.

        Args:
            x: Inputs, [b, ...], which the function may change.
            y: Targets, [b, ...], likewise.
            step: The step, from 0.

        Raises:
            InputError: The function returns something else, or draws from a generator that it was not given.
        """
        given = _form(x), _form(y)
        own = generator(redrawn(self.seed, span_at(self.spans, step).draw), step)
        before = generators()
        with torch.no_grad():
            made = self.function(_plainly(x), y, own)
        if generators() != before:
            raise InputError(
                f"transform={self.name!r} draws from a global generator of PyTorch, NumPy or Python: draw from its "
                "argument, as in torch.rand(len(x), generator=generator)."
            )
        if not (isinstance(made, tuple | list) and len(made) == 2):
            raise InputError(f"transform={self.name!r} returns {type(made).__name__}: return the pair x, y.")
        for what, form, one in zip("xy", given, made, strict=True):
            self._check(what, form, one)
        changed = {name: one.detach() for name, one in _values(made[0]).items()}
        if isinstance(x, Fields):
            ordered = {name: changed[name] for name in x.tensors}
            return Fields(ordered if x.named else tuple(ordered.values())), made[1].detach()
        return changed[0], made[1].detach()

    def _check(self, what: str, given: str, made: Any) -> None:
        """Raise `InputError` if what the function returns as x or y has another form, or values that are no numbers."""
        if (form := _form(made)) != given:
            raise InputError(
                f"transform={self.name!r} was given {what} of {given}, and returns {form}: let it keep shapes, types "
                "and devices."
            )
        if any(one.is_floating_point() and one.isnan().any() for one in _values(made).values()):
            raise InputError(f"transform={self.name!r} returns {what} with NaN: let it make none.")

    def try_on(self, x: Inputs, y: Tensor, sizes: Iterable[int]) -> None:
        """Try the function on batches of the first samples.

        Args:
            x: Inputs of all samples.
            y: Their targets.
            sizes: Batch sizes.

        Raises:
            InputError: It fails, or what it returns cannot be used or does not follow from its arguments.
        """
        for b in sizes:
            few = torch.arange(b, device=y.device)
            with in_words(
                lambda why, b=b: (
                    f"transform={self.name!r} fails on a batch of {b} ({why}): fix it; it is called with x, y and a "
                    "torch.Generator, and returns x and y."
                )
            ):
                one, other = (self(x.index_select(0, few), y.index_select(0, few), 0) for _ in range(2))
            pairs = zip((*tensors_of(one[0]), one[1]), (*tensors_of(other[0]), other[1]), strict=True)
            if not all(torch.equal(*pair) for pair in pairs):
                raise InputError(
                    f"transform={self.name!r} returns other values for the same arguments: let it draw from its "
                    "generator alone, and keep nothing from one call to the next."
                )


def transform_of(training: Training, seed: int) -> Transform | None:
    """Return the transform of a training for a trial of that seed; None if it has none."""
    return Transform(training.transform, seed, training.batch_schedule) if training.transform else None


def _plainly(x: Inputs) -> Any:
    """Inputs as the user gave them: a tensor, a dictionary or a tuple."""
    if isinstance(x, Tensor):
        return x
    return dict(x.tensors) if x.named else tuple(x.tensors.values())


def _values(x: Any) -> dict[Any, Any]:
    """The tensors of which inputs or targets consist, by name or place."""
    x = _plainly(x) if isinstance(x, Fields) else x
    return dict(x) if isinstance(x, Mapping) else dict(enumerate(x if isinstance(x, list | tuple) else [x]))


def _form(x: Any) -> str:
    """Shape, type and device of a tensor, or of each of several; for another thing, what it is."""
    forms = {name: _form_of_one(one) for name, one in sorted(_values(x).items(), key=lambda item: str(item[0]))}
    return str(forms) if isinstance(x, Fields | Mapping | list | tuple) else forms[0]


def _form_of_one(x: Any) -> str:
    return f"{list(x.shape)}, {x.dtype}, {x.device}" if isinstance(x, Tensor) else type(x).__name__
