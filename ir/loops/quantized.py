"""A linear layer on quantized weights, as its kernel is told about it."""

from __future__ import annotations

from dataclasses import dataclass

from rewright.ir.dims import Size
from rewright.ir.graph import Node
from rewright.ir.loops.nest import Buffer


@dataclass(frozen=True)
class QuantizedNest:
    """One kernel: x [rows, depth] times a packed weight [columns, depth], in `format`."""

    name: str
    format: str
    rows: Size
    columns: Size
    depth: Size
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    node: str

    def origins(self) -> tuple[str, ...]:
        return (self.node,)


def lower_quantized(node: Node, name: str) -> QuantizedNest:
    """What the kernel of an `rw.quantized_linear` computes."""
    body = node.graph("body")
    inputs = tuple(Buffer(i.value.name, i.value.tensor) for i in body.inputs)
    x = inputs[0].type
    format = node.kwarg("format")
    assert isinstance(format, str)
    outputs = (Buffer("y", node.result.tensor),)
    rows, depth = x.shape
    columns = node.result.tensor.shape[1]
    return QuantizedNest(name, format, rows, columns, depth, inputs, outputs, node.name)
