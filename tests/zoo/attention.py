"""Attention and transformers of torch.nn, and scaled dot-product attention by itself."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from raysat.data.fields import Fields
from raysat.models.unpacked import Unpacked

from .case import Wired, add, case, evaluated, tokens, vectors


class Heads(nn.Module):
    """nanoGPT's attention and a readout of the mean position."""

    def __init__(self, length: int, heads: int = 2, outputs: int = 3, causal: bool = False, mask: str = "") -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, outputs)
        self.heads, self.causal = heads, causal
        below = torch.ones(length, length).tril().bool()
        self.register_buffer("mask", {"": None, "bool": below, "number": below.float().log().clamp_min(-2)}[mask])

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.causal)
        return self.head(x + self.out(h.transpose(1, 2).reshape(n, t, d))).mean(1)


def _sdpa(length: int = 5, n: int = 6, **options: object):
    return Heads(length, **options), vectors(length, 8, n=n)


SDPA = {
    "SDPA": {},
    "SDPA, causal": {"causal": True},
    "SDPA, four heads, causal": {"heads": 4, "causal": True},
    "SDPA, one head": {"heads": 1},
    "SDPA, boolean mask": {"mask": "bool"},
    "SDPA, added mask": {"mask": "number"},
    "SDPA, as many samples as positions": {"n": 5},
    "SDPA, 200 outputs": {"outputs": 200, "n": 4},
    "SDPA, 200 outputs, causal": {"outputs": 200, "causal": True, "n": 4},
}
for _name, _options in SDPA.items():
    add("attention", _name, partial(_sdpa, **_options))
add("attention", "SDPA, memory for one sample", partial(_sdpa, causal=True), options={"memory": 1})
add("attention", "SDPA, 200 outputs, memory for one sample", partial(_sdpa, outputs=200, n=4), options={"memory": 1})
add("attention", "SDPA, classes", partial(_sdpa, heads=4), loss="cross_entropy")


@case("attention", "SDPA, grouped queries")
def _():
    def forward(self, x):
        q = self.q(x).unflatten(2, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, 2, 2)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.head(h.transpose(1, 2).flatten(2))[:, -1]

    return Wired(forward, q=nn.Linear(6, 8), kv=nn.Linear(6, 8), head=nn.Linear(8, 3)), vectors(5, 6)


class Attending(nn.Module):
    """nn.MultiheadAttention of x, or of queries of their own over x."""

    def __init__(self, cross: bool = False, weights: bool = False, masked: bool = False, **options: object) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, **options), nn.Linear(8, 3)
        self.key, self.value = (nn.Linear(8, options.get(name, 8)) for name in ("kdim", "vdim"))
        self.cross, self.weights, self.masked = cross, weights, masked
        self.queries = nn.Parameter(torch.randn(4, 8)) if cross else None

    def forward(self, x):
        q = self.queries.expand(len(x), -1, -1) if self.cross else x
        k, v = self.key(x), self.value(x)
        first = not self.attention.batch_first
        if first:
            q, k, v = (z.transpose(0, 1) for z in (q, k, v))
        mask = torch.ones(q.shape[-3 if first else -2], len(k) if first else k.shape[1]).tril(1).bool().logical_not()
        h, weights = self.attention(
            q, key=k, value=v, need_weights=self.weights, attn_mask=mask if self.masked else None
        )
        out = self.head(h).mean(0 if first else 1)
        return out + weights[:, -1, :3].log1p() if self.weights else out


MULTIHEAD = {
    "batch first": {"batch_first": True},
    "sequence first": {},
    "cross, batch first": {"cross": True, "batch_first": True, "kdim": 6, "vdim": 5},
    "cross, sequence first": {"cross": True, "kdim": 6, "vdim": 5},
    "with weights": {"weights": True, "batch_first": True},
    "with weights, sequence first, masked": {"weights": True, "masked": True},
    "masked, no bias": {"masked": True, "bias": False, "batch_first": True},
    "bias for keys, zero attention": {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    "one dimension for all": {"cross": True},
}
for _name, _options in MULTIHEAD.items():
    add("attention", f"MultiheadAttention, {_name}", lambda _options=_options: (Attending(**_options), vectors(6, 8)))
add(
    "attention",
    "MultiheadAttention, eval",
    lambda: (Attending(batch_first=True).eval(), vectors(6, 8)),
)
add(
    "random layers",
    "MultiheadAttention with dropout, train",
    lambda: (Attending(batch_first=True, dropout=0.3), vectors(6, 8)),
    meant=evaluated,
)


def _encoder(dropout: float = 0.0, layers: int = 2, **options: object):
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout, **options)
    nested = not options.get("norm_first", False) and options.get("batch_first", False)
    encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=nested, norm=nn.LayerNorm(8))

    def forward(self, x):
        h = self.inner(x)
        if self.encoder.layers[0].self_attn.batch_first:
            return self.head(self.encoder(h).mean(1))
        return self.head(self.encoder(h.transpose(0, 1)).mean(0))

    return Wired(forward, inner=nn.Linear(3, 8), encoder=encoder, head=nn.Linear(8, 3)), vectors(5, 3)


ENCODERS = {
    "post-norm": {"batch_first": True},
    "pre-norm": {"batch_first": True, "norm_first": True},
    "pre-norm, gelu": {"batch_first": True, "norm_first": True, "activation": "gelu"},
    "sequence first": {},
    "sequence first, pre-norm": {"norm_first": True, "bias": False},
}
for _name, _options in ENCODERS.items():
    _build = partial(_encoder, **_options)
    add("attention", f"TransformerEncoder, {_name}, train without dropout", _build)
    add("attention", f"TransformerEncoder, {_name}, eval", lambda _build=_build: (_build()[0].eval(), vectors(5, 3)))
for _name in ("post-norm", "pre-norm"):
    _build = partial(_encoder, dropout=0.1, **ENCODERS[_name])
    add("random layers", f"TransformerEncoder, {_name}, train with dropout", _build, meant=evaluated)
add("attention", "TransformerEncoder, classes", partial(_encoder, batch_first=True), loss="cross_entropy")
add(
    "attention", "TransformerEncoder, memory for one sample", partial(_encoder, batch_first=True), options={"memory": 1}
)


def _layer(**options: object):
    def forward(self, x):
        return self.head(self.layer(x).mean(1))

    return Wired(forward, layer=nn.TransformerEncoderLayer(6, 3, 7, 0.0, batch_first=True), head=nn.Linear(6, 2))


add("attention", "TransformerEncoderLayer, as many samples as positions", lambda: (_layer(), vectors(7, 6)))
add("attention", "TransformerEncoderLayer, as many samples as features", lambda: (_layer(), vectors(5, 6, n=6)))


class Padded(nn.Module):
    """An encoder told where the padding is."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
        self.embed, self.encoder, self.head = nn.Embedding(9, 8), nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

    def forward(self, tokens, kept):
        h = self.encoder(self.embed(tokens), src_key_padding_mask=~kept)
        return self.head((h * kept[..., None]).sum(1) / kept.sum(1, keepdim=True))


def _padded():
    kept = torch.arange(6) < torch.tensor([6, 3, 4, 6, 1, 2, 5])[:, None]
    return Unpacked(Padded()), Fields({"tokens": tokens(6, 9), "kept": kept})


add("attention", "TransformerEncoder, padded, train", _padded, loss="cross_entropy")
add("attention", "TransformerEncoder, padded, eval", lambda: (_padded()[0].eval(), _padded()[1]))


def _decoder(dropout: float = 0.0, **options: object):
    layer = nn.TransformerDecoderLayer(8, 2, 12, dropout, batch_first=True, **options)

    def forward(self, x):
        h = self.inner(x)
        target = self.start.expand(len(x), -1, -1)
        mask = nn.Transformer.generate_square_subsequent_mask(4, device=h.device, dtype=h.dtype)
        return self.head(self.decoder(target, h, tgt_mask=mask, tgt_is_causal=True).flatten(1))

    parts = {"inner": nn.Linear(3, 8), "decoder": nn.TransformerDecoder(layer, 2), "head": nn.Linear(32, 3)}
    return Wired(forward, start=nn.Parameter(torch.randn(4, 8)), **parts), vectors(5, 3)


add("attention", "TransformerDecoder, post-norm", _decoder)
add("attention", "TransformerDecoder, pre-norm, eval", lambda: (_decoder(norm_first=True)[0].eval(), vectors(5, 3)))
add("random layers", "TransformerDecoder, train with dropout", partial(_decoder, dropout=0.2), meant=evaluated)


def _full(dropout: float, first: bool):
    def forward(self, x):
        source, target = self.embed(x[:, :5]), self.embed(x[:, 5:])
        if not first:
            source, target = source.transpose(0, 1), target.transpose(0, 1)
        h = self.transformer(source, target)
        return self.head(h[:, -1] if first else h[-1])

    transformer = nn.Transformer(8, 2, 1, 1, 12, dropout, batch_first=first)
    return Wired(forward, embed=nn.Embedding(9, 8), transformer=transformer, head=nn.Linear(8, 3)), tokens(9, 9)


add("attention", "Transformer, batch first", partial(_full, 0.0, True), loss="cross_entropy")
add("attention", "Transformer, sequence first", partial(_full, 0.0, False))
add("random layers", "Transformer, train with dropout", partial(_full, 0.1, True), meant=evaluated)


@case("attention", "learned queries pool a sequence")
def _():
    def forward(self, x):
        keys = torch.tanh(self.key(x))
        weights = torch.softmax(torch.einsum("qd,ntd->nqt", self.queries, keys), -1)
        return self.head((weights @ self.value(x)).flatten(1))

    queries = nn.Parameter(torch.randn(2, 4))
    return Wired(forward, queries=queries, key=nn.Linear(3, 4), value=nn.Linear(3, 4), head=nn.Linear(8, 3)), vectors(
        5, 3
    )


@case("attention", "linear attention")
def _():
    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        states = torch.einsum("ntd,nte->ntde", k, v).cumsum(1)
        h = torch.einsum("ntd,ntde->nte", q, states) / torch.einsum("ntd,ntd->nt", q, k.cumsum(1))[..., None]
        return self.head(h[:, -1])

    return Wired(forward, qkv=nn.Linear(3, 12), head=nn.Linear(4, 3)), vectors(5, 3)
