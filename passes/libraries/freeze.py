"""Weights as they are best used: computed of parameters once, and packed by the library."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from rewright.costmodel import show_seconds
from rewright.ir import (
    Effect,
    Graph,
    Input,
    Kind,
    Node,
    TensorType,
    Value,
    effect_of,
    fresh_names,
    hint,
    op,
    storage_roots,
)
from rewright.ir.loops import is_bias, needed_nodes
from rewright.ir.onednn import CONVOLUTION as PACKED_CONVOLUTION
from rewright.ir.onednn import LINEAR, PACK_CONVOLUTION, PACK_LINEAR, PLAIN, TO_MKLDNN, is_available
from rewright.ir.types import is_channels_last
from rewright.passes.base import Env, Pass
from rewright.passes.dce import split_dead
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.images import CONVOLUTION, images_of
from rewright.passes.libraries.products import (
    LEAST_WORK,
    PLACES,
    Product,
    contestants,
    factors,
    product_of,
)
from rewright.passes.libraries.scales import take_in

# Inputs of a graph that stay the same from call to call.
_LASTING: Final = ("param", "buffer")


@dataclass(frozen=True)
class Freeze(Pass, name="freeze", takes="aten", gives="aten"):
    """Compute once what depends on parameters only; take scales and shifts that follow into
    weights; have oneDNN pack the weights of convolutions, and of products that are quicker then.

    before:
        graph f(%x: f32[4, 3], %w: f32[3, 5] param, %s: f32[5] param) {
          %e = aten.exp.default(%s) : f32[5]
          %a = aten.mm.default(%x, %w) : f32[4, 5]
          %b = aten.mul.Tensor(%a, %e) : f32[4, 5]
          return %b
        }
    after:
        graph f(%x: f32[4, 3], %w: f32[3, 5] param, %s: f32[5] param) {
          %a_2 = rw.frozen(%w, %s) body(%w: f32[3, 5], %s: f32[5]) {
            %e = aten.exp.default(%s) : f32[5]
            %a_1 = aten.view.default(%e, [5]) : f32[5]
            %a_2 = aten.mul.Tensor(%w, %a_1) : f32[3, 5]
            return %a_2
          } : f32[3, 5]
          %b = aten.mm.default(%x, %a_2) : f32[4, 5]
          return %b
        }

    Parameters and buffers may change all the same: whatever a call finds to be another tensor, or
    written to, is computed again then. Results are rounded otherwise in their last bits.

    Refuses: inputs that the graph updates; what leaves the graph; what has an effect.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        if not any(i.role in _LASTING for i in graph.inputs):
            return graph
        scaled = take_in(graph, frozen_values(graph))
        packed = _packed(scaled, env)
        split = split_frozen(packed)
        return graph if split is graph else self.gave(split, {})


def frozen_values(graph: Graph) -> set[Value]:
    """Parameters that stay, and what is computed of them, and constants, alone."""
    updated = {target for target, _ in graph.updates}
    found = {i.value for i in graph.inputs if i.role in _LASTING and i.value not in updated}
    constants = {v for n in graph.nodes if n.op.name == "rw.constant" for v in n.results}
    for node in graph.nodes:
        rest = [v for v in node.operands if v not in constants]
        if rest and all(v in found for v in rest) and _may_freeze(node):
            found |= set(node.results)
    return found


def _may_freeze(node: Node) -> bool:
    return (
        effect_of(node) is Effect.NONE
        and not node.graphs
        and all(isinstance(v.type, TensorType) for v in node.results)
    )


# --- packing ------------------------------------------------------------------------------------


def _packed(graph: Graph, env: Env) -> Graph:
    """Convolutions, and products that are quicker so, on weights that oneDNN has packed."""
    frozen = frozen_values(graph)
    fresh = fresh_names(v.name for v in graph.values)
    nodes: list[Node] = []
    for node in graph.nodes:
        emit = Emitter(fresh, node)
        if node.op.name == CONVOLUTION and _can_pack(node, frozen):
            _convolution(node, emit)
        elif node.op.name in PLACES and factors(node)[1] in frozen and _pays(node, env):
            _product(node, emit)
        else:
            nodes.append(node)
            continue
        emit.end_in(node.result)
        nodes += emit.nodes
    return graph.with_nodes(nodes) if len(nodes) > len(graph.nodes) else graph


def _can_pack(node: Node, frozen: set[Value]) -> bool:
    images, bias = images_of(node), node.args[2]
    return (
        is_available()
        and len(images) == 1
        and images[0].dtype == torch.float32
        and is_channels_last(images[0])
        and is_channels_last(node.result.tensor)
        and (not node.result.tensor.is_contiguous or _is_pixel(node.result.tensor))
        and node.args[1] in frozen
        and (bias is None or (isinstance(bias, Value) and is_bias(bias.tensor)))
    )


def _is_pixel(image: TensorType) -> bool:
    """True for images of one pixel, as of what squeezes and excites: these lie in both ways."""
    return image.shape[2:] == (1, 1)


def _convolution(node: Node, emit: Emitter) -> None:
    image, weight, bias, stride, padding, dilation, _, _, groups = node.args
    assert isinstance(image, Value)
    sizes = tuple(hint(s) for s in image.tensor.shape)
    plain = emit(TO_MKLDNN, weight)
    packed = emit(PACK_CONVOLUTION, plain, padding, stride, dilation, groups, sizes)
    how = padding, stride, dilation, groups
    made = emit(PACKED_CONVOLUTION, image, packed, bias, *how, *PLAIN)
    if made.type != node.result.type:  # one pixel: a view of the same shape would keep the strides
        shape = node.result.tensor.shape
        emit("aten.view.default", emit("aten.view.default", made, shape[:2]), shape)


def _product(node: Node, emit: Emitter) -> None:
    left, right, bias = factors(node)
    assert isinstance(left, Value)
    weight = emit("aten.permute.default", right, (1, 0))
    rows = hint(left.tensor.shape[0])
    emit(LINEAR, left, emit(PACK_LINEAR, weight, rows), bias, *PLAIN)


def _pays(node: Node, env: Env) -> bool:
    """True when a product is quicker on packed weights, measured."""
    product = product_of(node)
    if env.tools is None or product is None or product.work < LEAST_WORK or not is_available():
        return False
    part = product.cut()
    usual, plain = contestants(part)
    found = env.tools.race([usual, plain, _on_packed(part)])
    if found is None:
        return False
    if found[2] <= min(found[:2]):
        return True
    took = f"packed it takes {show_seconds(found[2])}, else {show_seconds(min(found[:2]))}"
    env.log.refuse(Freeze.name, node.name, took)
    return False


def _on_packed(product: Product) -> Graph:
    """oneDNN's call on a weight that is packed once."""
    _, plain = contestants(product)
    weight = Input(plain.inputs[1].value, "param")
    inputs = (plain.inputs[0], weight, *plain.inputs[2:])
    (call,) = plain.nodes
    emit = Emitter(fresh_names(v.name for v in plain.values), call)
    packed = emit(PACK_LINEAR, weight.value, product.m)
    call = call.replace({weight.value: packed})
    return split_frozen(dataclasses.replace(plain, inputs=inputs, nodes=(*emit.nodes, call)))


# --- parting ------------------------------------------------------------------------------------


def split_frozen(graph: Graph) -> Graph:
    """The graph with what is computed of parameters alone in one `rw.frozen`; the very one when
    that is nothing but views."""
    frozen = frozen_values(graph)
    inside = [n for n in graph.nodes if n.results and frozen.issuperset(n.results)]
    hoisted = [n for n in _computed(inside, graph) if _is_read(n, graph, frozen)]
    if not hoisted:
        return graph
    results = tuple(v for n in hoisted for v in n.results)
    there = {n.name for n in inside}
    known = [n for n in graph.nodes if n.name in there or n.op.name == "rw.constant"]
    needed = needed_nodes(known, results)
    made = {v for n in needed for v in n.results}
    read = {v for n in needed for v in n.operands} - made
    operands = tuple(i.value for i in graph.inputs if i.value in read)
    body = Graph("body", tuple(map(Input, operands)), tuple(needed), results)
    outer = Node(op("rw.frozen"), operands, (), results, (("body", body),))
    names = {n.name for n in hoisted}
    rest = graph.with_nodes((outer, *(n for n in graph.nodes if n.name not in names)))
    return rest.with_nodes(split_dead(rest)[0])


def _computed(inside: Sequence[Node], graph: Graph) -> list[Node]:
    """Nodes whose results are more than views of parameters, and stay in the graph."""
    roots = storage_roots(graph)
    leaving = {roots[v] for v in graph.returned}
    found: list[Node] = []
    computed: set[Value] = set()
    for node in inside:
        if node.op.kind is not Kind.VIEW or not computed.isdisjoint(node.operands):
            computed |= set(node.results)
            if leaving.isdisjoint(roots[v] for v in node.results):
                found.append(node)
    return found


def _is_read(node: Node, graph: Graph, frozen: Collection[Value]) -> bool:
    """True when something reads a result that is not frozen itself."""
    readers = (r for v in node.results for r in graph.readers.get(v, ()))
    return any(not all(v in frozen for v in r.results) or not r.results for r in readers)
