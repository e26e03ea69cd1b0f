"""Indices of a kernel as Triton expressions: offsets, guards, and masks of blocks.

A block extends along "row", along "col", along both or (a scalar) along neither, as along an axis
that has no dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from rewright.ir import Size, equal
from rewright.ir.dims import at_most, bounds
from rewright.ir.loops import Affine, Within

DIMS: Final = ("row", "col")


@dataclass(frozen=True)
class Text:
    """An expression, and the dimensions along which its block extends."""

    text: str
    dims: frozenset[str] = frozenset()

    @property
    def closed(self) -> str:
        """The text as an operand, or as the object of a method."""
        depth = 0
        for char in self.text:
            depth += (char == "(") - (char == ")")
            if not depth and not (char.isalnum() or char in "_.)"):
                return f"({self.text})"
        return self.text


@dataclass
class Indices:
    """`dim_of` and `counts` give the dimension and the size of each axis, `position` the variable
    that counts along a dimension, `masks` what keeps a dimension's block inside (absent where
    blocks fit). `sizes` collects the parameters that bring sizes known only at run time."""

    dim_of: Mapping[str, str]
    counts: Mapping[str, Size]
    position: Mapping[str, str]
    masks: Mapping[str, str]
    sizes: dict[Size, str] = field(default_factory=dict)

    def size(self, size: Size) -> str:
        if isinstance(size, int):
            return str(size)
        return self.sizes.setdefault(size, f"size{len(self.sizes)}")

    def index(self, at: Affine) -> Text:
        parts = [n if c == 1 else f"{n} * {self.size(c)}" for n, c in at.terms]
        if not parts or not equal(at.offset, 0):
            parts.append(self.size(at.offset))
        return Text(" + ".join(parts).replace("+ -", "- "), self._dims(at))

    def _dims(self, at: Affine) -> frozenset[str]:
        return frozenset(self.dim_of[name] for name, _ in at.terms if name in self.dim_of)

    def spread(self, index: Text, dims: frozenset[str]) -> Text:
        """The same index as a block that extends along `dims` too."""
        zeros = [f" + 0 * {self.position[d]}" for d in DIMS if d in dims - index.dims]
        return Text(index.text + "".join(zeros), index.dims | dims)

    def guard(self, guards: tuple[Within, ...]) -> Text:
        """Where all guards hold; an empty text when that is everywhere."""
        checks = {check: self._dims(g.at) for g in guards for check in self._checks(g)}
        return Text(" & ".join(checks), frozenset().union(*checks.values()))

    def _checks(self, guard: Within) -> list[str]:
        index, checks = self.index(guard.at).closed, []
        if not self._never_below(guard.at, guard.low):
            checks.append(f"({index} >= {self.size(guard.low)})")
        if not self._always_below(guard.at, guard.high):
            checks.append(f"({index} < {self.size(guard.high)})")
        return checks

    def _never_below(self, at: Affine, low: Size) -> bool:
        return _rises(at) and at_most(low, at.offset)

    def _always_below(self, at: Affine, high: Size) -> bool:
        end = at.offset + 1
        for name, factor in at.terms:
            end = end + (self.counts[name] - 1) * factor
        return _rises(at) and at_most(end, high)

    def mask(self, dims: frozenset[str], guard: Text = Text("")) -> str:
        """The argument that masks an access to a block along `dims`; empty when none is needed."""
        parts = [self.masks[d] for d in DIMS if d in dims and d in self.masks]
        parts += [guard.text] if guard.text else []
        return f", {' & '.join(parts)}" if parts else ""


def _rises(at: Affine) -> bool:
    return all(bounds(factor)[0] >= 0 for _, factor in at.terms)
