"""Models of `transformers` whose attention is spelled out (`attn_implementation="eager"`), small,
with random weights; `FAMILIES` names each. All have two layers of attention, Swin four."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import transformers
from torch import Tensor

from examples.huggingface import FirstOutput

BATCH, LENGTH = 2, 12

# What most configurations call their sizes.
_SIZES: Final = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_TOKENS: Final = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _model(name: str, **sizes: Any) -> FirstOutput:
    config = getattr(transformers, f"{name}Config")(**sizes, attn_implementation="eager")
    config._experts_implementation = "batched_mm"
    torch.manual_seed(0)
    settings = {"use_cache": False} if hasattr(config, "use_cache") else {}
    return FirstOutput(getattr(transformers, f"{name}Model")(config).eval(), **settings)


def _decoder(name: str, **more: Any) -> Callable[[], FirstOutput]:
    return lambda: _model(name, **{**_SIZES, **_TOKENS, "num_key_value_heads": 4, **more})


def _encoder(name: str, **sizes: Any) -> Callable[[], FirstOutput]:
    return lambda: _model(name, **sizes)


def _t5() -> FirstOutput:
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    config = transformers.T5Config(vocab_size=96, **sizes, attn_implementation="eager")
    torch.manual_seed(0)
    return FirstOutput(transformers.T5EncoderModel(config).eval())


_IMAGES: Final = {"image_size": 32, "patch_size": 8, "num_channels": 3}
_GPT2: Final = {"vocab_size": 96, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
_DISTIL: Final = {"vocab_size": 96, "dim": 32, "hidden_dim": 48, "n_heads": 4, "n_layers": 2}
_OPT: Final = {**_SIZES, **_TOKENS, "ffn_dim": 48, "word_embed_proj_dim": 32}
_EXPERTS: Final = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
_FALCON: Final = {**_SIZES, "alibi": True, "new_decoder_architecture": False, "multi_query": False}
_WINDOWS: Final = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}

FAMILIES: Final[Mapping[str, Callable[[], FirstOutput]]] = {
    "llama": _decoder("Llama"),
    "llama_grouped": _decoder("Llama", num_key_value_heads=2),
    "mistral": _decoder("Mistral", num_key_value_heads=2, sliding_window=5),
    "qwen2": _decoder("Qwen2", num_key_value_heads=2),
    "qwen3": _decoder("Qwen3", num_key_value_heads=2, head_dim=8),
    "gemma2": _decoder("Gemma2", num_key_value_heads=2, head_dim=8, sliding_window=5),
    "phi3": _decoder("Phi3", num_key_value_heads=2),
    "gpt2": _encoder("GPT2", **_GPT2),
    "gpt_neox": _encoder("GPTNeoX", **_SIZES),
    "opt": _encoder("OPT", **_OPT),
    "bert": _encoder("Bert", **_SIZES),
    "distilbert": _encoder("DistilBert", **_DISTIL),
    "t5": _t5,
    "gpt_oss": _decoder("GptOss", num_key_value_heads=2, sliding_window=5, **_EXPERTS),
    "falcon_alibi": _encoder("Falcon", **_FALCON),
    "vit": _encoder("ViT", **_IMAGES, **{k: v for k, v in _SIZES.items() if "voc" not in k}),
    # Beyond the sixteen.
    "bloom": _encoder("Bloom", vocab_size=96, hidden_size=32, n_head=4, n_layer=2),
    "swin": _encoder("Swin", **{**_IMAGES, "patch_size": 2}, **_WINDOWS),
}

LAYERS: Final = {**dict.fromkeys(FAMILIES, 2), "swin": 4}


def inputs_of(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if name in ("vit", "swin"):
        return torch.randn(BATCH, 3, 32, 32, generator=generator)
    return torch.randint(3, 96, (BATCH, LENGTH), generator=generator)
