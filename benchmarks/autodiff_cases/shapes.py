"""Reductions, norms, order statistics; indexing, assignments in place, shapes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, linalg, nn

from autodiff_cases.case import Case, Weighted, fixed, functions, with_a_zero


def segment_means(h: Tensor) -> Tensor:
    return torch.stack([torch.segment_reduce(one, "mean", lengths=torch.tensor([1, 2])) for one in h])


REDUCTIONS = [
    *functions(
        (3, 4),
        {
            "sum": lambda h: h.sum(-1),
            "mean": lambda h: h.mean((1, 2)),
            "prod": lambda h: h.prod(-1),
            "std": lambda h: h.std(-1),
            "var": lambda h: h.var((1, 2)),
            "var_mean": lambda h: torch.stack(torch.var_mean(h, -1)).movedim(0, 1),
            "norm": lambda h: h.norm(dim=-1),
            "norm, p = 1": lambda h: h.norm(1, dim=-1),
            "norm, p = 3": lambda h: h.norm(3, dim=(1, 2)),
            "norm, p = inf": lambda h: linalg.vector_norm(h, math.inf, dim=-1),
            "matrix_norm, fro": linalg.matrix_norm,
            "matrix_norm, nuc": lambda h: linalg.matrix_norm(h, "nuc"),
            "matrix_norm, 2": lambda h: linalg.matrix_norm(h, 2),
            "logsumexp": lambda h: h.logsumexp(-1),
            "amax": lambda h: h.amax(-1),
            "aminmax": lambda h: torch.cat(torch.aminmax(h, dim=-1), -1),
            "max(dim)": lambda h: h.max(-1).values,
            "median": lambda h: h.median(-1).values,
            "nanmedian": lambda h: h.nanmedian(-1).values,
            "mode": lambda h: h.mode(-1).values,
            "kthvalue": lambda h: h.kthvalue(2, -1).values,
            "quantile": lambda h: h.quantile(0.3, dim=-1),
            "nansum": lambda h: h.nansum(-1),
            "nanmean": lambda h: h.nanmean(-1),
            "cumsum": lambda h: h.cumsum(-1),
            "cumprod": lambda h: h.cumprod(-1),
            "cummax": lambda h: h.cummax(-1).values,
            "cummin": lambda h: h.cummin(-1).values,
            "logcumsumexp": lambda h: h.logcumsumexp(-1),
            "diff": lambda h: h.diff(dim=-1),
            "trapezoid": lambda h: torch.trapezoid(h),
            "cumulative_trapezoid": lambda h: torch.cumulative_trapezoid(h),
            "sort": lambda h: h.sort(-1).values,
            "msort": lambda h: h.mT.sort(1).values,
            "topk": lambda h: h.topk(2).values,
            "topk, unsorted": lambda h: h.topk(2, sorted=False).values.sum(-1),
            "argsort, gather": lambda h: h.gather(-1, h.detach().sin().argsort(-1)),
            "take_along_dim": lambda h: h.take_along_dim(h.detach().argmax(-1, keepdim=True), -1),
            "segment_reduce": lambda h: torch.stack(
                [torch.segment_reduce(one, "mean", lengths=torch.tensor([1, 2])) for one in h]
            ),
            "renorm": lambda h: h.renorm(2, 0, 1.0),
            "cov": lambda h: torch.stack([torch.cov(one) for one in h]),
            "corrcoef": lambda h: torch.stack([torch.corrcoef(one) for one in h]),
            "normalize": lambda h: F.normalize(h, dim=-1),
            "normalize, p = 1": lambda h: F.normalize(h, 1, dim=1),
            "layer_norm": lambda h: F.layer_norm(h, [4]),
            "layer_norm, two dimensions": lambda h: F.layer_norm(h, [3, 4], fixed(3, 4), fixed(3, 4)),
            "rms_norm": lambda h: F.rms_norm(h, [4]),
            "group_norm": lambda h: F.group_norm(h, 3),
            "instance_norm": F.instance_norm,
            "batch_norm, fixed": lambda h: F.batch_norm(h, fixed(3), 1.5 + fixed(3), fixed(3), fixed(3)),
            "local_response_norm": lambda h: F.local_response_norm(h, 2),
            "softmax over two": lambda h: h.flatten(1).softmax(-1),
            "softmax2d": lambda h: nn.Softmax2d()(h[:, :, None]),
        },
    ),
    Case("prod, with a zero", lambda: Weighted(lambda w, x: (w + x).prod(-1), torch.zeros(4)), (3, 4), with_a_zero),
    Case(
        "cumprod, with a zero", lambda: Weighted(lambda w, x: (w + x).cumprod(-1), torch.zeros(4)), (3, 4), with_a_zero
    ),
]


def filled(h: Tensor) -> Tensor:
    out = torch.zeros(len(h), 2, *h.shape[1:])
    out[:, 0], out[:, 1] = h, h.sin()
    return out


def index_set(h: Tensor) -> Tensor:
    out = h.sin()
    out[:, 1] = h[:, 0] ** 2
    return out


def copied(h: Tensor) -> Tensor:
    out = torch.empty_like(h)
    out.copy_(h.sin())
    return out


def into_list(h: Tensor) -> Tensor:
    return torch.stack([row.sin() * (k + 1) for k, row in enumerate(h.unbind(1))], 1)


INDEX = torch.tensor([2, 0, 2])
INDEXING = functions(
    (3, 4),
    {
        "gather": lambda h: h.gather(1, (fixed(3, 4) > 0).long().expand(h.shape)),
        "scatter": lambda h: torch.zeros_like(h).scatter(1, INDEX[None, :2, None].expand(len(h), 2, 4), h[:, :2]),
        "scatter_add": lambda h: h.scatter_add(1, INDEX[None, :, None].expand(h.shape), h.sin()),
        "scatter_reduce, sum": lambda h: h.scatter_reduce(1, INDEX[None, :, None].expand(h.shape), h.sin(), "sum"),
        "scatter_reduce, mean": lambda h: h.scatter_reduce(1, INDEX[None, :, None].expand(h.shape), h.sin(), "mean"),
        "scatter_reduce, prod": lambda h: h.scatter_reduce(1, INDEX[None, :, None].expand(h.shape), h.sin(), "prod"),
        "scatter_reduce, amax": lambda h: h.scatter_reduce(1, INDEX[None, :, None].expand(h.shape), h.sin(), "amax"),
        "index_select": lambda h: h.index_select(1, INDEX),
        "index_add": lambda h: h.index_add(1, INDEX, h.sin()),
        "index_copy": lambda h: h.index_copy(1, INDEX[:2], h[:, :2].sin()),
        "index_fill": lambda h: h.index_fill(1, INDEX, 0.5),
        "index_reduce, prod": lambda h: h.index_reduce(1, INDEX, h.sin(), "prod"),
        "index_put": lambda h: h.index_put((torch.arange(len(h))[:, None], INDEX[None, :2]), h[:, :2] ** 2),
        "index": lambda h: h[:, INDEX, 1:],
        "boolean mask": lambda h: h[:, :, fixed(4) > 0],
        "boolean mask of values": lambda h: torch.stack([one[one > 0].square().sum() for one in h]),
        "masked_select": lambda h: h.masked_select(fixed(3, 4) > 0).view(len(h), -1),
        "masked_scatter": lambda h: torch.stack([one.masked_scatter(fixed(3, 4) > 0, one.sin()) for one in h]),
        "take": lambda h: h.take(torch.arange(len(h) * 12).view(h.shape).flip(1)),
        "select_scatter": lambda h: h.select_scatter(h[:, 0].sin(), 1, 1),
        "slice_scatter": lambda h: h.slice_scatter(h[:, :2].sin(), 1, 1),
        "diagonal_scatter": lambda h: h.diagonal_scatter(h[:, :, 0].sin(), 0, 1, 2),
        "index assignment": index_set,
        "assignment into zeros": filled,
        "copy_": copied,
        "unbind, stack": into_list,
        "roll": lambda h: h.roll(1, -1) * fixed(3, 4),
        "flip": lambda h: h.flip(1) * fixed(3, 4),
        "rot90": lambda h: h.rot90(1, (1, 2)),
        "repeat": lambda h: h.repeat(1, 2, 1),
        "repeat_interleave": lambda h: h.repeat_interleave(2, 1),
        "tile": lambda h: h.tile(1, 1, 2),
        "expand": lambda h: h[:, :, None].expand(-1, -1, 2, -1),
        "Tensor.unfold": lambda h: h.unfold(2, 2, 1),
        "as_strided": lambda h: h.contiguous().as_strided((len(h), 3, 3), (12, 4, 1), 0),
        "split, cat": lambda h: torch.cat([part.sin() for part in h.split(2, -1)][::-1], -1),
        "chunk": lambda h: h.chunk(2, -1)[0] * h.chunk(2, -1)[1],
        "permute": lambda h: h.permute(0, 2, 1).reshape(len(h), -1),
        "tril": torch.tril,
        "diag_embed": torch.diag_embed,
        "diagonal": lambda h: h.diagonal(dim1=1, dim2=2),
        "block_diag": lambda h: torch.stack([torch.block_diag(one, one.sin()) for one in h]),
        "pad, constant": lambda h: F.pad(h, (1, 2)),
        "pad, reflect": lambda h: F.pad(h, (1, 2), "reflect"),
        "pad, replicate": lambda h: F.pad(h, (1, 2), "replicate"),
        "pad, circular": lambda h: F.pad(h, (1, 2), "circular"),
        "branch on values": lambda h: torch.stack([one.sin() if one.sum() > 0 else one**2 for one in h]),
    },
)
