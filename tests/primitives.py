"""Evaluating scalar expressions on tensors with torch's own functions.

This is the meaning of every primitive of `ir.expr`: what an emitter prints must agree with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from rewright.ir.dims import Dim
from rewright.ir.errors import UnsupportedError
from rewright.ir.expr import Call, Expr, Literal, Operand, Scalar

# Operands come in the type of the computation, masks as bool.
FUNCTIONS: Final[dict[str, Callable[..., Tensor]]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "pow": torch.pow,
    "atan2": torch.atan2,
    "fmod": torch.fmod,
    "remainder": torch.remainder,
    "div_floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "div_trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "copysign": torch.copysign,
    "hypot": torch.hypot,
    "nextafter": torch.nextafter,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "bit_and": torch.bitwise_and,
    "bit_or": torch.bitwise_or,
    "bit_xor": torch.bitwise_xor,
    "shift_left": torch.bitwise_left_shift,
    "shift_right": torch.bitwise_right_shift,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "acos": torch.acos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "asinh": torch.asinh,
    "acosh": torch.acosh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "erfinv": torch.erfinv,
    "lgamma": torch.lgamma,
    "sigmoid": torch.sigmoid,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round": torch.round,
    "trunc": torch.trunc,
    "isnan": torch.isnan,
    "isinf": torch.isinf,
    "bit_not": torch.bitwise_not,
    "logical_not": torch.logical_not,
    "select": torch.where,
}


def evaluate(expr: Expr, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The value of `expr` computed in `dtype`, in the broadcast shape of the operands it reads.

    A predicate gives bool, anything else `dtype`. Operands may come in any dtype. Raises
    UnsupportedError for a size known only at run time.
    """
    value = _evaluate(expr, operands, dtype)
    return value if value.dtype is torch.bool else value.to(dtype)


def _evaluate(expr: Scalar, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    match expr:
        case Operand(index=index):
            return operands[index]
        case Literal(value=Dim() as size):
            raise UnsupportedError(f"size {size} has no value before run time")
        case Literal(value=number):
            return torch.tensor(number, dtype=dtype)
        case Call(name=name, args=args):
            values = [_evaluate(arg, operands, dtype) for arg in args]
            return FUNCTIONS[name](*(_typed(name, i, v, dtype) for i, v in enumerate(values)))
    raise TypeError(f"{expr!r} is not a scalar expression")


def _typed(name: str, position: int, value: Tensor, dtype: torch.dtype) -> Tensor:
    """The value as operand number `position` of `name`."""
    return value.to(torch.bool if name == "select" and position == 0 else dtype)
