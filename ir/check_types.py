"""Whether a text tells the truth about types: each operator is asked, on tensors without data.

A graph that torch made is right by construction; one written by hand may declare a result that its
operator does not give, and a kernel would then read memory that is not there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from rewright.ir.dims import Dim, Size, evaluate
from rewright.ir.fault import Fault
from rewright.ir.graph import Arg, Graph, Node, Value, map_leaves
from rewright.ir.show import show_type
from rewright.ir.signature import result_paths
from rewright.ir.types import ScalarType, TensorType

# What stands for a size of which nothing is known.
_SOME_SIZE = 8


def check_types(graph: Graph) -> None:
    """Raises CheckError at the first node whose arguments do not fit, or whose results are not of
    the types it declares. Symbolic sizes are tried at their hints."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    sizes = {s.name: _SOME_SIZE if s.hint is None else s.hint for s in graph.symbols}
    with FakeTensorMode(), torch.no_grad(), _quiet():
        for node in graph.nodes:
            if node.op.namespace in ("rw", "hop", "py") or node.op.target is None:
                continue
            try:
                _check(node, sizes)
            except Fault as fault:
                raise fault.located(graph) from None


def _check(node: Node, sizes: Mapping[str, int]) -> None:
    assert node.op.target is not None
    args = [map_leaves(arg, lambda a: _stand_in(a, sizes)) for arg in node.args]
    kwargs = {k: map_leaves(arg, lambda a: _stand_in(a, sizes)) for k, arg in node.kwargs}
    try:
        returned = node.op.target(*args, **kwargs)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Fault(f"the arguments of {node.op} do not fit: {reason}", node) from None
    for value, path in zip(node.results, result_paths(node), strict=True):
        found: Any = returned
        for key in path:
            found = found[key]
        if isinstance(value.type, TensorType) and isinstance(found, torch.Tensor):
            _compare(node, value, value.type, found, sizes)


def _compare(
    node: Node, value: Value, type: TensorType, found: torch.Tensor, sizes: Mapping[str, int]
) -> None:
    given = TensorType(found.dtype, tuple(found.shape), tuple(found.stride()), found.device)
    strides = zip(found.shape, found.stride(), _ints(type.layout, sizes), strict=False)
    same = (
        found.dtype == type.dtype
        and tuple(found.shape) == _ints(type.shape, sizes)
        and all(size < 2 or stride == wanted for size, stride, wanted in strides)
    )
    if not same:
        wanted = f"%{value.name} is declared {show_type(type)}"
        raise Fault(f"{wanted}, and {node.op} gives {show_type(given)}", node, value.name)


def _stand_in(arg: Arg, sizes: Mapping[str, int]) -> object:
    if isinstance(arg, Dim):
        return evaluate(arg, sizes)
    if not isinstance(arg, Value):
        return arg
    if isinstance(arg.type, TensorType):
        type = arg.type
        shape, strides = _ints(type.shape, sizes), _ints(type.layout, sizes)
        return torch.empty_strided(shape, strides, dtype=type.dtype, device=type.device)
    if isinstance(arg.type, ScalarType):
        return 1 if arg.type.dim is None else evaluate(arg.type.dim, sizes)
    return None


def _ints(sizes: tuple[Size, ...], values: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(size, values) for size in sizes)


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs what it is about to raise."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled
