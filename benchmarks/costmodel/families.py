"""Families of models, drawn at random sizes: what cost models are trained on, and what they are
judged on. No family is in both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

import torch
from torch import Tensor, nn

from examples.case import Case, seeded
from examples.convnext import convnext_tiny
from examples.huggingface import FirstOutput, bert, gpt2, llama, t5_encoder, token_ids, vit
from examples.mlp import mlp
from examples.resnet import resnet50
from examples.transformer import two_block_transformer
from examples.vae import vae

Draw = Callable[[Random], Case]

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ODDS: Final = (0.6, 0.22, 0.1, 0.08)
# Batch times length.
MOST_TOKENS: Final = 2048


class Int8Mlp(nn.Module):
    """Linear layers over int8: rows of the input are scaled to int8, multiplied, scaled back."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.rand(n) / 64 for n in widths[1:])
        for i, (m, n) in enumerate(itertools.pairwise(widths)):
            self.register_buffer(f"w{i}", torch.randint(-127, 128, (m, n), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        for i, scale in enumerate(self.scales):
            step = x.abs().amax(1, keepdim=True).clamp(min=1e-6) / 127
            whole = torch.round(x / step).to(torch.int8)
            product = torch._int_mm(whole, getattr(self, f"w{i}"))
            x = torch.relu(product.to(torch.float32) * step * scale)
        return x


# --- sizes --------------------------------------------------------------------------------------


def _span(draw: Random) -> tuple[int, int]:
    """Batch and length of tokens."""
    length = draw.choice((7, 16, 33, 64, 65, 100, 128, 197, 256, 384, 511, 512))
    batch = draw.choice((1, 1, 2, 3, 4, 6, 8))
    return max(1, min(batch, MOST_TOKENS // length)), length


def _heads(draw: Random) -> tuple[int, int]:
    """Heads and features of each."""
    return draw.choice((2, 3, 4, 6, 8, 12)), draw.choice((16, 24, 32, 48, 64, 64, 80))


def _transformer(draw: Random) -> dict[str, int]:
    heads, width = _heads(draw)
    inner = round(heads * width * draw.choice((1.5, 2.67, 3, 4)))
    vocabulary = draw.choice((500, 1000, 2048, 5003, 8000))
    return {
        "vocab_size": vocabulary,
        "hidden_size": heads * width,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "max_position_embeddings": 512,
    }


TOKENS: Final = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _grouped(draw: Random, heads: int) -> int:
    """A number of heads of keys that divides those of queries."""
    return draw.choice([n for n in range(1, heads + 1) if heads % n == 0])


def model_of(name: str, attention: str, settings: Mapping[str, Any], **call: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**settings, attn_implementation=attention)
    with seeded(0):
        return FirstOutput(getattr(transformers, f"{name}Model")(config).eval(), **call)


def _attention(draw: Random) -> Any:
    return draw.choice(("sdpa", "sdpa", "eager"))


def _decoder(name: str, attention: str | None = None, **fixed: Any) -> Draw:
    """A causal model with grouped heads."""

    def make(draw: Random) -> Case:
        sizes = _transformer(draw)
        heads = sizes["num_attention_heads"]
        more = {"num_key_value_heads": _grouped(draw, heads), **TOKENS, **fixed}
        if "head_dim" in fixed:
            more["head_dim"] = sizes["hidden_size"] // heads
        batch, length = _span(draw)
        model = model_of(name, attention or _attention(draw), sizes | more, use_cache=False)
        return model, (token_ids(batch, length, sizes["vocab_size"]),)

    return make


def _encoder(name: str, attention: str | None = None, **call: Any) -> Draw:
    def make(draw: Random) -> Case:
        sizes = _transformer(draw)
        batch, length = _span(draw)
        model = model_of(name, attention or _attention(draw), sizes, **call)
        return model, (token_ids(batch, length, sizes["vocab_size"]),)

    return make


# --- families -----------------------------------------------------------------------------------


def _gpt2(draw: Random) -> Case:
    heads, width = _heads(draw)
    sizes: dict[str, Any] = {"n_embd": heads * width, "n_head": heads, "n_layer": 1}
    tokens = {"vocab_size": draw.choice((1000, 5003)), "bos_token_id": 0, "eos_token_id": 0}
    batch, length = _span(draw)
    return gpt2(batch, length, attention=_attention(draw), **sizes, **tokens)


def _bert(draw: Random) -> Case:
    return bert(*_span(draw), attention=_attention(draw), **_transformer(draw))


def _llama(draw: Random) -> Case:
    sizes = _transformer(draw)
    groups = _grouped(draw, sizes["num_attention_heads"])
    return llama(*_span(draw), attention=_attention(draw), num_key_value_heads=groups, **sizes)


def _t5(draw: Random) -> Case:
    heads, width = _heads(draw)
    sizes = {"d_model": heads * width, "d_kv": width, "num_heads": heads, "num_layers": 1}
    inner = {"d_ff": 2 * heads * width, "vocab_size": draw.choice((1000, 5003))}
    batch, length = _span(draw)
    return t5_encoder(batch, length, attention=_attention(draw), **sizes, **inner)


def _vit(draw: Random) -> Case:
    heads, width = _heads(draw)
    sizes = {"hidden_size": heads * width, "num_attention_heads": heads, "num_hidden_layers": 1}
    pixels = {"patch_size": draw.choice((8, 14, 16)), "intermediate_size": 3 * heads * width}
    size = pixels["patch_size"] * draw.choice((4, 7, 10, 14))
    batch = draw.choice((1, 2, 4))
    return vit(batch, size, attention=_attention(draw), image_size=size, **sizes, **pixels)


def _resnet(draw: Random) -> Case:
    depths = tuple(draw.choice((1, 2)) for _ in range(4))
    width = draw.choice((8, 16, 24, 32, 48, 64))
    batch, size = draw.choice((1, 2, 4)), draw.choice((56, 64, 97, 128, 160))
    return resnet50(batch, size, depths=depths, width=width, classes=100)


def _convnext(draw: Random) -> Case:
    width = draw.choice((16, 24, 32, 48, 96))
    widths = (width, 2 * width, 4 * width, 8 * width)
    batch, size = draw.choice((1, 2, 4)), draw.choice((64, 96, 128, 160))
    return convnext_tiny(batch, size, depths=(1, 1, 1, 1), widths=widths, classes=100)


def _mlp(draw: Random) -> Case:
    widths = tuple(draw.choice((10, 64, 100, 128, 255, 256, 512, 768, 1024)) for _ in range(5))
    return mlp(draw.choice((1, 8, 33, 64, 128, 500, 1024)), widths=widths, dropout=0.1)


def _int8(draw: Random) -> Case:
    widths = [draw.choice((64, 128, 200, 256, 512, 768, 1024)) for _ in range(4)]
    rows = draw.choice((17, 32, 64, 100, 256, 512))
    with seeded(0):
        return Int8Mlp(widths).eval(), (torch.randn(rows, widths[0]),)


def _vae(draw: Random) -> Case:
    width, latent = draw.choice((4, 8, 16, 32)), draw.choice((4, 16, 32))
    return vae(
        draw.choice((1, 4, 16, 32)), size=draw.choice((16, 24, 32)), width=width, latent=latent
    )


def _blocks(draw: Random) -> Case:
    heads, width = _heads(draw)
    return two_block_transformer(*_span(draw), width=max(32, heads * width // 8 * 8))


def _images(draw: Random, sizes: tuple[int, ...]) -> Tensor:
    size = draw.choice(sizes)
    with seeded(0):
        return torch.randn(draw.choice((1, 2, 4)), 3, size, size)


def _mobilenet(version: int) -> Draw:
    def make(draw: Random) -> Case:
        images = _images(draw, (64, 96, 128, 160))
        settings = {
            "image_size": images.shape[-1],
            "depth_multiplier": draw.choice((0.5, 0.75, 1.0)),
        }
        return model_of(f"MobileNetV{version}", "eager", settings), (images,)

    return make


def _regnet(draw: Random) -> Case:
    widths = [draw.choice((24, 32, 48, 64)) * 2**i for i in range(3)]
    groups = draw.choice((8, 16, 24))
    widths = [max(1, w // groups) * groups for w in widths]
    sizes = {
        "embedding_size": 24,
        "hidden_sizes": widths,
        "depths": [1, 1, 1],
        "groups_width": groups,
    }
    return model_of("RegNet", "eager", sizes), (_images(draw, (64, 96, 128)),)


def _swin(draw: Random) -> Case:
    width, window = draw.choice((24, 32, 48)), draw.choice((4, 7, 8))
    size = 4 * window * draw.choice((2, 4))
    sizes = {"embed_dim": width, "depths": [2, 2], "num_heads": [2, 4], "window_size": window}
    model = model_of("Swin", "eager", sizes | {"image_size": size, "patch_size": 2})
    return model, (_images(draw, (size,)),)


def _distilbert(draw: Random) -> Case:
    heads, width = _heads(draw)
    sizes = {"dim": heads * width, "hidden_dim": 4 * heads * width, "n_heads": heads, "n_layers": 1}
    batch, length = _span(draw)
    model = model_of("DistilBert", _attention(draw), sizes | {"vocab_size": 1000})
    return model, (token_ids(batch, length, 1000),)


def _opt(draw: Random) -> Case:
    sizes = _transformer(draw)
    inner = {"ffn_dim": sizes["intermediate_size"], "word_embed_proj_dim": sizes["hidden_size"]}
    model = model_of("OPT", _attention(draw), sizes | inner | TOKENS, use_cache=False)
    return model, (token_ids(*_span(draw), sizes["vocab_size"]),)


def _bloom(draw: Random) -> Case:
    heads, width = _heads(draw)
    sizes = {"hidden_size": heads * width, "n_head": heads, "n_layer": 1, "vocab_size": 1000}
    model = model_of("Bloom", "eager", sizes, use_cache=False)
    return model, (token_ids(*_span(draw), 1000),)


def _falcon(draw: Random) -> Case:
    sizes = _transformer(draw) | {"alibi": True, "new_decoder_architecture": False}
    model = model_of("Falcon", "eager", sizes | {"multi_query": False} | TOKENS, use_cache=False)
    return model, (token_ids(*_span(draw), sizes["vocab_size"]),)


TRAINING: Final[Mapping[str, Draw]] = {
    "gpt2": _gpt2,
    "bert": _bert,
    "llama": _llama,
    "vit": _vit,
    "resnet": _resnet,
    "mlp": _mlp,
    "int8": _int8,
    "vae": _vae,
    "blocks": _blocks,
    "falcon": _falcon,
    "qwen3": _decoder("Qwen3", head_dim=0),
    "gemma2": _decoder("Gemma2", "eager", head_dim=0, sliding_window=33),
    "mobilenet_v1": _mobilenet(1),
    "regnet": _regnet,
    "electra": _encoder("Electra"),
}
JUDGING: Final[Mapping[str, Draw]] = {
    "t5_encoder": _t5,
    "convnext": _convnext,
    "gpt_neox": _encoder("GPTNeoX", use_cache=False),
    "distilbert": _distilbert,
    "swin": _swin,
    "opt": _opt,
    "mobilenet_v2": _mobilenet(2),
    "bloom": _bloom,
    "mistral": _decoder("Mistral", sliding_window=48),
    "phi3": _decoder("Phi3"),
}


def drawn(family: str, number: int) -> tuple[Case, torch.dtype]:
    """Model `number` of a family, and the type it computes in."""
    draw = Random(f"{family} {number}")
    module, args = {**TRAINING, **JUDGING}[family](draw)
    dtype = torch.float32 if family == "int8" else draw.choices(DTYPES, ODDS)[0]
    module = module.to(dtype)
    given = tuple(a.to(dtype) if a.is_floating_point() else a for a in args)
    return (module, given), dtype
