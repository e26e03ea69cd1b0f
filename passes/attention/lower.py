"""The pass that lowers `rw.attention`: to ATen's operator where that can compute it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from rewright.ir import Graph, Node, Value, equal, fresh_names
from rewright.ir.expand import expand
from rewright.passes.attention.region import has_dropout, scale_and_bias
from rewright.passes.base import Env, Pass
from rewright.passes.emitter import Emitter

FLASH_BACKWARD: Final = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
FLASH: Final = "aten._scaled_dot_product_flash_attention_for_cpu.default"
_DTYPES: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LowerAttention(Pass, name="lower-attention", takes="aten", gives="aten"):
    """Lower `rw.attention` to ATen's fused attention; where that has no such form, to its parts.

    before:
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
    after:
        graph f(%q: f32[2, 3, 4], %k: f32[2, 4, 5], %v: f32[2, 5, 4]) {
          %o_1 = aten.permute.default(%k, [0, 2, 1]) : f32[2, 5, 4] strides [20, 1, 5]
          %o_2 = aten.view.default(%q, [1, 2, 3, 4]) : f32[1, 2, 3, 4]
          %o_3 = aten.view.default(%o_1, [1, 2, 5, 4]) : f32[1, 2, 5, 4] strides [40, 20, 1, 5]
          %o_4 = aten.view.default(%v, [1, 2, 5, 4]) : f32[1, 2, 5, 4]
          %o_5_1 = aten.clone.default(%o_3, memory_format=memory_format(contiguous))
            : f32[1, 2, 5, 4]
          %o_5_2, %o_5_3 = aten._scaled_dot_product_flash_attention_for_cpu.default(
            %o_2, %o_5_1, %o_4, scale=1.0
          ) : f32[1, 2, 3, 4] strides [24, 4, 8, 1], f32[1, 2, 3] strides [6, 1, 2]
          %o_5 = aten.clone.default(%o_5_2, memory_format=memory_format(contiguous))
            : f32[1, 2, 3, 4]
          %o = aten.view.default(%o_5, [2, 3, 4]) : f32[2, 3, 4]
          return %o
        }

    A row that is masked with -inf as a whole comes out 0, as in torch's own attention; in its parts
    it is NaN.

    Refuses: keys and values of different widths; nothing to attend to; other devices than the CPU.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        if not any(map(is_left, graph.nodes)):
            return graph
        fresh = fresh_names(v.name for v in graph.values)
        nodes: list[Node] = []
        for node in graph.nodes:
            if not is_left(node):
                nodes.append(node)
                continue
            why = obstacle(node)
            if why is None:
                nodes += atens_nodes(node, fresh)
            else:
                env.log.refuse(self.name, node.name, f"in its parts: {why}")
                nodes.append(node)  # which `expand` takes apart
        return self.gave(expand(graph.with_nodes(nodes), is_left), {})


def is_left(node: Node) -> bool:
    """True for attention that no kernel has been chosen for."""
    return node.op.name == "rw.attention" and node.kwarg("via") is None


def obstacle(node: Node) -> str | None:
    """Why ATen's operator cannot compute the attention."""
    query, key, value = (v.tensor for v in node.operands[:3])
    if query.device.type != "cpu":
        return f"it is on {query.device}"
    if query.dtype not in _DTYPES or not query.dtype == key.dtype == value.dtype:
        return "its operands are not of one floating dtype"
    if not equal(query.shape[-1], value.shape[-1]):
        return "keys and values are not of one width"
    if scale_and_bias(node) is None:
        return "more is done to its scores than scaling and adding"
    if has_dropout(node):
        return "it drops some of its probabilities"
    if 0 in (*query.shape, *key.shape):
        return "it has no elements"
    return None


def atens_nodes(node: Node, fresh: Callable[[str], str]) -> list[Node]:
    """ATen's operator, and what it takes around it; where there is no `obstacle`."""
    emit = Emitter(fresh, node)
    query, key, value = (unit_stride(v, emit) for v in node.operands[:3])
    found = scale_and_bias(node)
    assert found is not None
    scale, bias = found
    if bias is not None and bias.tensor.dtype != query.tensor.dtype:
        bias = emit("aten._to_copy.default", bias, dtype=query.tensor.dtype)
    result = emit(FLASH, query, key, value, attn_mask=bias, scale=scale)
    emit("aten.clone.default", result, memory_format=torch.contiguous_format)
    emit.nodes[-1] = dataclasses.replace(emit.nodes[-1], results=node.results)
    return emit.nodes


def unit_stride(x: Value, emit: Emitter) -> Value:
    """The operator reads features that are neighbours in memory."""
    if equal(x.tensor.layout[-1], 1):
        return x
    return emit("aten.clone.default", x, memory_format=torch.contiguous_format)
