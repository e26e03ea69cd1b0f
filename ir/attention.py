"""References of attention operators that exist only in low precision on their device.

From the formula `softmax(scale q k^T + bias) v`; the backward ones by autograd through it. What
only the vendor's backward reads (random state, cumulative lengths) comes back empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Node, Value
from rewright.ir.types import TensorType

_ROWS: Final = 32

Call = Callable[[Node, tuple[Any, ...], Mapping[str, Any]], tuple[Tensor | None, ...]]


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """`[N, H, T, D] -> ([N, H, T, D], [N, H, T])`: the result, and the log of each row's sum."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    scores = query @ key.mT * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~keep, -math.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def _forward(
    node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor | None, ...]:
    out, logsumexp = attention(*_operands(_named(node, args, kwargs)))
    if "efficient" in node.op.name:  # whose kernel keeps whole blocks of rows
        logsumexp = F.pad(logsumexp, (0, -logsumexp.shape[-1] % _ROWS), value=math.inf)
    return (out, logsumexp, *(_unread(value, out) for value in node.results[2:]))


def _backward(
    node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor | None, ...]:
    named = _named(node, args, kwargs)
    query, key, value, bias, causal, scale = _operands(named)
    query, key, value = inputs = [x.detach().requires_grad_() for x in (query, key, value)]
    if len(node.results) == 4 and bias is not None:
        bias = bias.detach().requires_grad_()
        inputs.append(bias)
    with torch.enable_grad():
        out, _ = attention(query, key, value, bias, causal, scale)
    grads = torch.autograd.grad(out, inputs, named.get("grad_out", named.get("grad_out_")))
    return (*grads, *(None,) * (len(node.results) - len(grads)))


def _unread(value: Value, like: Tensor) -> Tensor | None:
    """Something of the declared type, where sizes are known."""
    if not isinstance(value.type, TensorType):
        return None
    sizes = [size for size in value.type.shape if isinstance(size, int)]
    if len(sizes) < value.type.rank:
        return None
    return torch.zeros(sizes, dtype=value.type.dtype, device=like.device)


def _named(node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if node.arg("dropout_p"):
        raise UnsupportedError(f"%{node.name}: attention with dropout has no reference")
    return {**dict(zip(node.op.argument_names, args, strict=False)), **kwargs}


def _operands(
    named: Mapping[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool, float]:
    query, bias = named["query"], named.get("attn_bias", named.get("attn_mask"))
    scale = named.get("scale")
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    return query, named["key"], named["value"], bias, bool(named.get("is_causal")), scale


_STEM: Final = "aten._scaled_dot_product_"
ATTENTION: Final[dict[str, Call]] = {
    f"{_STEM}{kind}_attention{suffix}.default": call
    for kind in ("flash", "efficient", "cudnn")
    for suffix, call in (("", _forward), ("_backward", _backward))
}
