"""The pass that takes a program from the CPU to another device, before its kernels are made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Final

import torch

from rewright.ir import Arg, Graph, Node, TensorType, UnsupportedError, Value, op
from rewright.passes.base import Env, Pass

_ATTENTION: Final = "aten._scaled_dot_product_flash_attention_for_cpu.default"
_EVERYWHERE: Final = "aten.scaled_dot_product_attention.default"
# Arguments of the CPU's operator in the order of the other's.
_ARGUMENTS: Final = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


@dataclass(frozen=True)
class Move(Pass, name="move", takes="aten", gives="aten"):
    """Put what lies on the CPU on `device`: inputs, constants and all that is computed of them.

    before:
        graph f(%q: f32[2, 3, 8, 4], %k: f32[2, 3, 8, 4]) {
          %one = aten.ones.default([8, 4], dtype=f32, device=device("cpu")) : f32[8, 4]
          %o, %sums = aten._scaled_dot_product_flash_attention_for_cpu.default(
            %q, %k, %k, 0.0, true
          ) : f32[2, 3, 8, 4] strides [96, 4, 12, 1], f32[2, 3, 8] strides [24, 1, 3]
          %y = aten.add.Tensor(%o, %one) : f32[2, 3, 8, 4] strides [96, 4, 12, 1]
          return %y
        }
    after:
        graph f(%q: f32[2, 3, 8, 4] on cuda:0, %k: f32[2, 3, 8, 4] on cuda:0) {
          %one = aten.ones.default([8, 4], dtype=f32, device=device("cuda:0")) : f32[8, 4] on cuda:0
          %o = aten.scaled_dot_product_attention.default(%q, %k, %k, none, 0.0, true)
            : f32[2, 3, 8, 4] strides [96, 4, 12, 1] on cuda:0
          %y = aten.add.Tensor(%o, %one) : f32[2, 3, 8, 4] strides [96, 4, 12, 1] on cuda:0
          return %y
        }

    Constants keep the values that they were given or folded to on the CPU. Random operators draw
    what the device's generator gives.

    Refuses: operators that only CPUs have, attention whose sums are read among them.
    """

    device: str = "cuda:0"

    def run(self, graph: Graph, env: Env) -> Graph:
        device = torch.device(self.device)
        nodes = (_anywhere(node, graph) for node in graph.nodes)
        moved = _Mover(device).graph(graph.with_nodes(nodes))
        return graph if moved == graph else self.gave(moved, {})


def to_cpu(graph: Graph) -> Graph:
    """The graph with everything of GPUs on the CPU."""
    return _Mover(torch.device("cpu"), "cuda").graph(graph)


@dataclass(frozen=True)
class _Mover:
    """Puts on a device what is on others of some kind."""

    device: torch.device
    kind: str = "cpu"

    def graph(self, graph: Graph) -> Graph:
        return dataclasses.replace(
            graph,
            inputs=tuple(dataclasses.replace(i, value=self.value(i.value)) for i in graph.inputs),
            nodes=tuple(map(self.node, graph.nodes)),
            outputs=tuple(map(self.arg, graph.outputs)),
            updates=tuple((self.value(target), self.value(v)) for target, v in graph.updates),
        )

    def node(self, node: Node) -> Node:
        return dataclasses.replace(
            node,
            args=tuple(map(self.arg, node.args)),
            kwargs=tuple((name, self.arg(arg)) for name, arg in node.kwargs),
            results=tuple(map(self.value, node.results)),
            graphs=tuple((name, self.graph(nested)) for name, nested in node.graphs),
        )

    def arg(self, arg: Arg) -> Arg:
        if isinstance(arg, tuple):
            return tuple(map(self.arg, arg))
        if isinstance(arg, torch.device) and arg.type == self.kind:
            return self.device
        return self.value(arg) if isinstance(arg, Value) else arg

    def value(self, value: Value) -> Value:
        type = value.type
        if not isinstance(type, TensorType) or type.device.type != self.kind:
            return value
        return Value(value.name, dataclasses.replace(type, device=self.device))


def _anywhere(node: Node, graph: Graph) -> Node:
    """The node by an operator that every device has. Raises UnsupportedError."""
    if node.op.name == _ATTENTION and not _is_read(node.results[1], graph):
        first: list[Arg] = [node.arg(name) for name in _ARGUMENTS]
        scale = tuple((name, arg) for name, arg in node.kwargs if name == "scale")
        while first[-1] in (None, 0, False) and len(first) > 3:
            first.pop()
        return dataclasses.replace(
            node, op=op(_EVERYWHERE), args=tuple(first), kwargs=scale, results=node.results[:1]
        )
    if node.op.namespace == "mkldnn" or "_for_cpu" in node.op.name:
        raise UnsupportedError(
            f"%{node.name}: only CPUs have {node.op}", who="move", help="export it on the device"
        )
    return node


def _is_read(value: Value, graph: Graph) -> bool:
    return value in graph.returned or value in graph.readers
