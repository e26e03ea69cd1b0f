"""The pass that replaces attention and its gradient, both spelled out in a joint graph, by ATen's
operator and that one's gradient: what is kept between them are then no scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rewright.ir import (
    CheckError,
    Graph,
    Input,
    Node,
    TensorType,
    UnsupportedError,
    Value,
    fresh_names,
    hint,
    storage_roots,
    values_in,
)
from rewright.ir.interpret import interpret
from rewright.passes.attention.affine import NotAffine, affine_of
from rewright.passes.attention.gradient import Gradient, NotFound, gradient_of
from rewright.passes.attention.lower import FLASH, FLASH_BACKWARD, unit_stride
from rewright.passes.attention.region import Operands, shaped
from rewright.passes.attention.site import Site, sites
from rewright.passes.base import Env, Pass
from rewright.passes.dce import split_dead
from rewright.passes.emitter import Emitter
from rewright.passes.move import to_cpu

# Of gradients in float64, old against new, relative to their norm.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class AttentionPairs(Pass, name="attention-pairs", takes="aten", gives="aten"):
    """In a joint graph, replace attention and its gradient by ATen's fused operator and its
    gradient. The pair is compared with what it replaces, once, in float64, on random inputs.

    before:
        graph f(%q: f32[2, 3, 4], %k: f32[2, 4, 5], %v: f32[2, 5, 4], %g: f32[2, 3, 4] tangent) {
          %s = aten.bmm.default(%q, %k) : f32[2, 3, 5] forward
          %p = aten._softmax.default(%s, -1, false) : f32[2, 3, 5] forward
          %o = aten.bmm.default(%p, %v) : f32[2, 3, 4] forward
          %pt = aten.permute.default(%p, [0, 2, 1]) : f32[2, 5, 3] strides [15, 1, 5] backward
          %dv = aten.bmm.default(%pt, %g) : f32[2, 5, 4] backward
          %vt = aten.permute.default(%v, [0, 2, 1]) : f32[2, 4, 5] strides [20, 1, 4] backward
          %dp = aten.bmm.default(%g, %vt) : f32[2, 3, 5] backward
          %ds = aten._softmax_backward_data.default(%dp, %p, -1, f32) : f32[2, 3, 5] backward
          %qt = aten.permute.default(%q, [0, 2, 1]) : f32[2, 4, 3] strides [12, 1, 4] backward
          %dk = aten.bmm.default(%qt, %ds) : f32[2, 4, 5] backward
          %kt = aten.permute.default(%k, [0, 2, 1]) : f32[2, 5, 4] strides [20, 1, 5] backward
          %dq = aten.bmm.default(%ds, %kt) : f32[2, 3, 4] backward
          return %o, %dq, %dk, %dv
        }
    after:
        graph f(%q: f32[2, 3, 4], %k: f32[2, 4, 5], %v: f32[2, 5, 4], %g: f32[2, 3, 4] tangent) {
          %o_1 = aten.permute.default(%k, [0, 2, 1]) : f32[2, 5, 4] strides [20, 1, 5] forward
          %o_2 = aten.view.default(%q, [1, 2, 3, 4]) : f32[1, 2, 3, 4] forward
          %o_3 = aten.view.default(
            %o_1, [1, 2, 5, 4]
          ) : f32[1, 2, 5, 4] strides [40, 20, 1, 5] forward
          %o_4 = aten.view.default(%v, [1, 2, 5, 4]) : f32[1, 2, 5, 4] forward
          %o_5 = aten.clone.default(
            %o_3, memory_format=memory_format(contiguous)
          ) : f32[1, 2, 5, 4] forward
          %o_6, %o_7 = aten._scaled_dot_product_flash_attention_for_cpu.default(
            %o_2, %o_5, %o_4, scale=1.0
          ) : f32[1, 2, 3, 4] strides [24, 4, 8, 1], f32[1, 2, 3] strides [6, 1, 2] forward
          %o_8 = aten.clone.default(
            %o_6, memory_format=memory_format(contiguous)
          ) : f32[1, 2, 3, 4] forward
          %o = aten.view.default(%o_8, [2, 3, 4]) : f32[2, 3, 4] forward
          %dv_1 = aten.view.default(%g, [1, 2, 3, 4]) : f32[1, 2, 3, 4] backward
          %dv_2, %dv_3, %dv_4 = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(
            %dv_1, %o_2, %o_5, %o_4, %o_6, %o_7, 0.0, false, scale=1.0
          ) : f32[1, 2, 3, 4] strides [24, 4, 8, 1], f32[1, 2, 5, 4] strides [40, 4, 8, 1],
            f32[1, 2, 5, 4] strides [40, 4, 8, 1] backward
          %dv_5 = aten.clone.default(
            %dv_2, memory_format=memory_format(contiguous)
          ) : f32[1, 2, 3, 4] backward
          %dq = aten.view.default(%dv_5, [2, 3, 4]) : f32[2, 3, 4] backward
          %dv_7 = aten.permute.default(
            %dv_3, [0, 1, 3, 2]
          ) : f32[1, 2, 4, 5] strides [40, 4, 1, 8] backward
          %dv_8 = aten.clone.default(
            %dv_7, memory_format=memory_format(contiguous)
          ) : f32[1, 2, 4, 5] backward
          %dk = aten.view.default(%dv_8, [2, 4, 5]) : f32[2, 4, 5] backward
          %dv_10 = aten.clone.default(
            %dv_4, memory_format=memory_format(contiguous)
          ) : f32[1, 2, 5, 4] backward
          %dv = aten.view.default(%dv_10, [2, 5, 4]) : f32[2, 5, 4] backward
          return %o, %dq, %dk, %dv
        }

    Refuses: what is between them being read by anything else; biases that want a gradient; scores
    that more is done to than scaling and adding; other devices than the CPU.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        for found in sites_with_gradients(graph):
            if isinstance(found, tuple):
                env.log.refuse(self.name, found[0].name, f"not attention: {found[1]}")
                continue
            try:
                graph = replaced(found, graph, _atens)
            except (NotAffine, NotFound) as error:
                env.log.refuse(self.name, found.values.name, str(error))
            except (CheckError, UnsupportedError) as error:
                env.log.refuse(self.name, found.values.name, error.message)
            else:
                env.log.decide(self.name, found.values.name, "is attention, and so its gradient")
        return graph


def sites_with_gradients(graph: Graph) -> list[Site | tuple[Node, str]]:
    """The attention of what the joint graph computes before its backward begins."""
    nodes = [node for node in graph.nodes if node.phase != "backward"]
    made = {v for node in nodes for v in node.results} | {i.value for i in graph.inputs}
    outputs = tuple(v for v in values_in(graph.outputs) if v in made)
    return list(sites(dataclasses.replace(graph, nodes=tuple(nodes), outputs=outputs)))


def replaced(
    site: Site,
    graph: Graph,
    pair_of: Callable[[Site, Gradient, Graph, Callable[[str], str]], Pair],
) -> Graph:
    """The graph with a pair in the place of a site and its gradient. Raises NotFound."""
    if site.dropout is not None:
        raise NotFound("it drops some of its probabilities, which no fused operator does")
    gradient = gradient_of(site, graph)
    fresh = fresh_names(v.name for v in graph.values)
    pair = pair_of(site, gradient, graph, fresh)
    first = min((gradient.query, gradient.key, gradient.value), key=graph.nodes.index)
    gone = {site.values.name, gradient.query.name, gradient.key.name, gradient.value.name}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name == site.values.name:
            nodes += pair.forward
        if node.name == first.name:
            nodes += pair.backward
        if node.name not in gone:
            nodes.append(node)
    kept, _ = split_dead(graph.with_nodes(nodes))
    left = {v.name for node in kept for v in node.results} & gradient.inside - gone
    if left:
        raise NotFound(f"%{min(left)} is read by something else too")
    new = graph.with_nodes(kept)
    _compare(site, gradient, graph, new)
    return new


def _atens(site: Site, gradient: Gradient, graph: Graph, fresh: Callable[[str], str]) -> Pair:
    """ATen's fused attention and its gradient."""
    device = site.query.tensor.device
    if device.type != "cpu":
        raise NotFound(f"it is on {device}")
    emit = Emitter(fresh, site.values)
    affine = affine_of(site, graph, emit)
    operands = Operands.of(site, emit)
    three = tuple(unit_stride(x, emit) for x in operands.three)
    if three[0].tensor.shape[-1] != three[2].tensor.shape[-1]:
        raise NotFound("keys and values are not of one width")
    bias = None if affine.bias is None else operands.every_score(affine.bias)
    result, sums = emit.results(FLASH, *three, attn_mask=bias, scale=affine.scale)
    back = Emitter(fresh, gradient.value)
    given = shaped(gradient.given, result.tensor.shape, back)
    grads = back.results(
        FLASH_BACKWARD, given, *three, result, sums, 0.0, False, attn_mask=bias, scale=affine.scale
    )
    return Pair.ended(site, gradient, result, grads, emit, back)


@dataclass(frozen=True)
class Pair:
    """The nodes of both halves; results have the names of what they replace."""

    forward: list[Node]
    backward: list[Node]

    @staticmethod
    def ended(
        site: Site,
        gradient: Gradient,
        result: Value,
        grads: tuple[Value, ...],
        emit: Emitter,
        back: Emitter,
    ) -> Pair:
        """With the result [B, H, T, E] and gradients in the shapes that products made."""
        flat = site.values.result
        whole = emit("aten.clone.default", result, memory_format=torch.contiguous_format)
        shaped(whole, flat.tensor.shape, emit)
        emit.end_in(flat)
        Pair._spread(gradient, grads, back)
        return Pair(emit.nodes, back.nodes)

    @staticmethod
    def _spread(gradient: Gradient, grads: tuple[Value, ...], emit: Emitter) -> None:
        """Gradients of four dimensions in the shapes that the products made."""
        for node, grad, turned in (
            (gradient.query, grads[0], False),
            (gradient.key, grads[1], gradient.key_is_turned),
            (gradient.value, grads[2], False),
        ):
            wanted = node.result.tensor
            if turned:
                grad = emit("aten.permute.default", grad, (0, 1, 3, 2))
            whole = emit("aten.clone.default", grad, memory_format=torch.contiguous_format)
            shaped(whole, wanted.shape, emit)
            emit.end_in(node.result)


# --- the comparison -------------------------------------------------------------------------------


def _compare(site: Site, gradient: Gradient, old: Graph, new: Graph) -> None:
    """Raises NotFound when the two do not compute the same."""
    outputs = (
        site.values.result,
        gradient.query.result,
        gradient.key.result,
        gradient.value.result,
    )
    operands = (site.query, site.key, site.value, gradient.given)
    # Both halves may look at an operand in their own way, so the two meet behind its views.
    roots = storage_roots(old)
    leaves = {roots[value] for value in operands}
    parts = [_part(graph, outputs, leaves) for graph in (old, new)]
    shared = {i.value: None for part in parts for i in part.inputs}
    inputs = tuple(Input(v) for v in shared)
    generator = torch.Generator().manual_seed(0)
    drawn = [_draw(i.value.tensor, generator) for i in inputs]
    results = [
        interpret(to_cpu(dataclasses.replace(part, inputs=inputs)), drawn, dtype=torch.float64)
        for part in parts
    ]
    for value, a, b in zip(outputs, *results, strict=True):
        if float((a - b).norm()) > TOLERANCE * max(float(a.norm()), 1e-30):
            raise NotFound(f"%{value.name} comes out otherwise")


def _part(graph: Graph, outputs: tuple[Value, ...], leaves: set[Value]) -> Graph:
    """What computes the outputs from the leaves and from whatever else it needs."""
    needed: set[str] = set()
    inputs: dict[Value, None] = {}
    todo = list(outputs)
    while todo:
        value = todo.pop()
        node = graph.producers.get(value)
        if value in leaves or node is None:
            inputs[value] = None
        elif node.name not in needed:
            needed.add(node.name)
            todo += node.operands
    nodes = tuple(n for n in graph.nodes if n.name in needed)
    return Graph("part", tuple(Input(v) for v in inputs), nodes, outputs)


def _draw(type: TensorType, generator: torch.Generator) -> torch.Tensor:
    shape = tuple(map(hint, type.shape))
    if type.dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.8
    if not type.dtype.is_floating_point:
        return torch.ones(shape, dtype=type.dtype)
    return torch.randn(shape, generator=generator).to(type.dtype)
