"""Loops as a text that two nests share exactly when they compute the same in the same way."""

from __future__ import annotations

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
