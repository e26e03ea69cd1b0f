"""One call alone, and many times over: how kernels and operators are named and timed.

A call inside a compiled program costs its work and its step in the call sequence; so what is timed
is a program that makes the call over and over, built and run like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from rewright.ir import Graph, Input, Node, TensorType, Value, effects_of, is_call, leaves
from rewright.ir.constant import Constant
from rewright.ir.dims import symbols_of
from rewright.ir.graph import map_values, sizes_of


def obstacle(node: Node) -> str | None:
    """Why a call cannot be timed alone, or None."""
    values = (*node.operands, *node.results)
    if not is_call(node):
        return "it calls nothing"
    if effects_of(node):
        return "it has an effect"
    if not node.results or not all(isinstance(v.type, TensorType) for v in values):
        return "it takes or gives what is no tensor"
    if symbols_of(size for v in values for size in sizes_of(v.type)):
        return "its sizes are symbolic"
    if any(isinstance(leaf, Constant) for leaf in leaves((node.args, node.kwargs))):
        return "it holds a constant"
    return None


def alone(node: Node) -> Graph:
    """A fused-level graph of one call. Equal calls give equal texts: values are numbered, and where
    the call came from is left out."""
    operands = dict.fromkeys(node.operands)
    given = {v: Value(f"a{i}", v.type) for i, v in enumerate(operands)}
    call = _numbered(node, given, 0)
    return Graph("call", tuple(Input(v) for v in given.values()), (call,), call.results)


def _numbered(node: Node, given: Mapping[Value, Value], first: int) -> Node:
    return dataclasses.replace(
        node.replace(given),
        results=tuple(Value(f"r{first + i}", v.type) for i, v in enumerate(node.results)),
        graphs=tuple((name, _body(graph)) for name, graph in node.graphs),
        loc=None,
        seq_nr=None,
        phase=None,
    )


def _body(graph: Graph) -> Graph:
    given = {i.value: Value(f"a{n}", i.value.type) for n, i in enumerate(graph.inputs)}
    inputs = tuple(Input(v) for v in given.values())
    nodes: list[Node] = []
    made = 0
    for node in graph.nodes:
        nodes.append(_numbered(node, given, made))
        made += len(node.results)
        given |= dict(zip(node.results, nodes[-1].results, strict=True))
    outputs = tuple(map_values(output, given) for output in graph.outputs)
    return Graph("body", inputs, tuple(nodes), outputs)


def chain(call: Graph, copies: int, cold: Collection[int] = ()) -> Graph:
    """A fused-level graph of `copies` of the only call of a graph, each with results of its own.

    All read the same inputs, except for those at the places `cold`: there each reads a tensor of
    its own, so that no cache holds it.
    """
    (node,) = call.nodes
    inputs: dict[Value, None] = {}
    nodes = []
    for copy in range(copies):
        given = {
            i.value: Value(f"{i.value.name}_{copy}", i.value.type) if place in cold else i.value
            for place, i in enumerate(call.inputs)
        }
        inputs |= dict.fromkeys(given.values())
        results = tuple(Value(f"{r.name}_{copy}", r.type) for r in node.results)
        nodes.append(dataclasses.replace(node.replace(given), results=results))
    return Graph("chain", tuple(Input(v) for v in inputs), tuple(nodes), ())


def cold_bytes(call: Graph, cold: Sequence[int]) -> int:
    """Bytes of the inputs at the places `cold`."""
    return sum(call.inputs[place].value.tensor.nbytes_hint for place in cold)
