"""What users write themselves: autograd.Functions, values held constant, hooks, derivatives in forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from autodiff_cases.case import Case, fixed, functions


class Old(Function):
    """Cubes, with `ctx` in forward, as most code has it."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return 3 * h**2 * g


class OldForward(Old):
    """The same with a rule for forward mode."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        ctx.save_for_forward(h)
        return h**3

    @staticmethod
    def jvp(ctx, t):
        (h,) = ctx.saved_tensors
        return 3 * h**2 * t


class Once(Old):
    """A backward that says that it cannot be differentiated."""

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return 3 * h**2 * g


class OnData(Old):
    """A backward that cannot be differentiated, and does not say so."""

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return (3 * h.data**2) * g.data


class ByNumpy(Old):
    """Both directions by NumPy."""

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return torch.from_numpy(h.detach().numpy() ** 3)

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return torch.from_numpy(3 * h.detach().numpy() ** 2 * g.detach().numpy())


class New(Function):
    """Cubes, with `setup_context`, as torch.func wants it."""

    @staticmethod
    def forward(h):
        return h**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (h,) = ctx.saved_tensors
        return 3 * h**2 * g


class NewForward(New):
    """The same with a rule for forward mode."""

    @staticmethod
    def jvp(ctx, t):
        (h,) = ctx.saved_tensors
        return 3 * h**2 * t


class Generated(NewForward):
    """The same with a generated rule for vmap."""

    generate_vmap_rule = True


class OwnRule(NewForward):
    """The same with a written rule for vmap."""

    @staticmethod
    def vmap(info, in_dims, h):
        return OwnRule.apply(h), in_dims[0]


class StraightThrough(Function):
    """A sign whose derivative is said to be one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h):
        return h.sign()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


FUNCTIONS = functions(
    (4,),
    {
        "Function": Old.apply,
        "Function, jvp": OldForward.apply,
        "Function, once_differentiable": Once.apply,
        "Function, once_differentiable, residual": lambda h: h + Once.apply(h),
        "Function, backward on .data": OnData.apply,
        "Function, backward on .data, residual": lambda h: h + OnData.apply(h),
        "Function by NumPy": ByNumpy.apply,
        "Function by NumPy, residual": lambda h: h + ByNumpy.apply(h),
        "Function, setup_context": New.apply,
        "Function, setup_context, jvp": NewForward.apply,
        "Function, setup_context, jvp, generated vmap": Generated.apply,
        "Function, setup_context, jvp, own vmap": OwnRule.apply,
    },
)


def held(h: Tensor) -> Tensor:
    with torch.no_grad():
        scale = h.norm(dim=-1, keepdim=True)
    return h / scale


def quantized(h: Tensor) -> Tensor:
    """The nearest of a few code words, straight through."""
    words = fixed(3, 4)
    nearest = words[(h.detach()[:, None] - words).square().sum(-1).argmin(1)]
    return h + (nearest - h).detach()


def hooked(h: Tensor) -> Tensor:
    h = h.sin()
    if h.requires_grad:
        h.register_hook(lambda g: g / 2)
    return h


class Reversed(nn.Module):
    """A layer whose gradient is turned by a hook of the module, as for adversarial training."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Tanh())
        self.layer.register_full_backward_hook(lambda module, inputs, outputs: (-inputs[0],))

    def forward(self, h: Tensor) -> Tensor:
        return self.layer(h)


HELD = [
    *functions(
        (4,),
        {
            "detach": lambda h: h * h.detach().sum(-1, keepdim=True),
            "no_grad": held,
            ".data": lambda h: h * h.data.sin(),
            "tensor of values": lambda h: h * torch.tensor(h.detach().numpy().sum(-1, keepdims=True)),
            "item": lambda h: torch.stack([one * one.sum().item() for one in h]),
            "straight through": lambda h: h + (h.sign() - h).detach(),
            "straight through, Function": StraightThrough.apply,
            "vector quantization": quantized,
            "fake_quantize": lambda h: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127),
            "hook of a tensor": hooked,
        },
        stops=True,
    ),
    Case("hook of a module", Reversed, (4,), stops=True),
]


def energy(h: Tensor) -> Tensor:
    return (h.sin() ** 3).sum(-1)


def force(h: Tensor) -> Tensor:
    """The gradient of an energy, as networks of physics and of diffusion have it."""
    if not h.requires_grad:
        h = h.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(energy(h).sum(), h, create_graph=True)[0]


def ensemble(h: Tensor) -> Tensor:
    weights = fixed(3, 4, 2)
    return torch.func.vmap(lambda w: F.softplus(h @ w))(weights).mean(0)


DERIVATIVES = functions(
    (4,),
    {
        "autograd.grad in forward": force,
        "func.grad in forward": torch.func.grad(lambda h: energy(h).sum()),
        "func.jvp in forward": lambda h: torch.func.jvp(energy, (h,), (torch.ones_like(h),))[1],
        "vmap in forward": ensemble,
        "double backward of relu": lambda h: torch.func.grad(lambda h: (F.softplus(h).relu() ** 3).sum())(h),
    },
)
