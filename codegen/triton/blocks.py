"""Block sizes: how much of a nest one Triton program does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rewright.ir import Size, hint, product
from rewright.ir.loops import Nest

# A row up to this many elements stays in registers from its first stage to its last.
LONGEST_KEPT_ROW: Final = 16384

# Elements of a pointwise program, and of a program over several rows.
POINTWISE: Final = 1024
TILE: Final = 2048

# Along a row: elements a step, at least where the length is not known. Across rows: reduced elements and rows a step; with few rows the
# programs are narrower, but not below the 32 bytes that memory is read in.
LANES: Final = 4096
SHORTEST_STEP: Final = 1024
DEEP, WIDE = 32, 64
DEEP_OF_FEW, WIDE_OF_FEW = 128, 16
FEW_ROWS: Final = 8192


@dataclass(frozen=True)
class Blocks:
    """`style` is "pointwise" (no reduced axes), "kept" (a row at once, every stage on the same
    registers) or "looped" (stage by stage over `cols` elements). Sizes are powers of two."""

    style: str
    rows: int
    cols: int
    warps: int


def blocks_of(nest: Nest) -> Blocks:
    """A function of the nest's rows, columns and order, thus of the node that owns the reduction.

    What else the kernel computes does not enter: the blocks decide in which order Triton adds.
    """
    rows = product(axis.size for axis in nest.rows)
    if nest.order is None:
        block = at_most(POINTWISE, rows)
        return Blocks("pointwise", block, 1, warps_for(block, each=8, most=4))
    cols = product(axis.size for axis in nest.cols)
    make = _along_rows if nest.order.style == "lanes" else _across_rows
    style, wide, deep = make(rows, cols)
    return Blocks(style, wide, deep, warps_for(wide * deep, each=16, most=16))


def _along_rows(rows: Size, cols: Size) -> tuple[str, int, int]:
    whole = power_of_two(cols)
    if isinstance(cols, int) and whole <= LONGEST_KEPT_ROW:
        return "kept", at_most(max(1, TILE // whole), rows), whole
    deep = max(SHORTEST_STEP, min(whole, LANES))
    return "looped", at_most(max(1, TILE // deep), rows), deep


def _across_rows(rows: Size, cols: Size) -> tuple[str, int, int]:
    whole = power_of_two(cols)
    if isinstance(cols, int) and whole <= DEEP:
        return "kept", at_most(TILE // whole, rows), whole
    wide, deep = (WIDE, DEEP) if hint(rows) >= FEW_ROWS else (WIDE_OF_FEW, DEEP_OF_FEW)
    return "looped", at_most(wide, rows), at_most(deep, cols)


def at_most(block: int, size: Size) -> int:
    """`block`, or less where a size that never changes needs no more."""
    return min(block, power_of_two(size)) if isinstance(size, int) else block


def power_of_two(size: Size) -> int:
    """The least power of two that is not below the size."""
    return 1 << max(0, hint(size) - 1).bit_length()


def warps_for(elements: int, *, each: int, most: int) -> int:
    """Warps of 32 threads with about `each` elements a thread."""
    return max(1, min(most, elements // (32 * each)))
