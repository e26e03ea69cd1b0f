"""Ways to write attention, as they stand in people's code; `SPELLINGS` names each.

Each takes queries, keys and values [B, H, T, D] (fewer heads of keys and values for the grouped
ones) and gives [B, H, T, D].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

Spelling = Callable[[Tensor, Tensor, Tensor], Tensor]


def _mask(q: Tensor, k: Tensor) -> Tensor:
    """True where a query may look."""
    return torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()


def _additive(q: Tensor, k: Tensor) -> Tensor:
    allowed = _mask(q, k)
    mask = torch.zeros(allowed.shape, dtype=q.dtype)
    return mask.masked_fill(~allowed, torch.finfo(q.dtype).min)[None, None]


def div_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1) @ v


def mul_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v


def no_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1), -1) @ v


def div_scale_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + _additive(q, k)
    return torch.softmax(scores, -1) @ v


def mul_scale_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + _additive(q, k)
    return torch.softmax(scores, -1) @ v


def huggingface(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`eager_attention_forward` of transformers, in inference."""
    scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
    scores = scores + _additive(q, k)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    weights = torch.nn.functional.dropout(weights, p=0.0, training=False)
    return torch.matmul(weights, v)


def mul_masked_fill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    return torch.softmax(scores.masked_fill(~_mask(q, k), -math.inf), -1) @ v


def div_masked_fill(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.mT) / math.sqrt(q.shape[-1])
    return torch.softmax(scores.masked_fill(~_mask(q, k), -math.inf), -1) @ v


def div_where(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As GPT-2 has it."""
    scores = (q @ k.mT) / math.sqrt(q.shape[-1])
    floor = torch.full([], torch.finfo(q.dtype).min, dtype=q.dtype)
    return torch.softmax(torch.where(_mask(q, k), scores, floor), -1) @ v


def scale_in_query(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax((q * q.shape[-1] ** -0.5) @ k.mT, -1) @ v


def softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As Gemma 2 has it."""
    scores = torch.tanh(q @ k.mT * q.shape[-1] ** -0.5 / 50.0) * 50.0
    return torch.softmax(scores + _additive(q, k), -1) @ v


def _repeat(x: Tensor, heads: int) -> Tensor:
    b, h, t, d = x.shape
    return x[:, :, None].expand(b, h, heads // h, t, d).reshape(b, heads, t, d)


def grouped_mul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = _repeat(k[:, ::2], q.shape[1]), _repeat(v[:, ::2], q.shape[1])
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v


def grouped_div(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = _repeat(k[:, ::2], q.shape[1]), _repeat(v[:, ::2], q.shape[1])
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhij,bhjd->bhid", torch.softmax(scores, -1), v)


def einsum_rows_first(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1), v).transpose(1, 2)


def manual_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    scores = scores - scores.amax(-1, keepdim=True)
    weights = torch.exp(scores)
    return (weights / weights.sum(-1, keepdim=True)) @ v


def folded_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b, h, t, d = q.shape
    q, k, v = (x.reshape(b * h, -1, d) for x in (q, k, v))
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) * d**-0.5, -1)
    return torch.bmm(weights, v).view(b, h, t, d)


def folded_baddbmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As Falcon and BLOOM have it."""
    b, h, t, d = q.shape
    bias = _additive(q, k).expand(b, h, t, k.shape[2]).reshape(b * h, t, -1)
    q, k, v = (x.reshape(b * h, -1, d) for x in (q, k, v))
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=1.0, alpha=d**-0.5)
    return torch.bmm(torch.softmax(scores, -1), v).view(b, h, t, d)


def sink_column(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As GPT-OSS has it: a learned score that takes probability and has no value."""
    scores = q @ k.mT * q.shape[-1] ** -0.5 + _additive(q, k)
    sinks = torch.arange(q.shape[1], dtype=q.dtype).reshape(1, -1, 1, 1)
    sinks = sinks.expand(q.shape[0], -1, q.shape[2], -1)
    joined = torch.cat([scores, sinks], dim=-1)
    joined = joined - joined.max(dim=-1, keepdim=True).values
    weights = torch.softmax(joined, dim=-1)[..., :-1]
    return weights @ v


def alibi(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads = torch.arange(1, q.shape[1] + 1, dtype=q.dtype)
    slopes = torch.pow(2.0, -8 * heads / q.shape[1])
    places = torch.arange(k.shape[2], dtype=q.dtype)
    bias = slopes[:, None, None] * places[None, None, :]
    return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5 + bias + _additive(q, k), -1) @ v


def operator_in_parts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What PyTorch's operator comes to with a bias of rank 3: rows without a key are 0."""
    bias = _additive(q, k)[0].expand(q.shape[1], -1, -1)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


SPELLINGS: Final[Mapping[str, Spelling]] = {
    f.__name__: f
    for f in (
        *(div_scale, mul_scale, no_scale, div_scale_mask, mul_scale_mask, huggingface),
        *(mul_masked_fill, div_masked_fill, div_where, scale_in_query, softcap),
        *(grouped_mul, grouped_div, einsum, einsum_rows_first, manual_softmax),
        *(folded_bmm, folded_baddbmm, sink_column, alibi, operator_in_parts),
    )
}
