"""GPT-2, BERT, Llama, T5's encoder and ViT from `transformers` configurations.

Weights are random and nothing is downloaded. Every factory is full size by default; keyword
arguments it does not name go to the configuration (`n_layer=2`). `transformers` is imported when
a factory is called, so that importing this module stays cheap.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from examples.case import Case, seeded

Attention: TypeAlias = Literal["sdpa", "eager"]
"""Which spelling of attention the model uses: torch's fused operator, or matmul and softmax."""


class PlainOutputs(nn.Module):
    """Call `model` on one input and return the named fields of its answer as tensors."""

    def __init__(self, model: nn.Module, *fields: str) -> None:
        super().__init__()
        self.model = model
        self.fields = fields

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        answer = self.model(x)
        if len(self.fields) == 1:
            return getattr(answer, self.fields[0])  # type: ignore[no-any-return]
        return tuple(getattr(answer, field) for field in self.fields)


class FirstOutput(nn.Module):
    """A model of `transformers` as a function of one tensor: the first of its outputs."""

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.model(x, **self.settings)[0]
        return hidden


def gpt2(
    batch: int = 2, length: int = 128, *, attention: Attention = "sdpa", **config: Any
) -> Case:
    """GPT-2 124M with its language-model head: ids `[N, T] -> logits [N, T, vocabulary]`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(**configured(attention, config, use_cache=False))
    with seeded(0):
        model = PlainOutputs(GPT2LMHeadModel(settings), "logits")
        return model.eval(), (token_ids(batch, length, settings.vocab_size),)


def bert(
    batch: int = 2, length: int = 128, *, attention: Attention = "sdpa", **config: Any
) -> Case:
    """BERT-base: ids `[N, T] -> hidden states [N, T, width], pooled [N, width]`."""
    from transformers import BertConfig, BertModel

    settings = BertConfig(**configured(attention, config))
    with seeded(0):
        model = PlainOutputs(BertModel(settings), "last_hidden_state", "pooler_output")
        return model.eval(), (token_ids(batch, length, settings.vocab_size),)


def llama(
    batch: int = 2, length: int = 128, *, attention: Attention = "sdpa", **config: Any
) -> Case:
    """An 8-layer Llama of width 768 with three query heads to a key-value head:
    ids `[N, T] -> logits [N, T, vocabulary]`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    }
    settings = LlamaConfig(**configured(attention, config, use_cache=False, **small))
    with seeded(0):
        model = PlainOutputs(LlamaForCausalLM(settings), "logits")
        return model.eval(), (token_ids(batch, length, settings.vocab_size),)


def t5_encoder(
    batch: int = 2, length: int = 128, *, attention: Attention = "sdpa", **config: Any
) -> Case:
    """The encoder of T5-small: ids `[N, T] -> hidden states [N, T, width]`."""
    from transformers import T5Config, T5EncoderModel

    settings = T5Config(**configured(attention, config, use_cache=False))
    with seeded(0):
        model = PlainOutputs(T5EncoderModel(settings), "last_hidden_state")
        return model.eval(), (token_ids(batch, length, settings.vocab_size),)


def vit(batch: int = 1, size: int = 224, *, attention: Attention = "sdpa", **config: Any) -> Case:
    """ViT-B/16 with its classifier: images `[N, 3, size, size] -> logits [N, classes]`."""
    from transformers import ViTConfig, ViTForImageClassification

    settings = ViTConfig(**configured(attention, config, image_size=size, num_labels=1000))
    with seeded(0):
        model = PlainOutputs(ViTForImageClassification(settings), "logits")
        return model.eval(), (torch.randn(batch, 3, size, size),)


def configured(attention: Attention, asked: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return {"attn_implementation": attention, **defaults, **asked}


def token_ids(batch: int, length: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (batch, length))
