"""Showing that two graphs are one function, by more than samples of it.

In this order: both are lowered to loops, and the loops are the same, for symbolic sizes too; the
loops differ, and sympy finds what they compute equal in real arithmetic; both are evaluated in
exact arithmetic on fractions, where two polynomials that agree at random points are one (Schwartz,
1980; Zippel, 1979).
"""

from __future__ import annotations

from random import Random
from typing import Final

from rewright.ir import Graph, UnsupportedError
from rewright.ir.loops import lower
from rewright.ir.loops.affine import Affine
from rewright.ir.loops.nest import (
    Apply,
    Convert,
    Inside,
    Let,
    Load,
    Nest,
    Number,
    Position,
    Reduce,
    Ref,
    Round,
    Store,
    Term,
)

LOOPS: Final = "lowered to the same loops"
ALGEBRA: Final = "equal by sympy's algebra"
FRACTIONS: Final = "equal in exact fractions at random points"


def meaning(before: Graph, after: Graph) -> str | None:
    """How the two graphs were shown to be one function; None when nothing shows it."""
    from rewright.passes.rules.algebra import equal_algebra
    from rewright.passes.rules.exact import equal_in_fractions

    first, second = _loops(before), _loops(after)
    if first is not None and second is not None:
        if Normal(first).text() == Normal(second).text():
            return LOOPS
        if equal_algebra(first, second):
            return ALGEBRA

    return FRACTIONS if equal_in_fractions(before, after, Random(0)) else None


# --- loops --------------------------------------------------------------------------------------


def _loops(graph: Graph) -> Nest | None:
    try:
        return lower(graph, "kernel")
    except UnsupportedError:
        return None


class Normal:
    """A nest with its scalars and axes named in the order in which they appear."""

    def __init__(self, nest: Nest) -> None:
        self.nest = nest
        self.names: dict[str, str] = {a.name: f"i{n}" for n, a in enumerate(nest.axes)}

    def text(self) -> str:
        sizes = [str(a.size) for a in self.nest.axes]
        lines = [f"{len(self.nest.rows)} {sizes} {self.nest.order}"]
        for stage in self.nest.stages:
            lines.append(stage.per)
            lines += (self.statement(s) for s in stage.body)
        return "\n".join(lines)

    def statement(self, statement: Let | Reduce | Store) -> str:
        if isinstance(statement, Store):
            value = self.names[statement.value.name]
            return f"{statement.buffer}[{self.index(statement.at)}] = {value}"
        how = statement.how if isinstance(statement, Reduce) else ""
        text = self.term(statement.term)
        name = self.names.setdefault(statement.name, f"s{len(self.names)}")
        return f"{name} = {how} {text}"

    def index(self, at: Affine) -> str:
        terms = sorted(f"{self.names[axis]}*{step}" for axis, step in at.terms)
        return " + ".join([*terms, str(at.offset)])

    def guards(self, term: Load | Inside) -> str:
        return " ".join(f"{g.low}<={self.index(g.at)}<{g.high}" for g in term.guards)

    def term(self, term: Term) -> str:
        match term:
            case Load():
                return f"{term.buffer}[{self.index(term.at)}] {term.dtype} {self.guards(term)}"
            case Ref():
                return self.names[term.name]
            case Number():
                return f"{term.value!r} {term.dtype}"
            case Position():
                return f"position({self.index(term.at)}) {term.dtype}"
            case Inside():
                return f"inside({self.guards(term)})"
            case Apply():
                return f"{term.name}({', '.join(map(self.term, term.args))}) {term.dtype}"
            case Convert():
                return f"convert({self.term(term.arg)}) {term.dtype}"
            case Round():
                return f"round({self.term(term.arg)}) {term.storage}"
