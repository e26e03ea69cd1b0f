"""The pass that chooses a kernel of ours for attention, tile by tile, masks and all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import torch

from rewright.costmodel import show_seconds
from rewright.ir import CheckError, Graph, Node, UnsupportedError, fresh_names, hint, product
from rewright.ir.alone import alone, at_hints, graph_at_hints, together
from rewright.ir.loops import (
    JOIN,
    AttentionBackwardNest,
    AttentionNest,
    Load,
    lower_attention,
    lower_attention_backward,
    subterms,
)
from rewright.ir.loops.tiles import AnyAttention, kept_share, may_be_dead
from rewright.passes.attention.absorb import Absorber
from rewright.passes.attention.backward import BACKWARD, gradient_of_call, with_sums
from rewright.passes.attention.canonical import Call, as_attention, is_plain_call
from rewright.passes.attention.lower import FLASH, FLASH_BACKWARD, atens_nodes
from rewright.passes.attention.lower import obstacle as atens_obstacle
from rewright.passes.base import Env, Pass
from rewright.passes.dce import split_dead
from rewright.passes.emitter import Emitter

# Heads wider than this leave a tile no room in the caches.
WIDEST: Final = 256
# Ours is chosen where it computes at most so much of what ATen's kernel does.
WORTHWHILE: Final = 0.85
# What a kernel of ours must save where both compute as much.
MARGIN: Final = 0.03
# Parts of keys that a kernel reads where they lie.
MOST_RUNS: Final = 8
VIA: Final = "cpp"
# The emitter of such a kernel, by kind of device, and what it multiplies on GPUs.
EMITTERS: Final = {"cpu": VIA, "cuda": "triton"}
ON_GPUS: Final = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class FlashAttention(Pass, name="flash-attention", takes="aten", gives="aten"):
    """Compute attention in one kernel that holds some rows of scores by some keys at a time, where
    masks leave enough of these tiles out, or ATen's kernel cannot compute it.

    Masks and biases become part of the kernel, as far as they are cheap to compute; a tile in which
    every score is masked is skipped, which is decided from intervals of positions and of what masks
    read. Repeated heads and turned operands are read where they lie. Where queries are few, so are
    the parts that keys and values are joined from: those that all sequences share are read once.

    before:
        graph f(%q: f32[1, 2, 3, 4], %k: f32[1, 2, 3, 4], %v: f32[1, 2, 3, 8]) {
          %o = rw.attention(%q, %k, %v) body(
              %q: f32[1, 2, 3, 4],
              %k: f32[1, 2, 3, 4],
              %v: f32[1, 2, 3, 8]
          ) {
            %o = aten.view.default(%q, [2, 3, 4]) : f32[2, 3, 4]
            %o_1 = aten.view.default(%k, [2, 3, 4]) : f32[2, 3, 4]
            %o_2 = aten.permute.default(%o_1, [0, 2, 1]) : f32[2, 4, 3] strides [12, 1, 4]
            %o_3 = aten.bmm.default(%o, %o_2) : f32[2, 3, 3]
            %o_4 = aten.view.default(%o_3, [1, 2, 3, 3]) : f32[1, 2, 3, 3]
            %o_5 = aten._softmax.default(%o_4, -1, false) : f32[1, 2, 3, 3]
            %o_6 = aten.view.default(%o_5, [2, 3, 3]) : f32[2, 3, 3]
            %o_7 = aten.view.default(%v, [2, 3, 8]) : f32[2, 3, 8]
            %o_8 = aten.bmm.default(%o_6, %o_7) : f32[2, 3, 8]
            %o_9 = aten.view.default(%o_8, [1, 2, 3, 8]) : f32[1, 2, 3, 8]
            return %o_9
          } : f32[1, 2, 3, 8]
          return %o
        }
    after:
        graph f(%q: f32[1, 2, 3, 4], %k: f32[1, 2, 3, 4], %v: f32[1, 2, 3, 8]) {
          %o = rw.attention(%q, %k, %v, via="cpp") body(
              %q: f32[1, 2, 3, 4],
              %k: f32[1, 2, 3, 4],
              %v: f32[1, 2, 3, 8]
          ) {
            %o = aten.view.default(%q, [2, 3, 4]) : f32[2, 3, 4]
            %o_1 = aten.view.default(%k, [2, 3, 4]) : f32[2, 3, 4]
            %o_2 = aten.permute.default(%o_1, [0, 2, 1]) : f32[2, 4, 3] strides [12, 1, 4]
            %o_3 = aten.bmm.default(%o, %o_2) : f32[2, 3, 3]
            %o_4 = aten.view.default(%o_3, [1, 2, 3, 3]) : f32[1, 2, 3, 3]
            %o_5 = aten._softmax.default(%o_4, -1, false) : f32[1, 2, 3, 3]
            %o_6 = aten.view.default(%o_5, [2, 3, 3]) : f32[2, 3, 3]
            %o_7 = aten.view.default(%v, [2, 3, 8]) : f32[2, 3, 8]
            %o_8 = aten.bmm.default(%o_6, %o_7) : f32[2, 3, 8]
            %o_9 = aten.view.default(%o_8, [1, 2, 3, 8]) : f32[1, 2, 3, 8]
            return %o_9
          } : f32[1, 2, 3, 8]
          return %o
        }

    A row that is masked with -inf as a whole comes out 0, as in torch's own attention; scores are
    taken to be numbers, neither NaN nor infinite before they are masked.

    Refuses: attention that drops probabilities; heads wider than 256; what ATen computes as well;
    on GPUs, operands that are not all f32, f16 or bf16.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        if not any(_is_open(node, graph) for node in graph.nodes):
            return graph
        choice = _Choice(graph, env)
        nodes = [choice.of(node) for node in graph.nodes]
        if not choice.renamed:
            return graph
        nodes = [node for node in nodes if node.name not in choice.copies or is_ours(node)]
        kept, dropped = split_dead(graph.with_nodes(nodes))
        gone = {v.name: () for node in dropped for v in node.results}
        return self.gave(graph.with_nodes(kept), {**gone, **choice.renamed})


class _Choice:
    """What the attention of a graph runs as. `copies` are what kernels make in the place of the
    nodes that copied their results."""

    def __init__(self, graph: Graph, env: Env) -> None:
        self._graph, self._env = graph, env
        self._absorber = Absorber(graph)
        self._fresh = fresh_names(v.name for v in graph.values)
        self.renamed: dict[str, tuple[str, ...]] = {}
        self.copies: set[str] = set()

    def of(self, node: Node) -> Node:
        """A kernel of ours, or the node itself."""
        if not _is_open(node, self._graph):
            return node
        try:
            attention, copies, nest = self._lowered(node)
            via = EMITTERS[self._env.target.device]
            ours = _by_ours(attention, via)
            refusal = obstacle(nest, self._env) or self._not_worth_it(node, ours, nest)
        except (CheckError, UnsupportedError) as error:
            refusal = error.message
        if refusal is not None:
            self._env.log.refuse(FlashAttention.name, node.name, refusal)
            return node
        self.renamed[node.name] = (ours.name,)
        self.copies |= copies
        return ours

    def _lowered(self, node: Node) -> tuple[Node, set[str], AnyAttention]:
        """The attention, with copies of its results where a kernel can make them, and these."""
        emit = Emitter(self._fresh, node)
        if node.op.name == FLASH_BACKWARD:
            call = Call.of(node)
            attention = with_sums(as_attention(call, emit), call.node.results[1])
            gradient = gradient_of_call(attention, node, emit)
            gradient, copies = self._absorber.with_copies(self._absorber.absorbed(gradient))
            return gradient, copies, lower_attention_backward(gradient.graph("body"), "attention")
        attention = node
        if node.op.name != "rw.attention":
            attention = as_attention(Call.of(node), emit)
            if not is_plain_call(node, self._graph):
                attention = with_sums(attention, node.results[1])
        attention = self._joined(node, attention) or self._absorber.absorbed(attention)
        with_copy, copy = self._absorber.with_copy(attention)
        if copy is not None:
            with suppress(UnsupportedError):
                return with_copy, {copy.name}, lower_attention(with_copy.graph("body"), "attention")
        return attention, set(), lower_attention(attention.graph("body"), "attention")

    def _joined(self, node: Node, attention: Node) -> Node | None:
        """The attention over the parts that keys and values are joined from or repeated of, where
        that saves joining them, or reading some for each sequence. What comes of parts is merged,
        of every query: of many, that takes memory and saves little."""
        over_parts = self._absorber.absorbed(attention, joined=True)
        over_whole = self._absorber.absorbed(attention)
        if self._env.target.device != "cpu" or over_parts == over_whole:
            return None
        try:
            nest = lower_attention(over_parts.graph("body"), "attention")
            whole = lower_attention(over_whole.graph("body"), "attention")
        except UnsupportedError:
            return None
        if len(nest.runs) > MOST_RUNS or not (nest.has_few_queries or len(nest.runs) == 1):
            return None
        vanishes = self._vanishes(attention)
        if not vanishes and keys_read(nest) > WORTHWHILE * keys_read(whole):
            return None
        if len(nest.runs) > 1 and obstacle(nest, self._env) is None:
            joins = self._joins(attention) if vanishes else []
            if self._joining_is_quicker(node, joins, over_whole, over_parts):
                return None
        return over_parts

    def _joining_is_quicker(
        self, node: Node, joins: list[Node], over_whole: Node, over_parts: Node
    ) -> bool:
        """As timed against ATen's kernel, and against ours, over keys that are joined first."""
        ways = [_by_ours(over_whole)]
        if node.op.name != "rw.attention":
            ways.append(node)
        elif atens_obstacle(node) is None:
            *before, call, _ = atens_nodes(node, self._fresh)
            joins = [*joins, *before]
            ways.append(call)
        whole = [_racing([*joins, way], way) for way in ways]
        parts = _by_ours(over_parts)
        tools = self._env.tools
        found = None if tools is None else tools.race([*whole, _racing([parts], parts)])
        if found is None or found[-1] <= (1 - MARGIN) * min(found[:-1]):
            return False
        took = f"{show_seconds(min(found[:-1]))}, in parts {show_seconds(found[-1])}"
        self._env.log.refuse(FlashAttention.name, node.name, f"with joined keys it takes {took}")
        return True

    def _joins(self, attention: Node) -> list[Node]:
        """What makes its keys and values of parts, in order."""
        keys = attention.operands[1:3]
        made = {n.name for v in keys for n in self._absorber.carriers(v, joined=True)}
        return [n for n in self._graph.nodes if n.name in made]

    def _vanishes(self, attention: Node) -> bool:
        """True when nothing else reads what its keys and values are joined to."""
        made = {n.name: n for n in self._joins(attention)}
        joined = [n.result for n in made.values() if n.op.name == JOIN]
        readers = {r.name for v in joined for r in self._graph.readers.get(v, ())}
        return readers <= {*made, attention.name} and not any(
            v in self._graph.returned for v in joined
        )

    def _not_worth_it(self, node: Node, ours: Node, nest: AnyAttention) -> str | None:
        """Why the kernel that there is anyway is as good; the log is told when it is not."""
        log, kept = self._env.log, node.kwarg("kept")
        if kept is not None:
            log.decide(FlashAttention.name, node.name, f"a kernel of ours: {kept:.0%} is looked at")
            return None
        why = atens_obstacle(node) if node.op.name == "rw.attention" else None
        share = kept_share(nest)
        parts = nest.runs if isinstance(nest, AttentionNest) else ()
        told = f"{share:.0%} of its tiles are kept"
        is_causal = node.op.name != "rw.attention" and bool(node.arg("is_causal"))
        if len(parts) > 1:
            told = f"keys are read from {len(parts)} parts where they lie"
            log.decide(FlashAttention.name, node.name, f"a kernel of ours: {told}")
        elif why is not None:
            log.decide(
                FlashAttention.name, node.name, f"a kernel of ours: {told}; ATen has none: {why}"
            )
        elif is_worthwhile(share, is_causal=is_causal):
            log.decide(FlashAttention.name, node.name, f"a kernel of ours: {told}")
        elif may_skip(nest):
            log.decide(
                FlashAttention.name, node.name, "a kernel of ours, which looks for masked tiles"
            )
        else:
            return self._slower(node, ours)
        return None

    def _slower(self, node: Node, ours: Node) -> str | None:
        """Why not, where both compute the same tiles: as they were timed."""
        tools = self._env.tools
        calls = [alone(at_hints(n)) for n in (*self._usual(node), ours)]
        found = None if tools is None else tools.race(calls)
        if found is None:
            return "ATen's kernel computes as much"
        theirs, own = min(found[:-1]), found[-1]
        took = f"ours takes {show_seconds(own)}, and ATen's {show_seconds(theirs)}"
        if own > (1 - MARGIN) * theirs:
            return took
        self._env.log.decide(FlashAttention.name, node.name, took)
        return None

    def _usual(self, node: Node) -> list[Node]:
        """The call of ATen's kernel."""
        if node.op.name != "rw.attention":
            return [node]
        return [n for n in atens_nodes(node, self._fresh) if n.op.name == FLASH]


def _by_ours(attention: Node, via: str = VIA) -> Node:
    return dataclasses.replace(attention, kwargs=(*attention.kwargs, ("via", via)))


def _racing(nodes: Sequence[Node], last: Node) -> Graph:
    """What of these the last one needs, at the sizes seen."""
    made = {v: node for node in nodes for v in node.results}
    read, kept = {last.name}, list[Node]()
    for node in reversed(nodes):
        if node.name in read:
            kept.append(node)
            read |= {made[v].name for v in node.operands if v in made}
    return graph_at_hints(together(kept[::-1], last.results[:1]))


def _is_open(node: Node, graph: Graph) -> bool:
    """True for attention of which it is to be chosen what computes it."""
    if node.op.name == "rw.attention":
        return not is_ours(node)
    return is_call(node) or is_plain_call(node, graph)


def is_call(node: Node) -> bool:
    """True for a call of ATen's fused attention, or of its gradient, that drops nothing."""
    return node.op.name in (FLASH, FLASH_BACKWARD) and node.arg("dropout_p") == 0.0


def is_worthwhile(share: float, *, is_causal: bool) -> bool:
    """True where a kernel that computes this share of the tiles leaves out clearly more than
    ATen's, which leaves out half of them when it is told that attention is causal, and else
    nothing."""
    return share < WORTHWHILE * (0.5 if is_causal else 1.0)


def may_skip(nest: AnyAttention) -> bool:
    """True when scores may be masked by what is read from memory for a row or for a key alone, as
    its place in a document, or whether it is padding: that may mask whole tiles."""
    axes = {nest.row.name, nest.key.name}
    loads = [t for s in nest.statements for t in subterms(s.term) if isinstance(t, Load)]
    of_one = any(len(axes & {name for name, _ in load.at.terms}) == 1 for load in loads)
    return of_one and may_be_dead(nest)


def keys_read(nest: AttentionNest) -> int:
    """Keys of all heads that are read, at the sizes seen, where heads that share some read them
    once."""
    read = 0
    for run in nest.runs:
        own = (axis for axis in nest.batch if not run.is_shared_by(axis))
        read += hint(run.size) * hint(product(axis.size for axis in own))
    return read


def obstacle(nest: AnyAttention, env: Env) -> str | None:
    """Why there is no kernel of ours."""
    here, target = nest.outputs[0].type.device.type, env.target.device
    if here not in ("cpu", target):  # a graph on the CPU is moved to the GPU later
        return f"it is on {here}, and kernels are made for {target}"
    places = [nest.queries, nest.keys, nest.values]
    places += [nest.outer, nest.results] if isinstance(nest, AttentionBackwardNest) else []
    types = {place.dtype for place in places}
    if target != "cpu" and (len(types) > 1 or not types <= {*ON_GPUS}):
        return "kernels of ours for GPUs multiply f32, f16 or bf16, of one kind"
    if max(hint(nest.inner.size), hint(nest.width.size)) > WIDEST:
        return f"its heads are wider than {WIDEST}"
    if 0 in (*nest.outputs[0].type.shape, nest.key.size, nest.inner.size):
        return "it has no elements"
    return None


def is_ours(node: Node) -> bool:
    """True for attention that runs in a kernel of ours."""
    via = node.kwarg("via")
    return node.op.name in ("rw.attention", BACKWARD) and via in EMITTERS.values()
