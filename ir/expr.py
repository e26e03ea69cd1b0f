"""Scalar expressions: what one element of an elementwise operator is, once for all emitters.

A tree of calls of primitives over arguments and literals. It is untyped: the operator that owns it
says in which type it is computed. Primitives are those of `PRIMITIVES`; every emitter, and the
numeric check of the table against float64, knows exactly these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rewright.ir.dims import Dim

# name -> number of operands. Semantics are torch's (`remainder` is Python's modulo, `round` goes
# to even, `maximum` passes NaN on, `fmax` does not).
PRIMITIVES: Final[dict[str, int]] = {
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "atan2", "fmod", "remainder"), 2),
    **dict.fromkeys(("div_floor", "div_trunc", "maximum", "minimum", "fmax", "fmin"), 2),
    **dict.fromkeys(("copysign", "hypot", "nextafter"), 2),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), 2),
    **dict.fromkeys(("bit_and", "bit_or", "bit_xor", "shift_left", "shift_right"), 2),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), 2),
    **dict.fromkeys(("neg", "abs", "sign", "sqrt", "rsqrt", "reciprocal"), 1),
    **dict.fromkeys(("exp", "exp2", "expm1", "log", "log2", "log10", "log1p"), 1),
    **dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan"), 1),
    **dict.fromkeys(("sinh", "cosh", "tanh", "asinh", "acosh", "atanh"), 1),
    **dict.fromkeys(("erf", "erfc", "erfinv", "lgamma", "sigmoid"), 1),
    **dict.fromkeys(("floor", "ceil", "round", "trunc"), 1),
    **dict.fromkeys(("isnan", "isinf", "bit_not", "logical_not"), 1),
    "select": 3,  # (mask, a, b)
}

# Primitives whose result is a mask whatever their operands are.
PREDICATES: Final = frozenset(
    {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf"}
    | {"logical_and", "logical_or", "logical_xor", "logical_not"}
)

Number = bool | int | float


class Arithmetic:
    """Operators that build `Call`s, so that a table entry reads as its formula."""

    def __add__(self, other: Scalar) -> Call:
        return call("add", self, other)

    def __radd__(self, other: Scalar) -> Call:
        return call("add", other, self)

    def __sub__(self, other: Scalar) -> Call:
        return call("sub", self, other)

    def __rsub__(self, other: Scalar) -> Call:
        return call("sub", other, self)

    def __mul__(self, other: Scalar) -> Call:
        return call("mul", self, other)

    def __rmul__(self, other: Scalar) -> Call:
        return call("mul", other, self)

    def __truediv__(self, other: Scalar) -> Call:
        return call("div", self, other)

    def __rtruediv__(self, other: Scalar) -> Call:
        return call("div", other, self)

    def __neg__(self) -> Call:
        return call("neg", self)

    def __lt__(self, other: Scalar) -> Call:
        return call("lt", self, other)

    def __le__(self, other: Scalar) -> Call:
        return call("le", self, other)

    def __gt__(self, other: Scalar) -> Call:
        return call("gt", self, other)

    def __ge__(self, other: Scalar) -> Call:
        return call("ge", self, other)


@dataclass(frozen=True, slots=True)
class Operand(Arithmetic):
    """The element of the tensor argument number `index`."""

    index: int


@dataclass(frozen=True, slots=True)
class Literal(Arithmetic):
    """A number or a size, converted to the type the expression is computed in."""

    value: Number | Dim


@dataclass(frozen=True, slots=True)
class Call(Arithmetic):
    """A primitive applied to expressions."""

    name: str
    args: tuple[Scalar, ...]


Scalar = Arithmetic | Number
Expr = Operand | Literal | Call


def call(name: str, *args: Scalar) -> Call:
    """Apply a primitive; plain numbers become literals."""
    assert PRIMITIVES[name] == len(args), f"{name} takes {PRIMITIVES[name]} operands"
    return Call(name, tuple(Literal(a) if isinstance(a, Number) else a for a in args))
