"""A convolution with what follows it, as its kernel is told about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from rewright.ir.dims import Size, hint
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Graph, Input, Node, Value
from rewright.ir.loops.lower import lower
from rewright.ir.loops.nest import Apply, Buffer, Let, Number, Ref, Store
from rewright.ir.types import TensorType, is_channels_last

_CALL: Final = "aten.convolution.default"
# Filters that lie together in a packed weight, f32 [filters / 16, height, width, channels, 16].
FILTER_STEP: Final = 16
SUM: Final = "sum"


@dataclass(frozen=True)
class ConvolutionNest:
    """One kernel: images [batch, height, width, channels] by packed filters that see `window`
    (height, width) of them, `stride` apart, with margins of `padding`; a bias [filters] where there
    is one; `epilogue` computes `result` of `SUM` and of the other operands' elements at its place.
    """

    name: str
    images: TensorType
    results: TensorType
    window: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    depthwise: bool
    bias: str | None
    epilogue: tuple[Let, ...]
    result: Ref
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    nodes: tuple[str, ...]

    def origins(self) -> tuple[str, ...]:
        return self.nodes


def lower_convolution(body: Graph, name: str) -> ConvolutionNest:
    """What the kernel of an `rw.convolution` computes: its body unpacks a weight, slides it over
    images and applies elementwise operators to the result.

    Raises UnsupportedError with a sentence saying what stands in the way.
    """
    found = [n for n in body.nodes if n.op.name == _CALL]
    if len(found) != 1:
        raise UnsupportedError("its body is not one convolution and what follows it")
    (node,) = found
    images, bias = node.args[0], node.args[2]
    assert isinstance(images, Value) and (bias is None or isinstance(bias, Value))
    why = _obstacle(node)
    if why is not None:
        raise UnsupportedError(why)
    following = body.nodes[body.nodes.index(node) + 1 :]
    statements, result = _epilogue(body, node.result, following)
    weight = node.args[1]
    assert isinstance(weight, Value)
    height, width = map(hint, weight.tensor.shape[2:])
    return ConvolutionNest(
        name,
        images.tensor,
        node.result.tensor,
        (height, width),
        _pair(node, "stride"),
        _pair(node, "padding"),
        hint(weight.tensor.shape[1]) == 1 and node.arg("groups") != 1,
        None if bias is None else bias.name,
        statements,
        result,
        tuple(Buffer(i.value.name, i.value.tensor) for i in body.inputs),
        (Buffer("y", node.result.tensor),),
        tuple(n.name for n in (node, *following)),
    )


def _obstacle(node: Node) -> str | None:
    """Why a convolution has no kernel of ours, or None."""
    images, weight, bias = node.args[:3]
    assert isinstance(images, Value) and isinstance(weight, Value)
    result = node.result.tensor
    if len(result.shape) != 4 or any(t.dtype != torch.float32 for t in (images.tensor, result)):
        return "kernels of ours are for images of f32"
    if not is_channels_last(images.tensor) or not is_channels_last(result):
        return "kernels of ours are for images that lie channels last"
    if node.arg("transposed") or set(_pair(node, "dilation")) != {1}:
        return "kernels of ours have no gaps between what a filter sees"
    sizes = (*images.tensor.shape[1:], *weight.tensor.shape, *result.shape[1:])
    if not all(isinstance(size, int) for size in sizes):
        return "kernels of ours are for sizes that are known"
    if any(size == 0 for size in (*images.tensor.shape, *sizes)):
        return "kernels of ours are for images that are not empty"
    if isinstance(bias, Value) and not is_bias(bias.tensor):
        return "kernels of ours are for a bias of f32 that lies in one piece"
    groups, filters, channels = node.arg("groups"), result.shape[1], images.tensor.shape[1]
    if groups != 1 and not groups == filters == channels:
        return "kernels of ours are for one group, or one for each channel"
    return None


def is_bias(type: TensorType) -> bool:
    """True for a bias that kernels, and oneDNN, read as neighbouring numbers."""
    return type.dtype == torch.float32 and type.rank == 1 and type.is_contiguous


def filter_steps(filters: Size) -> int:
    """Steps of a packed weight."""
    return -(-hint(filters) // FILTER_STEP)


def _pair(node: Node, name: str) -> tuple[int, int]:
    pair = node.arg(name)
    assert isinstance(pair, tuple) and len(pair) == 2
    down, across = pair
    assert isinstance(down, int) and isinstance(across, int)
    return down, across


def _epilogue(body: Graph, made: Value, following: Sequence[Node]) -> tuple[tuple[Let, ...], Ref]:
    """Elementwise operators on an image, as statements on one of its elements."""
    (output,) = body.outputs
    assert isinstance(output, Value)
    line = TensorType(torch.float32, (FILTER_STEP,), None, made.tensor.device)
    flat = {made: Value(SUM, line)}
    for value in (v for node in following for v in (*node.operands, *node.results)):
        if value != made and value.type != made.type:
            raise UnsupportedError(f"%{value.name} is no image like the result")
        flat.setdefault(value, Value(value.name, line))
    nodes = tuple(
        dataclasses.replace(n.replace(flat), results=tuple(flat[v] for v in n.results))
        for n in following
    )
    made_there = {v for n in nodes for v in n.results}
    inputs = tuple(Input(v) for v in flat.values() if v not in made_there)
    nest = lower(Graph("epilogue", inputs, nodes, (flat[output],)), "epilogue")
    statements = tuple(nest.statements())
    stores = [s for s in statements if isinstance(s, Store)]
    if len(stores) != 1 or len(nest.rows) != 1 or nest.order is not None:
        raise UnsupportedError("what follows it is not elementwise")
    return tuple(_by_factor(s) for s in statements if isinstance(s, Let)), stores[0].value


def _by_factor(let: Let) -> Let:
    """A statement that multiplies instead of dividing by a number, which takes a tenth of it."""
    match let.term:
        case Apply("div", (left, Number(value=int() | float() as number)), dtype) if number:
            factor = Number(1 / number, dtype)
            return dataclasses.replace(let, term=Apply("mul", (left, factor), dtype))
    return let
