"""`expand`: every region replaced by the nodes it stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rewright.ir.dims import Dim, Size, substitute
from rewright.ir.errors import CheckError, UnsupportedError
from rewright.ir.graph import (
    Arg,
    Graph,
    Node,
    Value,
    fresh_names,
    map_values,
    sizes_of,
    values_in,
)
from rewright.ir.types import ScalarType, TensorType, Type


def expand(graph: Graph, which: Callable[[Node], bool] | None = None) -> Graph:
    """The same function without `rw.fused` and its like, or without `which` of them, at any depth.

    Inner values keep their names where these are free; what a region returns keeps the region's.
    Raises UnsupportedError for a region that writes into given buffers (kernel level).
    """
    if not any(node.graphs for node in graph.nodes):
        return graph
    fresh = fresh_names(value.name for value in graph.values)
    replaced: dict[Value, Arg] = {}
    nodes: list[Node] = []
    for node in graph.nodes:
        node = node.replace(replaced)
        if node.op.has_body and (which is None or which(node)):
            inlined, results = _inline(node, fresh, which)
            nodes += inlined
            replaced |= results
        elif node.graphs and not node.op.has_body:
            inner = tuple((name, expand(g, which)) for name, g in node.graphs)
            nodes.append(dataclasses.replace(node, graphs=inner))
        else:
            nodes.append(node)
    expanded = dataclasses.replace(graph, nodes=tuple(nodes))
    return expanded.substitute(replaced)


def body_of(node: Node) -> Graph:
    """The graph that says what a region computes."""
    if node.op.dialect is None or node.op.dialect.body is None:
        raise CheckError(f"{node.op} has no body")
    return node.graph(node.op.dialect.body)


def _inline(
    node: Node, fresh: Callable[[str], str], which: Callable[[Node], bool] | None
) -> tuple[list[Node], dict[Value, Arg]]:
    """The nodes of a region, and what stands for those of its results that are none of theirs."""
    if node.kwarg("out") is not None:
        raise UnsupportedError(f"%{node.name} writes into given buffers; it cannot be expanded")
    body = expand(body_of(node), which)
    sizes = _outer_sizes(node, body)
    values: dict[Value, Arg] = dict(zip((i.value for i in body.inputs), node.args, strict=True))
    made = {value for inner in body.nodes for value in inner.results}
    for result, output in zip(node.results, body.outputs, strict=True):
        if isinstance(output, Value) and output in made and output not in values:
            values[output] = result
    nodes = []
    for inner in body.nodes:
        for value in inner.results:
            if value not in values:
                values[value] = Value(fresh(value.name), _with_sizes(value.type, sizes))
        nodes.append(_renamed(inner, values, sizes))
    outer = (_arg(map_values(output, values), sizes) for output in body.outputs)
    results = zip(node.results, outer, strict=True)
    return nodes, {result: arg for result, arg in results if arg is not result}


def _renamed(node: Node, values: Mapping[Value, Arg], sizes: Mapping[str, Size]) -> Node:
    results = tuple(v for result in node.results for v in values_in(values[result]))
    node = dataclasses.replace(node, results=results).replace(values)
    if not sizes:
        return node
    return dataclasses.replace(
        node,
        args=tuple(_arg(a, sizes) for a in node.args),
        kwargs=tuple((name, _arg(a, sizes)) for name, a in node.kwargs),
    )


def _outer_sizes(node: Node, body: Graph) -> dict[str, Size]:
    """What the body's symbols are outside, where that is another size."""
    found: dict[str, Size] = {}
    for input, arg in zip(body.inputs, node.args, strict=True):
        for inside, outside in zip(sizes_of(input.value.type), _sizes(arg), strict=False):
            if isinstance(inside, Dim) and inside.is_symbol and inside is not outside:
                found.setdefault(inside.text, outside)
    return found


def _sizes(arg: Arg) -> tuple[Size, ...]:
    if isinstance(arg, Value):
        return tuple(sizes_of(arg.type))
    return (arg,) if isinstance(arg, Dim | int) else ()


def _with_sizes(type: Type, sizes: Mapping[str, Size]) -> Type:
    if not sizes:
        return type
    if isinstance(type, ScalarType) and type.dim is not None:
        return ScalarType(type.kind, substitute(type.dim, sizes))
    if not isinstance(type, TensorType):
        return type
    shape = tuple(substitute(size, sizes) for size in type.shape)
    strides = type.strides and tuple(substitute(size, sizes) for size in type.strides)
    return TensorType(type.dtype, shape, strides, type.device)


def _arg(arg: Arg, sizes: Mapping[str, Size]) -> Arg:
    if isinstance(arg, tuple):
        return tuple(_arg(a, sizes) for a in arg)
    return substitute(arg, sizes) if isinstance(arg, Dim) else arg
