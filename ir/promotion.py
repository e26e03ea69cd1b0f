"""torch's type promotion (`torch.result_type`) over arguments of nodes."""

from __future__ import annotations

import torch

from rewright.ir.constant import Constant
from rewright.ir.dims import Dim
from rewright.ir.graph import Arg, Value
from rewright.ir.types import TensorType


def promoted(arguments: tuple[Arg, ...]) -> torch.dtype:
    """The dtype in which tensors and numbers meet; arguments that are neither don't count.

    Tensors with dimensions decide, then 0-dim tensors, then numbers: a later group counts only
    when its category (bool, integer, float) is higher.
    """
    groups: list[torch.dtype | None] = [None, None, None]
    for argument in arguments:
        group = _group(argument)
        groups[group] = _joined(groups[group], dtype_of(argument))
    result = _outranking(groups[0], _outranking(groups[1], groups[2]))
    assert result is not None, "nothing to promote"
    return result


def dtype_of(argument: Arg) -> torch.dtype | None:
    """The dtype with which an argument takes part in promotion; None when it does not."""
    if isinstance(argument, Constant):
        return argument.tensor.dtype
    if isinstance(argument, Dim):
        return torch.int64
    if not isinstance(argument, Value):
        return _dtype_of_number(type(argument).__name__)
    if isinstance(argument.type, TensorType):
        return argument.type.dtype
    return _dtype_of_number(argument.type.kind)


def _dtype_of_number(kind: str) -> torch.dtype | None:
    if kind == "float":
        return torch.get_default_dtype()
    return {"bool": torch.bool, "int": torch.int64, "complex": torch.complex64}.get(kind)


def _group(argument: Arg) -> int:
    if isinstance(argument, Constant):
        return 0 if argument.tensor.dim() else 1
    if isinstance(argument, Value) and isinstance(argument.type, TensorType):
        return 0 if argument.type.rank else 1
    return 2


def _outranking(higher: torch.dtype | None, lower: torch.dtype | None) -> torch.dtype | None:
    if higher is None or lower is None:
        return higher or lower
    keeps = higher.is_floating_point or not (lower.is_floating_point or higher is torch.bool)
    return higher if keeps else _joined(higher, lower)


def _joined(a: torch.dtype | None, b: torch.dtype | None) -> torch.dtype | None:
    return a or b if a is None or b is None else torch.promote_types(a, b)
