"""Numeric features of calls: what the learned model sees of a region or an operator.

Each family of calls has features of its own, at most 48. Counts and sizes are base-2 logarithms, so
that trees split them evenly; a time is a logarithm of seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from rewright.costmodel.library_features import (
    CONVOLUTIONS,
    LIBRARY,
    PRODUCTS,
    library_features,
    log_size,
    main_type,
)
from rewright.costmodel.nests import (
    COUNTED,
    FUNCTIONS,
    HALVES,
    LOOPS,
    PLACES,
    STORES,
    TAILS,
    WIDE,
    WORK,
    nest_facts,
)
from rewright.costmodel.roofline import ELEMENTWISE
from rewright.ir import Kind, Node, hint
from rewright.ir.loops import lower
from rewright.ir.loops.schedule import LANES
from rewright.ir.onednn import CONVOLUTION, CONVOLUTION_BINARY, LINEAR, LINEAR_BINARY
from rewright.ir.target import Target
from rewright.ir.work import bytes_read, bytes_written, flops


@dataclass(frozen=True)
class Features:
    """A call as the model sees it. `floor` are the seconds that it takes at the least, by the
    target's peaks; `parts` are the seconds that work of each kind would take alone.
    `FAMILIES[family]` names the numbers. The model fills in the first, the logarithm of the
    weighted sum of the parts, and of an `operator` the second, what its calls usually take beyond
    that."""

    family: str
    floor: float
    numbers: tuple[float, ...]
    parts: tuple[float, ...]
    operator: str = ""


# Kernels of ours that no head of the model knows yet.
OWN: Final = {
    "rw.attention": "tiled attention",
    "rw.attention_backward": "gradient of tiled attention",
    "rw.convolution": "convolution on packed weights",
    "rw.quantized_linear": "quantized layer",
}


def family_of(node: Node) -> str:
    """Which head of the model knows a call."""
    if node.op.name in OWN:
        return OWN[node.op.name]
    if node.op.kind is Kind.REGION:
        return "kernel"
    if node.op.name in PRODUCTS:
        return "product"
    if node.op.name in CONVOLUTIONS:
        return "convolution"
    if node.op.kind is Kind.CONTRACTION and "attention" in node.op.name:
        return "attention"
    return "operator"


def features(node: Node, target: Target, cold: int = 0, held: int = 0) -> Features:
    """Of a call, `cold` bytes of whose operands no cache holds; the caches have to hold at least
    `held` bytes, for the kernels next to it."""
    family = family_of(node)
    if family == "kernel":
        return kernel_features(node, target, held)
    work, read, written = (hint(n) for n in (flops(node), bytes_read(node), bytes_written(node)))
    moved, cold = read + written, min(cold, read)  # of a table, a gather reads a few rows
    dtype = main_type(node)
    rate = target.peak(dtype) * (ELEMENTWISE if family == "operator" else 1)
    compute, memory = work / rate, _memory_seconds(target, moved, cold)
    floor = target.dispatch_seconds + max(compute, memory)
    common = (
        *(0.0, 0.0),
        log_size(work),
        log_size(moved),
        log_size(cold),
        math.log2(compute + 1e-9),
        math.log2(memory),
        math.log2(floor),
        math.log2(vector_seconds(target)),
        *cache_fills(target, moved),
        *_type_flags(dtype),
    )
    own_numbers, own_parts = library_features(family, node, compute)
    bandwidth = target.memory(moved)[1]
    parts = (
        target.dispatch_seconds,
        target.launch_seconds,
        *(nbytes / bandwidth for nbytes in (read, written)),
        cold / target.bandwidth,
        *own_parts,
    )
    operator = _ESTIMATED_AS.get(node.op.name, node.op.name)
    return Features(family, floor, (*common, *own_numbers), parts, operator)


# What other libraries run instead of torch's choice takes about as long, for all that is known.
_ESTIMATED_AS: Final = {
    **dict.fromkeys((LINEAR, LINEAR_BINARY), "aten.addmm.default"),
    **dict.fromkeys((CONVOLUTION, CONVOLUTION_BINARY), "aten.convolution.default"),
}

COMMON: Final = (
    *("expected", "usual"),
    *("work", "moved", "cold", "compute_seconds", "memory_seconds", "floor"),
    *("vector", "per_first_cache", "per_last_cache"),
    *("f64", "bf16", "f16", "int8"),
)
KERNEL_PARTS: Final = ("launch", "wake", *COUNTED, "read", "written", "lines")
# What of the expected time is what: parts that the head weighs and adds up to some more numbers.
SHARES: Final[Mapping[str, tuple[str, ...]]] = {
    "calls": ("launch", "wake"),
    **{name: (name,) for name in ("load", "window", "broadcast", "tile", "strided")},
    "jumps": ("across", "each", "where"),
    "store": ("store",),
    "stores_apart": STORES[1:],
    **{name: (name,) for name in WORK},
    "functions": FUNCTIONS,
    "wide": WIDE[:2],
    "wide_functions": WIDE[2:],
    "bf16": HALVES[:3],
    "f16": HALVES[3:],
    "places": PLACES,
    "loops": LOOPS[:3],
    "reductions": LOOPS[3:],
    "tails": TAILS,
    "memory": ("read", "written", "lines"),
}
KERNEL: Final = (
    *("expected", "log_rows", "columns", "inner", "outer", "inner_remainder"),
    *("of_lanes", "of_columns", "threads", "imbalance", "tiled", "stages", "statement_count"),
    *("reads", "writes"),
    *("bytes_read", "bytes_written", "lines", "step", "doubles", "integers"),
    *("every_seconds", "memory_seconds", "vector", "per_first_cache", "per_last_cache"),
    *(f"share_of_{name}" for name in SHARES),
)
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "kernel": KERNEL,
    **{family: COMMON + names for family, names in LIBRARY.items()},
}
# By family, the places of the parts in each share.
SHARED_PARTS: Final[dict[str, tuple[tuple[int, ...], ...]]] = {
    "kernel": tuple(tuple(KERNEL_PARTS.index(n) for n in names) for names in SHARES.values()),
}


# --- kernels ------------------------------------------------------------------------------------


def kernel_features(region: Node, target: Target, held: int = 0) -> Features:
    """Of a kernel of ours, from its loop nest. Raises UnsupportedError when it has none."""
    f = nest_facts(lower(region.graph("body"), "kernel"), target.cores)
    moved = f.bytes_read + f.bytes_written
    c, work = f.counts, sum(f.counts[name] for name in (*WORK, *FUNCTIONS, *WIDE))
    tick = vector_seconds(target)
    # Of a cache that each core has for itself, those that work have a part.
    held = max(held, moved * target.cores // f.threads)
    bandwidth = target.memory(held)[1] * f.threads / target.cores
    memory = moved / bandwidth + 1e-9
    floor = target.launch_seconds + max(tick * work, memory)
    parts = (
        target.launch_seconds,
        target.launch_seconds * (f.threads > 1),
        *(tick * c[name] for name in COUNTED),
        f.bytes_read / bandwidth,
        f.bytes_written / bandwidth,
        max(0.0, f.lines - moved) / bandwidth,
    )
    every = sum(c.values()) or 1
    numbers = (
        0.0,
        *map(log_size, (f.rows, f.columns, f.inner, f.outer)),
        float(f.inner % LANES),
        *(float(f.style == style) for style in ("lanes", "columns")),
        *map(float, (f.threads, f.imbalance, f.tiled, f.stages, f.statements)),
        *map(float, (f.reads, f.writes)),
        *map(log_size, (f.bytes_read, f.bytes_written)),
        f.lines / max(1, moved),
        log_size(f.step),
        *(n / max(1, moved) for n in (f.doubles, f.integers)),
        *(math.log2(t) for t in (tick * every, memory, tick)),
        *cache_fills(target, held),
    )
    return Features("kernel", floor, numbers, parts)


def vector_seconds(target: Target) -> float:
    """What one core takes to multiply and add a vector of f32 at its peak."""
    return 2 * LANES * target.cores / target.peak(torch.float32)


# --- numbers ------------------------------------------------------------------------------------


def _memory_seconds(target: Target, moved: int, cold: int) -> float:
    """Seconds at the pace of the innermost memory that holds all; what is cold comes from the
    outermost."""
    _, bandwidth = target.memory(moved)
    return (moved - cold) / bandwidth + cold / target.bandwidth + 1e-9


def cache_fills(target: Target, moved: int) -> tuple[float, float]:
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
