"""What torch says an operator gives, asked on tensors without data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from rewright.ir.dims import Dim, Size, evaluate
from rewright.ir.graph import Arg, Graph, Node, Value, map_leaves
from rewright.ir.signature import result_paths
from rewright.ir.types import ScalarType, TensorType

# What stands for a size of which nothing is known.
_SOME_SIZE = 8


@contextmanager
def without_data() -> Iterator[None]:
    """Inside, operators are asked and not run, and torch does not log what it is about to raise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        with FakeTensorMode(), torch.no_grad():
            yield
    finally:
        logger.disabled = disabled


def some_sizes(graph: Graph) -> Mapping[str, int]:
    """A value for each symbol: its hint."""
    return {s.name: _SOME_SIZE if s.hint is None else s.hint for s in graph.symbols}


def asked(node: Node, sizes: Mapping[str, int]) -> list[Any]:
    """What stands for each result of a node, where symbols have the values `sizes`.

    Raises IndexError, RuntimeError, TypeError or ValueError for arguments that do not fit.
    """
    assert node.op.target is not None
    args = [map_leaves(arg, lambda a: _stand_in(a, sizes)) for arg in node.args]
    kwargs = {k: map_leaves(arg, lambda a: _stand_in(a, sizes)) for k, arg in node.kwargs}
    returned = node.op.target(*args, **kwargs)
    found = []
    for path in result_paths(node):
        result: Any = returned
        for key in path:
            result = result[key]
        found.append(result)
    return found


def _stand_in(arg: Arg, sizes: Mapping[str, int]) -> object:
    if isinstance(arg, Dim):
        return evaluate(arg, sizes)
    if not isinstance(arg, Value):
        return arg
    if isinstance(arg.type, TensorType):
        type = arg.type
        shape, strides = as_ints(type.shape, sizes), as_ints(type.layout, sizes)
        return torch.empty_strided(shape, strides, dtype=type.dtype, device=type.device)
    if isinstance(arg.type, ScalarType):
        return 1 if arg.type.dim is None else evaluate(arg.type.dim, sizes)
    return None


def as_ints(sizes: tuple[Size, ...], values: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(size, values) for size in sizes)
