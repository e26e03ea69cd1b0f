"""The type of indices: 32 bits where everything that a kernel counts or reaches fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rewright.codegen.triton.kernel import LARGEST_NARROW
from rewright.ir import Size
from rewright.ir.dims import bounds
from rewright.ir.loops import Affine, Buffer, Position, Statement, Store, subterms

# Gives positions the type that a launch chooses.
OPEN: Final = ".to(INDEX)"


def widening(extents: Sequence[Size]) -> str:
    """A method call that gives positions the type of indices, empty where 32 bits do."""
    if any(bounds(extent)[0] > LARGEST_NARROW for extent in extents):
        return ".to(tl.int64)"
    return OPEN if extents else ""


def far_extents(
    counted: Iterable[Size],
    buffers: Iterable[Buffer],
    statements: Iterable[Statement],
    counts: Mapping[str, Size],
) -> tuple[Size, ...]:
    """How far indices of a kernel reach, where that may be too far for 32 bits: what it counts,
    what the buffers hold, and what the statements read as positions over axes of `counts`."""
    terms = [t for s in statements if not isinstance(s, Store) for t in subterms(s.term)]
    found = [*counted, *(b.type.storage_elements for b in buffers)]
    found += [_reach(t.at, counts) for t in terms if isinstance(t, Position)]
    return tuple(e for e in dict.fromkeys(found) if not _is_near(e))


def _reach(at: Affine, counts: Mapping[str, Size]) -> Size:
    total = _magnitude(at.offset)
    for name, factor in at.terms:
        total = total + _magnitude(factor) * counts[name]
    return total


def _magnitude(size: Size) -> Size:
    return abs(size) if isinstance(size, int) else size


def _is_near(extent: Size) -> bool:
    high = bounds(extent)[1]
    return high is not None and high <= LARGEST_NARROW
