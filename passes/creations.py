"""Clean-up of filled tensors, so that they keep nothing alive that they only look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rewright.ir import Arg, Node, TensorType, op
from rewright.passes.sweep import Producer

# What fills the tensor: a number, or the name of the argument that holds it.
LIKE: Final[Mapping[str, int | str]] = {
    "aten.zeros_like.default": 0,
    "aten.ones_like.default": 1,
    "aten.full_like.default": "fill_value",
    "aten.new_zeros.default": 0,
    "aten.new_ones.default": 1,
    "aten.new_full.default": "fill_value",
}


def full_like(node: Node, producer: Producer) -> Node | None:
    """full_like(x, 1), new_full(x, shape, 1) -> full(shape, 1), when that has the same strides."""
    type = node.result.type
    if not isinstance(type, TensorType) or type.strides is not None or node.kwarg("pin_memory"):
        return None
    filler = LIKE[node.op.name]
    value: Arg = node.arg(filler) if isinstance(filler, str) else filler
    kwargs: tuple[tuple[str, Arg], ...] = (("device", type.device), ("dtype", type.dtype))
    return Node(
        op=op("aten.full.default"),
        args=(type.shape, value),
        kwargs=kwargs,
        results=node.results,
        loc=node.loc,
        seq_nr=node.seq_nr,
        phase=node.phase,
    )
