"""The optimizer of a training, out of `torch.optim`: which parameters it takes, and its settings at a batch size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raysat.errors import InputError
from raysat.messages.failures import named
from raysat.spec.references import is_reference
from raysat.spec.training import MOMENTUM, OF_ADAM, Training
from raysat.text import shown
from raysat.user_code import plugins

_CLASSES = {
    name.lower(): made
    for name, made in vars(torch.optim).items()
    if inspect.isclass(made) and issubclass(made, torch.optim.Optimizer)
}

MUON = {"adjust_lr_fn": "match_rms_adamw"}
"""Muon's update is scaled to the size of AdamW's, so that one learning rate serves both (Liu et al. 2025, section 2.2:
by 0.2 sqrt(max(rows, columns)))."""


def optimizers_of(training: Training, network: nn.Module, eta: float, b: int) -> list[torch.optim.Optimizer]:
    """The optimizers that take a step together, each of its own parameters; PyTorch's defaults for what is not given.

    There is one, but for Muon, which is defined for matrices: it takes the parameters of two dimensions that are no
    embedding, and AdamW the others, with the same learning rate and weight decay (Jordan et al. 2024; Liu et al. 2025).

    Args:
        training: Names the optimizer and its options. A class takes the parameters, a function pairs of name and
            parameter.
        network: Its parameters that require a gradient are taken.
        eta: Learning rate, before the schedule.
        b: Batch size, which Adam's settings may follow.

    Raises:
        InputError: The optimizer does not take these options, or these parameters.
    """
    trained = [(name, one) for name, one in network.named_parameters() if one.requires_grad]
    parameters = [one for _, one in trained]
    kind = _kind(training)
    options = _options(training, kind, b)
    if training.optimizer != "muon":
        return [_made(kind, training, parameters if isinstance(kind, type) else trained, eta, options)]
    tables = (module for module in network.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag))
    embedded = {id(one) for module in tables for one in module.parameters()}
    matrices = [one for one in parameters if one.ndim == 2 and id(one) not in embedded]
    if not matrices:
        raise InputError(
            "optimizer='muon' is for parameters of two dimensions, of which this network has none: use adamw."
        )
    made = [_made(kind, training, matrices, eta, MUON | options)]
    taken = {id(one) for one in matrices}
    if others := [one for one in parameters if id(one) not in taken]:
        decay = made[0].defaults["weight_decay"]
        made.append(torch.optim.AdamW(others, lr=eta, weight_decay=decay))
    return made


def follow(optimizers: Iterable[torch.optim.Optimizer], training: Training, b: int) -> None:
    """Let the settings of optimizers that follow the batch size, but for their learning rates, be those of b.

    Raises:
        InputError: They do not exist at b.
    """
    if not _follows(training):
        return
    own = _options(training, _kind(training), b)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group |= {name: own[name] for name in ("betas", "eps")}


def _follows(training: Training) -> bool:
    """Return whether betas and eps may follow the batch size."""
    return training.optimizer in OF_ADAM and bool(training.base_batch)


def _kind(training: Training) -> Callable[..., torch.optim.Optimizer]:
    if is_reference(training.optimizer):
        return plugins.resolve(training.optimizer)
    name = "sgd" if training.optimizer in MOMENTUM else training.optimizer
    if name not in _CLASSES:
        raise InputError(f"optimizer={name!r} is not in torch.optim of PyTorch {torch.__version__}: use another.")
    return _CLASSES[name]


def _options(training: Training, kind: Callable[..., torch.optim.Optimizer], b: int) -> dict[str, Any]:
    """The arguments of the optimizer's class at a batch size."""
    options, known = dict[str, Any](training.options), arguments_of(kind)
    check_names(f"optimizer={training.optimizer!r}", options, known, own=("params", "lr"))
    if training.optimizer in MOMENTUM:
        if own := {"momentum", "nesterov"} & set(options):
            raise InputError(f"options has {min(own)}, which the fields optimizer and momentum say: leave it out.")
        options |= {"momentum": training.momentum, "nesterov": training.optimizer == "nesterov"}
    if _follows(training):
        betas, eps = (options.get(name, known[name].default) for name in ("betas", "eps"))
        match betas, eps:
            case (int() | float() as beta_1, int() | float() as beta_2), int() | float():
                options |= {"betas": training.betas(beta_1, beta_2, b), "eps": eps / training.eps_divisor(b)}
            case _:
                raise InputError(
                    f"options has betas={shown(betas)} and eps={shown(eps)}, which scaling={training.scaling!r} may "
                    "scale: give two numbers and one number."
                )
    return options


def check_names(what: str, options: Iterable[str], known: Mapping[str, inspect.Parameter], own: Iterable[str]) -> None:
    """Check that options are arguments.

    Args:
        what: The field with its value, for the message.
        options: Names of the options.
        known: The arguments that there are (`arguments_of`).
        own: Those that are not the user's to give.

    Raises:
        InputError: An option is no argument.
    """
    if any(one.kind is one.VAR_KEYWORD for one in known.values()):
        return
    names = [name for name in known if name not in own]
    said = f"use {', '.join(names)}" if names else "it has none"
    for name in options:
        if name not in names:
            raise InputError(f"{what} has no option {name}: {said}.")


def arguments_of(kind: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments of a class or a function by name; any, for one of C, which does not say."""
    try:
        return inspect.signature(kind).parameters
    except ValueError:
        return inspect.signature(lambda **_: None).parameters


def restore(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Go on where the optimizer's `state_dict` was taken, in the same bits.

    `load_state_dict` brings all of the state but `step` to the parameter's dtype, which would be rounded otherwise from
    then on than in a run that was not stopped: NAdam's product of momenta is float32 beside float64 parameters, and an
    optimizer of the user's own may sum in float64 beside float32 ones.
    """
    optimizer.load_state_dict(stored)
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for k, values in stored.get("state", {}).items():
        key: Any = parameters[k] if isinstance(k, int) and k < len(parameters) else k
        if key in optimizer.state:
            optimizer.state[key] = _as_stored(optimizer.state[key], values)


def _as_stored(own: Any, stored: Any) -> Any:
    """The state that was stored, each tensor on the device where `load_state_dict` has put it."""
    if isinstance(own, Tensor) and isinstance(stored, Tensor):
        return stored.to(own.device)
    if isinstance(own, dict) and isinstance(stored, dict):
        return own | {name: _as_stored(own[name], one) for name, one in stored.items() if name in own}
    if type(own) in (list, tuple) and isinstance(stored, list | tuple):
        return type(own)(_as_stored(*both) for both in zip(own, stored, strict=True))
    return own


def _made(
    kind: Callable[..., torch.optim.Optimizer],
    training: Training,
    parameters: Sequence[Tensor] | Sequence[tuple[str, Tensor]],
    eta: float,
    options: dict[str, Any],
) -> torch.optim.Optimizer:
    try:
        made = kind(parameters, lr=eta, **options)
    except Exception as error:
        raise refused(training, error) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(
            f"optimizer={training.optimizer!r} makes a {type(made).__name__}: return a torch.optim.Optimizer."
        )
    return made


def refused(training: Training, error: Exception) -> InputError:
    """The error of an optimizer that fails as it is made or as it takes a step, as a sentence."""
    own = "it is called without a closure, for dense gradients; fix it or " if is_reference(training.optimizer) else ""
    return InputError(f"optimizer={training.optimizer!r} does not work ({named(error)}): {own}fix its options.")
