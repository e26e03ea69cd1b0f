"""Merging axes that every index treats as one, so that loops are long and few."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rewright.ir.dims import equal, hint
from rewright.ir.loops.affine import Affine, Axis
from rewright.ir.loops.nest import (
    Apply,
    Convert,
    Inside,
    Load,
    Nest,
    Position,
    Round,
    Stage,
    Statement,
    Store,
    Term,
    Within,
    indices_of,
)

Change = Callable[[Affine], Affine]


def merge_axes(nest: Nest) -> Nest:
    """Rows in the order of the first output's memory, then neighbours merged where possible.

    The order of reduced axes is part of what a reduction means, so they are only merged.
    """
    indices = list(dict.fromkeys(i for s in nest.statements() for i in indices_of(s)))
    rows = _by_stride(nest)
    rows, gone = _merge(rows, indices)
    cols, gone_cols = _merge(list(nest.cols), indices)
    gone |= gone_cols

    def change(at: Affine) -> Affine:
        return Affine(tuple(t for t in at.terms if t[0] not in gone), at.offset)

    stages = tuple(
        Stage(s.per, tuple(_map_statement(x, change) for x in s.body)) for s in nest.stages
    )
    return replace(nest, rows=tuple(rows), cols=tuple(cols), stages=stages)


def _by_stride(nest: Nest) -> list[Axis]:
    """Outermost first: the axis with the largest step in the first store comes first."""
    store = next(s for s in nest.statements() if isinstance(s, Store))
    place = {axis.name: i for i, axis in enumerate(nest.rows)}
    return sorted(
        nest.rows, key=lambda a: (-abs(hint(store.at.coefficient(a.name))), place[a.name])
    )


def _merge(axes: Sequence[Axis], indices: Sequence[Affine]) -> tuple[list[Axis], set[str]]:
    """Merged axes (each keeps its innermost part's name), and the names that vanished."""
    merged: list[Axis] = []
    gone: set[str] = set()
    for axis in axes:
        if merged and _mergeable(merged[-1], axis, indices):
            outer = merged.pop()
            gone.add(outer.name)
            merged.append(Axis(axis.name, outer.size * axis.size))
        else:
            merged.append(axis)
    return merged, gone


def _mergeable(outer: Axis, inner: Axis, indices: Sequence[Affine]) -> bool:
    return all(
        equal(at.coefficient(outer.name), at.coefficient(inner.name) * inner.size) for at in indices
    )


def _map_statement(statement: Statement, change: Change) -> Statement:
    if isinstance(statement, Store):
        return replace(statement, at=change(statement.at))
    return replace(statement, term=_map_term(statement.term, change))


def _map_term(term: Term, change: Change) -> Term:
    match term:
        case Load():
            return replace(term, at=change(term.at), guards=_map_guards(term.guards, change))
        case Position():
            return replace(term, at=change(term.at))
        case Inside():
            return replace(term, guards=_map_guards(term.guards, change))
        case Apply():
            return replace(term, args=tuple(_map_term(a, change) for a in term.args))
        case Convert() | Round():
            return replace(term, arg=_map_term(term.arg, change))
    return term


def _map_guards(guards: tuple[Within, ...], change: Change) -> tuple[Within, ...]:
    return tuple(replace(g, at=change(g.at)) for g in guards)
