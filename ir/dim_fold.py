"""Evaluating a size in another domain: fx nodes, torch's symbolic integers, ..."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch

from rewright.ir.dims import Dim
from rewright.ir.errors import CheckError

T = TypeVar("T")

_OPERATORS: Final[dict[type[ast.operator], Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_FUNCTIONS: Final = {"max": torch.sym_max, "min": torch.sym_min}


def fold(
    size: Dim,
    symbol: Callable[[str], T],
    apply: Callable[[Callable[..., Any], tuple[T | int, ...]], T],
) -> T | int:
    """`size` where `symbol(name)` stands for a symbol and `apply(function, operands)` computes."""

    def build(tree: ast.expr) -> T | int:
        match tree:
            case ast.Constant(value=int() as number):
                return number
            case ast.Name(id=name):
                return symbol(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return apply(operator.neg, (build(operand),))
            case ast.BinOp(left=left, op=op, right=right):
                return apply(_OPERATORS[type(op)], (build(left), build(right)))
            case ast.Call(func=ast.Name(id=name), args=[first, *rest]):
                total = build(first)
                for other in rest:
                    total = apply(_FUNCTIONS[name], (total, build(other)))
                return total
        raise CheckError(f"'{size}' is not a size expression")

    return build(ast.parse(size.text, mode="eval").body)
