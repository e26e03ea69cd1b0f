"""Kernels of attention: what attention.h is told about one, and how a score is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final

import torch

from rewright.codegen.cpp.index import Block, Counter, counter
from rewright.codegen.cpp.index import Place as Spot
from rewright.codegen.cpp.kernel import count_of, indented, pointers
from rewright.codegen.cpp.terms import OF_MASKS, OF_NUMBERS, Printer
from rewright.codegen.cpp.text import (
    STORAGE,
    VECTOR,
    identifiers,
    number_text,
    size_text,
)
from rewright.ir.loops import (
    Affine,
    Apply,
    AttentionNest,
    Convert,
    Let,
    Load,
    Number,
    Place,
    Position,
    Ref,
    Round,
    Term,
    reads,
)

# What ranges.h knows of intervals; the rest may be anything.
BOUNDED: Final = frozenset(
    {
        *("add", "sub", "mul", "neg", "div", "abs", "maximum", "minimum", "fmax", "fmin", "floor"),
        *("div_floor", "remainder", "tanh", "sigmoid", "lt", "le", "gt", "ge", "eq", "ne"),
        *("logical_and", "logical_or", "logical_xor", "logical_not", "select"),
    }
)


def attention(nest: AttentionNest) -> list[str]:
    """The body of the kernel."""
    return _Writer(nest).lines()


@dataclass(frozen=True)
class _Writer:
    nest: AttentionNest

    def lines(self) -> list[str]:
        nest, names, numbers = self.nest, self.names, count()
        heads = Block(counter("r", nest.batch), None, numbers)
        operands = [
            self.matrix(nest.queries, nest.row.name, nest.inner.name, heads),
            self.matrix(nest.keys, nest.key.name, nest.inner.name, heads),
            self.matrix(nest.values, nest.key.name, nest.width.name, heads),
            self.matrix(nest.results, nest.row.name, nest.width.name, heads),
        ]
        scores = [*self.scores(heads, names, numbers), *self.ranges(heads, names)]
        head = heads.counter
        assert head is not None
        sizes = (nest.row, nest.key, nest.inner, nest.width)
        described = f"Sizes{{{', '.join(size_text(a.size) for a in sizes)}}}"
        type = STORAGE[nest.dtype]
        return [
            *pointers(nest, names),
            f"attend<{type}>({size_text(count_of(nest.batch))}, {described}, "
            f"[=](i64 {head.name}, Block<{type}> block) {{",
            *indented(heads.text()),
            *indented(["block(", *indented([*(f"{o}," for o in operands), *scores])]),
            "});",
        ]

    @property
    def names(self) -> Mapping[str, str]:
        return identifiers(b.name for b in (*self.nest.inputs, *self.nest.outputs))

    def matrix(self, place: Place, row: str, column: str, heads: Block) -> str:
        steps = ", ".join(size_text(place.at.coefficient(axis)) for axis in (row, column))
        head = _without(place.at, (row, column))
        start = f"{self.names[place.buffer]} + {heads.index(head)}"
        return f"matrix({start.removesuffix(' + 0')}, {steps})"

    # --- a score in lanes -----------------------------------------------------------------------

    def scores(self, heads: Block, names: Mapping[str, str], numbers: count[int]) -> list[str]:
        nest = self.nest
        rows = Block(Counter(nest.row.name, (nest.row,)), heads, numbers)
        lanes = Block(Counter(nest.key.name, (nest.key,)), rows, numbers)
        printer = Printer(Spot(lanes, lanes.counter), names, str)
        for statement in nest.statements:
            lanes.lines.append(self.let(statement, printer))
        vector = VECTOR[nest.dtype]
        loops = f"i64 {nest.row.name}, i64 {nest.key.name}"
        return [
            f"[=]({loops}, {vector} {nest.given}, auto n, auto known) -> {vector} {{",
            *indented([*rows.text(), *lanes.text(), f"return {self.taken};"]),
            "},",
        ]

    def let(self, statement: Let, printer: Printer) -> str:
        """A condition is not evaluated where it is known to be one for the whole tile."""
        if statement.name not in self.conditions:
            return printer.let(statement)
        place = self.conditions.index(statement.name)
        value = printer.term(statement.term)
        return f"const mask {statement.name} = known({place}, {value});"

    @property
    def conditions(self) -> tuple[str, ...]:
        """Truths that numbers depend on."""
        truths = {s.name for s in self.nest.statements if s.term.dtype is torch.bool}
        read = {
            name
            for s in self.nest.statements
            if s.term.dtype is not torch.bool
            for name in reads(s)
        }
        return tuple(s.name for s in self.nest.statements if s.name in truths & read)

    @property
    def taken(self) -> str:
        return _cast(self.nest.taken, self.nest.dtype)

    # --- what scores a tile can have ------------------------------------------------------------

    def ranges(self, heads: Block, names: Mapping[str, str]) -> list[str]:
        nest = self.nest
        printer = _Ranges(heads, names, nest.row.name, nest.key.name)
        lines = [f"const Range {s.name} = {printer.term(s.term)};" for s in nest.statements]
        read = set(self.conditions) | {n for s in nest.statements for n in reads(s)}
        given = [f"const Range {nest.given} = any_score();"] if self._reads_given(read) else []
        found = ", ".join((nest.taken.name, *self.conditions))
        return [
            f"[=](Span {nest.row.name}, Span {nest.key.name}) {{",
            *indented([*given, *lines, f"return verdict({found});"]),
            "});",
        ]

    def _reads_given(self, read: Iterable[str]) -> bool:
        return self.nest.given in read or self.nest.taken.name == self.nest.given


@dataclass(frozen=True)
class _Ranges:
    """Prints terms over intervals."""

    heads: Block
    names: Mapping[str, str]
    row: str
    key: str

    def term(self, term: Term) -> str:
        match term:
            case Ref(name=name):
                return name
            case Number(value=value, dtype=dtype):
                return f"exactly({number_text(value, dtype)})"
            case Position(at=at):
                return f"along({self.places(at)})"
            case Load(buffer=buffer, at=at, guards=()):
                return f"range_of({self.names[buffer]} + {self.places(at)})"
            case Convert(arg=arg, dtype=dtype):
                return f"cast<{STORAGE[dtype]}>({self.term(arg)})"
            case Round(arg=arg, storage=storage):
                return f"round_to<{STORAGE[storage]}>({self.term(arg)})"
            case Apply(name=name, args=args):
                over = OF_MASKS if args[-1].dtype is torch.bool else OF_NUMBERS
                name = over.get(name, name)
                if name in BOUNDED:
                    return self.held(f"{name}({', '.join(map(self.term, args))})", term.dtype)
        return "either()" if term.dtype is torch.bool else "anything()"

    def held(self, text: str, dtype: torch.dtype) -> str:
        """What a result of the type may be, where `text` is computed without rounding."""
        if dtype is torch.bool:
            return text
        return f"{'real' if dtype.is_floating_point else 'whole'}<{STORAGE[dtype]}>({text})"

    def places(self, at: Affine) -> str:
        """What `along` and `range_of` take: where the head begins, and steps with their spans."""
        head = self.heads.index(_without(at, (self.row, self.key)))
        steps = (size_text(at.coefficient(axis)) for axis in (self.row, self.key))
        row, key = steps
        return f"{head}, {row}, {self.row}, {key}, {self.key}"


def _without(at: Affine, axes: tuple[str, ...]) -> Affine:
    return Affine(tuple(t for t in at.terms if t[0] not in axes), at.offset)


def _cast(ref: Ref, dtype: torch.dtype) -> str:
    return ref.name if ref.dtype == dtype else f"cast<{STORAGE[dtype]}>({ref.name})"
