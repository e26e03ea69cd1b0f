"""Structural keys: hashable, and equal exactly when two nodes or graphs compute the same thing
whatever their values are called."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from rewright.ir.constant import Constant
from rewright.ir.graph import Arg, Graph, Node, Value


def node_key(node: Node, of_value: Callable[[Value], Hashable]) -> Hashable:
    """Operator, arguments, nested graphs and result types; not names, source lines or phases."""
    return (
        node.op.name,
        tuple(_arg_key(a, of_value) for a in node.args),
        tuple((name, _arg_key(a, of_value)) for name, a in node.kwargs),
        tuple(value.type for value in node.results),
        tuple((name, graph_key(graph)) for name, graph in node.graphs),
    )


def graph_key(graph: Graph) -> Hashable:
    """The graph with its values numbered in order of appearance."""
    numbers = {value.name: number for number, value in enumerate(graph.values)}

    def number(value: Value) -> Hashable:
        return numbers[value.name]

    return (
        tuple((i.value.type, i.role, i.mutable) for i in graph.inputs),
        tuple(node_key(node, number) for node in graph.nodes),
        tuple(_arg_key(a, number) for a in graph.outputs),
        tuple((number(target), number(value)) for target, value in graph.updates),
    )


def _arg_key(arg: Arg, of_value: Callable[[Value], Hashable]) -> Hashable:
    """Python finds 1, 1.0 and True equal, 0.0 and -0.0 too, and NaN unlike itself; a key must
    not."""
    if isinstance(arg, Value):
        return (Value, of_value(arg))
    if isinstance(arg, tuple):
        return tuple(_arg_key(a, of_value) for a in arg)
    if isinstance(arg, Constant):
        return arg.sha256
    if isinstance(arg, (float, complex)):
        return (type(arg), repr(arg))
    return (type(arg), arg)
