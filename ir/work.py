"""What running a node takes: arithmetic, and bytes read from and written to memory.

Sizes stay symbolic. Arithmetic is counted in operations worth about one f32 addition each; a
multiply-add is two. A region moves only its operands and results, whatever it computes between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

from rewright.ir.dims import Size, hint, product
from rewright.ir.errors import UnsupportedError
from rewright.ir.expr import Call, Scalar
from rewright.ir.graph import Arg, Graph, Node, Value
from rewright.ir.onednn import CONVOLUTION, CONVOLUTION_BINARY, LINEAR, LINEAR_BINARY
from rewright.ir.ops import Kind
from rewright.ir.pointwise import scalar_expr
from rewright.ir.storage import lasts, shares_input_storage
from rewright.ir.types import TensorType

# Attention in tiles, of which masks leave some out.
_TILED: Final = ("rw.attention", "rw.attention_backward")


def is_call(node: Node) -> bool:
    """True when running the node calls a kernel or an operator: not for views, what is there before
    the graph runs, allocations and arithmetic on Python numbers."""
    if node.op.kind is Kind.STORAGE or lasts(node) or node.op.namespace == "py":
        return False
    return not shares_input_storage(node)


def flops(node: Node) -> Size:
    """Arithmetic operations of one run, those of nested graphs included."""
    if not is_call(node):
        return 0
    if node.op.name in _TILED:
        return _left_by_masks(node)
    if node.op.name == "rw.quantized_linear":  # not what its formula does to weights
        return 2 * node.result.tensor.numel * node.operands[0].tensor.shape[-1]
    if node.graphs:
        return _sum(flops(inner) for _, graph in node.graphs for inner in graph.nodes)
    if node.kwarg("out") is not None:  # where a result goes is no part of the work
        node = dataclasses.replace(node, kwargs=tuple(k for k in node.kwargs if k[0] != "out"))
    formula = _CONTRACTIONS.get(node.op.name)
    if formula is not None:
        return formula(node)
    return _PER_KIND.get(node.op.kind, _one_an_element)(node)


def bytes_read(node: Node) -> Size:
    """Bytes of operands that are read at least once. Of an operand that is only seen through views,
    gathers or broadcasts, what they show."""
    if not is_call(node):
        return 0
    if node.op.kind is Kind.REGION:
        body = node.graph("body")
        return _sum(_bytes(i.value, _seen_in(body, i.value)) for i in body.inputs)
    operands = dict.fromkeys(_inputs(node))
    return _sum(_bytes(value, _seen_by(node, value)) for value in operands)


def bytes_written(node: Node) -> Size:
    """Bytes of results."""
    if not is_call(node):
        return 0
    return _sum(_bytes(value, _distinct(value)) for value in node.results)


def _left_by_masks(node: Node) -> Size:
    """Of a body that is a kernel, what its masks leave; of another one, all of it."""
    from rewright.ir.loops.attention import lower_attention
    from rewright.ir.loops.attention_backward import lower_attention_backward
    from rewright.ir.loops.tiles import kept_share

    lower = lower_attention if node.op.name == "rw.attention" else lower_attention_backward
    body = node.graph("body")
    whole = _sum(flops(inner) for inner in body.nodes)
    try:
        share = node.kwarg("kept")
        if not isinstance(share, float):
            share = kept_share(lower(body, node.name))
    except UnsupportedError:
        return whole
    return whole if share == 1 else round(share * hint(whole))


# --- arithmetic ---------------------------------------------------------------------------------

# Primitives of `ir.expr` that cost more than one operation, in vector code.
_WEIGHTS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("div", "reciprocal", "sqrt", "rsqrt"), 4),
    **dict.fromkeys(("div_floor", "div_trunc", "fmod", "remainder"), 8),
    **dict.fromkeys(("exp", "exp2", "log", "log2", "log10", "erf"), 8),
    **dict.fromkeys(("expm1", "log1p", "sin", "cos", "sigmoid", "erfc"), 12),
    **dict.fromkeys(("tanh", "sinh", "cosh", "tan", "asin", "acos", "atan", "atan2"), 16),
    **dict.fromkeys(("asinh", "acosh", "atanh", "erfinv", "hypot", "pow"), 24),
    "lgamma": 48,
}
_EXP: Final = _WEIGHTS["exp"]

# Simple operations and exponentials for each element of the first operand; one simple operation for
# reductions that are not here.
_PER_REDUCED_ELEMENT: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(("aten.var.correction", "aten.var_mean.correction"), (4, 0)),
    "aten.std.correction": (4, 0),
    "aten.linalg_vector_norm.default": (2, 0),
    "aten.logsumexp.default": (2, 1),
    **dict.fromkeys(("aten._softmax.default", "aten._log_softmax.default"), (4, 1)),
    "aten._softmax_backward_data.default": (4, 0),
    "aten._log_softmax_backward_data.default": (3, 1),
    **dict.fromkeys(("aten.native_layer_norm.default", "aten.native_group_norm.default"), (8, 0)),
    "aten._fused_rms_norm.default": (5, 0),
}


def per_reduced_element(node: Node) -> tuple[int, int]:
    """Simple operations and exponentials that a reduction does for each element of its operand."""
    return _PER_REDUCED_ELEMENT.get(node.op.name, (1, 0))


def _elementwise(node: Node) -> Size:
    try:
        expr = scalar_expr(node).expr
    except UnsupportedError:  # complex numbers, say: ATen runs them
        return _one_an_element(node)
    return node.result.tensor.numel * _weight(expr)


def _weight(expr: Scalar) -> int:
    if not isinstance(expr, Call):
        return 0
    return _WEIGHTS.get(expr.name, 1) + sum(_weight(arg) for arg in expr.args)


def _reduction(node: Node) -> Size:
    simple, exponentials = per_reduced_element(node)
    return node.operands[0].tensor.numel * (simple + _EXP * exponentials)


def _none(node: Node) -> Size:
    return 0


def _one_an_element(node: Node) -> Size:
    """For operators about which nothing is known."""
    tensors = (v for v in (*_inputs(node), *node.results) if isinstance(v.type, TensorType))
    return max((v.tensor.numel for v in tensors), key=hint, default=0)


_PER_KIND: Final[Mapping[Kind, Callable[[Node], Size]]] = {
    Kind.POINTWISE: _elementwise,
    Kind.REDUCTION: _reduction,
    Kind.INDEX: _none,
    Kind.CREATION: _none,
}


# --- contractions -------------------------------------------------------------------------------


def _shape(arg: Arg) -> tuple[Size, ...]:
    assert isinstance(arg, Value)
    return arg.tensor.shape


def _product(node: Node, left: int = 0) -> Size:
    """A matrix product whose left factor is argument `left`; what stands before it is added."""
    elements = node.results[0].tensor.numel
    return elements * (2 * _shape(node.args[left])[-1]) + elements * left


def _linear(node: Node, weight: int = 1) -> Size:
    """A bias comes after the weight."""
    biased = len(node.args) > weight + 1 and node.args[weight + 1] is not None
    return _product(node) + (node.result.tensor.numel if biased else 0)


def _convolution(node: Node, weight: int = 1) -> Size:
    """Each element of the result, or of the input when transposed, meets one filter."""
    names = node.op.argument_names
    transposed = "transposed" in names and node.arg("transposed") is True
    result = node.results[0].tensor.numel
    meets = product(_shape(node.args[0])) if transposed else result
    biased = len(node.args) > weight + 1 and node.args[weight + 1] is not None
    return 2 * meets * product(_shape(node.args[weight])[1:]) + (result if biased else 0)


def _convolution_backward(node: Node) -> Size:
    """As much as the forward for each of the two big gradients asked for."""
    grad, source, weight = (_shape(a) for a in node.args[:3])
    wanted = node.arg("output_mask")
    assert isinstance(wanted, tuple)
    meets = product(source if node.arg("transposed") is True else grad)
    count = int(wanted[0] is True) + int(wanted[1] is True)
    bias = product(grad) if wanted[2] is True else 0
    return 2 * count * meets * product(weight[1:]) + bias


def _attention(node: Node, first: int, of_qk: int, of_pv: int) -> Size:
    """Scaled dot-product attention; argument `first` is the query, [..., length, features].

    `of_qk` products run over the features of the keys, `of_pv` over those of the values. Causal
    attention needs half of the scores.
    """
    query, key, value = (_shape(a) for a in node.args[first : first + 3])
    scores = product(query[:-1]) * key[-2]
    each = 2 * of_qk * query[-1] + 2 * of_pv * value[-1] + _EXP + 4
    total = scores * each
    causal = "is_causal" in node.op.argument_names and node.arg("is_causal") is True
    return total // 2 if causal else total


_ATTENTION: Final = (
    "aten.scaled_dot_product_attention.default",
    "aten._scaled_dot_product_attention_math_for_mha.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
)
_ATTENTION_BACKWARD: Final = (
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
    "aten._scaled_dot_product_flash_attention_backward.default",
    "aten._scaled_dot_product_efficient_attention_backward.default",
    "aten._scaled_dot_product_cudnn_attention_backward.default",
)
_PRODUCTS: Final = ("mm", "bmm", "mv", "dot", "matmul", "_int_mm", "_scaled_mm")

# Backward: scores again, and the gradients of scores, values, queries and keys.
_CONTRACTIONS: Final[Mapping[str, Callable[[Node], Size]]] = {
    **{f"aten.{name}.default": _product for name in _PRODUCTS},
    **{f"aten.{name}.default": partial(_product, left=1) for name in ("addmm", "baddbmm", "addmv")},
    "aten.linear.default": _linear,
    "aten.convolution.default": _convolution,
    "aten.conv2d.default": _convolution,
    LINEAR: _linear,
    LINEAR_BINARY: partial(_linear, weight=2),
    CONVOLUTION: _convolution,
    CONVOLUTION_BINARY: partial(_convolution, weight=2),
    "aten.convolution_backward.default": _convolution_backward,
    **dict.fromkeys(_ATTENTION, partial(_attention, first=0, of_qk=1, of_pv=1)),
    **dict.fromkeys(_ATTENTION_BACKWARD, partial(_attention, first=1, of_qk=3, of_pv=2)),
}


# --- bytes --------------------------------------------------------------------------------------

# Operators that read as much of their first operand as they return.
_GATHERS: Final = frozenset(
    f"aten.{name}" for name in ("embedding.default", "index_select.default", "gather.default")
) | {"aten.index.Tensor"}


def _inputs(node: Node) -> Iterable[Value]:
    """Operands that are read: at the kernel level `out` names what is written."""
    written = node.kwarg("out")
    if written is None or "out" in node.op.argument_names:
        return node.operands
    buffers = set(written) if isinstance(written, tuple) else {written}
    return (value for value in node.operands if value not in buffers)


def _seen_in(body: Graph, value: Value) -> Size:
    """Distinct elements of `value` that a body reads."""
    whole = _distinct(value)
    if value in body.returned:
        return whole
    seen: Size = 0
    for reader in body.readers.get(value, ()):
        if shares_input_storage(reader):
            seen = seen + _sum(_seen_in(body, result) for result in reader.results)
        else:
            seen = seen + _seen_by(reader, value)
    return min(seen, whole, key=hint)


def _seen_by(node: Node, value: Value) -> Size:
    whole = _distinct(value)
    if node.op.name in _GATHERS and value == node.args[0]:
        return min(whole, node.results[0].tensor.numel, key=hint)
    return whole


def _distinct(value: Value) -> Size:
    return distinct(value.type) if isinstance(value.type, TensorType) else 0


def distinct(type: TensorType) -> Size:
    """Elements with a place of their own: an expanded dimension has one for all."""
    if type.strides is None:
        return type.numel
    axes = zip(type.shape, type.layout, strict=True)
    return product(size for size, stride in axes if stride != 0)


def _bytes(value: Value, elements: Size) -> Size:
    return elements * value.tensor.dtype.itemsize if isinstance(value.type, TensorType) else 0


def _sum(sizes: Iterable[Size]) -> Size:
    total: Size = 0
    for size in sizes:
        total = total + size
    return total
