"""What the three styles of kernels share: names, blocks, and which values differ by lane."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import torch

from rewright.codegen.cpp.index import Block, Counter, Place
from rewright.codegen.cpp.simplify import simplified
from rewright.codegen.cpp.terms import Printer
from rewright.codegen.cpp.text import STORAGE, identifiers, size_text, storage_text
from rewright.ir import Size, divisible, product
from rewright.ir.loops import AnyNest, Axis, Let, Nest, Reduce, Statement, Store, indices_of, reads
from rewright.ir.loops.schedule import Schedule

# How a reduction combines, as a type of reductions.h.
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
        return Kernel(simplified(nest), plan, identifiers(b.name for b in buffers))

    def pointers(self) -> list[str]:
        """Lines that name the buffers."""
        return pointers(self.nest, self.names)

    def block(self, counter: Counter | None, parent: Block | None = None) -> Block:
        return Block(counter, parent, self.numbers)

    def printer(
        self,
        place: Place,
        refs: Callable[[str], str] = str,
        ahead: frozenset[str] = frozenset(),
    ) -> Printer:
        return Printer(place, self.names, refs, ahead)


def pointers(nest: AnyNest, names: Mapping[str, str]) -> list[str]:
    """Lines that name the buffers of a kernel."""
    lines = []
    buffers = [(b, "const ") for b in nest.inputs] + [(b, "") for b in nest.outputs]
    for place, (buffer, const) in enumerate(buffers):
        type = f"{const}{storage_text(buffer.type.dtype)}*"
        lines.append(f"{type} const {names[buffer.name]} = static_cast<{type}>(p[{place}]);")
    return lines


def moves(statement: Statement, place: Place, moving: Iterable[str]) -> bool:
    """True when a statement's value differs from lane to lane; `moving` names those that do."""
    if any(place.moves(at) for at in indices_of(statement)):
        return True
    return any(name in moving for name in reads(statement))


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


def combination(reduction: Reduce) -> tuple[str, str]:
    """The type of a reduction, and how it combines."""
    dtype = reduction.term.dtype
    return STORAGE[dtype], (HOW_MASKS if dtype == torch.bool else HOW)[reduction.how]


def how(reduction: Reduce) -> str:
    """Arguments of the templates that hold a reduction: its type, and how it combines."""
    return ", ".join(combination(reduction))
