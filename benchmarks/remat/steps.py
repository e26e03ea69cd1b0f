"""Training steps that really run: small models at batches at which gradients are a small part of
what a step allocates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.remat.models import Translation
from benchmarks.remat.nets import UNet, densenet
from examples import huggingface
from examples.convnext import convnext_tiny
from examples.resnet import resnet50

Arguments = tuple[Any, ...]

SMALL: Final[dict[str, Any]] = {
    "num_hidden_layers": 6,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}


@dataclass(frozen=True)
class Training:
    """A model, its inputs and what is made of its output."""

    module: nn.Module
    inputs: Arguments
    loss: Callable[[Any], Tensor]

    def forward(self, *inputs: Any) -> Tensor:
        return self.loss(self.module(*inputs))


def next_tokens(output: Any) -> Tensor:
    """Cross entropy of what a language model expects, against tokens of its own making."""
    logits = output if isinstance(output, Tensor) else output[0]
    flat = logits.flatten(0, -2)
    wanted = torch.arange(flat.shape[0], device=flat.device) % flat.shape[-1]
    return F.cross_entropy(flat.float(), wanted)


def squares(output: Any) -> Tensor:
    tensor = output if isinstance(output, Tensor) else output[0]
    return tensor.float().square().mean()


def language(make: Callable[..., Any], batch: int, length: int, **config: Any) -> Training:
    module, inputs = make(batch, length, **config)
    return Training(module, inputs, next_tokens)


def gpt2(**config: Any) -> Training:
    sizes = {"n_layer": 6, "n_embd": 128, "n_head": 4, "vocab_size": 1000}
    return language(huggingface.gpt2, 8, 128, **sizes, **config)


def llama(heads: int = 4) -> Training:
    return language(
        huggingface.llama,
        8,
        128,
        num_hidden_layers=6,
        hidden_size=128,
        intermediate_size=352,
        num_attention_heads=4,
        num_key_value_heads=heads,
        vocab_size=1000,
    )


def bert() -> Training:
    return Training(*huggingface.bert(8, 128, vocab_size=1000, **SMALL), squares)


def vit() -> Training:
    return Training(*huggingface.vit(8, 160, **SMALL), squares)


def t5() -> Training:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=1000, d_model=128, d_kv=32, d_ff=512, num_layers=3, num_heads=4, dropout_rate=0.0
    )
    config.use_cache = False
    ids = huggingface.token_ids(8, 96, 1000)
    return Training(Translation(T5ForConditionalGeneration(config)), (ids,), next_tokens)


def images(module: nn.Module, batch: int, size: int, channels: int = 3) -> Training:
    return Training(module, (torch.randn(batch, channels, size, size),), squares)


class Unrolled(nn.Module):
    """An LSTM cell, 64 steps of it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        state = (torch.zeros_like(x[0]), torch.zeros_like(x[0]))
        outputs = []
        for step in x.unbind():
            state = self.cell(step, state)
            outputs.append(self.head(state[0]))
        return torch.stack(outputs)


class Tied(nn.Module):
    """What reads words and what writes them is one table."""

    def __init__(self, words: int = 1000, width: int = 128) -> None:
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.1)
                )
                for _ in range(8)
            )
        )

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.blocks(self.table(ids))
        return hidden @ self.table.weight.t()


STEPS: Final[dict[str, Callable[[], Training]]] = {
    "gpt2": gpt2,
    "llama": llama,
    "llama_gqa": lambda: llama(2),
    "bert": bert,
    "t5": t5,
    "vit": vit,
    "resnet50": lambda: images(resnet50()[0], 16, 128),
    "convnext": lambda: images(convnext_tiny()[0], 16, 128),
    "unet": lambda: images(UNet((16, 32, 64, 128)), 4, 96),
    "densenet": lambda: images(densenet((4, 4, 4)), 8, 96),
    "lstm": lambda: Training(Unrolled(), (torch.randn(64, 64, 64),), squares),
    "gpt2_dropout": lambda: gpt2(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1),
    "tied": lambda: Training(Tied(), (torch.arange(4096).reshape(8, 512) % 1000,), next_tokens),
}


def training(name: str) -> Training:
    torch.manual_seed(0)
    found = STEPS[name]()
    found.module.train()
    return found
