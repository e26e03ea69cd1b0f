"""A rough time for a nest, from its statements alone: enough to say how work is shared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rewright.ir.dims import hint, product
from rewright.ir.loops.nest import Apply, Load, Nest, Reduce, Stage, Statement, Store, subterms

# Nanoseconds an element costs one core: a load or store, a simple primitive, and a costly one.
ACCESS: Final = 0.08
SIMPLE: Final = 0.02
COSTLY: Final = 0.5
SIMPLE_PRIMITIVES: Final = frozenset(
    {"add", "sub", "mul", "neg", "abs", "maximum", "minimum", "select", "sqrt", "reciprocal"}
    | {"eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "floor"}
)


def rough_nanoseconds(nest: Nest) -> float:
    """A rough time for one core, at the hints of its sizes."""
    rows = hint(product(a.size for a in nest.rows))
    elements = rows * hint(product(a.size for a in nest.cols))
    return sum(_cost(stage) * (rows if stage.per == "row" else elements) for stage in nest.stages)


def _cost(stage: Stage) -> float:
    return sum(_statement_cost(s) for s in stage.body)


def _statement_cost(statement: Statement) -> float:
    if isinstance(statement, Store):
        return ACCESS
    cost = SIMPLE if isinstance(statement, Reduce) else 0.0
    for term in subterms(statement.term):
        if isinstance(term, Load):
            cost += ACCESS
        elif isinstance(term, Apply):
            cost += SIMPLE if term.name in SIMPLE_PRIMITIVES else COSTLY
    return cost


def is_costly(statements: Iterable[Statement]) -> bool:
    """True when a body is too large to be repeated for instruction-level parallelism."""
    return sum(_statement_cost(s) for s in statements) >= COSTLY
