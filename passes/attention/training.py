"""The pass that chooses kernels of ours for attention and its gradient in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from rewright.ir import (
    CheckError,
    Graph,
    Node,
    UnsupportedError,
    Value,
    fresh_names,
    hint,
)
from rewright.ir.loops import AttentionNest, lower_attention, lower_attention_backward
from rewright.ir.loops.tiles import kept_share
from rewright.passes.attention.absorb import Absorber
from rewright.passes.attention.backward import backward_of, with_sums
from rewright.passes.attention.canonical import Call, as_attention
from rewright.passes.attention.flash import VIA, WORTHWHILE, may_skip, obstacle
from rewright.passes.attention.lower import FLASH
from rewright.passes.base import Env, Pass
from rewright.passes.dce import split_dead
from rewright.passes.emitter import Emitter

ATENS_BACKWARD: Final = FLASH.replace("_for_cpu", "_for_cpu_backward")


@dataclass(frozen=True)
class FlashPairs(Pass, name="flash-pairs", takes="aten", gives="aten"):
    """In a joint graph, compute attention and its gradient in kernels of ours, tile by tile, where
    masks leave enough tiles out, or would be tensors as large as all scores.

    Both kernels have the mask compiled in; the forward gives the logarithms of its sums too, from
    which the backward computes probabilities again.

    before:
        graph f(%x: f32[4]) {
          return %x
        }
    after:
        graph f(%x: f32[4]) {
          return %x
        }

    Refuses: attention that drops probabilities; heads wider than 256; what ATen computes as well.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        fresh = fresh_names(v.name for v in graph.values)
        for node in graph.nodes:
            back = _gradient_of(node, graph)
            if back is None:
                continue
            try:
                graph = _Pair(graph, env, fresh).replaced(node, back)
            except (CheckError, UnsupportedError) as error:
                env.log.refuse(self.name, node.name, error.message)
        return graph


def _gradient_of(node: Node, graph: Graph) -> Node | None:
    """The call that computes the gradient of ATen's fused attention, when it alone reads more than
    its result."""
    if node.op.name != FLASH or node.arg("dropout_p") != 0.0:
        return None
    result, sums = node.results
    readers = graph.readers.get(sums, ())
    if len(readers) != 1 or sums in graph.returned or readers[0].op.name != ATENS_BACKWARD:
        return None
    (back,) = readers
    told = ("attn_mask", "is_causal", "scale", "dropout_p")
    alike = all(node.arg(name) == back.arg(name) for name in told)
    read = (*node.operands[:3], result, sums)
    return back if alike and back.operands[1:6] == read else None


class _Pair:
    """One call and its gradient, on their way to kernels of ours."""

    def __init__(self, graph: Graph, env: Env, fresh: Callable[[str], str]) -> None:
        self.graph, self.env, self.fresh = graph, env, fresh
        self.absorber = Absorber(graph)

    def replaced(self, node: Node, back: Node) -> Graph:
        """Raises UnsupportedError, saying why they stay ATen's."""
        call = Call.of(node)
        attention = with_sums(as_attention(call, Emitter(self.fresh, node)), node.results[1])
        emit = Emitter(self.fresh, back)
        backward_of(attention, back.operands[0], tuple(v.tensor for v in back.results), emit)
        gradient = dataclasses.replace(emit.nodes[-1], results=back.results)
        forward = self.absorber.absorbed(attention)
        nest = lower_attention(forward.graph("body"), "attention")
        why = obstacle(nest, self.env) or self._not_worth_it(call, forward, nest)
        if why is not None:
            raise UnsupportedError(why)
        gradient, ended = self._lowered(self.absorber.absorbed(gradient))
        new = {node.name: _ours(forward), back.name: _ours(gradient)}
        nodes = [new.get(n.name, n) for n in self.graph.nodes if n.name not in ended]
        kept, _ = split_dead(self.graph.with_nodes(nodes))
        return self.graph.with_nodes(kept)

    def _lowered(self, gradient: Node) -> tuple[Node, set[str]]:
        """A gradient that has a kernel, with as many copies and sums of its results as that can
        make, and these."""
        lower_attention_backward(gradient.graph("body"), "attention")
        ended: set[str] = set()
        for place in range(len(gradient.results)):
            with suppress(UnsupportedError):
                while True:
                    longer, end = self.absorber.with_copy(gradient, place)
                    if end is None:
                        break
                    lower_attention_backward(longer.graph("body"), "attention")
                    gradient = longer
                    ended.add(end.name)
        return gradient, ended

    def _not_worth_it(self, call: Call, forward: Node, nest: AttentionNest) -> str | None:
        """Why ATen's kernels are as good; the log is told when they are not."""
        share = kept_share(nest)
        usual = 0.5 if call.causal else 1.0
        if share < WORTHWHILE * usual:
            why = f"{share:.0%} of its tiles are kept"
        elif may_skip(nest):
            why = "it looks for masked tiles"
        elif call.bias is not None and not any(self._is_mask(v, nest) for v in forward.operands):
            why = "its mask takes no memory"
        else:
            return "ATen's kernel computes as much"
        self.env.log.decide(FlashPairs.name, call.node.name, f"kernels of ours: {why}")
        return None

    def _is_mask(self, value: Value, nest: AttentionNest) -> bool:
        """Whether a tensor has an element for each score of a head."""
        return hint(value.tensor.numel) >= hint(nest.row.size) * hint(nest.key.size)


def _ours(node: Node) -> Node:
    return dataclasses.replace(node, kwargs=(*node.kwargs, ("via", VIA)))
