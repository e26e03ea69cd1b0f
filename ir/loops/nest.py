"""The loop IR as data: what one kernel computes, before anyone says how.

A `Nest` runs over `rows` (parallel axes) and, inside each row, over `cols` (reduced axes; none for
pointwise kernels). Its `stages` run in order: a row stage once per row, a column stage once per
element of the row; a column stage may accumulate reductions that later stages read. Every statement
defines one typed scalar, so an emitter prints a nest line by line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from rewright.ir.dims import Size
from rewright.ir.loops.affine import Affine, Axis
from rewright.ir.types import TensorType


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor the kernel reads or writes. `name` is the region's name for it."""

    name: str
    type: TensorType


# --- terms: typed scalar trees ------------------------------------------------------------------
# `dtype` is always a compute type: float32, float64, int32, int64 or bool.


@dataclass(frozen=True, slots=True)
class Within:
    """`low <= at < high`; what guards a read of a padded or concatenated part."""

    at: Affine
    low: Size
    high: Size


@dataclass(frozen=True, slots=True)
class Load:
    """An element of `buffer` at element offset `at`, converted to its compute type.

    Where a guard is false the buffer must not be touched and the value is zero.
    """

    buffer: str
    at: Affine
    dtype: torch.dtype
    guards: tuple[Within, ...] = ()


@dataclass(frozen=True, slots=True)
class Ref:
    """A scalar defined by an earlier statement."""

    name: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Number:
    """A literal, or a size known at run time."""

    value: bool | int | float | Size
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Position:
    """The value of an index expression (arange and the like)."""

    at: Affine
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Inside:
    """True where every guard holds."""

    guards: tuple[Within, ...]
    dtype: torch.dtype = torch.bool


@dataclass(frozen=True, slots=True)
class Apply:
    """A primitive of `ir.expr.PRIMITIVES`, computed in the type of its operands."""

    name: str
    args: tuple[Term, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Convert:
    """A conversion between compute types, as torch's `.to`."""

    arg: Term
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Round:
    """The value as `storage` would hold it, still in the compute type `dtype`."""

    arg: Term
    storage: torch.dtype
    dtype: torch.dtype


Term = Load | Ref | Number | Position | Inside | Apply | Convert | Round


# --- statements ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Let:
    """`name = term`. `origin` is the IR node it belongs to, for comments and `why`."""

    name: str
    term: Term
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Reduce:
    """`name` = `term` combined over all columns by `how` (sum, prod, max, min, any, all).

    After the stage, `name` is a row scalar of the term's type.
    """

    name: str
    how: str
    term: Term
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """Write a scalar to element offset `at` of an output, converted to the buffer's dtype."""

    buffer: str
    at: Affine
    value: Ref


Statement = Let | Reduce | Store


@dataclass(frozen=True, slots=True)
class Stage:
    """`per` is "row" or "column"."""

    per: str
    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which a reduction adds up, fixed by the node that owns it (never by fusion).

    Elements of a row are numbered row-major over the reduced dimensions and cut into blocks of
    `block`; block results are combined in sequence. Inside a block, style "lanes" gives element j
    to accumulator (j // 16) % 4 and lane j % 16 while a whole group of 64 remains, later groups of
    16 and the tail to accumulator 0; the four accumulators are combined as (0+1)+(2+3), then the
    lanes by halves. Style "columns" adds elements one after the other in groups of 64, and the
    groups in sequence.
    """

    style: str
    block: int = 4096


@dataclass(frozen=True)
class Nest:
    """One kernel. `kept` names column scalars that are cheaper to store per row than to recompute
    in a later stage; recomputing them gives the same bits."""

    name: str
    rows: tuple[Axis, ...]
    cols: tuple[Axis, ...]
    order: Order | None
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    stages: tuple[Stage, ...]
    kept: tuple[str, ...] = ()

    @property
    def axes(self) -> tuple[Axis, ...]:
        return (*self.rows, *self.cols)

    def statements(self) -> Iterator[Statement]:
        for stage in self.stages:
            yield from stage.body

    def origins(self) -> tuple[str, ...]:
        """The IR nodes that it computes, in order."""
        given = {"", *(b.name for b in self.inputs)}
        made = (s.origin for s in self.statements() if isinstance(s, (Let, Reduce)))
        return tuple(dict.fromkeys(origin for origin in made if origin not in given))


def loads(statements: Iterable[Statement]) -> Iterator[Load]:
    """Every read, with repeats."""
    for statement in statements:
        if not isinstance(statement, Store):
            yield from (t for t in subterms(statement.term) if isinstance(t, Load))


def computes_in(operands: Sequence[Term]) -> torch.dtype:
    """The type of the operands of a primitive; masks among numbers count as 0 or 1."""
    return next((o.dtype for o in operands if o.dtype is not torch.bool), torch.bool)


def subterms(term: Term) -> Iterator[Term]:
    """The term and everything below it, outermost first."""
    yield term
    match term:
        case Apply(args=args):
            for arg in args:
                yield from subterms(arg)
        case Convert(arg=arg) | Round(arg=arg):
            yield from subterms(arg)


def indices_of(statement: Statement) -> Iterator[Affine]:
    """Every index expression of a statement."""
    if isinstance(statement, Store):
        yield statement.at
        return
    for term in subterms(statement.term):
        if isinstance(term, (Load, Position)):
            yield term.at
        guards = term.guards if isinstance(term, (Load, Inside)) else ()
        yield from (guard.at for guard in guards)


def reads(statement: Statement) -> list[str]:
    """The scalars that a statement reads."""
    if isinstance(statement, Store):
        return [statement.value.name]
    return [t.name for t in subterms(statement.term) if isinstance(t, Ref)]


def needed(body: Sequence[Statement], stored: set[str]) -> list[Statement]:
    """The statements that a stage needs when `stored` scalars are only read back."""
    wanted: set[str] = set()
    found: list[Statement] = []
    for statement in reversed(body):
        if isinstance(statement, Let) and statement.name not in wanted:
            continue
        found.append(statement)
        if not (isinstance(statement, Let) and statement.name in stored):
            wanted.update(reads(statement))
    return found[::-1]
