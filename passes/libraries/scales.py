"""Scales and shifts of what convolutions and products give, taken into their weights and biases.

A batch norm in inference is one of each a channel. Sums are rounded otherwise then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Final

from rewright.ir import Arg, Graph, Node, Size, Value, equal, fresh_names
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.images import CONVOLUTION
from rewright.passes.libraries.products import PLACES, factors, torchs_call

_SCALED: Final = ("aten.mul.Tensor", "aten.add.Tensor", "aten.sub.Tensor")


def take_in(graph: Graph, frozen: Collection[Value]) -> Graph:
    """The graph in which frozen weights and biases have taken in the frozen scales and shifts that
    follow; the very one when there are none."""
    fresh = fresh_names(v.name for v in graph.values)
    replaced: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.name not in replaced and _is_ours(node, frozen):
            chain = _followers(node, graph, frozen)
            if any(n.op.name in _SCALED for n in chain):
                replaced |= {n.name: [] for n in (node, *chain)}
                replaced[chain[-1].name] = _taken(node, chain, Emitter(fresh, node))
    if not replaced:
        return graph
    return graph.with_nodes(n for node in graph.nodes for n in replaced.get(node.name, [node]))


def _parts(node: Node) -> tuple[Arg, Arg, Arg]:
    """What is multiplied, the weight, the bias."""
    if node.op.name == CONVOLUTION:
        return node.args[0], node.args[1], node.args[2]
    return factors(node)


def _is_ours(node: Node, frozen: Collection[Value]) -> bool:
    """A convolution or product whose weight, and bias if it has one, are frozen."""
    if node.op.name == CONVOLUTION:
        if node.arg("transposed"):
            return False
    elif node.op.name not in PLACES or node.kwargs:
        return False
    left, weight, bias = _parts(node)
    if bias is not None and not (isinstance(bias, Value) and len(bias.tensor.shape) == 1):
        return False
    return left not in frozen and weight in frozen and (bias is None or bias in frozen)


def _channel(node: Node) -> int:
    """Which dimension of the result the weight decides."""
    return 1 if node.op.name == CONVOLUTION else -1


def _followers(node: Node, graph: Graph, frozen: Collection[Value]) -> Sequence[Node]:
    """Scales, shifts, and views between them that keep the channels last, as far as each is all
    that reads the one before; none after the last scale or shift."""
    found: list[Node] = []
    ends, last = 0, node
    while True:
        value = last.result
        readers = graph.readers.get(value, ())
        if len(readers) != 1 or value in graph.returned or len(readers[0].results) != 1:
            return found[:ends]
        (reader,) = readers
        found.append(reader)
        last = reader
        if _is_scaled(reader, value, _channel(node), frozen):
            ends = len(found)
        elif not (_channel(node) == -1 and _keeps_last(reader, value)):
            return found[:ends]


def _keeps_last(node: Node, value: Value) -> bool:
    if node.op.name not in ("aten.view.default", "aten._unsafe_view.default"):
        return False
    before, after = value.tensor.shape, node.result.tensor.shape
    return len(after) > 0 and equal(before[-1], after[-1])


def _is_scaled(node: Node, value: Value, channel: int, frozen: Collection[Value]) -> bool:
    if node.op.name not in _SCALED or node.kwargs or node.result.type != value.type:
        return False
    if value not in node.args or (node.op.name == "aten.sub.Tensor" and node.args[0] != value):
        return False
    other = _other(node, value)
    if not isinstance(other, Value) or other not in frozen:
        return False
    shape, of = value.tensor.shape, other.tensor
    sizes = (1,) * (len(shape) - len(of.shape)) + of.shape
    wanted: list[Size] = [1] * len(shape)
    wanted[channel] = shape[channel]
    return of.dtype == value.tensor.dtype and len(sizes) == len(shape) and sizes == tuple(wanted)


def _other(node: Node, value: Arg) -> Arg:
    return node.args[1] if node.args[0] == value else node.args[0]


def _taken(node: Node, chain: Sequence[Node], emit: Emitter) -> list[Node]:
    """The node with scales and shifts in its weight and bias, then the views of the chain."""
    left, weight, bias = _parts(node)
    channels = node.result.tensor.shape[_channel(node)]
    value, views = node.result, []
    for each in chain:
        if each.op.name in _SCALED:
            vector = emit("aten.view.default", _other(each, value), (channels,))
            weight, bias = _changed(each.op.name, weight, bias, vector, node, emit)
        else:
            views.append(each)
        value = each.result
    if node.op.name == CONVOLUTION:
        again = dataclasses.replace(node, args=(left, weight, bias, *node.args[3:]))
    else:
        called, args = torchs_call(left, weight, bias)
        again = dataclasses.replace(node, op=called, args=args)
    last = [again, *views]
    last[-1] = dataclasses.replace(last[-1], results=chain[-1].results)
    # A view reads what the one before it makes, which is as it was but for the last.
    return [*emit.nodes, *last]


def _changed(
    name: str, weight: Arg, bias: Arg, vector: Value, node: Node, emit: Emitter
) -> tuple[Arg, Arg]:
    if name != "aten.mul.Tensor":
        if bias is not None:
            return weight, emit(name, bias, vector)
        return weight, vector if name == "aten.add.Tensor" else emit("aten.neg.default", vector)
    factor = vector
    if node.op.name == CONVOLUTION:
        assert isinstance(weight, Value)
        ones = (1,) * (len(weight.tensor.shape) - 1)
        factor = emit("aten.view.default", vector, (vector.tensor.shape[0], *ones))
    scaled = emit("aten.mul.Tensor", weight, factor)
    return scaled, None if bias is None else emit(name, bias, vector)
