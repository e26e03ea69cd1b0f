"""Numeric features of library calls on GPUs: products, and attention of whole prompts (prefill) and
of single tokens (decode).

A GPU works through a result tile by tile, as many at once as it has multiprocessors, so how the
last round of tiles is filled counts as much as the work (NeuSight, ASPLOS 2025, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from rewright.costmodel.features import Features
from rewright.ir import Node, Value, hint
from rewright.ir.target import Target

# Rows and columns of the tiles that libraries choose from.
TILES: Final = ((64, 64), (128, 64), (128, 128), (128, 256), (256, 128))
# Queries and keys of a tile of attention.
QUERY_TILE: Final = 128
KEY_TILE: Final = 128


@dataclass(frozen=True)
class Product:
    """`batch` products of [m, k] by [k, n]; `blocks` when float8 factors have a scale a block."""

    batch: int
    m: int
    n: int
    k: int
    dtype: torch.dtype
    blocks: bool = False


@dataclass(frozen=True)
class Attention:
    """[batch, heads, queries, width] against [batch, key_heads, keys, width]; with `window` (0:
    none), a query sees so many of the keys before it."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int
    window: int
    causal: bool
    dtype: torch.dtype
    key_dtype: torch.dtype


PRODUCT: Final = (
    *("expected", "batch", "m", "n", "k", "item", "blocks", "work", "moved", "intensity"),
    *("compute_seconds", "memory_seconds", "floor", "per_cache"),
    *("m_remainder", "n_remainder", "k_remainder", "k_steps"),
    *(f"{what}_{m}x{n}" for m, n in TILES for what in ("rounds", "filled", "padding")),
)
ATTENTION: Final = (
    *("expected", "batch", "heads", "key_heads", "shared", "queries", "keys", "width", "seen"),
    *(
        "causal",
        "key_item",
        "work",
        "moved",
        "intensity",
        "compute_seconds",
        "memory_seconds",
        "floor",
    ),
    *("per_cache", "tiles", "rounds", "filled", "steps", "key_tiles", "key_rounds", "key_filled"),
    *("width_remainder", "query_remainder"),
)
GPU_FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "gpu_product": PRODUCT,
    "gpu_prefill": ATTENTION,
    "gpu_decode": ATTENTION,
}


def gpu_features(node: Node, target: Target) -> Features | None:
    """None for what no figures were taken of."""
    product = product_of(node)
    if product is not None:
        return product_features(product, target)
    attention = attention_of(node)
    return None if attention is None else attention_features(attention, target)


# --- products -----------------------------------------------------------------------------------

# Which argument of a product its left factor is.
_FACTORS: Final = {
    **{f"aten.{name}.default": 0 for name in ("mm", "bmm", "linear", "matmul", "_scaled_mm")},
    **{f"aten.{name}.default": 1 for name in ("addmm", "baddbmm")},
}


def product_of(node: Node) -> Product | None:
    place = _FACTORS.get(node.op.name)
    if place is None:
        return None
    left, right = node.args[place], node.args[place + 1]
    if not (isinstance(left, Value) and isinstance(right, Value)):
        return None
    result = node.results[0].tensor
    if not left.tensor.shape or len(right.tensor.shape) < 2:
        return None
    n, k = hint(result.shape[-1]), hint(left.tensor.shape[-1])
    rows = hint(result.numel) // max(1, n)
    batch = math.prod(hint(s) for s in right.tensor.shape[:-2])
    return Product(batch, max(1, rows // max(1, batch)), n, k, left.tensor.dtype)


def product_features(p: Product, target: Target) -> Features:
    item = p.dtype.itemsize
    work = 2 * p.batch * p.m * p.n * p.k
    moved = p.batch * (item * (p.m * p.k + p.k * p.n) + 2 * p.m * p.n)
    compute, memory = work / target.peak(p.dtype), moved / target.memory(moved)[1]
    floor = target.launch_seconds + max(compute, memory)
    tiles = (number for m, n in TILES for number in _tiled(p, m, n, target.cores))
    numbers = (
        0.0,
        *map(math.log2, (p.batch, p.m, p.n, p.k)),
        float(item),
        float(p.blocks),
        *map(math.log2, (work, moved, work / moved, compute, memory, floor)),
        math.log2(moved / _last_cache(target)),
        *(float(_evenness(size)) for size in (p.m, p.n, p.k)),
        float(-(-p.k // 64)),
        *tiles,
    )
    return Features("gpu_product", floor, numbers, (target.launch_seconds, compute, memory))


def _tiled(p: Product, m: int, n: int, cores: int) -> tuple[float, float, float]:
    """Rounds of tiles, how full they are, and the share of what is computed for nothing."""
    tiles = p.batch * -(-p.m // m) * -(-p.n // n)
    rounds, filled = _rounds(tiles, cores)
    return rounds, filled, 1 - p.batch * p.m * p.n / (tiles * m * n)


def _rounds(tiles: int, cores: int) -> tuple[float, float]:
    """The logarithm of the rounds that `tiles` take, a tile a core, and how full they are."""
    exact = tiles / cores
    return math.log2(exact), exact / math.ceil(exact)


def _evenness(size: int) -> int:
    """The logarithm of the largest power of two, to 256, that divides a size."""
    return min(8, (size & -size).bit_length() - 1)


def _last_cache(target: Target) -> int:
    return max((cache.nbytes for cache in target.caches), default=1 << 25)


# --- attention ----------------------------------------------------------------------------------


def attention_of(node: Node) -> Attention | None:
    if "scaled_dot_product" not in node.op.name or "backward" in node.op.name:
        return None
    found = [arg.tensor for arg in node.args[:3] if isinstance(arg, Value)]
    if len(found) < 3 or any(isinstance(v, Value) for v in dict(node.kwargs).values()):
        return None  # a mask, of which there are no figures
    query, key, _ = found
    if len(query.shape) != 4:
        return None
    batch, heads, queries, width = (hint(s) for s in query.shape)
    _, key_heads, keys, _ = (hint(s) for s in key.shape)
    causal = "is_causal" in node.op.argument_names and node.arg("is_causal") is True
    of_types = query.dtype, key.dtype
    return Attention(batch, heads, key_heads, queries, keys, width, 0, causal, *of_types)


def attention_features(a: Attention, target: Target) -> Features:
    seen = _seen(a)
    work = 4 * a.batch * a.heads * a.queries * seen * a.width
    held = min(a.keys, a.window + a.queries) if a.window else a.keys
    moved = 2 * a.batch * a.width * a.queries * a.heads * a.dtype.itemsize
    moved += 2 * a.batch * a.width * held * a.key_heads * a.key_dtype.itemsize
    compute, memory = work / target.peak(a.dtype), moved / target.memory(moved)[1]
    floor = target.launch_seconds + max(compute, memory)
    shared = a.heads // max(1, a.key_heads)
    decode = a.queries == 1
    # Heads that read the same keys are done together when there is but one query.
    rows = shared if decode else a.queries
    tiles = a.batch * (a.key_heads if decode else a.heads) * -(-rows // QUERY_TILE)
    key_tiles = tiles * -(-held // KEY_TILE)
    numbers = (
        0.0,
        *map(math.log2, (a.batch, a.heads, a.key_heads, shared, a.queries, a.keys, a.width, seen)),
        float(a.causal),
        float(a.key_dtype.itemsize),
        *map(math.log2, (work, moved, work / moved, compute, memory, floor)),
        math.log2(moved / _last_cache(target)),
        math.log2(tiles),
        *_rounds(tiles, target.cores),
        float(-(-held // KEY_TILE)),
        math.log2(key_tiles),
        *_rounds(key_tiles, target.cores),
        float(_evenness(a.width)),
        float(a.queries % QUERY_TILE),
    )
    family = "gpu_decode" if decode else "gpu_prefill"
    return Features(family, floor, numbers, (target.launch_seconds, compute, memory))


def _seen(a: Attention) -> float:
    """Keys that a query sees, on average."""
    if a.queries == 1 or not a.causal:
        return min(a.keys, a.window) if a.window else a.keys
    window = min(a.window or a.keys, a.keys)
    # Queries before the window is full see fewer.
    return window - window * (window - 1) / (2 * a.queries)
