"""ATen's fused attention as an `rw.attention`, whose body says what it computes."""

from __future__ import annotations

import math

import torch

from rewright.ir import (
    Arg,
    Graph,
    Input,
    Node,
    Size,
    TensorType,
    UnsupportedError,
    Value,
    exact_div,
    hint,
    op,
    product,
)
from rewright.passes.attention.lower import FLASH
from rewright.passes.attention.region import shaped
from rewright.passes.emitter import Emitter


def is_plain_call(node: Node, graph: Graph) -> bool:
    """True for a call of ATen's fused attention of which only the result is read."""
    if node.op.name != FLASH or node.arg("dropout_p") != 0.0:
        return False
    sums = node.results[1]
    return not graph.readers.get(sums, ()) and sums not in graph.returned


def as_attention(node: Node, emit: Emitter) -> Node:
    """An `rw.attention` that makes what a call of ATen's attention makes first, lying alike."""
    query, key, value = (v for v in node.args[:3] if isinstance(v, Value))
    bias = node.arg("attn_mask")
    extra = (bias,) if isinstance(bias, Value) else ()
    scale = node.arg("scale")
    if scale is None:
        scale = 1 / math.sqrt(hint(query.tensor.shape[-1]))
    assert isinstance(scale, float)
    operands = (query, key, value, *extra)
    body = _body(operands, scale, bool(node.arg("is_causal")), node.results[0].tensor, emit)
    emit.region("rw.attention", operands, body)
    emit.end_in(node.results[0])
    return emit.nodes[-1]


def _body(
    operands: tuple[Value, ...], scale: float, causal: bool, result: TensorType, outer: Emitter
) -> Graph:
    emit = outer.inside()
    names = ("q", "k", "v", "bias")
    inputs = [Value(name, v.type) for name, v in zip(names, operands, strict=False)]
    every = inputs[0].tensor.shape[1]
    query, key, value = (_flat(_repeated(_exact(x, emit), every, emit), emit) for x in inputs[:3])
    scores = emit("aten.bmm.default", query, emit("aten.permute.default", key, (0, 2, 1)))
    heads = inputs[0].tensor.shape[:2]
    scores = emit("aten.view.default", scores, (*heads, *scores.tensor.shape[1:]))
    if scale != 1:
        scores = emit("aten.mul.Tensor", scores, scale)
    if causal:
        scores = _causal(scores, emit)
    for bias in inputs[3:]:
        scores = emit("aten.add.Tensor", scores, _exact(bias, emit))
    weights = _flat(emit("aten._softmax.default", scores, -1, False), emit)
    made = emit("aten.bmm.default", weights, value)
    made = emit("aten.view.default", made, (*heads, *made.tensor.shape[1:]))
    if made.tensor.dtype != result.dtype:
        made = emit("aten._to_copy.default", made, dtype=result.dtype)
    made = _lying(made, result, emit)
    return Graph("body", tuple(Input(v) for v in inputs), tuple(emit.nodes), (made,))


def _exact(x: Value, emit: Emitter) -> Value:
    """Half types in single precision, as ATen's kernel computes with them."""
    if x.tensor.dtype in (torch.float16, torch.bfloat16):
        return emit("aten._to_copy.default", x, dtype=torch.float32)
    return x


def _repeated(x: Value, heads: Size, emit: Emitter) -> Value:
    """Each head of [B, H', S, D] as often as there are queries' heads for it."""
    batch, own, *rest = x.tensor.shape
    times = exact_div(heads, own)
    if times is None:
        raise UnsupportedError(f"{heads} heads of queries, and {own} of keys")
    if times == 1:
        return x
    x = emit("aten.unsqueeze.default", x, 2)
    x = emit("aten.expand.default", x, (batch, own, times, *rest))
    return shaped(x, (batch, heads, *rest), emit)


def _flat(x: Value, emit: Emitter) -> Value:
    return shaped(x, (product(x.tensor.shape[:2]), *x.tensor.shape[2:]), emit)


def _causal(scores: Value, emit: Emitter) -> Value:
    """Minus infinity where a key comes after the query, both counted from the first."""
    rows, keys = scores.tensor.shape[-2:]
    row = emit("aten.unsqueeze.default", _counted(rows, scores, emit), 1)
    mask = emit("aten.le.Tensor", _counted(keys, scores, emit), row)
    like = scores.tensor
    dead = emit("aten.full.default", (), -math.inf, dtype=like.dtype, device=like.device)
    return emit("aten.where.self", mask, scores, dead)


def _counted(size: Size, like: Value, emit: Emitter) -> Value:
    device = like.tensor.device
    type = TensorType(torch.int64, (size,), None, device)
    given: dict[str, Arg] = {"dtype": torch.int64, "device": device}
    (counted,) = emit.call(op("aten.arange.default"), (size,), given, [type])
    return counted


def _lying(x: Value, wanted: TensorType, emit: Emitter) -> Value:
    """The same tensor [B, H, T, E], in memory as `wanted` lies."""
    if x.tensor == wanted:
        return x
    turned = emit("aten.permute.default", x, (0, 2, 1, 3))
    turned = emit("aten.clone.default", turned, memory_format=torch.contiguous_format)
    return emit("aten.permute.default", turned, (0, 2, 1, 3))
