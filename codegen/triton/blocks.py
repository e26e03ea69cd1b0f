"""Block sizes: how much of a nest one Triton program does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rewright.ir import Size, hint, product
from rewright.ir.loops import Axis, Nest, loads

# A row up to this many elements stays in registers from its first stage to its last: ptxas spills
# none of the 128 that a thread has then in softmax, norms and cross entropy, forward and backward.
LONGEST_KEPT_ROW: Final = 16384

# A longer one, up to this many elements, is reduced in one block, by as many threads as there can
# be. Each has 64 registers for 32 elements: kept, up to 208 bytes of a thread are spilled in
# gradients of halves. So every stage reads the row again, which the nearest cache has by then, and
# what reduces nothing goes along it in steps; most such kernels have 32 to 51 registers.
LONGEST_WHOLE_ROW: Final = 32768
WARPS_OF_WHOLE_ROW: Final = 32
STEP: Final = 8192

# Elements of a program without columns, and of a program over several rows.
LINE: Final = 1024
TILE: Final = 2048

# Along a row: elements a step, and the least where the length is not known. Across rows: reduced
# elements and rows a step; with few rows programs are narrower, but not below the 32 bytes that
# memory is read in.
LANES: Final = 4096
SHORTEST_STEP: Final = 1024
DEEP, WIDE = 32, 64
DEEP_OF_FEW, WIDE_OF_FEW = 128, 16
FEW_ROWS: Final = 8192


# A kernel that transposes reads and writes squares, where both sides have this many elements.
SQUARE: Final = 32
SHORTEST_SIDE: Final = 16


@dataclass(frozen=True)
class Blocks:
    """What one program computes: `rows` times `cols` elements, both powers of two.

    `style` is "line" (no columns: elements in the order of memory), "tile" (no reduced axes either,
    but the innermost axis makes the columns), "kept" (rows with all their columns,
    every stage on the same registers), "whole" (all their columns too, but every stage reads them
    again, and `step` columns at a time where it reduces nothing) or "looped" (stage by stage over
    `cols` columns).
    """

    style: str
    rows: int
    cols: int
    warps: int
    row_axes: tuple[Axis, ...]
    col_axes: tuple[Axis, ...]
    step: int = 0


def blocks_of(nest: Nest) -> Blocks:
    """How a nest is cut. Where it reduces, a function of its rows, columns and order, thus of the
    node that owns the reduction: the blocks decide in which order Triton adds, and what else is
    fused must not."""
    if nest.order is None:
        return _elementwise(nest)
    rows, cols = (product(a.size for a in axes) for axes in (nest.rows, nest.cols))
    make = _along_rows if nest.order.style == "lanes" else _across_rows
    style, wide, deep = make(rows, cols)
    if style == "whole":
        return Blocks(style, wide, deep, WARPS_OF_WHOLE_ROW, nest.rows, nest.cols, STEP)
    warps = _warps(wide * deep, each=16, most=16)
    return Blocks(style, wide, deep, warps, nest.rows, nest.cols)


def _elementwise(nest: Nest) -> Blocks:
    across = _transposed_axis(nest)
    if across is None:
        line = at_most(LINE, product(a.size for a in nest.rows))
        return Blocks("line", line, 1, _warps(line, each=8, most=4), nest.rows, ())
    others = tuple(a for a in nest.rows[:-1] if a != across)
    return Blocks("tile", SQUARE, SQUARE, 4, (*others, across), nest.rows[-1:])


def _transposed_axis(nest: Nest) -> Axis | None:
    """The axis along which an input lies that steps along the innermost axis."""
    long = [a for a in nest.rows if hint(a.size) >= SHORTEST_SIDE]
    if not long or long[-1] != nest.rows[-1]:
        return None
    for load in loads(nest.statements()):
        if load.at.coefficient(long[-1].name) not in (0, 1):
            lies = (a for a in long[:-1] if load.at.coefficient(a.name) == 1)
            return next(lies, None)
    return None


def _along_rows(rows: Size, cols: Size) -> tuple[str, int, int]:
    whole = power_of_two(cols)
    if isinstance(cols, int) and whole <= LONGEST_KEPT_ROW:
        return "kept", at_most(max(1, TILE // whole), rows), whole
    if isinstance(cols, int) and whole <= LONGEST_WHOLE_ROW:
        return "whole", 1, whole
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


def programs(axes: Sequence[Axis], width: int) -> Size:
    """How many blocks of `width` elements there are along axes."""
    return (product(a.size for a in axes) + (width - 1)) // width


def programs_of(blocks: Blocks) -> Size:
    """How many programs a kernel takes; none where nothing is to be computed."""
    found = programs(blocks.row_axes, blocks.rows)
    return found * programs(blocks.col_axes, blocks.cols) if blocks.style == "tile" else found


def power_of_two(size: Size) -> int:
    """The least power of two that is not below the size."""
    return 1 << max(0, hint(size) - 1).bit_length()


def _warps(elements: int, *, each: int, most: int) -> int:
    """Warps of 32 threads with about `each` elements a thread."""
    return max(1, min(most, elements // (32 * each)))
