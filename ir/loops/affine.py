"""Index arithmetic of loop nests: affine expressions over axes, split and merged exactly.

A view inside a region never moves data; it only changes which element an index means. Reshapes
take a linear index apart into new dimensions; where an axis straddles a boundary the axis itself
has to be split, which `NeedSplit` asks the lowering to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rewright.ir.dims import Size, at_most, bounds, equal, exact_div
from rewright.ir.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Axis:
    """One loop: runs from 0 to `size`."""

    name: str
    size: Size


@dataclass(frozen=True, slots=True)
class Affine:
    """`offset + sum(coefficient * axis)`; terms follow the order of the axes, none is zero."""

    terms: tuple[tuple[str, Size], ...] = ()
    offset: Size = 0

    def __add__(self, other: Affine) -> Affine:
        total: dict[str, Size] = dict(self.terms)
        for name, factor in other.terms:
            total[name] = total[name] + factor if name in total else factor
        return affine(total, self.offset + other.offset)

    def scaled(self, factor: Size) -> Affine:
        return affine({n: c * factor for n, c in self.terms}, self.offset * factor)

    def shifted(self, by: Size) -> Affine:
        return Affine(self.terms, self.offset + by)

    def coefficient(self, axis: str) -> Size:
        return next((c for n, c in self.terms if n == axis), 0)

    def reads(self, axes: frozenset[str]) -> bool:
        return any(name in axes for name, _ in self.terms)

    def renamed(self, change: Mapping[str, Affine]) -> Affine:
        """Each axis replaced by an affine expression over other axes."""
        total = Affine((), self.offset)
        for name, factor in self.terms:
            total = total + change.get(name, Affine(((name, 1),))).scaled(factor)
        return total


ZERO = Affine()


def affine(terms: Mapping[str, Size], offset: Size = 0) -> Affine:
    kept = tuple(sorted(((n, c) for n, c in terms.items() if c != 0), key=lambda t: _rank(t[0])))
    return Affine(kept, offset)


def _rank(name: str) -> tuple[int, str]:
    return (len(name), name)


def axis_index(axis: Axis) -> Affine:
    """The affine expression that is just the axis (zero when it never moves)."""
    return ZERO if axis.size == 1 else Affine(((axis.name, 1),))


def linear(index: Sequence[Affine], shape: Sequence[Size]) -> Affine:
    """Row-major position of `index` in an array of `shape`."""
    total, step = ZERO, 1
    stride: Size = step
    for part, size in zip(reversed(index), reversed(shape), strict=True):
        total = total + part.scaled(stride)
        stride = stride * size
    return total


class NeedSplit(Exception):
    """The lowering must cut `axis` into (outer, inner) with `inner` elements, and start again."""

    def __init__(self, axis: str, inner: Size) -> None:
        super().__init__(axis, inner)
        self.axis = axis
        self.inner = inner


def delinearize(
    position: Affine, shape: Sequence[Size], sizes: Mapping[str, Size]
) -> tuple[Affine, ...]:
    """The row-major index in `shape` of a linear position.

    Exact or nothing: raises NeedSplit when an axis has to be cut first, UnsupportedError when no
    cut makes the index affine. In an array without elements any index will do that moves with the
    position: what does not move may be read before its loop begins.
    """
    if any(size == 0 for size in shape):
        return (*[ZERO] * (len(shape) - 1), position)
    index: list[Affine] = []
    rest = position
    for place in range(len(shape) - 1, -1, -1):
        if place == 0 or all(s == 1 for s in shape[:place]):
            index.append(rest)
            index.extend(ZERO for _ in range(place))
            break
        rest, part = _divide(rest, shape[place], sizes)
        index.append(part)
    return tuple(reversed(index))


def blocks(position: Affine, block: int, sizes: Mapping[str, Size]) -> tuple[Affine | None, Affine]:
    """(position // block, position % block) without cutting an axis; (None, ...) when that takes
    more than sorting the terms."""
    try:
        return _divide(position, block, sizes)
    except (NeedSplit, UnsupportedError):
        return None, position


def _divide(position: Affine, size: Size, sizes: Mapping[str, Size]) -> tuple[Affine, Affine]:
    """(position // size, position % size), term by term."""
    if size == 1:
        return position, ZERO
    high: dict[str, Size] = {}
    low: dict[str, Size] = {}
    for name, factor in position.terms:
        quotient = exact_div(factor, size)
        if quotient is not None:
            high[name] = quotient
        else:
            low[name] = factor
    whole, rest = _divide_offset(position.offset, size)
    inner = affine(low, rest)
    if not _fits(inner, size, sizes):
        raise _cut(inner, size, sizes)
    return affine(high, whole), inner


def _divide_offset(offset: Size, size: Size) -> tuple[Size, Size]:
    whole = exact_div(offset, size)
    if whole is not None:
        return whole, 0
    if isinstance(offset, int) and isinstance(size, int) and size > 0:
        return divmod(offset, size)
    return 0, offset


def _fits(index: Affine, size: Size, sizes: Mapping[str, Size]) -> bool:
    """True when the index certainly stays in [0, size)."""
    top: Size = index.offset + 1
    for name, factor in index.terms:
        if bounds(factor)[0] < 0:
            return False
        top = top + (sizes[name] - 1) * factor
    return bounds(index.offset)[0] >= 0 and (at_most(top, size) or equal(top, size))


def _cut(index: Affine, size: Size, sizes: Mapping[str, Size]) -> NeedSplit:
    """Which axis to split so that the terms separate. Raises UnsupportedError when none does."""
    if index.offset != 0:
        raise UnsupportedError("a reshape of a shifted slice is not affine")
    for name, factor in index.terms:
        inner = exact_div(size, factor)
        if inner is None or inner == 1 or exact_div(sizes[name], inner) is None:
            continue
        if not equal(inner, sizes[name]):
            return NeedSplit(name, inner)
    raise UnsupportedError("a reshape mixes dimensions that share no common factor")
