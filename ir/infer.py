"""Types of results from types of arguments, for operators that rewriting makes.

torch says the same of any operator, on tensors without data and with a shape environment; that
takes a tenth of a millisecond and more a call, and rewriting asks thousands of times. Strides are
those that eager mode gives. The rules for single operators stand in `infer_rules.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, Final

import torch

from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Size, equal, hint
from rewright.ir.errors import CheckError, UnsupportedError
from rewright.ir.graph import Arg, Node, Value, leaves
from rewright.ir.ops import Op
from rewright.ir.pointwise import POINTWISE
from rewright.ir.types import (
    CPU,
    ScalarType,
    TensorType,
    Type,
    channels_last_strides,
    contiguous_strides,
    is_dense,
)

Rule = Callable[[Node], tuple[Type, ...]]


def infer(node: Node) -> tuple[Type, ...]:
    """The types of a node's results; the node need not have any yet.

    Raises UnsupportedError when there is no rule for the operator, CheckError when its arguments
    do not fit.
    """
    if node.op.name in POINTWISE:
        return (_pointwise(node),)
    from rewright.ir.infer_rules import RULES

    rule = RULES.get(node.op.name)
    if rule is None:
        raise UnsupportedError(f"no rule says what {node.op} gives", who="infer")
    return rule(node)


def can_infer(op: Op) -> bool:
    from rewright.ir.infer_rules import RULES

    return op.name in POINTWISE or op.name in RULES


# --- elementwise operators ----------------------------------------------------------------------


def _pointwise(node: Node) -> TensorType:
    tensors = [t for t in map(_tensor, _arguments(node)) if t is not None]
    if not tensors:
        raise CheckError(f"{node.op} has no tensor among its arguments")
    shape = broadcast_shape([t.shape for t in tensors])
    dtype = result_dtype(node)
    device = next((t.device for t in tensors if t.rank), tensors[0].device)
    wanted = node.kwarg("memory_format")
    if wanted is torch.channels_last and len(shape) == 4:
        return TensorType(dtype, shape, channels_last_strides(shape), device)
    is_row_major = node.op.name in _ROW_MAJOR or wanted in _ROW_MAJOR
    strides = None if is_row_major else elementwise_strides(tensors, shape)
    return TensorType(dtype, shape, strides, device)


# What makes eager mode forget the strides of its operands.
_ROW_MAJOR: Final = frozenset(
    {"aten.masked_fill.Scalar", "aten.masked_fill.Tensor", torch.contiguous_format}
)


def broadcast_shape(shapes: Sequence[tuple[Size, ...]]) -> tuple[Size, ...]:
    """The shape that all of them expand to. Raises CheckError when there is none."""
    found: list[Size] = [1] * max(map(len, shapes))
    for shape in shapes:
        for d, size in enumerate(shape, len(found) - len(shape)):
            if found[d] == 1:
                found[d] = size
            elif size != 1 and not equal(size, found[d]):
                raise CheckError(f"sizes {found[d]} and {size} do not broadcast")
    return tuple(found)


def elementwise_strides(
    tensors: Sequence[TensorType], shape: tuple[Size, ...]
) -> tuple[Size, ...] | None:
    """Strides of a new tensor computed element by element from `tensors`: dense, its dimensions in
    the order that they have in the operands (torch's TensorIterator); None: row-major."""
    tensors = [t for t in tensors if t.rank]
    if len(shape) < 2 or all(t.strides is None for t in tensors):
        return None
    first = tensors[0]
    if is_dense(first) and all((t.shape, t.layout) == (first.shape, first.layout) for t in tensors):
        return first.strides if first.shape == shape else None
    if all(t.is_contiguous for t in tensors):
        return None
    order = _memory_order([_expanded(t, shape) for t in tensors], shape)
    dense = contiguous_strides(tuple(shape[d] for d in order))
    return tuple(dense[order.index(d)] for d in range(len(shape)))


def _expanded(type: TensorType, shape: tuple[Size, ...]) -> tuple[int, ...]:
    """Strides of a tensor broadcast to `shape`, as numbers; 0 where it says nothing."""
    missing = len(shape) - type.rank
    own = zip(type.shape, type.layout, strict=True)
    moving = [0 if s == 1 and shape[missing + d] != 1 else hint(t) for d, (s, t) in enumerate(own)]
    return (*[0] * missing, *moving)


def _memory_order(strides: Sequence[tuple[int, ...]], shape: tuple[Size, ...]) -> list[int]:
    """Dimensions, outermost in memory first; those that no operand orders stay in their order."""

    def moves_inwards(outer: int, inner: int) -> int:
        for own in strides:
            a, b = own[outer], own[inner]
            if a == 0 or b == 0:
                continue
            if a != b:
                return -1 if a < b else 1
            if hint(shape[outer]) > hint(shape[inner]):
                return 1
        return 0

    order = list(reversed(range(len(shape))))
    for start in range(1, len(order)):
        place = start
        for before in reversed(range(start)):
            found = moves_inwards(order[before], order[place])
            if found > 0:
                order[before], order[place] = order[place], order[before]
                place = before
            elif found < 0:
                break
    return list(reversed(order))


# --- dtypes -------------------------------------------------------------------------------------


def result_dtype(node: Node) -> torch.dtype:
    """The dtype of an elementwise result: torch is asked once for each combination of dtypes."""
    args = tuple(_kind(a) for a in node.args)
    kwargs = tuple((name, _kind(a)) for name, a in node.kwargs if name not in _NOT_NUMBERS)
    return _ask(node.op, args, kwargs, torch.get_default_dtype())


_NOT_NUMBERS: Final = frozenset({"device", "layout", "memory_format", "pin_memory", "non_blocking"})


def _kind(arg: Arg) -> Hashable:
    """What decides dtypes: of tensors the dtype and whether they have dimensions, of numbers the
    kind; anything else itself."""
    type = _tensor(arg)
    if type is not None:
        return ("tensor", type.dtype, type.rank > 0)
    if isinstance(arg, Dim):
        return ("number", int)
    if isinstance(arg, Value):
        assert isinstance(arg.type, ScalarType)
        return ("number", {"int": int, "float": float, "bool": bool}[arg.type.kind])
    if isinstance(arg, (bool, int, float, complex)):
        return ("number", arg.__class__)
    return ("plain", arg)


@cache
def _ask(
    op: Op,
    args: tuple[Hashable, ...],
    kwargs: tuple[tuple[str, Hashable], ...],
    default: torch.dtype,
) -> torch.dtype:
    assert op.target is not None
    try:
        returned = op.target(*map(_stand_in, args), **{k: _stand_in(a) for k, a in kwargs})
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckError(f"the arguments of {op} do not fit: {reason}") from None
    dtype: torch.dtype = returned.dtype
    return dtype


def _stand_in(kind: Any) -> object:
    if kind[0] == "tensor":
        return torch.empty([1] if kind[2] else [], dtype=kind[1], device="meta")
    return kind[1](1) if kind[0] == "number" else kind[1]


def _arguments(node: Node) -> tuple[Arg, ...]:
    return tuple(leaves((node.args, tuple(a for _, a in node.kwargs))))  # type: ignore[arg-type]


def _tensor(arg: Arg) -> TensorType | None:
    if isinstance(arg, Constant):
        return TensorType(arg.tensor.dtype, tuple(arg.tensor.shape), device=CPU)
    if isinstance(arg, Value) and isinstance(arg.type, TensorType):
        return arg.type
    return None
