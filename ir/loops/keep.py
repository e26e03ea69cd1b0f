"""Which column scalars a kernel stores along its row instead of computing them again.

A value that several stages need is either computed in each, or computed once, stored in a scratch
array of the row and loaded by the later ones. Both give the same bits; the cheaper one is chosen:
`uses` computations of its loads and primitives, against a store and `uses` loads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
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

# Costs of vector code, in loads from a nearby cache.
ACCESS: Final = 1.0
SIMPLE: Final = 0.25
COSTLY: Final = 6.0
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
    lets = {s.name: s for stage in stages for s in stage.body if isinstance(s, Let)}
    kept: list[str] = []
    for name in reversed(lets):
        if _pays(name, stages, lets, set(kept)):
            kept.append(name)
    # What is cheap to make from other kept scalars need not be one itself.
    for name in reversed(kept):
        if not _pays(name, stages, lets, set(kept) - {name}):
            kept.remove(name)
    return _that_fit(reversed(kept), lets, count)


def _pays(name: str, stages: Sequence[Stage], lets: Mapping[str, Let], kept: Set[str]) -> bool:
    uses = sum(name in needed for needed in _needed(stages, lets, kept)) - 1
    return uses > 0 and uses * _cost(name, lets, kept) > ACCESS * (1 + uses)


def _needed(stages: Sequence[Stage], lets: Mapping[str, Let], kept: Set[str]) -> Iterator[set[str]]:
    """The column scalars that each stage computes, or loads when an earlier one has stored them."""
    stored: set[str] = set()
    for stage in stages:
        todo = [n for s in stage.body if not isinstance(s, Let) for n in _reads(s)]
        found = _closure(todo, lets, stored)
        stored |= found & kept
        yield found


def _closure(names: Iterable[str], lets: Mapping[str, Let], stored: Set[str]) -> set[str]:
    """`names` and what making them takes, down to what is stored."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found or name not in lets:
            continue
        found.add(name)
        if name not in stored:
            todo += _reads(lets[name])
    return found


def _cost(name: str, lets: Mapping[str, Let], kept: Set[str]) -> float:
    """What computing a scalar takes when others are stored."""
    others = kept - {name}
    parts = _closure([name], lets, others)
    return sum(ACCESS if part in others else _own_cost(lets[part]) for part in parts)


def _own_cost(statement: Let) -> float:
    total = 0.0
    for term in subterms(statement.term):
        if isinstance(term, Load):
            total += ACCESS
        elif isinstance(term, Apply):
            total += COSTLY if term.name in COSTLY_PRIMITIVES else SIMPLE
        elif isinstance(term, (Convert, Round)):
            total += SIMPLE
    return total


def _reads(statement: Statement) -> list[str]:
    if isinstance(statement, Store):
        return [statement.value.name]
    return [t.name for t in subterms(statement.term) if isinstance(t, Ref)]


def _that_fit(names: Iterable[str], lets: Mapping[str, Let], count: int) -> tuple[str, ...]:
    room = SCRATCH_BYTES
    chosen: list[str] = []
    for name in names:
        size = max(1, count) * lets[name].term.dtype.itemsize
        if size <= room:
            room -= size
            chosen.append(name)
    return tuple(chosen)
