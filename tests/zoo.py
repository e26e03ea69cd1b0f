"""Tiny, seeded versions of the models Rewright must hold on, and a loss to train them by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from examples.case import Case
from examples.convnext import convnext_tiny
from examples.huggingface import Attention, bert, gpt2, llama, t5_encoder, vit
from examples.mlp import mlp
from examples.resnet import resnet50
from examples.transformer import two_block_transformer
from examples.vae import vae

# BERT, Llama and ViT name their sizes alike.
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def tiny_gpt2(attention: Attention = "sdpa") -> Case:
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 2}
    tokens = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 0}
    return gpt2(2, 16, attention=attention, **sizes, **tokens)


def tiny_bert(attention: Attention = "sdpa") -> Case:
    return bert(2, 16, attention=attention, vocab_size=128, **SIZES)


def tiny_llama(attention: Attention = "sdpa") -> Case:
    return llama(2, 16, attention=attention, vocab_size=128, num_key_value_heads=2, **SIZES)


def tiny_t5_encoder(attention: Attention = "sdpa") -> Case:
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    return t5_encoder(2, 16, attention=attention, vocab_size=128, **sizes)


def tiny_vit(attention: Attention = "sdpa") -> Case:
    return vit(2, 32, attention=attention, patch_size=8, num_labels=10, **SIZES)


def tiny_resnet() -> Case:
    """The last stage still sees 2x2 pixels: over too few, batch norm's gradient is noise."""
    return resnet50(4, 64, depths=(1, 1, 1, 1), width=8, classes=10)


def tiny_convnext() -> Case:
    """The channel scale starts at one: at the usual 1e-6 a wrong block would not show."""
    return convnext_tiny(
        2, 64, depths=(1, 1, 2, 1), widths=(8, 16, 32, 64), classes=10, layer_scale=1.0
    )


def tiny_mlp() -> Case:
    return mlp(8, widths=(16, 32, 32, 10), dropout=0.1)


def tiny_vae() -> Case:
    return vae(4, size=8, width=4, latent=4)


def tiny_transformer() -> Case:
    return two_block_transformer(2, 16, width=32)


ZOO: dict[str, Callable[[], Case]] = {
    "gpt2": tiny_gpt2,
    "bert": tiny_bert,
    "llama": tiny_llama,
    "t5_encoder": tiny_t5_encoder,
    "vit": tiny_vit,
    "resnet": tiny_resnet,
    "convnext": tiny_convnext,
    "mlp": tiny_mlp,
    "vae": tiny_vae,
    "transformer": tiny_transformer,
}


def loss(output: Tensor | Sequence[Tensor]) -> Tensor:
    """A scalar whose gradient reaches every output, in the outputs' own dtype.

    Each output is weighed by a fixed uneven pattern: a plain mean, or a mean of squares, of a
    normalized output is constant, and its gradient noise.
    """
    outputs = [output] if isinstance(output, Tensor) else output
    return torch.stack([(pattern(y) * y).mean() for y in outputs]).sum()


def pattern(like: Tensor) -> Tensor:
    steps = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    return torch.cos(steps).reshape(like.shape).to(like.dtype)
