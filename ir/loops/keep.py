"""Which column scalars a kernel stores along its row instead of computing them again.

A value that several stages need is either computed in each, or computed once, stored in a scratch
array of the row and loaded by the later ones. Both give the same bits; the cheaper one is chosen:
`uses` computations of its loads and primitives, against a store and `uses` loads. Rows too long for
the nearest cache come from farther away the next time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Final

from rewright.ir.dims import product
from rewright.ir.loops.nest import (
    Apply,
    Convert,
    Let,
    Load,
    Nest,
    Ref,
    Round,
    Stage,
    Statement,
    Store,
    subterms,
)

# Scratch arrays of one row take at most this many bytes together.
SCRATCH_BYTES: Final = 1 << 18

# Costs of vector code, in loads from the nearest cache. What they decide was measured on layer
# norm, rms norm and softmax of sums of up to three operands, with rows of 256 to 3072 elements.
LOAD: Final = 1.0
FAR_LOAD: Final = 2.0
STORE: Final = 2.5
SIMPLE: Final = 0.25
COSTLY: Final = 6.0
FAR_BYTES: Final = 8 << 10
COSTLY_PRIMITIVES: Final = frozenset(
    (
        *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "tanh", "erf", "erfc"),
        *("sigmoid", "sin", "cos", "tan", "atan2", "asin", "acos", "atan", "sinh", "cosh", "div"),
        *("asinh", "acosh", "atanh", "erfinv", "hypot", "lgamma", "fmod", "remainder"),
    )
)


def kept_scalars(nest: Nest) -> tuple[str, ...]:
    """Names of the column scalars of `nest` to keep, in the order of their definition.

    Only rows of known length whose lanes run along them have a scratch array.
    """
    count = product(a.size for a in nest.cols)
    if not isinstance(count, int) or nest.order is None or nest.order.style != "lanes":
        return ()
    stages = [stage for stage in nest.stages if stage.per == "column"]
    row = _Row(stages, count)
    kept: list[str] = []
    for name in row.lets:
        if row.pays(name, set(kept)):
            kept.append(name)
    # What later stages get from a scalar made of it need not be kept itself.
    for name in tuple(kept):
        if not row.pays(name, set(kept) - {name}):
            kept.remove(name)
    return row.that_fit(kept)


class _Row:
    """The column stages of a nest, which go over a row of `count` elements in turn."""

    def __init__(self, stages: Sequence[Stage], count: int) -> None:
        self.stages, self.count = stages, count
        self.lets = {s.name: s for stage in stages for s in stage.body if isinstance(s, Let)}

    def pays(self, name: str, kept: Set[str]) -> bool:
        """True when keeping a scalar beside those kept is cheaper than computing it again."""
        uses = sum(name in needed for needed in self._needed(kept)) - 1
        return uses > 0 and uses * self._cost(name, kept) > STORE + uses * LOAD

    def that_fit(self, names: Iterable[str]) -> tuple[str, ...]:
        room = SCRATCH_BYTES
        chosen: list[str] = []
        for name in names:
            size = max(1, self.count) * self.lets[name].term.dtype.itemsize
            if size <= room:
                room -= size
                chosen.append(name)
        return tuple(chosen)

    def _needed(self, kept: Set[str]) -> Iterator[set[str]]:
        """The scalars that each stage computes, or loads when an earlier one has stored them."""
        stored: set[str] = set()
        for stage in self.stages:
            todo = [n for s in stage.body if not isinstance(s, Let) for n in _reads(s)]
            found = self._closure(todo, stored)
            stored |= found & kept
            yield found

    def _closure(self, names: Iterable[str], stored: Set[str]) -> set[str]:
        """`names` and what making them takes, down to what is stored."""
        found: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name in found or name not in self.lets:
                continue
            found.add(name)
            if name not in stored:
                todo += _reads(self.lets[name])
        return found

    def _cost(self, name: str, kept: Set[str]) -> float:
        """What computing a scalar takes when others are stored."""
        others = kept - {name}
        parts = self._closure([name], others)
        return sum(LOAD if part in others else self._own_cost(part) for part in parts)

    def _own_cost(self, name: str) -> float:
        total = 0.0
        for term in subterms(self.lets[name].term):
            if isinstance(term, Load):
                is_far = self.count * term.dtype.itemsize >= FAR_BYTES
                total += FAR_LOAD if is_far else LOAD
            elif isinstance(term, Apply):
                total += COSTLY if term.name in COSTLY_PRIMITIVES else SIMPLE
            elif isinstance(term, (Convert, Round)):
                total += SIMPLE
        return total


def _reads(statement: Statement) -> list[str]:
    if isinstance(statement, Store):
        return [statement.value.name]
    return [t.name for t in subterms(statement.term) if isinstance(t, Ref)]
