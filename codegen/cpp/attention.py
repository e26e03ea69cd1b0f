"""Kernels of attention: what attention.h is told about one, and how a score is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from rewright.ir import Size
from rewright.ir.loops import (
    Affine,
    Apply,
    AttentionBackwardNest,
    AttentionNest,
    Axis,
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
from rewright.ir.loops.tiles import conditions

Lines = list[str]

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
    writer = _PartsWriter if in_parts(nest) else _Writer
    return writer(nest).lines()


def in_parts(nest: AttentionNest) -> bool:
    """True where queries are few, or keys lie apart: then heads that read the same keys are taken
    together, and results of pieces are merged."""
    return len(nest.runs) > 1 or nest.has_few_queries


def attention_backward(nest: AttentionBackwardNest) -> list[str]:
    """The body of the kernel of its gradients."""
    return _BackwardWriter(nest).lines()


@dataclass(frozen=True)
class _HeadWriter:
    nest: AttentionNest | AttentionBackwardNest

    def written(self, call: Callable[[str, str], str], type: str) -> list[str]:
        """A call with a function that tells `type` of one head where it lies, and its scores."""
        nest, names, numbers = self.nest, self.names, count()
        heads = Block(counter("r", nest.batch), None, numbers)
        told = [*(f"{m}," for m in self.matrices(heads)), *self.told(heads, numbers)]
        head = heads.counter
        assert head is not None
        sizes = (nest.row, nest.key, nest.inner, nest.width)
        described = f"Sizes{{{', '.join(size_text(a.size) for a in sizes)}}}"
        return [
            *pointers(nest, names),
            call(described, f"[=](i64 {head.name}, {type} block) {{"),
            *indented(heads.text()),
            *indented(["block(", *indented(told)]),
            "});",
        ]

    def matrices(self, heads: Block) -> list[str]:
        """What is read and written."""
        raise NotImplementedError

    def told(self, heads: Block, numbers: count[int]) -> list[str]:
        """Functions that make scores, and what tiles of them can be."""
        raise NotImplementedError

    @property
    def names(self) -> Mapping[str, str]:
        return identifiers(b.name for b in (*self.nest.inputs, *self.nest.outputs))

    def matrix(self, place: Place, row: Axis, heads: Block, column: Axis | None = None) -> str:
        axes = (row,) if column is None else (row, column)
        at = [size_text(place.at.coefficient(axis.name)) for axis in axes]
        head = _without(place.at, tuple(axis.name for axis in axes))
        start = f"{self.names[place.buffer]} + {heads.index(head)}"
        return f"matrix({start.removesuffix(' + 0')}, {', '.join([*at, '0'][:2])})"

    # --- a score in lanes -----------------------------------------------------------------------

    def scalar(self, heads: Block, given: Sequence[str], wanted: Ref, numbers: count[int]) -> Lines:
        """A function of `given` vectors that makes what is wanted."""
        nest = self.nest
        rows = Block(Counter(nest.row.name, (nest.row,)), heads, numbers)
        lanes = Block(Counter(nest.key.name, (nest.key,)), rows, numbers)
        printer = Printer(Spot(lanes, lanes.counter), self.names, str)
        for statement in _needed(nest.statements, wanted):
            lanes.lines.append(self.let(statement, printer))
        vector = VECTOR[nest.dtype]
        taken = ", ".join(f"{vector} {name}" for name in given)
        loops = f"i64 {nest.row.name}, i64 {nest.key.name}, {taken}, auto n, auto known"
        return [
            f"[=]({loops}) -> {vector} {{",
            *indented([*rows.text(), *lanes.text(), f"return {_cast(wanted, nest.dtype)};"]),
            "},",
        ]

    def let(self, statement: Let, printer: Printer) -> str:
        """A condition is not evaluated where it is known to be one for the whole tile."""
        if statement.name not in self.conditions:
            return printer.let(statement)
        place = self.conditions.index(statement.name)
        value = printer.term(statement.term)
        return f"const mask {statement.name} = known({place}, {value});"

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        return conditions(self.nest)

    # --- what scores a tile can have ------------------------------------------------------------

    def ranges(self, heads: Block) -> list[str]:
        nest = self.nest
        printer = _Ranges(heads, self.names, nest.row.name, nest.key.name)
        conditions = (Ref(name, torch.bool) for name in self.conditions)
        statements = _needed(nest.statements, nest.taken, *conditions)
        lines = [f"const Range {s.name} = {printer.term(s.term)};" for s in statements]
        read = {nest.taken.name, *(n for s in statements for n in reads(s))}
        given = [f"const Range {nest.given} = any_score();"] if nest.given in read else []
        if isinstance(nest, AttentionBackwardNest) and nest.grad in read:
            given.append(f"const Range {nest.grad} = anything();")
        found = ", ".join((nest.taken.name, *self.conditions))
        return [
            f"[=](Span {nest.row.name}, Span {nest.key.name}) {{",
            *indented([*given, *lines, f"return verdict({found});"]),
            "});",
        ]


@dataclass(frozen=True)
class _Writer(_HeadWriter):
    nest: AttentionNest

    def lines(self) -> Lines:
        heads, type = size_text(count_of(self.nest.batch)), STORAGE[self.nest.dtype]
        return self.written(
            lambda sizes, head: f"attend<{type}>({heads}, {sizes}, {head}", f"Block<{type}>"
        )

    def matrices(self, heads: Block) -> Lines:
        nest = self.nest
        return [
            self.matrix(nest.queries, nest.row, heads, nest.inner),
            self.matrix(nest.keys, nest.key, heads, nest.inner),
            self.matrix(nest.values, nest.key, heads, nest.width),
            *self.made(heads),
        ]

    def made(self, heads: Block) -> Lines:
        nest = self.nest
        sums = [] if nest.sums is None else [self.matrix(nest.sums, nest.row, heads)]
        return [self.matrix(nest.results, nest.row, heads, nest.width), *sums]

    def told(self, heads: Block, numbers: count[int]) -> Lines:
        nest = self.nest
        return [*self.scalar(heads, [nest.given], nest.taken, numbers), *self.ranges(heads)]


@dataclass(frozen=True)
class _PartsWriter(_Writer):
    """Calls what takes heads that read the same keys together, part by part of these."""

    def lines(self) -> Lines:
        nest, type = self.nest, STORAGE[self.nest.dtype]
        axes = nest.batch or (Axis("a", 1),)
        sizes = ", ".join(size_text(axis.size) for axis in axes)
        lines = self.written(
            lambda described, head: (
                f"attend_parts<{type}>(Axes<{len(axes)}>{{{{{sizes}}}}}, {described}, parts, {head}"
            ),
            "auto",
        )
        return [*self.parts(), *lines[:-1], "},", *self.keys(), ");"]

    def matrices(self, heads: Block) -> Lines:
        nest = self.nest
        return [self.matrix(nest.queries, nest.row, heads, nest.inner), *self.made(heads)]

    def parts(self) -> Lines:
        """Where each begins, how many keys it has, and which axes share them."""
        first: Size = 0
        lines = ["const Part parts[] = {"]
        for run in self.nest.runs:
            shared = sum(run.is_shared_by(a) << n for n, a in enumerate(self.nest.batch))
            lines.append(f"  {{{size_text(first)}, {size_text(run.size)}, {shared}}},")
            first = first + run.size
        return [*lines, "};"]

    def keys(self) -> Lines:
        nest = self.nest
        heads = Block(counter("r", nest.batch), None, count())
        lines = []
        for number, run in enumerate(nest.runs):
            key = self.matrix(run.keys, nest.key, heads, nest.inner)
            value = self.matrix(run.values, nest.key, heads, nest.width)
            is_last = number == len(nest.runs) - 1
            lines += [] if is_last else [f"if (part == {number})"]
            lines += [f"{'' if is_last else '  '}return pair({key}, {value});"]
        assert heads.counter is not None
        head = f"[=](i64 part, i64 {heads.counter.name}) {{"
        return [head, *indented([*heads.text(), *lines]), "}"]


@dataclass(frozen=True)
class _BackwardWriter(_HeadWriter):
    nest: AttentionBackwardNest

    def lines(self) -> Lines:
        nest, type = self.nest, STORAGE[self.nest.dtype]
        heads, group = size_text(count_of(nest.batch)), size_text(count_of(nest.group))
        call = f"attend_backward<{type}>({heads}, {group}"
        return self.written(lambda sizes, head: f"{call}, {sizes}, {head}", "const auto&")

    def matrices(self, heads: Block) -> Lines:
        nest = self.nest
        return [
            self.matrix(nest.queries, nest.row, heads, nest.inner),
            self.matrix(nest.keys, nest.key, heads, nest.inner),
            self.matrix(nest.values, nest.key, heads, nest.width),
            self.matrix(nest.outer, nest.row, heads, nest.width),
            self.matrix(nest.results, nest.row, heads, nest.width),
            self.matrix(nest.sums, nest.row, heads),
            self.matrix(nest.to_queries, nest.row, heads, nest.inner),
            self.matrix(nest.to_keys, nest.key, heads, nest.inner),
            self.matrix(nest.to_values, nest.key, heads, nest.width),
        ]

    def told(self, heads: Block, numbers: count[int]) -> Lines:
        nest = self.nest
        return [
            *self.scalar(heads, [nest.given], nest.taken, numbers),
            *self.scalar(heads, [nest.given, nest.grad], nest.slope, numbers),
            *self.ranges(heads),
        ]


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


def _needed(statements: Sequence[Let], *wanted: Ref) -> list[Let]:
    """Those that lead to what is wanted, in order."""
    names, found = {ref.name for ref in wanted}, []
    for statement in reversed(statements):
        if statement.name in names:
            names.update(reads(statement))
            found.append(statement)
    return found[::-1]
