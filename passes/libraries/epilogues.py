"""Elementwise functions of what oneDNN computes, applied while it lies in registers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from rewright.ir import Arg, Graph, Kind, Node, Value, op
from rewright.ir.onednn import CONVOLUTION, CONVOLUTION_BINARY, LINEAR, PLAIN
from rewright.passes.base import Env, Pass
from rewright.passes.emitter import Emitter

# What follows the operands among the arguments: the function, its numbers, its variant.
Function = tuple[str, tuple[Arg, ...], str]
# What stands there of a sum that nothing follows.
NOTHING: Final = (None, (), "")
_ANCHORS: Final = (LINEAR, CONVOLUTION, CONVOLUTION_BINARY)


def _numbers(name: str, *arguments: str) -> Callable[[Node], Function]:
    return lambda node: (name, tuple(node.arg(a) for a in arguments), "")


def _gelu(node: Node) -> Function:
    approximate = node.arg("approximate")
    assert isinstance(approximate, str)
    return "gelu", (), approximate


_FUNCTIONS: Final[Mapping[str, Callable[[Node], Function]]] = {
    "aten.relu.default": _numbers("relu"),
    "aten.sigmoid.default": _numbers("sigmoid"),
    "aten.tanh.default": _numbers("tanh"),
    "aten.silu.default": _numbers("swish"),
    "aten.hardswish.default": _numbers("hardswish"),
    "aten.hardsigmoid.default": _numbers("hardsigmoid"),
    "aten.leaky_relu.default": _numbers("leaky_relu", "negative_slope"),
    "aten.hardtanh.default": _numbers("hardtanh", "min_val", "max_val"),
    "aten.gelu.default": _gelu,
}
_OPERATORS: Final = {
    **{name.split(".")[1]: name for name in _FUNCTIONS},
    "swish": "aten.silu.default",
}


def applied(value: Value, name: Arg, numbers: Arg, variant: Arg, emit: Emitter) -> Value:
    """What a call's function gives of a value, by ATen's operator."""
    assert isinstance(name, str) and isinstance(numbers, tuple)
    if name == "gelu":
        return emit("aten.gelu.default", value, approximate=variant)
    return emit(_OPERATORS[name], value, *numbers)


# Those of which every implementation gives the same bits.
_EXACT: Final = ("aten.relu.default", "aten.hardtanh.default")


@dataclass(frozen=True)
class Epilogues(Pass, name="epilogues", takes="aten", gives="aten"):
    """Let oneDNN apply the function that follows a product, where nothing else reads the product.

    before:
        graph f(%x: f32[8, 4], %w: f32[6, 4]) {
          %a = mkldnn._linear_pointwise.default(%x, %w, none, "none", [], "") : f32[8, 6]
          %b = aten.view.default(%a, [2, 4, 6]) : f32[2, 4, 6]
          %c = aten.gelu.default(%b) : f32[2, 4, 6]
          return %c
        }
    after:
        graph f(%x: f32[8, 4], %w: f32[6, 4]) {
          %a = mkldnn._linear_pointwise.default(%x, %w, none, "gelu", [], "none") : f32[8, 6]
          %c = aten.view.default(%a, [2, 4, 6]) : f32[2, 4, 6]
          return %c
        }

    A convolution also takes in the sum with another image, before a function.

    Refuses: functions that oneDNN does not have; products that something else reads too; in a
    training step also functions that oneDNN rounds otherwise than our kernels, for what is kept for
    the gradient, and with it who reads a product, goes by the memory that there is.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        summed = _with_sums(graph)
        joined: dict[str, tuple[Node, Node]] = {}
        for node in summed.nodes:
            if node.op.name in _ANCHORS and node.args[-3:] in (PLAIN, NOTHING):
                found = followed(node, summed)
                if found is not None:
                    joined[node.name] = found
        if not joined:
            return graph if summed is graph else self.gave(summed, {})
        return self.gave(*_rewritten(summed, joined))


def _with_sums(graph: Graph) -> Graph:
    """The graph in which convolutions add what was added to them alone. The sum stays where it is:
    the other image may be made after the convolution."""
    replaced: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.op.name != CONVOLUTION or node.args[-3:] != PLAIN:
            continue
        value = node.result
        readers = graph.readers.get(value, ())
        if len(readers) != 1 or value in graph.returned or readers[0].name in replaced:
            continue
        (reader,) = readers
        if reader.op.name != "aten.add.Tensor" or reader.kwargs:
            continue
        other = reader.args[1] if reader.args[0] == value else reader.args[0]
        if not isinstance(other, Value) or other == value:
            continue
        if other.type == value.type == reader.result.type:
            image, weight, bias, *how = node.args[:-3]
            args = (image, other, weight, bias, *how, "add", None, *NOTHING)
            replaced[node.name] = None
            replaced[reader.name] = dataclasses.replace(
                node, op=op(CONVOLUTION_BINARY), args=args, results=reader.results
            )
    if not replaced:
        return graph
    changed = (replaced.get(node.name, node) for node in graph.nodes)
    return graph.with_nodes(node for node in changed if node is not None)


def followed(node: Node, graph: Graph) -> tuple[Node, Node] | None:
    """The function that is applied to a product and to nothing else that comes of it: its node, and
    that which makes its argument, a view of the product or the product itself."""
    last = node
    while True:
        value = last.result
        readers = graph.readers.get(value, ())
        if len(readers) != 1 or value in graph.returned:
            return None
        (reader,) = readers
        if reader.op.name in _FUNCTIONS:
            is_exact = reader.phase is None or reader.op.name in _EXACT
            return (reader, last) if is_exact and reader.result.type == value.type else None
        if not _shows(reader, value):
            return None
        last = reader


def _shows(node: Node, value: Value) -> bool:
    """True for a view of nothing but `value`."""
    return node.op.kind is Kind.VIEW and node.operands == (value,) and len(node.results) == 1


def _rewritten(
    graph: Graph, joined: Mapping[str, tuple[Node, Node]]
) -> tuple[Graph, Mapping[str, tuple[str, ...]]]:
    """The graph in which products end in their functions, and what became of their names."""
    followed = {last.name: function for function, last in joined.values()}
    dropped = {function.name for function in followed.values()}
    nodes = []
    for node in graph.nodes:
        if node.name in dropped:
            continue
        changed = node
        if node.name in joined:
            function, _ = joined[node.name]
            args = (*node.args[:-3], *_FUNCTIONS[function.op.name](function))
            changed = dataclasses.replace(node, args=args)
        if node.name in followed:
            changed = dataclasses.replace(changed, results=followed[node.name].results)
        nodes.append(changed)
    renamed = {last: (function.name,) for last, function in followed.items()}
    return graph.with_nodes(nodes), renamed
