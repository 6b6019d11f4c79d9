"""Models of Hugging Face's transformers from small configurations; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from raysat.data.fields import Fields
from raysat.models.unpacked import Unpacked

from .case import add, evaluated, vectors

KIND = "transformers"


class Logits(nn.Module):
    """The adapter: a model that returns an output object, as a network that returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return self.model(*inputs, **named).logits


class LastLogits(Logits):
    """Logits of the last position alone."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        return super().forward(*inputs, **named)[:, -1]


def _gpt2(head: str, **options: object) -> nn.Module:
    import transformers

    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 9, "n_positions": 8, "num_labels": 3}
    config = transformers.GPT2Config(**sizes, pad_token_id=0, **options)
    return getattr(transformers, f"GPT2{head}")(config)


def _bert(head: str = "ForSequenceClassification", **options: object) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.BertConfig(**sizes, vocab_size=9, max_position_embeddings=8, num_labels=3, **options)
    return getattr(transformers, f"Bert{head}")(config)


def _llama(head: str = "ForCausalLM", **options: object) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 12, "vocab_size": 9, "max_position_embeddings": 8, "num_labels": 3}
    return getattr(transformers, f"Llama{head}")(transformers.LlamaConfig(**sizes, pad_token_id=0, **options))


def _vit(**options: object) -> nn.Module:
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    config = transformers.ViTConfig(**sizes, image_size=6, patch_size=3, num_channels=2, num_labels=3, **options)
    return transformers.ViTForImageClassification(config)


def _distilbert() -> nn.Module:
    import transformers

    config = transformers.DistilBertConfig(
        dim=8, n_layers=2, n_heads=2, hidden_dim=12, vocab_size=9, max_position_embeddings=8, num_labels=3
    )
    return transformers.DistilBertForSequenceClassification(config)


def _mixtral() -> nn.Module:
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"intermediate_size": 12, "vocab_size": 9, "max_position_embeddings": 8, "num_local_experts": 3}
    config = transformers.MixtralConfig(**sizes)
    # The grouped products of the default are of float32 at most.
    return transformers.MixtralForCausalLM._from_config(config, experts_implementation="eager")


def _sharpened(model: nn.Module) -> nn.Module:
    """Weights with which every part of the network counts; those of an initialization are tiny at this width."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _adapted(adapter: type[Logits], make: Callable[[], nn.Module], x: Callable[[], Tensor], mode: bool):
    return adapter(_sharpened(make())).train(mode), x()


def _sentences() -> Tensor:
    return torch.randint(1, 9, (6, 5))


def _few_sentences() -> Tensor:
    return torch.randint(1, 9, (5, 4))


def _images() -> Tensor:
    return vectors(2, 6, 6, n=6)


SMALL = {
    "GPT-2, last token": (LastLogits, partial(_gpt2, "LMHeadModel"), _sentences, "mse"),
    "GPT-2, language model": (Logits, partial(_gpt2, "LMHeadModel"), _few_sentences, "cross_entropy"),
    "BERT": (Logits, _bert, _sentences, "mse"),
    "BERT, masked language model": (Logits, partial(_bert, "ForMaskedLM"), _few_sentences, "cross_entropy"),
    "Llama, last token": (LastLogits, _llama, _sentences, "mse"),
    "Llama, language model": (Logits, _llama, _few_sentences, "cross_entropy"),
    "ViT": (Logits, _vit, _images, "mse"),
    "ViT, classes": (Logits, _vit, _images, "cross_entropy"),
}
for _name, (_adapter, _make, _x, _loss) in SMALL.items():
    for _mode, _word in ((False, "eval"), (True, "train")):
        if _mode and _name == "Llama, language model":
            continue  # no dropout in it: the same as in evaluation
        add(
            KIND,
            f"{_name}, {_word}",
            partial(_adapted, _adapter, _make, _x, _mode),
            loss=_loss,
            meant=evaluated,
            needs="transformers",
        )
for _name, _adapter, _make, _x, _loss in (
    ("GPT-2, sequence classification", Logits, partial(_gpt2, "ForSequenceClassification"), _sentences, "mse"),
    (
        "GPT-2, eager attention",
        LastLogits,
        partial(_gpt2, "LMHeadModel", attn_implementation="eager"),
        _sentences,
        "mse",
    ),
    ("BERT, eager attention", Logits, partial(_bert, attn_implementation="eager"), _sentences, "cross_entropy"),
    ("Llama, sequence classification", Logits, partial(_llama, "ForSequenceClassification"), _sentences, "mse"),
    ("DistilBERT", Logits, _distilbert, _sentences, "mse"),
    ("Mixtral, last token", LastLogits, _mixtral, _sentences, "mse"),
):
    add(
        KIND,
        _name,
        partial(_adapted, _adapter, _make, _x, True),
        loss=_loss,
        meant=evaluated,
        needs="transformers",
    )


def _padded(mode: bool):
    mask = (torch.arange(5) < torch.tensor([5, 3, 4, 5, 2, 1])[:, None]).long()
    x = Fields({"input_ids": _sentences(), "attention_mask": mask})
    return Unpacked(Logits(_sharpened(_bert()))).train(mode), x


for _mode, _word in ((False, "eval"), (True, "train")):
    add(
        KIND,
        f"BERT, padded, {_word}",
        partial(_padded, _mode),
        loss="cross_entropy",
        meant=evaluated,
        needs="transformers",
    )


def _conv1d():
    from transformers.pytorch_utils import Conv1D

    layers = [Conv1D(6, 4), nn.Tanh(), nn.LayerNorm(6), Conv1D(5, 6), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(15, 3)), vectors(3, 4)


add(KIND, "Conv1D of Hugging Face", _conv1d, needs="transformers")


def _gradient_checkpointing():
    model = _sharpened(_gpt2("LMHeadModel"))
    model.gradient_checkpointing_enable()
    return LastLogits(model).train(), _sentences()


add(KIND, "GPT-2, gradient checkpointing", _gradient_checkpointing, meant=evaluated, needs="transformers")
