"""The pass that makes `rw.attention` of attention that is spelled out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from rewright.ir import Arg, CheckError, Graph, Node, UnsupportedError, Value, fresh_names, op
from rewright.passes.attention.affine import NotAffine, affine_of
from rewright.passes.attention.region import Operands, affine_body, stepwise_body
from rewright.passes.attention.site import BERNOULLI, SOFTMAX, Site, sites
from rewright.passes.base import Env, Pass
from rewright.passes.dce import split_dead
from rewright.passes.emitter import Emitter
from rewright.passes.log import DecisionLog
from rewright.passes.rules import shipped
from rewright.passes.rules.engine import Engine


@dataclass(frozen=True)
class Attention(Pass, name="attention", takes="aten", gives="aten"):
    """Recognize attention, however it is spelled, as one `rw.attention`.

    before:
        graph f(%q: f32[2, 3, 4], %k: f32[2, 4, 5], %v: f32[2, 5, 4]) {
          %s = aten.bmm.default(%q, %k) : f32[2, 3, 5]
          %p = aten._softmax.default(%s, -1, false) : f32[2, 3, 5]
          %o = aten.bmm.default(%p, %v) : f32[2, 3, 4]
          return %o
        }
    after:
        graph f(%q: f32[2, 3, 4], %k: f32[2, 4, 5], %v: f32[2, 5, 4]) {
          %o_1 = aten.permute.default(%k, [0, 2, 1]) : f32[2, 5, 4] strides [20, 1, 5]
          %o_2 = aten.view.default(%q, [1, 2, 3, 4]) : f32[1, 2, 3, 4]
          %o_3 = aten.view.default(%o_1, [1, 2, 5, 4]) : f32[1, 2, 5, 4] strides [40, 20, 1, 5]
          %o_4 = aten.view.default(%v, [1, 2, 5, 4]) : f32[1, 2, 5, 4]
          %o_5 = rw.attention(%o_2, %o_3, %o_4) body(
              %q: f32[1, 2, 3, 4],
              %k: f32[1, 2, 5, 4] strides [40, 20, 1, 5],
              %v: f32[1, 2, 5, 4]
          ) {
            %o = aten.view.default(%q, [2, 3, 4]) : f32[2, 3, 4]
            %o_1 = aten.view.default(%k, [2, 5, 4]) : f32[2, 5, 4] strides [20, 1, 5]
            %o_2 = aten.permute.default(%o_1, [0, 2, 1]) : f32[2, 4, 5]
            %o_3 = aten.bmm.default(%o, %o_2) : f32[2, 3, 5]
            %o_4 = aten.view.default(%o_3, [1, 2, 3, 5]) : f32[1, 2, 3, 5]
            %o_5 = aten._softmax.default(%o_4, -1, false) : f32[1, 2, 3, 5]
            %o_6 = aten.view.default(%o_5, [2, 3, 5]) : f32[2, 3, 5]
            %o_7 = aten.view.default(%v, [2, 5, 4]) : f32[2, 5, 4]
            %o_8 = aten.bmm.default(%o_6, %o_7) : f32[2, 3, 4]
            %o_9 = aten.view.default(%o_8, [1, 2, 3, 4]) : f32[1, 2, 3, 4]
            return %o_9
          } : f32[1, 2, 3, 4]
          %o = aten.view.default(%o_5, [2, 3, 4]) : f32[2, 3, 4]
          return %o
        }

    Refuses: probabilities that something else reads; products that mix rows and keys.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        if not any(node.op.name in _SIGNS for node in graph.nodes):
            return graph
        fresh = fresh_names(v.name for v in graph.values)
        replaced: dict[str, list[Node]] = {}
        # Where the softmax itself is spelled out it is only recognized, unless that leads further.
        plain = _softmaxes().run(graph, DecisionLog(), lambda found, _: found[0]).graph
        plain = plain.with_nodes(split_dead(plain)[0])  # what nobody needs is no reader
        for found in sites(plain, zeros=True):
            if isinstance(found, tuple):
                env.log.refuse(self.name, found[0].name, f"not attention: {found[1]}")
                continue
            nodes = _replacement(found, plain, fresh)
            if isinstance(nodes, str):
                env.log.refuse(self.name, found.values.name, f"not attention: {nodes}")
                continue
            env.log.decide(self.name, found.values.name, "is attention")
            replaced[found.values.name] = nodes
            if found.dropout is not None:
                replaced[found.dropout.name] = _mask(found.dropout, fresh)
        if not replaced:
            return graph
        nodes = [n for node in graph.nodes for n in replaced.get(node.name, [node])]
        kept, dropped = split_dead(graph.with_nodes(nodes))
        gone = {v.name: () for node in dropped for v in node.results}
        return self.gave(graph.with_nodes(kept), gone)


# A softmax, or what one that is spelled out begins with.
_SIGNS: Final = frozenset({SOFTMAX, "aten.exp.default"})


@cache
def _softmaxes() -> Engine:
    return Engine(r for r in shipped("normalization") if r.name.startswith("softmax"))


def _replacement(site: Site, graph: Graph, fresh: Callable[[str], str]) -> list[Node] | str:
    """Nodes that end in one that makes what the site's last product made; or why there are none."""
    try:
        try:
            return _affine(site, graph, Emitter(fresh, site.values))
        except NotAffine:
            return _stepwise(site, Emitter(fresh, site.values))
    except (CheckError, UnsupportedError) as error:
        return error.message


def _mask(dropout: Node, fresh: Callable[[str], str]) -> list[Node]:
    """What draws the mask of a dropout, the same one, before there are probabilities."""
    emit, kept = Emitter(fresh, dropout), dropout.results[1]
    type, p = kept.tensor, dropout.args[1]
    assert isinstance(p, float)
    memory: dict[str, Arg] = {"dtype": type.dtype, "device": type.device}
    (like,) = emit.call(op("aten.empty.memory_format"), (type.shape,), memory, [type])
    emit.call(op(BERNOULLI), (like, 1 - p), {}, [type])
    emit.end_in(kept)
    return emit.nodes


def _affine(site: Site, graph: Graph, emit: Emitter) -> list[Node]:
    found = affine_of(site, graph, emit)
    operands = Operands.of(site, emit)
    extra = [] if found.bias is None else [operands.every_score(found.bias)]
    if site.sinks is not None:
        operands, extra = operands.with_sinks(site.sinks, extra)
    body = affine_body(operands, extra, found.scale)
    return _ended(site, emit, operands, extra, body)


def _stepwise(site: Site, emit: Emitter) -> list[Node]:
    if site.sinks is not None:
        raise UnsupportedError("sinks beside scores that are more than scaled")
    operands = Operands.of(site, emit)
    body, extra = stepwise_body(operands)
    return _ended(site, emit, operands, extra, body)


def _ended(
    site: Site, emit: Emitter, operands: Operands, extra: list[Value], body: Graph
) -> list[Node]:
    (result,) = emit.region("rw.attention", (*operands.three, *extra, *operands.kept), body)
    emit("aten.view.default", result, site.values.result.tensor.shape)
    emit.end_in(site.values.result)
    return emit.nodes
