"""One call alone: how calls that are timed are named, and remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from rewright.ir.cache import digest
from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Size, hint, symbols_of
from rewright.ir.effects import effects_of
from rewright.ir.graph import (
    Arg,
    Graph,
    Input,
    Node,
    Value,
    freeze,
    leaves,
    map_leaves,
    map_values,
    sizes_of,
)
from rewright.ir.types import TensorType, Type
from rewright.ir.work import is_call

Resize = Callable[[Size], Size]


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
    return together([node], node.results)


def together(nodes: Sequence[Node], results: Sequence[Value]) -> Graph:
    """The same of calls that read each other, in order, and of what is wanted of them."""
    made = {v for node in nodes for v in node.results}
    operands = dict.fromkeys(v for n in nodes for v in n.operands if v not in made)
    given = {v: Value(f"a{i}", v.type) for i, v in enumerate(operands)}
    inputs = tuple(Input(v) for v in given.values())
    calls: list[Node] = []
    for node in nodes:
        calls.append(_numbered(node, given, len(given) - len(inputs)))
        given |= dict(zip(node.results, calls[-1].results, strict=True))
    return Graph("call", inputs, tuple(calls), tuple(given[v] for v in results))


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


def call_name(text: str, cold: Sequence[int] = ()) -> str:
    """Names a call by the text of its graph, and by which of its inputs no cache holds."""
    return digest(text, str(list(cold)))


def at_hints(node: Node) -> Node:
    """A call with its symbolic sizes, and those of its body, at their hints."""
    return resized(node, hint)


def graph_at_hints(graph: Graph) -> Graph:
    """A graph with all symbolic sizes at their hints."""
    return resized_graph(graph, hint)


def resized(node: Node, change: Resize) -> Node:
    """A call with its symbolic sizes, and those of its body, changed."""
    change_leaf = partial(_resized_leaf, change=change)
    operands = (*node.operands, *node.results)
    values = {v: Value(v.name, _resized_type(v.type, change)) for v in operands}
    sized = node.replace(values)
    return dataclasses.replace(
        sized,
        args=tuple(freeze(map_leaves(a, change_leaf)) for a in sized.args),
        kwargs=tuple((k, freeze(map_leaves(a, change_leaf))) for k, a in sized.kwargs),
        results=tuple(values[v] for v in node.results),
        graphs=tuple((name, resized_graph(graph, change)) for name, graph in node.graphs),
    )


def resized_graph(graph: Graph, change: Resize) -> Graph:
    """A graph with all symbolic sizes changed."""
    change_leaf = partial(_resized_leaf, change=change)
    values = {v: Value(v.name, _resized_type(v.type, change)) for v in graph.values}
    inputs = tuple(dataclasses.replace(i, value=values[i.value]) for i in graph.inputs)
    outputs = tuple(freeze(map_leaves(map_values(a, values), change_leaf)) for a in graph.outputs)
    updates = tuple((values[a], values[b]) for a, b in graph.updates)
    nodes = tuple(resized(node, change) for node in graph.nodes)
    return dataclasses.replace(graph, inputs=inputs, nodes=nodes, outputs=outputs, updates=updates)


def _resized_leaf(arg: Arg, change: Resize) -> Arg:
    return change(arg) if isinstance(arg, Dim) else arg


def _resized_type(type: Type, change: Resize) -> Type:
    if not isinstance(type, TensorType):
        return type
    shape = tuple(map(change, type.shape))
    strides = None if type.strides is None else tuple(map(change, type.strides))
    return TensorType(type.dtype, shape, strides, type.device)
