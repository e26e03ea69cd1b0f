"""Numeric features of calls that libraries run on CPUs: products, convolutions, attention, and all
other operators of ATen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch

from rewright.costmodel.facts import facts
from rewright.ir import Kind, Node, TensorType, Value, hint
from rewright.ir.onednn import CONVOLUTION as ONEDNN_CONVOLUTION
from rewright.ir.onednn import CONVOLUTION_BINARY, LINEAR, LINEAR_BINARY

# Which arguments of a product its factors are; what stands before the left one is added.
_PRODUCTS: Final = ("mm", "bmm", "mv", "dot", "_int_mm", "linear", "matmul")
PRODUCTS: Final = {
    **{f"aten.{name}.default": (0, 1) for name in _PRODUCTS},
    **{f"aten.{name}.default": (1, 2) for name in ("addmm", "baddbmm", "addmv")},
    LINEAR: (0, 1),
    LINEAR_BINARY: (0, 2),
}
CONVOLUTIONS: Final = (
    *("aten.convolution.default", "aten.convolution_backward.default"),
    *(ONEDNN_CONVOLUTION, CONVOLUTION_BINARY),
)


# Numbers and parts.
Own = tuple[tuple[float, ...], tuple[float, ...]]

PRODUCT: Final = (
    *("batch", "m", "n", "k", "least", "m_remainder", "n_remainder", "k_remainder"),
    *("m_remainder_6", "n_remainder_64"),
    *("left_transposed", "right_transposed", "addend", "intensity"),
)
CONVOLUTION: Final = (
    *("images", "channels", "filters", "pixels", "out_pixels", "taps", "stride", "groups"),
    *("depthwise", "transposed", "channels_last", "dilated", "backward", "gradients", "bias"),
    *("filters_remainder", "channels_remainder", "width"),
)
ATTENTION: Final = (
    *("heads", "queries", "keys", "features", "value_features", "causal", "mask", "mask_bytes"),
    *("backward", "query_remainder", "key_remainder", "transposed"),
)
OPERATOR: Final = (
    *("elements", "results", "inner", "row_length", "columns", "reduction", "index", "creation"),
    *("view", "simple", "divisions", "exponentials", "powers", "contiguous", "small", "strided"),
    *("gathered", "integers", "dimensions", "innermost", "side_by_side", "again", "apart"),
)
LIBRARY: Final[Mapping[str, tuple[str, ...]]] = {
    "product": PRODUCT,
    "convolution": CONVOLUTION,
    "attention": ATTENTION,
    "operator": OPERATOR,
}


def library_features(family: str, node: Node, compute: float) -> Own:
    """The numbers that `LIBRARY[family]` names, and seconds that work of each kind would take
    alone; `compute` are those of all arithmetic."""
    return _OWN[family](node, compute)


# --- numbers ----------------------------------------------------------------------------------


def _product_sizes(node: Node) -> tuple[int, int, int, int]:
    """(products, m, n, k)."""
    place, after = PRODUCTS[node.op.name]
    left, right = _tensor(node.args[place]), _tensor(node.args[after])
    result = node.results[0].tensor
    k = hint(left.shape[-1])
    m = hint(left.shape[-2]) if len(left.shape) > 1 else 1
    n = hint(result.shape[-1]) if len(right.shape) > 1 else 1
    return hint(result.numel) // max(1, m * n), m, n, k


def _product(node: Node) -> tuple[float, ...]:
    place, after = PRODUCTS[node.op.name]
    left, right = _tensor(node.args[place]), _tensor(node.args[after])
    batch, m, n, k = _product_sizes(node)
    intensity = batch * m * n * k / max(1, m * k + n * k + m * n)
    # oneDNN's weights are the right factor's transpose.
    turned = _is_transposed(right) != (node.op.name in (LINEAR, LINEAR_BINARY))
    return (
        *map(log_size, (batch, m, n, k, min(m, n, k))),
        *(float(size % 16) for size in (m, n, k)),
        float(m % 6),
        float(n % 64),
        float(_is_transposed(left)),
        float(turned),
        float(_has_addend(node, place, after)),
        log_size(intensity),
    )


def _has_addend(node: Node, place: int, after: int) -> bool:
    """Something is added: before the left factor, or as a bias after oneDNN's weights."""
    if node.op.name in (LINEAR, LINEAR_BINARY):
        return node.args[after + 1] is not None
    return place > 0


def _convolution(node: Node) -> tuple[float, ...]:
    backward = "backward" in node.op.name
    first = 1 if backward else 0
    after = 2 if node.op.name == CONVOLUTION_BINARY else first + 1
    source, weight = _tensor(node.args[first]), _tensor(node.args[after])
    out = _tensor(node.args[0]) if backward else node.results[0].tensor
    groups = node.arg("groups")
    assert isinstance(groups, int)
    stride, dilation = node.arg("stride"), node.arg("dilation")
    mask = node.arg("output_mask") if backward else ()
    assert isinstance(stride, tuple) and isinstance(dilation, tuple) and isinstance(mask, tuple)
    channels, filters = hint(source.shape[1]), hint(out.shape[1])
    pixels, out_pixels = _area(source), _area(out)
    taps = math.prod(hint(s) for s in weight.shape[2:])
    biased = mask[2] is True if backward else node.args[after + 1] is not None
    return (
        *map(log_size, (hint(source.shape[0]), channels, filters, pixels, out_pixels, taps)),
        float(stride[0] if isinstance(stride[0], int) else 1),
        log_size(groups),
        float(groups > 1 and groups == channels),
        float("transposed" in node.op.argument_names and node.arg("transposed") is True),
        float(len(source.layout) > 1 and hint(source.layout[1]) == 1 and channels > 1),
        float(any(d != 1 for d in dilation)),
        float(backward),
        float(sum(m is True for m in mask)),
        float(biased),
        float(filters // groups % 16),
        float(channels // groups % 16),
        log_size(hint(out.shape[-1])),
    )


def _attention(node: Node) -> tuple[float, ...]:
    backward = "backward" in node.op.name
    query, key, value = (_tensor(a) for a in node.args[int(backward) : int(backward) + 3])
    heads = math.prod(hint(s) for s in query.shape[:-2])
    mask = next((a for k, a in node.kwargs if k == "attn_mask"), None)
    queries, keys = hint(query.shape[-2]), hint(key.shape[-2])
    return (
        *map(log_size, (heads, queries, keys, hint(query.shape[-1]), hint(value.shape[-1]))),
        float("is_causal" in node.op.argument_names and node.arg("is_causal") is True),
        float(isinstance(mask, Value)),
        log_size(mask.tensor.nbytes_hint) if isinstance(mask, Value) else 0.0,
        float(backward),
        float(queries % 32),
        float(keys % 32),
        float(hint(query.layout[-2]) != hint(query.shape[-1])),
    )


def _operator(node: Node, compute: float) -> Own:
    found = facts(node, lambda value: 0)
    ways = [0, 0, 0, 0]
    for _, way, nbytes, _ in found.reads:
        ways[way] += nbytes
    given = [v.type for v in node.results if isinstance(v.type, TensorType)]
    results = max(hint(type.numel) for type in given)
    elements = max(1, found.elements)
    inputs = [v.tensor for v in node.operands if isinstance(v.type, TensorType)]
    whole = sum(not t.dtype.is_floating_point for t in inputs)
    numbers = (
        log_size(elements),
        log_size(results),
        log_size(found.inner),
        log_size(found.elements // found.rows if found.rows else 0),
        float(found.columns),
        *(float(node.op.kind is k) for k in (Kind.REDUCTION, Kind.INDEX, Kind.CREATION, Kind.VIEW)),
        *(count / elements for count in found.work),
        *map(log_size, ways),
        float(whole),
        *_iteration(node),
    )
    parts = compute, 1e-9 * found.elements, *(1e-9 * nbytes for nbytes in ways)
    return numbers, parts


def _iteration(node: Node) -> tuple[float, ...]:
    """How ATen's loops run over an elementwise call: dimensions that all operands step through
    evenly are one (TensorIterator). (Dimensions, the innermost size, operands that the innermost
    loop reads side by side, again and again, and apart.)"""
    if node.op.kind not in (Kind.POINTWISE, Kind.VIEW):
        return (0.0,) * 5
    out = node.results[0].tensor
    shape = [hint(s) for s in out.shape]
    tensors = [v.tensor for v in (*node.operands, *node.results) if isinstance(v.type, TensorType)]
    steps = [_steps(t, shape) for t in tensors if len(t.shape) <= len(shape)]
    order = sorted((d for d in range(len(shape)) if shape[d] > 1), key=lambda d: steps[-1][d])
    sizes: list[int] = []
    last: list[list[int]] = []
    for d in order:
        step = [each[d] for each in steps]
        if sizes and all(s == b * sizes[-1] for s, b in zip(step, last[-1], strict=True)):
            sizes[-1] *= shape[d]
        else:
            sizes.append(shape[d])
            last.append(step)
    inner = last[0] if last else []
    ways = (sum(s == 1 for s in inner), sum(s == 0 for s in inner), sum(s > 1 for s in inner))
    return (float(len(sizes)), log_size(sizes[0] if sizes else 1), *map(float, ways))


def _steps(type: TensorType, shape: Sequence[int]) -> list[int]:
    """Strides of a tensor that is broadcast to a shape."""
    sizes, layout = [hint(s) for s in type.shape], [hint(s) for s in type.layout]
    known = [0 if size == 1 else step for size, step in zip(sizes, layout, strict=True)]
    return [0] * (len(shape) - len(known)) + known


# --- parts --------------------------------------------------------------------------------------


def _of_types(node: Node, seconds: Sequence[float]) -> tuple[float, ...]:
    """Each of several times in the place of the node's type: each type has its own kernels."""
    place = TYPES.index(main_type(node)) if main_type(node) in TYPES else len(TYPES)
    return tuple(t * (place == type) for t in seconds for type in range(len(TYPES) + 1))


TYPES: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _product_parts(node: Node, compute: float) -> tuple[float, ...]:
    """Arithmetic, the same for factors filled up to whole tiles, and a start for each product."""
    batch, m, n, k = _product_sizes(node)
    full = [-(-m // 8) * 8, -(-n // 32) * 32, -(-k // 16) * 16]
    filled = compute * math.prod(full) / max(1, m * n * k)
    return (*_of_types(node, (compute, filled)), 1e-7 * (batch - 1))


def _convolution_parts(node: Node, compute: float) -> tuple[float, ...]:
    """Arithmetic by kind, and the bytes of all taps of all pixels."""
    backward, groups = "backward" in node.op.name, node.arg("groups")
    kind = (backward, not backward and groups == 1, not backward and groups != 1)
    return _of_types(node, [compute * yes for yes in kind])


def _attention_parts(node: Node, compute: float) -> tuple[float, ...]:
    """Arithmetic by direction, exponentials, a start for each head."""
    backward = "backward" in node.op.name
    query, key = (_tensor(a) for a in node.args[int(backward) : int(backward) + 2])
    heads = math.prod(hint(s) for s in query.shape[:-2])
    scores = heads * hint(query.shape[-2]) * hint(key.shape[-2])
    kinds = [compute * backward, compute * (not backward), 1e-10 * scores]
    return (*_of_types(node, kinds), 1e-6 * heads)


_OWN: Final[Mapping[str, Callable[[Node, float], Own]]] = {
    "product": lambda node, compute: (_product(node), _product_parts(node, compute)),
    "convolution": lambda node, compute: (_convolution(node), _convolution_parts(node, compute)),
    "attention": lambda node, compute: (_attention(node), _attention_parts(node, compute)),
    "operator": _operator,
}


def _tensor(arg: object) -> TensorType:
    assert isinstance(arg, Value)
    return arg.tensor


def _is_transposed(type: TensorType) -> bool:
    """True when neighbours in memory are neighbours in a column."""
    return len(type.shape) > 1 and hint(type.layout[-1]) != 1 and hint(type.shape[-1]) != 1


def _area(type: TensorType) -> int:
    return math.prod(hint(s) for s in type.shape[2:])


def log_size(number: float) -> float:
    """The base-2 logarithm of one more, so that nothing is 0."""
    return math.log2(number + 1)


def main_type(node: Node) -> torch.dtype:
    tensors = (v.type for v in (*node.operands, *node.results))
    return next((t.dtype for t in tensors if isinstance(t, TensorType)), torch.float32)
