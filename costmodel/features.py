"""Numeric features of calls: what the learned model sees of a region or an operator.

Each family of calls has features of its own, at most 48. Counts and sizes are base-2 logarithms, so
that trees split them evenly; a time is a logarithm of seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from rewright.costmodel.facts import facts
from rewright.costmodel.nests import nest_facts
from rewright.costmodel.roofline import ELEMENTWISE
from rewright.costmodel.sketch import Sketch, weighed
from rewright.ir import Kind, Node, TensorType, Value, hint
from rewright.ir.loops import lower, rough_nanoseconds
from rewright.ir.target import Target
from rewright.ir.work import bytes_read, bytes_written, flops

# Which argument of a product its left factor is; what stands before it is added.
_PRODUCTS: Final = ("mm", "bmm", "mv", "dot", "_int_mm", "linear", "matmul")
PRODUCTS: Final = {
    **{f"aten.{name}.default": 0 for name in _PRODUCTS},
    **{f"aten.{name}.default": 1 for name in ("addmm", "baddbmm", "addmv")},
}


@dataclass(frozen=True)
class Features:
    """A call as the model sees it. `floor` are the seconds that it takes at the least, by the
    target's peaks; `FAMILIES[family]` names the numbers. The first of an operator's is what its
    `operator` usually takes beyond its floor, which the model fills in."""

    family: str
    floor: float
    numbers: tuple[float, ...]
    operator: str = ""


def family_of(node: Node) -> str:
    """Which head of the model knows a call."""
    if node.op.kind is Kind.REGION:
        return "kernel"
    if node.op.name in PRODUCTS:
        return "product"
    if node.op.name.startswith("aten.convolution"):
        return "convolution"
    if node.op.kind is Kind.CONTRACTION and "attention" in node.op.name:
        return "attention"
    return "operator"


def features(node: Node, target: Target, cold: int = 0) -> Features:
    """Of a call, `cold` bytes of whose operands no cache holds."""
    family = family_of(node)
    if family == "kernel":
        return kernel_features(node, target)
    work, moved = hint(flops(node)), hint(bytes_read(node) + bytes_written(node))
    dtype = _main_type(node)
    rate = target.peak(dtype) * (ELEMENTWISE if family == "operator" else 1)
    compute, memory = work / rate, _memory_seconds(target, moved, cold)
    floor = target.dispatch_seconds + max(compute, memory)
    common = (
        0.0,
        _log(work),
        _log(moved),
        _log(cold),
        math.log2(compute + 1e-9),
        math.log2(memory),
        math.log2(floor),
        *_caches(target, moved),
        *_type_flags(dtype),
    )
    numbers = _OWN[family](node)
    return Features(family, floor, (*common, *numbers), node.op.name)


COMMON: Final = (
    "usual",
    *("work", "moved", "cold", "compute_seconds", "memory_seconds", "floor"),
    *("per_second_cache", "per_last_cache"),
    *("f64", "bf16", "f16", "int8"),
)
KERNEL: Final = (
    *("rows", "columns", "inner", "inner_remainder", "outer", "lanes", "down", "stages"),
    *("statements", "kept", "reads", "writes", "simple", "divisions", "exponentials", "powers"),
    *("converts", "selects", "positions", "guards", "side_by_side", "at_one_place", "apart"),
    *("turned", "stores", "stores_apart", "reductions", "row_share", "bytes_read", "bytes_written"),
    *("lines", "step", "halves", "doubles", "integers", "work_per_byte"),
    *("compute_seconds", "memory_seconds", "loop_seconds", "rough_seconds", "floor"),
    *("per_first_cache", "per_last_cache"),
)
SKETCH: Final = (
    *("elements", "rows", "row_length", "inner", "inner_remainder", "lanes", "columns"),
    *("nodes", "reductions", "sweeps", "simple", "divisions", "exponentials", "powers", "again"),
    *("work_per_element", "bytes_per_element", "reads", "writes"),
    *("read_contiguous", "read_small", "read_strided", "read_gathered", "written", "strided"),
    *("kept", "halves", "doubles", "integers", "guarded", "moved"),
    *("compute_seconds", "memory_seconds", "floor", "per_first_cache", "per_last_cache"),
)
PRODUCT: Final = (
    *("batch", "m", "n", "k", "least", "m_remainder", "n_remainder", "k_remainder"),
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
    *("gathered", "integers"),
)
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "kernel": KERNEL,
    "sketch": SKETCH,
    "product": COMMON + PRODUCT,
    "convolution": COMMON + CONVOLUTION,
    "attention": COMMON + ATTENTION,
    "operator": COMMON + OPERATOR,
}


# --- kernels ------------------------------------------------------------------------------------


def kernel_features(region: Node, target: Target) -> Features:
    """Of a kernel of ours, from its loop nest. Raises UnsupportedError when it has none."""
    nest = lower(region.graph("body"), "kernel")
    f, rough = nest_facts(nest), 1e-9 * rough_nanoseconds(nest)
    c, elements = f.counts, max(1, f.rows * f.columns)
    moved = f.bytes_read + f.bytes_written
    total = c.converts + weighed(*c.operations)
    rate, compute, memory, floor = _kernel_floor(target, total, moved, f.doubles)
    # A vector at a time, and what starting an inner loop takes.
    loops = (f.outer * (LOOP + -(-f.inner // 16)) + 4 * (c.apart + c.turned)) * 16 / rate
    each = [n / elements for n in (*c.operations, c.converts, c.selects, c.positions, c.guards)]
    accesses = (c.side_by_side, c.at_one_place, c.apart, c.turned, c.stores, c.stores_apart)
    numbers = (
        *map(_log, (f.rows, f.columns, f.inner)),
        float(f.inner % 16),
        _log(f.outer),
        float(f.style == "lanes"),
        float(f.style == "columns"),
        *map(float, (f.stages, f.statements, f.kept, f.reads, f.writes)),
        *each,
        *(n / elements for n in accesses),
        c.reductions / elements,
        f.row_share,
        *map(_log, (f.bytes_read, f.bytes_written, f.lines, f.step)),
        *(n / max(1, moved) for n in (f.halves, f.doubles, f.integers)),
        total / max(1, moved),
        *(math.log2(t + 1e-9) for t in (compute, memory, loops, rough, floor)),
        *_caches(target, moved),
    )
    return Features("kernel", floor, numbers)


# Vectors that starting an inner loop is worth.
LOOP: Final = 4


def sketch_features(s: Sketch, target: Target) -> Features:
    """Of a kernel of ours, from its sketch alone."""
    elements, moved, total = max(s.elements, 1), s.moved, weighed(*s.work)
    _, compute, memory, floor = _kernel_floor(target, total, moved, s.doubles)
    numbers = (
        *map(_log, (elements, s.rows, elements // s.rows if s.rows else 0, s.inner)),
        float(s.inner % 16),
        float(s.rows > 0 and not s.columns),
        *map(float, (s.columns, s.nodes, s.reductions, s.sweeps)),
        *(count / elements for count in s.work),
        _log(s.again),
        total / elements,
        moved / elements,
        *map(float, (s.reads, s.writes)),
        *map(_log, (*s.read, s.written, s.strided, s.kept)),
        *(nbytes / (moved or 1) for nbytes in (s.halves, s.doubles, s.integers)),
        float(s.guarded),
        _log(moved),
        math.log2(compute + 1e-9),
        *map(math.log2, (memory, floor)),
        *_caches(target, moved),
    )
    return Features("sketch", floor, numbers)


def _kernel_floor(
    target: Target, total: float, moved: int, doubles: int
) -> tuple[float, float, float, float]:
    """(operations a second, seconds of arithmetic, of memory, of the whole kernel at least)."""
    dtype = torch.float64 if 2 * doubles > moved else torch.float32
    rate = ELEMENTWISE * target.peak(dtype)
    compute, memory = total / rate, _memory_seconds(target, moved, 0)
    return rate, compute, memory, target.launch_seconds + max(compute, memory)


# --- operators ----------------------------------------------------------------------------------


def _product(node: Node) -> tuple[float, ...]:
    place = PRODUCTS[node.op.name]
    left, right = _tensor(node.args[place]), _tensor(node.args[place + 1])
    result = node.results[0].tensor
    k = hint(left.shape[-1])
    m = hint(left.shape[-2]) if len(left.shape) > 1 else 1
    n = hint(result.shape[-1]) if len(right.shape) > 1 else 1
    batch = hint(result.numel) // max(1, m * n)
    intensity = batch * m * n * k / max(1, m * k + n * k + m * n)
    return (
        *map(_log, (batch, m, n, k, min(m, n, k))),
        *(float(size % 16) for size in (m, n, k)),
        float(_is_transposed(left)),
        float(_is_transposed(right)),
        float(place),
        _log(intensity),
    )


def _convolution(node: Node) -> tuple[float, ...]:
    backward = "backward" in node.op.name
    first = 1 if backward else 0
    source, weight = _tensor(node.args[first]), _tensor(node.args[first + 1])
    out = _tensor(node.args[0]) if backward else node.results[0].tensor
    groups = node.arg("groups")
    assert isinstance(groups, int)
    stride, dilation = node.arg("stride"), node.arg("dilation")
    mask = node.arg("output_mask") if backward else ()
    assert isinstance(stride, tuple) and isinstance(dilation, tuple) and isinstance(mask, tuple)
    channels, filters = hint(source.shape[1]), hint(out.shape[1])
    pixels, out_pixels = _area(source), _area(out)
    taps = math.prod(hint(s) for s in weight.shape[2:])
    biased = mask[2] is True if backward else node.arg("bias") is not None
    return (
        *map(_log, (hint(source.shape[0]), channels, filters, pixels, out_pixels, taps)),
        float(stride[0] if isinstance(stride[0], int) else 1),
        _log(groups),
        float(groups > 1 and groups == channels),
        float(node.arg("transposed") is True),
        float(len(source.layout) > 1 and hint(source.layout[1]) == 1 and channels > 1),
        float(any(d != 1 for d in dilation)),
        float(backward),
        float(sum(m is True for m in mask)),
        float(biased),
        float(filters // groups % 16),
        float(channels // groups % 16),
        _log(hint(out.shape[-1])),
    )


def _attention(node: Node) -> tuple[float, ...]:
    backward = "backward" in node.op.name
    query, key, value = (_tensor(a) for a in node.args[int(backward) : int(backward) + 3])
    heads = math.prod(hint(s) for s in query.shape[:-2])
    mask = next((a for k, a in node.kwargs if k == "attn_mask"), None)
    queries, keys = hint(query.shape[-2]), hint(key.shape[-2])
    return (
        *map(_log, (heads, queries, keys, hint(query.shape[-1]), hint(value.shape[-1]))),
        float("is_causal" in node.op.argument_names and node.arg("is_causal") is True),
        float(isinstance(mask, Value)),
        _log(mask.tensor.nbytes_hint) if isinstance(mask, Value) else 0.0,
        float(backward),
        float(queries % 32),
        float(keys % 32),
        float(hint(query.layout[-2]) != hint(query.shape[-1])),
    )


def _operator(node: Node) -> tuple[float, ...]:
    found = facts(node, lambda value: 0)
    ways = [0, 0, 0, 0]
    for _, way, nbytes, _ in found.reads:
        ways[way] += nbytes
    results = max(hint(v.tensor.numel) for v in node.results)
    elements = max(1, found.elements)
    inputs = [v.tensor for v in node.operands if isinstance(v.type, TensorType)]
    whole = sum(not t.dtype.is_floating_point for t in inputs)
    return (
        _log(elements),
        _log(results),
        _log(found.inner),
        _log(found.elements // found.rows if found.rows else 0),
        float(found.columns),
        *(float(node.op.kind is k) for k in (Kind.REDUCTION, Kind.INDEX, Kind.CREATION, Kind.VIEW)),
        *(count / elements for count in found.work),
        *map(_log, ways),
        float(whole),
    )


_OWN: Final[Mapping[str, Callable[[Node], tuple[float, ...]]]] = {
    "product": _product,
    "convolution": _convolution,
    "attention": _attention,
    "operator": _operator,
}


# --- numbers ------------------------------------------------------------------------------------


def _log(number: float) -> float:
    """The base-2 logarithm of one more, so that nothing is 0."""
    return math.log2(number + 1)


def _memory_seconds(target: Target, moved: int, cold: int) -> float:
    """Seconds at the pace of the innermost memory that holds all; what is cold comes from the
    outermost."""
    _, bandwidth = target.memory(moved)
    return (moved - cold) / bandwidth + cold / target.bandwidth + 1e-9


def _caches(target: Target, moved: int) -> tuple[float, float]:
    """How many times what is moved fills the first and the last of the target's caches."""
    sizes = [cache.nbytes for cache in target.caches] or [1 << 20]
    return math.log2((moved + 1) / sizes[0]), math.log2((moved + 1) / sizes[-1])


def _type_flags(dtype: torch.dtype) -> tuple[float, float, float, float]:
    return (
        float(dtype is torch.float64),
        float(dtype is torch.bfloat16),
        float(dtype is torch.float16),
        float(not dtype.is_floating_point),
    )


def _main_type(node: Node) -> torch.dtype:
    tensors = (v.type for v in (*node.operands, *node.results))
    return next((t.dtype for t in tensors if isinstance(t, TensorType)), torch.float32)


def _tensor(arg: object) -> TensorType:
    assert isinstance(arg, Value)
    return arg.tensor


def _is_transposed(type: TensorType) -> bool:
    """True when neighbours in memory are neighbours in a column."""
    return len(type.shape) > 1 and hint(type.layout[-1]) != 1 and hint(type.shape[-1]) != 1


def _area(type: TensorType) -> int:
    return math.prod(hint(s) for s in type.shape[2:])
