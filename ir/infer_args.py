"""Arguments of nodes as rules of `infer` read them, and the types that these make."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewright.ir.dims import Dim, Size
from rewright.ir.errors import CheckError
from rewright.ir.graph import Arg, Node, Value
from rewright.ir.types import TensorType, Type


def tensor_at(node: Node, place: int) -> TensorType:
    value = node.args[place] if place < len(node.args) else None
    if not isinstance(value, Value):
        raise CheckError(f"argument {place} of {node.op} is not a tensor")
    return value.tensor


def sizes_at(node: Node, name: str) -> tuple[Size, ...]:
    found = node.arg(name)
    if not isinstance(found, tuple) or not all(isinstance(s, (int, Dim)) for s in found):
        raise CheckError(f"'{name}' of {node.op} is not a list of sizes")
    return found  # type: ignore[return-value]


def dims_at(node: Node, name: str, rank: int) -> tuple[int, ...]:
    """Dimensions, counted from the front; all of them for None or an empty list."""
    found = node.arg(name)
    listed = (found,) if isinstance(found, int) else found or tuple(range(rank))
    assert isinstance(listed, tuple)
    return tuple(dim_at(d, rank) for d in listed)


def dim_at(dim: Arg, rank: int) -> int:
    if not isinstance(dim, int) or not -max(rank, 1) <= dim < max(rank, 1):
        raise CheckError(f"there is no dimension {dim} among {rank}")
    return dim % rank if rank else 0


def moving_dim(dim: Arg, rank: int) -> int:
    """A dimension that is there: a tensor without any has none to cut."""
    if not rank:
        raise CheckError("a tensor without dimensions cannot be cut")
    return dim_at(dim, rank)


def strided(x: TensorType, shape: Sequence[Size], strides: Sequence[Size]) -> tuple[Type, ...]:
    return (TensorType(x.dtype, tuple(shape), tuple(strides), x.device),)


def fresh(
    x: TensorType, shape: Sequence[Size], dtype: torch.dtype | None = None
) -> tuple[Type, ...]:
    return (TensorType(dtype or x.dtype, tuple(shape), None, x.device),)
