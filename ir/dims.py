"""Symbolic dimensions: an integer, or a `Dim` over named symbols.

A `Dim` is interned, so equality is identity of meaning up to sympy's canonical form. sympy stays
behind this border: everybody else asks for `hint` (an int), `equal`, `divisible`, `exact_div`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from rewright.ir.errors import CheckError

if TYPE_CHECKING:
    import sympy


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size known only at run time.

    `hint` is the size seen at compile time (None: unknown even then, as for `nonzero`), `low` and
    `high` bound it inclusively (`high` None: unbounded), `divisor` is known to divide it.
    """

    name: str
    hint: int | None = None
    low: int = 0
    high: int | None = None
    divisor: int = 1


# What an unbacked symbol counts as wherever a plan needs some number.
UNKNOWN_SIZE: Final = 1024


class Dim:
    """An integer expression over symbols. Build with `Dim.of` or arithmetic; never directly."""

    __slots__ = ("_hash", "expr", "hint", "symbols", "text")

    def __init__(self, expr: sympy.Expr, symbols: tuple[Symbol, ...], text: str) -> None:
        self.expr = expr
        self.symbols = symbols
        self.text = text
        self._hash = hash((text, symbols))
        sizes = {s.name: s.hint if s.hint is not None else UNKNOWN_SIZE for s in symbols}
        self.hint = evaluate_expr(expr, sizes)

    @staticmethod
    def of(symbol: Symbol) -> Dim:
        """The dimension that is just `symbol`."""
        return _intern(_variable(symbol), (symbol,))

    @property
    def is_symbol(self) -> bool:
        return bool(self.expr.is_Symbol)

    def __repr__(self) -> str:
        return self.text

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Dim) and self.text == other.text and self.symbols == other.symbols

    def __add__(self, other: Size) -> Size:
        return _combine("add", self, other)

    def __sub__(self, other: Size) -> Size:
        return _combine("sub", self, other)

    def __mul__(self, other: Size) -> Size:
        return _combine("mul", self, other)

    def __floordiv__(self, other: Size) -> Size:
        return _combine("floordiv", self, other)

    def __mod__(self, other: Size) -> Size:
        return _combine("mod", self, other)

    def __radd__(self, other: int) -> Size:
        return _combine("add", other, self)

    def __rsub__(self, other: int) -> Size:
        return _combine("sub", other, self)

    def __rmul__(self, other: int) -> Size:
        return _combine("mul", other, self)

    def __rfloordiv__(self, other: int) -> Size:
        return _combine("floordiv", other, self)

    def __neg__(self) -> Size:
        return _combine("mul", self, -1)

    def __reduce__(self) -> tuple[Callable[[str, tuple[Symbol, ...]], Size], tuple[object, ...]]:
        return parse_dim, (self.text, self.symbols)


Size = int | Dim


def hint(size: Size) -> int:
    """The size seen at compile time (`UNKNOWN_SIZE` stands for what was not seen)."""
    return size if isinstance(size, int) else size.hint


def symbols_of(sizes: Iterable[Size]) -> tuple[Symbol, ...]:
    """The symbols of `sizes` in order of first appearance."""
    seen: dict[str, Symbol] = {}
    for size in sizes:
        if isinstance(size, Dim):
            for symbol in size.symbols:
                seen.setdefault(symbol.name, symbol)
    return tuple(seen.values())


def product(sizes: Iterable[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def equal(a: Size, b: Size) -> bool:
    """True when `a` and `b` are the same for every value of their symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return _difference_is_zero(a, b)


def exact_div(a: Size, b: Size) -> Size | None:
    """`a / b` when `b` divides `a` for every value of the symbols, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return None if b == 0 or a % b else a // b
    return _exact_div(a, b)


def divisible(a: Size, n: int) -> bool:
    """True when `n` divides `a` for every value of the symbols."""
    if isinstance(a, int):
        return a % n == 0
    return _known_divisor(a) % n == 0


def at_most(a: Size, b: Size) -> bool:
    """True when `a <= b` is certain; for symbols from their bounds, conservatively."""
    if isinstance(a, int) and isinstance(b, int):
        return a <= b
    if equal(a, b):
        return True
    high, low = bounds(a)[1], bounds(b)[0]
    return high is not None and high <= low


def bounds(size: Size) -> tuple[int, int | None]:
    """Inclusive bounds; exact for monotone expressions, conservative otherwise."""
    return (size, size) if isinstance(size, int) else _bounds(size)


def evaluate(size: Size, values: Mapping[str, int]) -> int:
    """`size` with each symbol replaced by its run-time value."""
    return size if isinstance(size, int) else evaluate_expr(size.expr, values)


def evaluate_expr(expr: sympy.Expr, values: Mapping[str, int]) -> int:
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        return values[expr.name]
    args = [evaluate_expr(arg, values) for arg in expr.args]
    return _EVALUATE[type(expr).__name__](args)


def substitute(size: Size, replace: Mapping[str, Size]) -> Size:
    """`size` with symbols replaced by other sizes."""
    if isinstance(size, int) or not any(s.name in replace for s in size.symbols):
        return size
    return parse_dim(size.text, size.symbols, replace)


def from_sympy(expr: sympy.Expr, symbols: Mapping[str, Symbol]) -> Size:
    """A size from a sympy expression whose symbols are named as the keys of `symbols`."""
    plain = {s: _variable(symbols[s.name]) for s in expr.free_symbols}
    used = tuple(sorted((symbols[s.name] for s in expr.free_symbols), key=_symbol_order))
    # Expanded, as products are in `_sympy_op`: one size has one form, however it came about.
    dim = _intern(expr.xreplace(plain).expand(), used)
    return parse_dim(dim.text, used) if any(f"{kind}(" in dim.text for kind in _EXTREMES) else dim


def parse_dim(
    text: str, symbols: Iterable[Symbol], replace: Mapping[str, Size] | None = None
) -> Size:
    """Read what `str(dim)` prints. `replace` overrides the meaning of some names."""
    from rewright.ir.dim_text import parse_size

    table: dict[str, Size] = {s.name: Dim.of(s) for s in symbols}
    table.update(replace or {})
    return parse_size(text, table)


# --- construction -------------------------------------------------------------------------------

_EXTREMES: Final = ("min", "max")
_SYMPY_EXTREMES: Final = ("Min", "Max")
_INTERNED: dict[tuple[str, tuple[Symbol, ...]], Dim] = {}


def _variable(symbol: Symbol) -> sympy.Symbol:
    """Not every symbol is a size: an `item()` may be negative."""
    import sympy

    facts = {"positive": symbol.low >= 1, "nonnegative": symbol.low >= 0}
    certain = {fact: True for fact, holds in facts.items() if holds}
    return sympy.Symbol(symbol.name, integer=True, **certain)


def _symbol_order(symbol: Symbol) -> tuple[int, str]:
    return (len(symbol.name), symbol.name)


def _intern(expr: sympy.Expr, symbols: tuple[Symbol, ...]) -> Dim:
    from rewright.ir.dim_text import show_expr

    text = show_expr(expr)
    key = (text, symbols)
    found = _INTERNED.get(key)
    if found is None:
        found = _INTERNED.setdefault(key, Dim(expr, symbols, text))
    return found


def make(kind: str, *args: Size) -> Size:
    """One operation of the size language: add, sub, mul, floordiv, mod, max, min, pow."""
    if all(isinstance(a, int) for a in args):
        return _FOLD[kind]([a for a in args if isinstance(a, int)])
    result = args[0]
    for arg in args[1:]:
        result = _combine(kind, result, arg)
    return result


@cache
def _combine(kind: str, a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return _FOLD[kind]([a, b])
    if kind in _EXTREMES and _is_monotone(a) and _is_monotone(b):
        for small, large in ((a, b), (b, a)):  # min(64, 64*B) of a B of at least 1 is 64
            if at_most(small, large):
                return small if kind == "min" else large
    expr = _sympy_op(kind)(_expr(a), _expr(b))
    if expr.is_Integer:
        return int(expr)
    merged: dict[str, Symbol] = {}
    for size in (a, b):
        for symbol in size.symbols if isinstance(size, Dim) else ():
            if merged.setdefault(symbol.name, symbol) != symbol:
                raise CheckError(f"symbol {symbol.name} is declared twice with different facts")
    free = {s.name for s in expr.free_symbols}
    used = sorted((s for n, s in merged.items() if n in free), key=_symbol_order)
    return _intern(expr, tuple(used))


def _expr(size: Size) -> sympy.Expr:
    import sympy

    return sympy.Integer(size) if isinstance(size, int) else size.expr


def _sympy_op(kind: str) -> Callable[[sympy.Expr, sympy.Expr], sympy.Expr]:
    from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

    table: dict[str, Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: (a * b).expand(),
        "floordiv": FloorDiv,
        "mod": Mod,
        "max": Max,
        "min": Min,
        "pow": lambda a, b: (a**b).expand(),
    }
    return table[kind]


def _int_pow(args: list[int]) -> int:
    return int(args[0] ** args[1])


_FOLD: Final[dict[str, Callable[[list[int]], int]]] = {
    "add": sum,
    "sub": lambda a: a[0] - a[1],
    "mul": math.prod,
    "floordiv": lambda a: a[0] // a[1],
    "mod": lambda a: a[0] % a[1],
    "max": max,
    "min": min,
    "pow": _int_pow,
}

# Names are those of sympy's and torch's expression classes.
_EVALUATE: Final[dict[str, Callable[[list[int]], int]]] = {
    "Add": sum,
    "Mul": math.prod,
    "Pow": _int_pow,
    "PowByNatural": _int_pow,
    "FloorDiv": _FOLD["floordiv"],
    "CleanDiv": _FOLD["floordiv"],
    "CeilDiv": lambda a: -(-a[0] // a[1]),
    "Mod": _FOLD["mod"],
    "PythonMod": _FOLD["mod"],
    "ModularIndexing": lambda a: (a[0] // a[1]) % a[2],
    "Max": max,
    "Min": min,
}

# --- facts --------------------------------------------------------------------------------------


@cache
def _difference_is_zero(a: Size, b: Size) -> bool:
    if a == b:
        return True
    return bool((_expr(a) - _expr(b)).expand() == 0)


@cache
def _exact_div(a: Size, b: Size) -> Size | None:
    if isinstance(b, int):
        if b == 0 or not divisible(a, b):
            return None
        return a // b
    if isinstance(a, int):
        return 0 if a == 0 else None
    if a == b:
        return 1
    import sympy

    quotient = sympy.cancel(a.expr / b.expr)
    if sympy.denom(quotient) != 1 or not quotient.is_polynomial():
        return None
    if quotient.is_Integer:
        return int(quotient)
    return from_sympy(quotient, {s.name: s for s in a.symbols})


@cache
def _known_divisor(dim: Dim) -> int:
    """The largest integer known to divide `dim`: gcd over the terms of a sum."""
    terms = dim.expr.args if dim.expr.is_Add else (dim.expr,)
    divisors = {s.name: s.divisor for s in dim.symbols}
    return math.gcd(*(_term_divisor(t, divisors) for t in terms))


def _term_divisor(term: sympy.Expr, divisors: Mapping[str, int]) -> int:
    factors = term.args if term.is_Mul else (term,)
    total = 1
    for factor in factors:
        if factor.is_Integer:
            total *= abs(int(factor))
        elif factor.is_Symbol:
            total *= divisors[factor.name]
    return total


@cache
def _bounds(dim: Dim) -> tuple[int, int | None]:
    if type(dim.expr).__name__ == "Mod" and dim.expr.args[1].is_Integer:
        return (0, int(dim.expr.args[1]) - 1)
    low = evaluate_expr(dim.expr, {s.name: s.low for s in dim.symbols})
    if not _monotone(dim.expr):
        return (0, None)
    if any(s.high is None for s in dim.symbols):
        return (low, None)
    return (low, evaluate_expr(dim.expr, {s.name: s.high or 0 for s in dim.symbols}))


def _is_monotone(size: Size) -> bool:
    """True where bounds are those of the expression: that of another one is 0, as of a size, which
    a part of one need not keep to."""
    return isinstance(size, int) or _monotone(size.expr)


def _monotone(expr: sympy.Expr) -> bool:
    """Non-decreasing in every symbol, by shape: no factor that may be negative, no modulo."""
    kind = type(expr).__name__
    if expr.is_Integer or expr.is_Symbol:
        return True
    if kind == "FloorDiv":
        return _monotone(expr.args[0]) and bool(expr.args[1].is_Integer and expr.args[1] > 0)
    if expr.is_Mul or kind == "Pow":
        return all(_monotone(a) and _not_negative(a) for a in expr.args)
    return (expr.is_Add or kind in _SYMPY_EXTREMES) and all(map(_monotone, expr.args))


def _not_negative(expr: sympy.Expr) -> bool:
    """The same for symbols that are not, as sizes are."""
    if expr.is_Integer:
        return bool(expr >= 0)
    kind = type(expr).__name__
    known = expr.is_Symbol or expr.is_Add or expr.is_Mul or kind in (*_SYMPY_EXTREMES, "Pow")
    return (known or kind == "FloorDiv") and all(map(_not_negative, expr.args))
