"""Sizes in MLIR: as affine maps over symbols, and as integers that operators compute."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, Final

import torch

from rewright.ir.dim_fold import fold
from rewright.ir.dims import Dim, Size, make
from rewright.ir.errors import ImportFailure
from rewright.ir.mlir_context import bindings

# The operators of the dialect that compute sizes, by Python's functions and by our own names.
SIZE_OPERATORS: Final[dict[Callable[..., Any], str]] = {
    operator.add: "torch.aten.add.int",
    operator.sub: "torch.aten.sub.int",
    operator.mul: "torch.aten.mul.int",
    operator.floordiv: "torch.aten.floordiv.int",
    operator.mod: "torch.aten.remainder.int",
    operator.neg: "torch.aten.neg.int",
    torch.sym_max: "torch.prim.max.int",
    torch.sym_min: "torch.prim.min.int",
}
SIZE_KINDS: Final = {
    "torch.aten.add.int": "add",
    "torch.aten.sub.int": "sub",
    "torch.aten.mul.int": "mul",
    "torch.aten.floordiv.int": "floordiv",
    "torch.aten.remainder.int": "mod",
    "torch.prim.max.int": "max",
    "torch.prim.min.int": "min",
}


class _NotAffine(Exception):
    """A size that affine expressions cannot say: one with max or min."""


def affine(shape: Sequence[Size], symbols: Sequence[str]) -> Any:
    """The map from `symbols` to `shape`; None where MLIR would not say exactly that."""
    ir = bindings()
    functions: dict[Callable[..., Any], Callable[..., Any]] = {
        operator.add: ir.AffineExpr.get_add,
        operator.sub: lambda a, b: ir.AffineExpr.get_add(a, ir.AffineExpr.get_mul(b, constant(-1))),
        operator.mul: ir.AffineExpr.get_mul,
        operator.floordiv: ir.AffineExpr.get_floor_div,
        operator.mod: ir.AffineExpr.get_mod,
        operator.neg: lambda a: ir.AffineExpr.get_mul(a, constant(-1)),
    }

    def constant(number: int) -> Any:
        return ir.AffineExpr.get_constant(number)

    def apply(function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        if function is operator.pow:
            return reduce(ir.AffineExpr.get_mul, [operands[0]] * operands[1])
        if function not in functions:
            raise _NotAffine
        plain = (constant(o) if isinstance(o, int) else o for o in operands)
        return functions[function](*plain)

    def expression(size: Size) -> Any:
        if isinstance(size, int):
            return constant(size)
        return fold(size, lambda name: ir.AffineExpr.get_symbol(symbols.index(name)), apply)

    try:
        return ir.AffineMap.get(0, len(symbols), [expression(size) for size in shape])
    except _NotAffine:
        return None


def sizes_of_map(map: Any, symbols: Sequence[Size]) -> tuple[Size, ...]:
    """What a map gives for `symbols`. Raises ImportFailure for one that reads dimensions."""
    return tuple(_size(expression, symbols) for expression in map.results)


def _size(expression: Any, symbols: Sequence[Size]) -> Size:
    ir = bindings()
    if isinstance(expression, ir.AffineConstantExpr):
        return int(expression.value)
    if isinstance(expression, ir.AffineSymbolExpr) and expression.position < len(symbols):
        return symbols[int(expression.position)]
    kinds = {
        ir.AffineAddExpr: "add",
        ir.AffineMulExpr: "mul",
        ir.AffineModExpr: "mod",
        ir.AffineFloorDivExpr: "floordiv",
    }
    kind = next((k for cls, k in kinds.items() if isinstance(expression, cls)), None)
    if kind is not None:
        return make(kind, _size(expression.lhs, symbols), _size(expression.rhs, symbols))
    if isinstance(expression, ir.AffineCeilDivExpr):
        left, right = _size(expression.lhs, symbols), _size(expression.rhs, symbols)
        return -(-left // right)
    raise ImportFailure(f"'{expression}' is no size expression over symbols")


def symbols_in(shape: Sequence[Size]) -> tuple[str, ...]:
    """The names of the symbols in a shape, in their order."""
    found = (s.name for size in shape if isinstance(size, Dim) for s in size.symbols)
    return tuple(dict.fromkeys(found))
