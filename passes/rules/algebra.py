"""Whether two loop nests compute the same in real arithmetic, by sympy.

A mask is a number that is 0 or 1 and so is its own square: choosing becomes arithmetic. A reduction
is an unknown function of what it combines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from rewright.ir.expr import PREDICATES
from rewright.ir.loops.nest import (
    Apply,
    Convert,
    Nest,
    Number,
    Reduce,
    Ref,
    Round,
    Store,
    Term,
)
from rewright.passes.rules.loop_text import Normal

_MOST_OPERATIONS: Final = 60


def equal_algebra(first: Nest, second: Nest) -> bool:
    """Every result is the same expression of the same elements."""
    one, other = _Algebra(first), _Algebra(second)
    a, b = dict(one.results()), dict(other.results())
    if a.keys() != b.keys() or len(first.axes) != len(second.axes):
        return False
    if any(e.count_ops() > _MOST_OPERATIONS for e in (*a.values(), *b.values())):
        return False
    masks = one.masks | other.masks
    return all(_is_zero(a[key] - b[key], masks) for key in a)


def _is_zero(expr: Any, masks: set[Any]) -> bool:
    import sympy

    if expr == 0:
        return True
    expanded = sympy.expand(expr)
    if masks:
        expanded = sympy.expand(expanded.replace(_is_power_of(masks), lambda power: power.base))
    if expanded == 0:
        return True
    return bool(sympy.simplify(expr.rewrite(sympy.exp)) == 0)


def _is_power_of(masks: set[Any]) -> Callable[[Any], bool]:
    def holds(expr: Any) -> bool:
        return bool(expr.is_Pow and expr.base in masks and expr.exp.is_positive)

    return holds


class _Algebra:
    """What a nest stores, as sympy expressions of what it loads."""

    def __init__(self, nest: Nest) -> None:
        import sympy

        self.sympy, self.nest = sympy, nest
        self.normal = Normal(nest)
        self.scalars: dict[str, Any] = {}
        self.masks: set[Any] = set()

    def results(self) -> Iterator[tuple[str, Any]]:
        for statement in self.nest.statements():
            if isinstance(statement, Store):
                place = f"{statement.buffer}[{self.normal.index(statement.at)}]"
                yield place, self.scalars[statement.value.name]
                continue
            found = self.term(statement.term)
            if isinstance(statement, Reduce):
                found = self.sympy.Function(f"over_{statement.how}")(self.sympy.expand(found))
            self.scalars[statement.name] = found
            # The same scalar has a name in the loops' text, too.
            self.normal.names.setdefault(statement.name, str(found))

    def term(self, term: Term) -> Any:
        match term:
            case Ref():
                return self.scalars[term.name]
            case Number():
                return self.number(term)
            case Convert() | Round():
                return self.converted(term)
            case Apply():
                return self.applied(term)
        return self.element(self.normal.term(term), term.dtype)

    def element(self, name: str, dtype: torch.dtype) -> Any:
        symbol = self.sympy.Symbol(name, real=True)
        if dtype is torch.bool:
            self.masks.add(symbol)
        return symbol

    def converted(self, term: Convert | Round) -> Any:
        """Of numbers: themselves; a number as a mask is an unknown mask."""
        found = self.term(term.arg)
        if isinstance(term, Convert) and term.dtype is torch.bool and found not in self.masks:
            return self.element(f"nonzero({found})", torch.bool)
        return found

    def applied(self, term: Apply) -> Any:
        args = [self.term(a) for a in term.args]
        if term.name == "select":
            mask, yes, no = args
            return mask * yes + (1 - mask) * no
        if term.name in ("logical_not", "bit_not") and term.dtype is torch.bool:
            return 1 - args[0]
        if term.name == "ne":
            return 1 - self.predicate("eq", args)
        if term.name in PREDICATES:
            return self.predicate(term.name, args)
        known = _SYMPY.get(term.name)
        return known(self.sympy, *args) if known else self.sympy.Function(term.name)(*args)

    def predicate(self, name: str, args: list[Any]) -> Any:
        return self.element(f"{name}({', '.join(map(str, args))})", torch.bool)

    def number(self, term: Number) -> Any:
        value = term.value
        if isinstance(value, bool):
            return self.sympy.Integer(int(value))
        if not isinstance(value, (int, float)):
            return self.sympy.Symbol(str(value), real=True)
        if value != value or value in (float("inf"), float("-inf")):
            return self.sympy.Symbol(str(value), real=True)
        return self.sympy.nsimplify(value, rational=True)


def _named(name: str) -> Callable[..., Any]:
    return lambda sympy, *args: getattr(sympy, name)(*args)


_SYMPY: Final[dict[str, Callable[..., Any]]] = {
    "add": lambda _, a, b: a + b,
    "sub": lambda _, a, b: a - b,
    "mul": lambda _, a, b: a * b,
    "div": lambda _, a, b: a / b,
    "neg": lambda _, a: -a,
    "pow": lambda _, a, b: a**b,
    "reciprocal": lambda _, a: 1 / a,
    "rsqrt": lambda sympy, a: 1 / sympy.sqrt(a),
    "sigmoid": lambda sympy, a: 1 / (1 + sympy.exp(-a)),
    "abs": _named("Abs"),
    "maximum": _named("Max"),
    "minimum": _named("Min"),
    "ceil": _named("ceiling"),
    **{name: _named(name) for name in ("exp", "log", "sin", "cos", "tanh", "cosh", "sinh")},
    **{name: _named(name) for name in ("erf", "sqrt", "floor", "sign")},
}
