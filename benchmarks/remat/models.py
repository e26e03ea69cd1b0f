"""The models by name, at the batches and lengths of FastSA's evaluation (appendix D.5), without
dropout: what is random may not run again, and FastSA's image models have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.remat.graphs import Model
from benchmarks.remat.hybrids import coatnet_2, vit, xcit_tiny_12
from benchmarks.remat.nets import (
    UNet,
    densenet,
    efficientnet_b0,
    mobilenetv3_large,
    resnet18,
    vgg11,
)
from examples.convnext import ConvNeXt
from examples.huggingface import FirstOutput
from examples.resnet import ResNet

NO_DROPOUT: Final = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embed_dropout": 0.0,
    "resid_dropout": 0.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "dropout_rate": 0.0,
    "drop_path_rate": 0.0,
}


def images(make: Callable[[], nn.Module], batch: int = 512, size: int = 224) -> Model:
    return make(), (torch.zeros(batch, 3, size, size),)


def tokens(name: str, batch: int, length: int, **config: Any) -> Model:
    """A language model of `transformers`, its attention spelled out."""
    import transformers

    kind = getattr(transformers, name)
    known = kind.config_class()
    off = {key: value for key, value in NO_DROPOUT.items() if hasattr(known, key)}
    settings = {"attn_implementation": "eager", "use_cache": False, **off, **config}
    model = FirstOutput(kind(kind.config_class(**settings)), use_cache=False)
    if not hasattr(known, "use_cache") or name.startswith(("Bert", "Albert")):
        model.settings.clear()
    return model, (torch.zeros(batch, length, dtype=torch.long),)


def convnext() -> nn.Module:
    """Weights as they come: to draw from a truncated normal, numbers must be looked at."""
    with patch.object(nn.init, "trunc_normal_"):
        return ConvNeXt()


class Translation(nn.Module):
    """An encoder and decoder of `transformers`, both on the same tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=x, decoder_input_ids=x, use_cache=False)[0]
        return logits


def t5() -> Model:
    from transformers import T5Config, T5ForConditionalGeneration

    settings = T5Config(attn_implementation="eager", use_cache=False, dropout_rate=0.0)
    model = Translation(T5ForConditionalGeneration(settings))
    return model, (torch.zeros(32, 512, dtype=torch.long),)


def beit_base() -> Model:
    from transformers import BeitConfig, BeitForImageClassification

    settings = BeitConfig(
        attn_implementation="eager",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=0.0,
        use_relative_position_bias=True,
        use_absolute_position_embeddings=False,
        num_labels=1000,
    )
    return images(lambda: FirstOutput(BeitForImageClassification(settings)))


# FastSA's 14, with the operators and values that its authors count.
FASTSA: Final[dict[str, Callable[[], Model]]] = {
    "convnext_tiny": lambda: images(convnext),
    "vit_small": lambda: images(lambda: vit(384, 6, scaled=False)),
    "mobilenetv3_large": lambda: images(mobilenetv3_large),
    "efficientnet_b0": lambda: images(efficientnet_b0),
    "beit_base": beit_base,
    "deit3_base": lambda: images(lambda: vit(768, 12, scaled=True)),
    "xcit_tiny_12": lambda: images(xcit_tiny_12),
    "coatnet_2": lambda: images(coatnet_2),
    "bert-base": lambda: tokens("BertForMaskedLM", 128, 512),
    "albert-base": lambda: tokens(
        *("AlbertForMaskedLM", 128, 512),
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
    ),
    "gpt2": lambda: tokens("GPT2LMHeadModel", 8, 1024),
    "gpt-neo-125m": lambda: tokens(
        *("GPTNeoForCausalLM", 8, 2048),
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        attention_types=[[["global", "local"], 6]],
    ),
    "opt-350m": lambda: tokens(
        *("OPTForCausalLM", 8, 2048),
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        ffn_dim=4096,
        word_embed_proj_dim=512,
        do_layer_norm_before=False,
    ),
    "bloom-560m": lambda: tokens(
        *("BloomForCausalLM", 8, 2048), hidden_size=1024, n_layer=24, n_head=16
    ),
}
THEIR_NODES: Final = {
    "convnext_tiny": 932,
    "vit_small": 1425,
    "mobilenetv3_large": 484,
    "efficientnet_b0": 996,
    "beit_base": 1835,
    "deit3_base": 1545,
    "xcit_tiny_12": 2818,
    "coatnet_2": 2204,
    "bert-base": 2078,
    "albert-base": 2285,
    "gpt2": 1889,
    "gpt-neo-125m": 2088,
    "opt-350m": 3971,
    "bloom-560m": 3667,
}
# Where the optimum is known from the literature, and more kinds of graph.
OTHERS: Final[dict[str, Callable[[], Model]]] = {
    "resnet18": lambda: images(resnet18),
    "vgg11": lambda: images(vgg11),
    "resnet50": lambda: images(ResNet, 128),
    "densenet121": lambda: images(densenet, 128),
    "unet": lambda: images(UNet, 16, 256),
    "llama": lambda: tokens(
        *("LlamaForCausalLM", 8, 1024),
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
        num_key_value_heads=4,
    ),
    "t5": t5,
    "vit_base": lambda: images(lambda: vit(768, 12, scaled=False), 128),
}
MODELS: Final = FASTSA | OTHERS
