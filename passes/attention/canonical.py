"""ATen's fused attention as an `rw.attention`, whose body says what it computes."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Final

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
from rewright.passes.attention.backward import lying
from rewright.passes.attention.lower import FLASH, FLASH_BACKWARD
from rewright.passes.attention.region import shaped
from rewright.passes.emitter import Emitter

_NAMES: Final = ("q", "k", "v", "bias")

# ATen's fused attention, of every device, and what each calls a bias, where it takes one.
_FUSED: Final = {
    FLASH: "attn_mask",
    "aten._scaled_dot_product_flash_attention.default": None,
    "aten._scaled_dot_product_efficient_attention.default": "attn_bias",
    "aten._scaled_dot_product_cudnn_attention.default": "attn_bias",
}


def is_plain_call(node: Node, graph: Graph) -> bool:
    """True for a call of ATen's fused attention of which only the result is read."""
    if node.op.name not in _FUSED or node.arg("dropout_p") != 0.0:
        return False
    return not any(graph.readers.get(v, ()) or v in graph.returned for v in node.results[1:])


@dataclass(frozen=True)
class Call:
    """softmax(scale q k^T + bias) v, of [B, H, T, D] and as many or fewer heads of keys and values;
    `causal`: no key counts that comes after the query, both counted from the first."""

    node: Node
    query: Value
    key: Value
    value: Value
    bias: Value | None
    causal: bool
    scale: float

    @staticmethod
    def of(node: Node) -> Call:
        """What a call of ATen's fused attention computes; of its gradient, what the other did."""
        first = 1 if node.op.name == FLASH_BACKWARD else 0
        query, key, value = (v for v in node.args[first : first + 3] if isinstance(v, Value))
        name, scale = _FUSED[FLASH if first else node.op.name], node.arg("scale")
        bias = None if name is None else node.arg(name)
        if scale is None:
            scale = 1 / math.sqrt(hint(query.tensor.shape[-1]))
        assert isinstance(scale, float)
        mask = bias if isinstance(bias, Value) else None
        made = dataclasses.replace(node, results=node.operands[4:6]) if first else node
        return Call(made, query, key, value, mask, bool(node.arg("is_causal")), scale)

    @property
    def operands(self) -> tuple[Value, ...]:
        bias = () if self.bias is None else (self.bias,)
        return (self.query, self.key, self.value, *bias)

    @property
    def result(self) -> Value:
        return self.node.results[0]


@dataclass(frozen=True)
class Windows:
    """Keys that a query looks at: those less than `size` away, and the first `sinks`. `size` is one
    for all heads, or a tensor [H]; `kept` is the share of scores that is left."""

    size: int | Value
    sinks: int
    kept: float


def as_attention(call: Call, emit: Emitter, windows: Windows | None = None) -> Node:
    """An `rw.attention` that makes what a call makes first, lying alike; over windows, if given."""
    sizes = (windows.size,) if windows is not None and isinstance(windows.size, Value) else ()
    kept = {} if windows is None else {"kept": windows.kept}
    emit.region("rw.attention", (*call.operands, *sizes), _body(call, windows, emit), **kept)
    emit.end_in(call.result)
    return emit.nodes[-1]


def _body(call: Call, windows: Windows | None, outer: Emitter) -> Graph:
    emit, result = outer.inside(), call.result.tensor
    inputs = [Value(n, v.type) for n, v in zip(_NAMES, call.operands, strict=False)]
    every = inputs[0].tensor.shape[1]
    query, key, value = (_flat(_repeated(_exact(x, emit), every, emit), emit) for x in inputs[:3])
    scores = emit("aten.bmm.default", query, emit("aten.permute.default", key, (0, 2, 1)))
    heads = inputs[0].tensor.shape[:2]
    scores = emit("aten.view.default", scores, (*heads, *scores.tensor.shape[1:]))
    if call.scale != 1:
        scores = emit("aten.mul.Tensor", scores, call.scale)
    if call.causal:
        scores = _masked(scores, _causal(scores, emit), emit)
    for bias in inputs[3:]:
        scores = emit("aten.add.Tensor", scores, _exact(bias, emit))
    if windows is not None:
        size = windows.size
        if isinstance(size, Value):
            inputs.append(Value("windows", size.type))
            size = emit("aten.view.default", inputs[-1], (-1, 1, 1))
        scores = _masked(scores, _near(scores, size, windows.sinks, emit), emit)
    weights = _flat(emit("aten._softmax.default", scores, -1, False), emit)
    made = emit("aten.bmm.default", weights, value)
    made = emit("aten.view.default", made, (*heads, *made.tensor.shape[1:]))
    if made.tensor.dtype != result.dtype:
        made = emit("aten._to_copy.default", made, dtype=result.dtype)
    made = lying(made, result, (0, 2, 1, 3), emit)
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
    """Keys that do not come after the query, both counted from the first."""
    rows, keys = scores.tensor.shape[-2:]
    row = emit("aten.unsqueeze.default", _counted(rows, scores, emit), 1)
    return emit("aten.le.Tensor", _counted(keys, scores, emit), row)


def _near(scores: Value, size: int | Value, sinks: int, emit: Emitter) -> Value:
    """Keys less than `size` from the query, and the first of all."""
    rows, keys = scores.tensor.shape[-2:]
    row, key = (_counted(n, scores, emit) for n in (rows, keys))
    away = emit("aten.sub.Tensor", emit("aten.unsqueeze.default", row, 1), key)
    kind = "Tensor" if isinstance(size, Value) else "Scalar"
    near = emit(f"aten.lt.{kind}", emit("aten.abs.default", away), size)
    if sinks == 0:
        return near
    return emit("aten.logical_or.default", near, emit("aten.lt.Scalar", key, sinks))


def _masked(scores: Value, counts: Value, emit: Emitter) -> Value:
    """Minus infinity where a score does not count."""
    like = scores.tensor
    dead = emit("aten.full.default", (), -math.inf, dtype=like.dtype, device=like.device)
    return emit("aten.where.self", counts, scores, dead)


def _counted(size: Size, like: Value, emit: Emitter) -> Value:
    device = like.tensor.device
    type = TensorType(torch.int64, (size,), None, device)
    given: dict[str, Arg] = {"dtype": torch.int64, "device": device}
    (counted,) = emit.call(op("aten.arange.default"), (size,), given, [type])
    return counted
