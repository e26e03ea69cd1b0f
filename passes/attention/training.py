"""The pass that chooses kernels of ours for attention and its gradient in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from rewright.ir import (
    CheckError,
    Graph,
    Node,
    TensorType,
    UnsupportedError,
    Value,
    fresh_names,
)
from rewright.ir.loops import (
    AttentionNest,
    Load,
    lower_attention,
    subterms,
)
from rewright.ir.loops.tiles import kept_share
from rewright.ir.pointwise import compute_dtype
from rewright.passes.attention.absorb import Absorber
from rewright.passes.attention.backward import BACKWARD, backward_of, gradient_of_call, with_sums
from rewright.passes.attention.canonical import Call, as_attention
from rewright.passes.attention.flash import EMITTERS, is_worthwhile, may_skip, obstacle
from rewright.passes.attention.gradient import Gradient, NotFound
from rewright.passes.attention.lower import FLASH, FLASH_BACKWARD
from rewright.passes.attention.pair import Pair, replaced, sites_with_gradients
from rewright.passes.attention.region import Operands, shaped, stepwise_body
from rewright.passes.attention.site import Site
from rewright.passes.base import Env, Pass
from rewright.passes.dce import split_dead
from rewright.passes.emitter import Emitter


@dataclass(frozen=True)
class FlashAttentionPairs(Pass, name="flash-attention-pairs", takes="aten", gives="aten"):
    """In a joint graph, compute attention and its gradient in kernels of ours, tile by tile, where
    masks leave enough tiles out, or would be tensors as large as all scores.

    Both kernels have the mask compiled in; the forward gives the logarithms of its sums too, from
    which the backward computes probabilities again.

    before:
        graph f(
            %q: f32[1, 2, 3, 4],
            %k: f32[1, 2, 3, 4],
            %v: f32[1, 2, 3, 4],
            %g: f32[1, 2, 3, 4] tangent
        ) {
          %j = aten.arange.default(3) : i64[3] forward
          %i = aten.unsqueeze.default(%j, 1) : i64[3, 1] forward
          %le = aten.le.Tensor(%j, %i) : bool[3, 3] forward
          %yes = aten.full.default([], 0.0) : f32[] forward
          %no = aten.full.default([], -inf) : f32[] forward
          %m = aten.where.self(%le, %yes, %no) : f32[3, 3] forward
          %o, %s = aten._scaled_dot_product_flash_attention_for_cpu.default(%q, %k, %v,
            attn_mask=%m) : f32[1, 2, 3, 4] strides [24, 4, 8, 1], f32[1, 2, 3] strides [6, 1,
            2] forward
          %dq, %dk, %dv = aten._scaled_dot_product_flash_attention_for_cpu_backward.default(%g, %q,
            %k, %v, %o, %s, 0.0, false, attn_mask=%m) : f32[1, 2, 3, 4] strides [24, 4, 8, 1],
            f32[1, 2, 3, 4] strides [24, 4, 8, 1], f32[1, 2, 3, 4] strides [24, 4, 8, 1] backward
          return %o, %dq, %dk, %dv
        }
    after:
        graph f(
            %q: f32[1, 2, 3, 4],
            %k: f32[1, 2, 3, 4],
            %v: f32[1, 2, 3, 4],
            %g: f32[1, 2, 3, 4] tangent
        ) {
          %o, %s = rw.attention(%q, %k, %v, via="cpp") body(
              %q_1: f32[1, 2, 3, 4],
              %k_1: f32[1, 2, 3, 4],
              %v_1: f32[1, 2, 3, 4]
          ) {
            %j = aten.arange.default(3) : i64[3] forward
            %i = aten.unsqueeze.default(%j, 1) : i64[3, 1] forward
            %le = aten.le.Tensor(%j, %i) : bool[3, 3] forward
            %yes = aten.full.default([], 0.0) : f32[] forward
            %no = aten.full.default([], -inf) : f32[] forward
            %m = aten.where.self(%le, %yes, %no) : f32[3, 3] forward
            %o = aten.view.default(%q_1, [2, 3, 4]) : f32[2, 3, 4] forward
            %o_1 = aten.view.default(%k_1, [2, 3, 4]) : f32[2, 3, 4] forward
            %o_2 = aten.view.default(%v_1, [2, 3, 4]) : f32[2, 3, 4] forward
            %o_3 = aten.permute.default(%o_1, [0, 2, 1]) : f32[2, 4, 3] strides [12, 1, 4] forward
            %o_4 = aten.bmm.default(%o, %o_3) : f32[2, 3, 3] forward
            %o_5 = aten.view.default(%o_4, [1, 2, 3, 3]) : f32[1, 2, 3, 3] forward
            %o_6 = aten.mul.Tensor(%o_5, 0.5) : f32[1, 2, 3, 3] forward
            %o_7 = aten.add.Tensor(%o_6, %m) : f32[1, 2, 3, 3] forward
            %o_8 = aten._softmax.default(%o_7, -1, false) : f32[1, 2, 3, 3] forward
            %o_9 = aten.view.default(%o_8, [2, 3, 3]) : f32[2, 3, 3] forward
            %o_10 = aten.bmm.default(%o_9, %o_2) : f32[2, 3, 4] forward
            %o_11 = aten.view.default(%o_10, [1, 2, 3, 4]) : f32[1, 2, 3, 4] forward
            %o_12 = aten.permute.default(%o_11, [0, 2, 1, 3]) : f32[1, 3, 2, 4] strides [24, 4, 12,
              1] forward
            %o_13 = aten.clone.default(%o_12, memory_format=memory_format(contiguous)) : f32[1, 3,
              2, 4] forward
            %o_14 = aten.permute.default(%o_13, [0, 2, 1, 3]) : f32[1, 2, 3, 4] strides [24, 4, 8,
              1] forward
            %o_8_1 = aten.logsumexp.default(%o_7, [-1]) : f32[1, 2, 3] forward
            %o_8_2 = aten.permute.default(%o_8_1, [0, 2, 1]) : f32[1, 3, 2] strides [6, 1,
              3] forward
            %o_8_3 = aten.clone.default(%o_8_2, memory_format=memory_format(contiguous)) : f32[1,
              3, 2] forward
            %o_8_4 = aten.permute.default(%o_8_3, [0, 2, 1]) : f32[1, 2, 3] strides [6, 1,
              2] forward
            return %o_14, %o_8_4
          } : f32[1, 2, 3, 4] strides [24, 4, 8, 1], f32[1, 2, 3] strides [6, 1, 2] forward
          %dq, %dk, %dv = rw.attention_backward(%g, %q, %k, %v, %o, %s, via="cpp") body(
              %g_1: f32[1, 2, 3, 4],
              %q_1: f32[1, 2, 3, 4],
              %k_1: f32[1, 2, 3, 4],
              %v_1: f32[1, 2, 3, 4],
              %o_9: f32[1, 2, 3, 4] strides [24, 4, 8, 1],
              %s_1: f32[1, 2, 3] strides [6, 1, 2]
          ) {
            %j = aten.arange.default(3) : i64[3] forward
            %i = aten.unsqueeze.default(%j, 1) : i64[3, 1] forward
            %le = aten.le.Tensor(%j, %i) : bool[3, 3] forward
            %yes = aten.full.default([], 0.0) : f32[] forward
            %no = aten.full.default([], -inf) : f32[] forward
            %m = aten.where.self(%le, %yes, %no) : f32[3, 3] forward
            %o = aten.view.default(%q_1, [2, 3, 4]) : f32[2, 3, 4] forward
            %o_1 = aten.view.default(%k_1, [2, 3, 4]) : f32[2, 3, 4] forward
            %o_2 = aten.view.default(%v_1, [2, 3, 4]) : f32[2, 3, 4] forward
            %o_3 = aten.permute.default(%o_1, [0, 2, 1]) : f32[2, 4, 3] strides [12, 1, 4] forward
            %o_4 = aten.bmm.default(%o, %o_3) : f32[2, 3, 3] forward
            %o_5 = aten.view.default(%o_4, [1, 2, 3, 3]) : f32[1, 2, 3, 3] forward
            %o_6 = aten.mul.Tensor(%o_5, 0.5) : f32[1, 2, 3, 3] forward
            %o_7 = aten.add.Tensor(%o_6, %m) : f32[1, 2, 3, 3] forward
            %o_8 = aten._softmax.default(%o_7, -1, false) : f32[1, 2, 3, 3] forward
            %o_16 = aten.unsqueeze.default(%s_1, -1) : f32[1, 2, 3, 1] strides [6, 1, 2, 1] forward
            %o_17 = aten.sub.Tensor(%o_7, %o_16) : f32[1, 2, 3, 3] forward
            %o_18 = aten.exp.default(%o_17) : f32[1, 2, 3, 3] forward
            %o_19 = aten.gt.Scalar(%o_16, -1e+32) : bool[1, 2, 3, 1] strides [6, 1, 2, 1] forward
            %o_20 = aten.where.self(%o_19, %o_18, %o_8) : f32[1, 2, 3, 3] strides [18, 3, 6,
              1] forward
            %o_21 = aten.view.default(%g_1, [2, 3, 4]) : f32[2, 3, 4] forward
            %o_22 = aten.view.default(%o_20, [2, 3, 3]) : f32[2, 3, 3] strides [3, 6, 1] forward
            %o_23 = aten.permute.default(%o_22, [0, 2, 1]) : f32[2, 3, 3] strides [3, 1, 6] forward
            %o_24 = aten.bmm.default(%o_23, %o_21) : f32[2, 3, 4] forward
            %o_25 = aten.permute.default(%o_2, [0, 2, 1]) : f32[2, 4, 3] strides [12, 1, 4] forward
            %o_26 = aten.bmm.default(%o_21, %o_25) : f32[2, 3, 3] forward
            %o_27 = aten.view.default(%o_26, [1, 2, 3, 3]) : f32[1, 2, 3, 3] forward
            %o_28 = aten.mul.Tensor(%g_1, %o_9) : f32[1, 2, 3, 4] forward
            %o_29 = aten.sum.dim_IntList(%o_28, [-1], true) : f32[1, 2, 3, 1] forward
            %o_30 = aten.sub.Tensor(%o_27, %o_29) : f32[1, 2, 3, 3] forward
            %o_31 = aten.mul.Tensor(%o_20, %o_30) : f32[1, 2, 3, 3] strides [18, 3, 6, 1] forward
            %o_32 = aten.mul.Tensor(%o_31, 0.5) : f32[1, 2, 3, 3] strides [18, 3, 6, 1] forward
            %o_33 = aten.view.default(%o_32, [2, 3, 3]) : f32[2, 3, 3] strides [3, 6, 1] forward
            %o_34 = aten.permute.default(%o_3, [0, 2, 1]) : f32[2, 3, 4] forward
            %o_35 = aten.bmm.default(%o_33, %o_34) : f32[2, 3, 4] forward
            %o_36 = aten.permute.default(%o_33, [0, 2, 1]) : f32[2, 3, 3] strides [3, 1, 6] forward
            %o_37 = aten.bmm.default(%o_36, %o) : f32[2, 3, 4] forward
            %o_38 = aten.view.default(%o_35, [1, 2, 3, 4]) : f32[1, 2, 3, 4] forward
            %o_39 = aten.permute.default(%o_38, [0, 2, 1, 3]) : f32[1, 3, 2, 4] strides [24, 4, 12,
              1] forward
            %o_40 = aten.clone.default(%o_39, memory_format=memory_format(contiguous)) : f32[1, 3,
              2, 4] forward
            %o_41 = aten.permute.default(%o_40, [0, 2, 1, 3]) : f32[1, 2, 3, 4] strides [24, 4, 8,
              1] forward
            %o_42 = aten.view.default(%o_37, [1, 2, 3, 4]) : f32[1, 2, 3, 4] forward
            %o_43 = aten.permute.default(%o_42, [0, 2, 1, 3]) : f32[1, 3, 2, 4] strides [24, 4, 12,
              1] forward
            %o_44 = aten.clone.default(%o_43, memory_format=memory_format(contiguous)) : f32[1, 3,
              2, 4] forward
            %o_45 = aten.permute.default(%o_44, [0, 2, 1, 3]) : f32[1, 2, 3, 4] strides [24, 4, 8,
              1] forward
            %o_46 = aten.view.default(%o_24, [1, 2, 3, 4]) : f32[1, 2, 3, 4] forward
            %o_47 = aten.permute.default(%o_46, [0, 2, 1, 3]) : f32[1, 3, 2, 4] strides [24, 4, 12,
              1] forward
            %o_48 = aten.clone.default(%o_47, memory_format=memory_format(contiguous)) : f32[1, 3,
              2, 4] forward
            %o_49 = aten.permute.default(%o_48, [0, 2, 1, 3]) : f32[1, 2, 3, 4] strides [24, 4, 8,
              1] forward
            return %o_41, %o_45, %o_49
          } : f32[1, 2, 3, 4] strides [24, 4, 8, 1], f32[1, 2, 3, 4] strides [24, 4, 8, 1], f32[1,
            2, 3, 4] strides [24, 4, 8, 1] backward
          return %o, %dq, %dk, %dv
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
                graph = _Chosen(graph, env).in_place_of(node, back, fresh)
            except (CheckError, UnsupportedError) as error:
                env.log.refuse(self.name, node.name, error.message)
        for site in sites_with_gradients(graph):
            if not isinstance(site, Site):
                continue
            try:
                graph = _Chosen(replaced(site, graph, _stepwise), env).in_kernels()
            except NotFound as error:
                env.log.refuse(self.name, site.values.name, str(error))
            except (CheckError, UnsupportedError) as error:
                env.log.refuse(self.name, site.values.name, error.message)
        return graph


def _gradient_of(node: Node, graph: Graph) -> Node | None:
    """The call that computes the gradient of ATen's fused attention, when it alone reads more than
    its result."""
    if node.op.name != FLASH or node.arg("dropout_p") != 0.0:
        return None
    result, sums = node.results
    readers = graph.readers.get(sums, ())
    if len(readers) != 1 or sums in graph.returned or readers[0].op.name != FLASH_BACKWARD:
        return None
    (back,) = readers
    told = ("attn_mask", "is_causal", "scale", "dropout_p")
    alike = all(node.arg(name) == back.arg(name) for name in told)
    read = (*node.operands[:3], result, sums)
    return back if alike and back.operands[1:6] == read else None


def _stepwise(site: Site, gradient: Gradient, graph: Graph, fresh: Callable[[str], str]) -> Pair:
    """A pair for a site whose scores are more than scaled and added to."""
    if site.sinks is not None:
        raise UnsupportedError("sinks beside scores that are more than scaled")
    emit, back = Emitter(fresh, site.values), Emitter(fresh, gradient.value)
    operands = Operands.of(site, emit)
    body, extra = stepwise_body(operands)
    (result,) = emit.region("rw.attention", (*operands.three, *extra), body)
    like = operands.query.tensor
    type = TensorType(compute_dtype(like.dtype), like.shape[:3], None, like.device)
    attention = with_sums(emit.nodes[-1], Value(fresh(result.name), type))
    emit.nodes[-1] = attention
    given = shaped(gradient.given, result.tensor.shape, back)
    types = (TensorType(v.tensor.dtype, v.tensor.shape, None, like.device) for v in operands.three)
    grads = backward_of(attention, given, tuple(types), back)
    return Pair.ended(site, gradient, result, grads, emit, back)


class _Chosen:
    """An attention and its gradient, on their way to kernels of ours in the place of others."""

    def __init__(self, graph: Graph, env: Env) -> None:
        self.graph, self.env = graph, env
        self.absorber = Absorber(graph)

    def in_place_of(self, node: Node, back: Node, fresh: Callable[[str], str]) -> Graph:
        """Of ATen's. Raises UnsupportedError, saying why they stay."""
        call = Call.of(node)
        attention = with_sums(as_attention(call, Emitter(fresh, node)), node.results[1])
        gradient = gradient_of_call(attention, back, Emitter(fresh, back))
        return self._in_kernels(attention, gradient, call)

    def in_kernels(self) -> Graph:
        """The pair without kernels that a graph has. Raises UnsupportedError."""
        bare = [n for n in self.graph.nodes if n.op.has_body and n.kwarg("via") is None]
        attention = next(n for n in bare if n.op.name == "rw.attention")
        gradient = next(n for n in bare if n.op.name == BACKWARD)
        return self._in_kernels(attention, gradient, None)

    def _in_kernels(self, attention: Node, gradient: Node, call: Call | None) -> Graph:
        forward = self.absorber.absorbed(attention)
        nest = lower_attention(forward.graph("body"), "attention")
        why = obstacle(nest, self.env) or self._not_worth_it(call, forward, nest)
        if why is not None:
            raise UnsupportedError(why)
        backward, ended = self.absorber.with_copies(self.absorber.absorbed(gradient))
        via = ("via", EMITTERS[self.env.target.device])
        new = {
            old.name: dataclasses.replace(node, kwargs=(*node.kwargs, via))
            for old, node in ((attention, forward), (gradient, backward))
        }
        nodes = [new.get(n.name, n) for n in self.graph.nodes if n.name not in ended]
        kept, _ = split_dead(self.graph.with_nodes(nodes))
        return self.graph.with_nodes(kept)

    def _not_worth_it(self, call: Call | None, forward: Node, nest: AttentionNest) -> str | None:
        """Why ATen's kernels are as good; the log is told when they are not."""
        share = kept_share(nest)
        if call is None:
            why = f"{share:.0%} of its tiles are kept; ATen has none"
        elif is_worthwhile(share, is_causal=call.causal):
            why = f"{share:.0%} of its tiles are kept"
        elif may_skip(nest):
            why = "it looks for masked tiles"
        elif call.bias is not None and not _reads_scores(nest):
            why = "its mask takes no memory"
        else:
            return "ATen's kernel computes as much"
        self.env.log.decide(FlashAttentionPairs.name, forward.name, f"kernels of ours: {why}")
        return None


def _reads_scores(nest: AttentionNest) -> bool:
    """Whether a tensor is read that has an element for each row and key."""
    loads = (t for s in nest.statements for t in subterms(s.term) if isinstance(t, Load))
    axes = {nest.row.name, nest.key.name}
    return any(axes <= {name for name, _ in load.at.terms} for load in loads)
