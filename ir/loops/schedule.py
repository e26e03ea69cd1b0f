"""How a loop nest runs, as data: what the lanes run along, and what threads share.

Nothing here changes a value: the order of reductions is part of the nest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rewright.ir.dims import Size, divisible, hint, product
from rewright.ir.loops.affine import Axis
from rewright.ir.loops.nest import Let, Load, Nest
from rewright.ir.loops.rough import rough_nanoseconds

# What a thread has to do before it is worth waking, in nanoseconds.
SHARE: Final = 5_000.0

# Reductions of fewer rows than this are shared by blocks of a row, when those are several.
FEW_ROWS: Final = 8
LANES: Final = 16

# Vectors in a strip of rows.
NARROW: Final = 4
WIDE: Final = 8

# Rows that are transposed together stay in a core's own cache.
SCRATCH_BYTES: Final = 1 << 18


@dataclass(frozen=True)
class Schedule:
    """`style`: "elements" (no reduction), "lanes" (lanes run along reduced axes) or "columns"
    (every lane has a row of its own).

    `outer` are the row axes around `vector`, the row axis that the lanes run along (None in
    "lanes", and where there are no rows). `tile` is one of them that is taken 16 at a time, because
    buffers lie side by side along it and not along the lanes. Threads share `shared`: "rows",
    "blocks" of each row's reduction, or "nothing". Work is handed out in units of `unit` elements
    along the lanes (rows in "lanes"), at least `grain` units a thread. A strip of "columns" is
    `vectors` vectors wide.
    """

    style: str
    outer: tuple[Axis, ...]
    vector: Axis | None
    tile: Axis | None
    shared: str
    unit: int
    grain: int
    vectors: int


def schedule(nest: Nest) -> Schedule:
    style = nest.order.style if nest.order is not None else "elements"
    vector = nest.rows[-1] if nest.rows and style != "lanes" else None
    outer = tuple(axis for axis in nest.rows if axis != vector)
    shared = _shared(nest, style)
    vectors = _strip(nest, vector) if style == "columns" else NARROW
    unit, cost = _unit(nest, style, shared, vectors)
    tile = _tile(nest, style, outer) if shared != "blocks" else None
    if tile is not None:
        cost *= LANES
    grain = max(1, round(SHARE / max(cost, 1.0)))
    return Schedule(style, outer, vector, tile, shared, unit, grain, vectors)


def _strip(nest: Nest, vector: Axis | None) -> int:
    """Wide strips read more of each row, but a strip that is swept again has to stay in cache."""
    sweeps = sum(stage.per == "column" for stage in nest.stages)
    wide = vector is not None and divisible(vector.size, WIDE * LANES) and hint(vector.size) >= 512
    return WIDE if sweeps == 1 and wide else NARROW


def _tile(nest: Nest, style: str, outer: Sequence[Axis]) -> Axis | None:
    """The row axis along which most of the strided reads are contiguous."""
    lanes = _lane_axis(nest, style)
    if lanes is None or hint(lanes.size) < (2 if style == "elements" else LANES // 2):
        return None
    candidates = [axis for axis in outer if hint(axis.size) >= LANES // 2]
    votes = {axis: len(set(tiled_loads(nest, lanes, axis))) for axis in candidates}
    best = max(candidates, key=lambda axis: votes[axis], default=None)
    if best is None or votes[best] == 0:
        return None
    return best if style == "elements" or _fits(nest, votes[best]) else None


def _lane_axis(nest: Nest, style: str) -> Axis | None:
    if style == "elements" and nest.rows:
        return nest.rows[-1]
    return nest.cols[0] if style == "lanes" and len(nest.cols) == 1 else None


def _fits(nest: Nest, loads: int) -> bool:
    """True when 16 rows of so many reads fit a scratch array of a thread."""
    columns = _count(nest.cols)
    return isinstance(columns, int) and LANES * columns * loads * 4 <= SCRATCH_BYTES


def tiled_loads(nest: Nest, lanes: Axis, tile: Axis) -> Iterator[str]:
    """Names of reads that jump from lane to lane and are contiguous along `tile`."""
    for statement in nest.statements():
        if not isinstance(statement, Let) or not isinstance(statement.term, Load):
            continue
        at = statement.term.at
        jumps = at.coefficient(lanes.name) not in (0, 1) and at.coefficient(tile.name) == 1
        if jumps and not statement.term.guards:
            yield statement.name


def _shared(nest: Nest, style: str) -> str:
    if rough_nanoseconds(nest) < 2 * SHARE and all(isinstance(a.size, int) for a in nest.axes):
        return "nothing"
    if style == "elements":
        return "rows"
    rows, columns = hint(_count(nest.rows)), hint(_count(nest.cols))
    pieces = rows if style == "lanes" else rows // (NARROW * LANES)
    block = nest.order.block if nest.order is not None else columns
    return "blocks" if pieces < FEW_ROWS and columns >= 2 * block else "rows"


def _unit(nest: Nest, style: str, shared: str, vectors: int) -> tuple[int, float]:
    """(elements in a unit of work, nanoseconds it takes)."""
    each = rough_nanoseconds(nest) / max(1, hint(_count(nest.axes)))
    columns = max(1, hint(_count(nest.cols)))
    if shared == "blocks":
        block = nest.order.block if nest.order is not None else 1
        return block, each * block * (1 if style == "lanes" else vectors * LANES)
    if style == "lanes":
        return 1, each * columns
    return vectors * LANES, each * columns * vectors * LANES


def _count(axes: Iterable[Axis]) -> Size:
    return product(a.size for a in axes)
