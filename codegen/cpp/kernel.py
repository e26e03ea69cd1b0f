"""What the three styles of kernels share: names, blocks, and which values differ by lane."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

import torch

from rewright.codegen.cpp.index import Block, Counter, Place
from rewright.codegen.cpp.terms import Printer
from rewright.codegen.cpp.text import STORAGE, identifiers, size_text
from rewright.codegen.schedule import Schedule
from rewright.ir import Size, divisible, product
from rewright.ir.loops import (
    Axis,
    Let,
    Nest,
    Reduce,
    Ref,
    Round,
    Stage,
    Statement,
    Store,
    indices_of,
    subterms,
)

# How a reduction combines, as a type of loops.h.
HOW: Final = {"sum": "Add", "prod": "Mul", "max": "Max", "min": "Min", "any": "Any", "all": "All"}
HOW_MASKS: Final = {"max": "Any", "min": "All", "any": "Any", "all": "All"}


@dataclass
class Kernel:
    """A nest on its way to C++."""

    nest: Nest
    plan: Schedule
    names: Mapping[str, str]
    numbers: count[int] = field(default_factory=count)

    @staticmethod
    def of(nest: Nest, plan: Schedule) -> Kernel:
        buffers = (*nest.inputs, *nest.outputs)
        return Kernel(_rounded_once(nest), plan, identifiers(b.name for b in buffers))

    def pointers(self) -> list[str]:
        """Lines that name the buffers."""
        lines = []
        buffers = [(b, "const ") for b in self.nest.inputs] + [(b, "") for b in self.nest.outputs]
        for place, (buffer, const) in enumerate(buffers):
            type = f"{const}{STORAGE[buffer.type.dtype]}*"
            name = self.names[buffer.name]
            lines.append(f"{type} const {name} = static_cast<{type}>(p[{place}]);")
        return lines

    def block(self, counter: Counter | None, parent: Block | None = None) -> Block:
        return Block(counter, parent, self.numbers)

    def printer(self, place: Place, refs: Callable[[str], str] = str) -> Printer:
        return Printer(place, self.names, refs)


def moves(statement: Statement, place: Place, moving: Iterable[str]) -> bool:
    """True when a statement's value differs from lane to lane; `moving` names those that do."""
    if any(place.moves(at) for at in indices_of(statement)):
        return True
    return any(name in moving for name in reads(statement))


def reads(statement: Statement) -> list[str]:
    """The scalars that a statement reads."""
    if isinstance(statement, Store):
        return [statement.value.name]
    return [t.name for t in subterms(statement.term) if isinstance(t, Ref)]


def as_let(statement: Statement) -> Let | Store:
    """A reduction of a single element is that element."""
    if isinstance(statement, Reduce):
        return Let(statement.name, statement.term, statement.origin)
    return statement


def count_of(axes: Sequence[Axis]) -> Size:
    return product(a.size for a in axes)


def multiple(size: Size) -> int:
    """What loops.h may assume to divide a number of elements: 64, 16 or 1."""
    return next((m for m in (64, 16) if divisible(size, m)), 1)


def shared_rows(plan: Schedule, outer: Size, length: Size) -> tuple[str, str]:
    """(opening, closing) of a loop over rows and a part of each: body(r, begin, end)."""
    sizes = f"{size_text(outer)}, {size_text(length)}"
    if plan.shared == "rows":
        return f"parallel_rows({sizes}, {plan.unit}, {plan.grain}, ", ");"
    return f"serial_rows({sizes}, ", ");"


def shared(plan: Schedule, length: Size) -> tuple[str, str]:
    """(opening, closing) of a loop over parts of one row: body(begin, end)."""
    if plan.shared == "rows":
        return f"parallel({size_text(length)}, {plan.unit}, {plan.grain}, ", ");"
    return f"serial({size_text(length)}, ", ");"


def indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def how(reduction: Reduce) -> str:
    """Arguments of the templates that hold a reduction: its type, and how it combines."""
    dtype = reduction.term.dtype
    table = HOW_MASKS if dtype == torch.bool else HOW
    return f"{STORAGE[dtype]}, {table[reduction.how]}"


def _rounded_once(nest: Nest) -> Nest:
    """The same nest without the roundings that only a store reads, which rounds anyway."""
    storage = {b.name: b.type.dtype for b in nest.outputs}
    rounded = {s.name: s.term for s in nest.statements() if isinstance(s, Let)}

    def stored(statement: Statement) -> Statement:
        if isinstance(statement, Store):
            term = rounded.get(statement.value.name)
            if isinstance(term, Round) and isinstance(term.arg, Ref):
                if term.storage == storage[statement.buffer]:
                    return replace(statement, value=term.arg)
        return statement

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
