"""Whether a text tells the truth about types: each operator is asked, on tensors without data.

A graph that torch made is right by construction; one written by hand may declare a result that its
operator does not give, and a kernel would then read memory that is not there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rewright.ir.ask_torch import as_ints, asked, some_sizes, without_data
from rewright.ir.fault import Fault
from rewright.ir.graph import Graph, Node, Value
from rewright.ir.show import show_type
from rewright.ir.types import TensorType


def check_types(graph: Graph) -> None:
    """Raises CheckError at the first node whose arguments do not fit, or whose results are not of
    the types it declares. Symbolic sizes are tried at their hints."""
    sizes = some_sizes(graph)
    with without_data():
        for node in graph.nodes:
            if node.op.namespace in ("rw", "hop", "py") or node.op.target is None:
                continue
            try:
                _check(node, sizes)
            except Fault as fault:
                raise fault.located(graph) from None


def _check(node: Node, sizes: Mapping[str, int]) -> None:
    try:
        returned = asked(node, sizes)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Fault(f"the arguments of {node.op} do not fit: {reason}", node) from None
    for value, found in zip(node.results, returned, strict=True):
        if isinstance(value.type, TensorType) and isinstance(found, torch.Tensor):
            _compare(node, value, value.type, found, sizes)


def _compare(
    node: Node, value: Value, type: TensorType, found: torch.Tensor, sizes: Mapping[str, int]
) -> None:
    given = TensorType(found.dtype, tuple(found.shape), tuple(found.stride()), found.device)
    strides = zip(found.shape, found.stride(), as_ints(type.layout, sizes), strict=False)
    same = (
        found.dtype == type.dtype
        and tuple(found.shape) == as_ints(type.shape, sizes)
        and all(size < 2 or stride == wanted for size, stride, wanted in strides)
    )
    if not same:
        wanted = f"%{value.name} is declared {show_type(type)}"
        raise Fault(f"{wanted}, and {node.op} gives {show_type(given)}", node, value.name)
