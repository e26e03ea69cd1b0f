"""The same nest with less to do, for machines whose lanes are wider the narrower their type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import torch

from rewright.ir import Size
from rewright.ir.loops import (
    Affine,
    Apply,
    Let,
    Nest,
    Number,
    Position,
    Reduce,
    Ref,
    Round,
    Stage,
    Statement,
    Store,
    Term,
    reads,
)

COMPARISONS: Final = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))

# Far enough below 2^31 for the lanes behind the last element.
NARROW: Final = 1 << 30


def simplified(nest: Nest) -> Nest:
    """The same values in fewer instructions."""
    return _rounded_once(_narrowed(nest))


# --- roundings ----------------------------------------------------------------------------------


def _rounded_once(nest: Nest) -> Nest:
    """Without the roundings that only a store reads, which rounds anyway."""
    storage = {b.name: b.type.dtype for b in nest.outputs}
    rounded = {
        (s.name, s.term.storage): s.term.arg
        for s in nest.statements()
        if isinstance(s, Let) and isinstance(s.term, Round) and isinstance(s.term.arg, Ref)
    }

    def stored(statement: Statement) -> Statement:
        if not isinstance(statement, Store):
            return statement
        value = rounded.get((statement.value.name, storage[statement.buffer]), statement.value)
        return replace(statement, value=value)

    stages = [replace(s, body=tuple(stored(x) for x in s.body)) for s in nest.stages]
    read = {name for stage in stages for s in stage.body for name in reads(s)}
    return replace(nest, stages=tuple(_without_unread(stage, read) for stage in stages))


def _without_unread(stage: Stage, read: set[str]) -> Stage:
    """The stage without roundings that nobody reads."""
    return replace(
        stage,
        body=tuple(
            s
            for s in stage.body
            if not (isinstance(s, Let) and isinstance(s.term, Round) and s.name not in read)
        ),
    )


# --- positions ----------------------------------------------------------------------------------


def _narrowed(nest: Nest) -> Nest:
    """Positions that are only compared with each other (masks of triangles) as 32-bit integers."""
    sizes = {a.name: a.size for a in nest.axes}
    names = {
        s.name
        for s in nest.statements()
        if isinstance(s, Let) and isinstance(s.term, Position) and _is_small(s.term.at, sizes)
    }
    while names:
        others = {n for s in nest.statements() for n in _needs_width(s, names)}
        if not others & names:
            break
        names -= others
    if not names:
        return nest
    stages = (replace(s, body=tuple(_narrow(x, names) for x in s.body)) for s in nest.stages)
    return replace(nest, stages=tuple(stages))


def _is_small(at: Affine, sizes: Mapping[str, Size]) -> bool:
    """True when no element's position leaves 31 bits."""
    total = 0
    for part in (at.offset, *(c * (sizes[name] - 1) for name, c in at.terms)):
        if not isinstance(part, int):
            return False
        total += abs(part)
    return total < NARROW


def _needs_width(statement: Statement, names: set[str]) -> list[str]:
    """Scalars among `names` that the statement reads in another way than to compare narrow ones."""
    if not isinstance(statement, Let) or not _compares(statement.term):
        return reads(statement)
    assert isinstance(statement.term, Apply)
    return [] if all(_is_narrow(a, names) for a in statement.term.args) else reads(statement)


def _compares(term: Term) -> bool:
    return isinstance(term, Apply) and term.name in COMPARISONS


def _is_narrow(arg: Term, names: set[str]) -> bool:
    if isinstance(arg, Number):
        return isinstance(arg.value, int) and abs(arg.value) < NARROW
    return isinstance(arg, Ref) and arg.name in names


def _narrow(statement: Statement, names: set[str]) -> Statement:
    if isinstance(statement, (Store, Reduce)):
        return statement
    term = statement.term
    if isinstance(term, Position) and statement.name in names:
        return replace(statement, term=replace(term, dtype=torch.int32))
    if _compares(term) and any(name in names for name in reads(statement)):
        assert isinstance(term, Apply)
        return replace(statement, term=replace(term, args=tuple(_as_int32(a) for a in term.args)))
    return statement


def _as_int32(arg: Term) -> Term:
    assert isinstance(arg, (Ref, Number))
    return replace(arg, dtype=torch.int32)
