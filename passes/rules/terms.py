"""What rules are made of: patterns and expressions, after their text has been read.

A term in `match` is what an argument must look like; the same term in `give` or `when` is what to
compute. Types of variables are `Tensor declarations` of the rule (`rule.py`), not of terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from rewright.ir import Arg, Op
from rewright.ir.signature import signature


@dataclass(frozen=True)
class Variable:
    """`%x`: a value."""

    name: str


@dataclass(frozen=True)
class Attribute:
    """`p`: a size, a number, a list, a dtype."""

    name: str


@dataclass(frozen=True)
class Literal:
    """A number, a word, a string, a dtype."""

    value: Arg


@dataclass(frozen=True)
class Apply:
    """A call of any of `ops`, with arguments by place or by the schema's name; those not given have
    their defaults."""

    ops: tuple[Op, ...]
    arguments: tuple[tuple[int | str, Term], ...]

    def named(self, op: Op) -> dict[str, Term]:
        """The arguments by the names that they have in the schema of `op`."""
        found = self._named.get(op)
        if found is None:
            known = signature(op)
            assert known is not None
            names = known.positional
            found = {names[k] if isinstance(k, int) else k: term for k, term in self.arguments}
            self._named[op] = found
        return found

    @cached_property
    def _named(self) -> dict[Op, dict[str, Term]]:
        return {}


@dataclass(frozen=True)
class Many:
    """`%xs...`: any number of values, inside a list."""

    name: str


@dataclass(frozen=True)
class Items:
    """`[a, b]`, at most one of whose items is `Many`."""

    items: tuple[Term, ...]


@dataclass(frozen=True)
class Either:
    """`(a | b)`: what one of these matches; the first that does counts."""

    options: tuple[Term, ...]


@dataclass(frozen=True)
class Function:
    """A named function of `functions.py`, or an arithmetic operator by its sign."""

    name: str
    arguments: tuple[Term, ...]


Term = Variable | Attribute | Literal | Apply | Many | Items | Either | Function


@dataclass(frozen=True)
class Bind:
    """`%a, %b = term : like %x`."""

    results: tuple[str, ...]
    term: Term
    like: str | None = None


def parts(term: Term) -> tuple[Term, ...]:
    match term:
        case Apply():
            return tuple(t for _, t in term.arguments)
        case Function():
            return term.arguments
        case Items():
            return term.items
        case Either():
            return term.options
    return ()


def within(term: Term) -> Iterator[Term]:
    """The term and all below it, outermost first."""
    yield term
    for part in parts(term):
        yield from within(part)


def variables(term: Term) -> Iterator[str]:
    """Names of values that a term reads, with repeats; without their `%`."""
    for part in within(term):
        if isinstance(part, (Variable, Many)):
            yield part.name


def attributes(term: Term) -> Iterator[str]:
    for part in within(term):
        if isinstance(part, Attribute):
            yield part.name
