"""Smaller sizes and fewer arguments, with the types that follow from them, as torch says."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from rewright.ir import (
    Arg,
    Constant,
    Graph,
    Node,
    Op,
    TensorType,
    Type,
    Value,
    contiguous_strides,
    dims_in,
    hint,
    map_values,
    sizes_of,
)
from rewright.ir.ask_torch import asked, without_data

# Sizes to try before halves.
_SMALLEST: Final = (1, 2, 3, 4)


def smaller_sizes(graph: Graph) -> Iterator[Graph]:
    """The graph with one of its sizes smaller, wherever that stands; with a multiple of it too,
    where views join dimensions. The smallest come first."""
    if graph.symbols:
        return
    sizes = {s for v in graph.values for s in sizes_of(v.type) if isinstance(s, int) and s > 1}
    for size in sorted(sizes, reverse=True):
        multiples = [m for m in sorted(sizes) if m > size and m % size == 0]
        for smaller in _below(size):
            for multiple in (None, *multiples):
                changed = {size: smaller}
                if multiple is not None:
                    changed[multiple] = multiple // size * smaller
                found = retyped(graph, changed)
                if found is not None:
                    yield found


def _below(size: int) -> Iterator[int]:
    yield from (s for s in _SMALLEST if s < size)
    half = 8
    while half < size:
        yield half
        half *= 2


def plainer(graph: Graph) -> Iterator[Graph]:
    """The graph with one argument less."""
    if graph.symbols:
        return
    for place, node in enumerate(graph.nodes):
        for bare in _with_less(node):
            nodes = (*graph.nodes[:place], bare, *graph.nodes[place + 1 :])
            found = retyped(graph.with_nodes(nodes), {})
            if found is not None:
                yield found


def _with_less(node: Node) -> Iterator[Node]:
    """The node without one of the arguments that have a default."""
    schema = node.op.schema
    if schema is None:
        return
    has_default = {a.name for a in schema.arguments if a.has_default_value()}
    for name, _ in node.kwargs:
        if name in has_default:
            kwargs = tuple(pair for pair in node.kwargs if pair[0] != name)
            yield dataclasses.replace(node, kwargs=kwargs)
    if node.args and schema.arguments[len(node.args) - 1].name in has_default:
        yield dataclasses.replace(node, args=node.args[:-1])


def retyped(graph: Graph, sizes: Mapping[int, int]) -> Graph | None:
    """The graph with other sizes, and all types as torch gives them; None where it refuses, or
    where nobody can say."""
    try:
        values = {i.value: Value(i.value.name, _resized(i.value.type, sizes)) for i in graph.inputs}
        nodes = []
        with without_data():
            for node in graph.nodes:
                nodes.append(_retyped(node, values, sizes))
                values |= dict(zip(node.results, nodes[-1].results, strict=True))
    except Exception:  # torch's own shape functions raise all sorts of things
        return None
    inputs = tuple(dataclasses.replace(i, value=values[i.value]) for i in graph.inputs)
    outputs = tuple(map_values(output, values) for output in graph.outputs)
    updates = tuple((values[a], values[b]) for a, b in graph.updates)
    return dataclasses.replace(
        graph, inputs=inputs, nodes=tuple(nodes), outputs=outputs, updates=updates
    )


def _retyped(node: Node, values: Mapping[Value, Value], sizes: Mapping[int, int]) -> Node:
    """Raises ValueError for a node that cannot be asked."""
    if node.op.name == "rw.constant":
        return _smaller_constant(node, sizes)
    if node.graphs or node.op.target is None or node.op.namespace in ("rw", "hop", "py"):
        raise ValueError(f"{node.op} cannot be asked")
    args = tuple(
        _resized_arg(a, _takes_sizes(node.op, place), sizes) for place, a in enumerate(node.args)
    )
    changed = dataclasses.replace(node, args=args).replace(values)
    results = [
        Value(value.name, _type_of(found, value.type))
        for value, found in zip(node.results, asked(changed, {}), strict=True)
    ]
    return dataclasses.replace(changed, results=tuple(results))


def _type_of(found: object, declared: Type) -> Type:
    if not isinstance(found, torch.Tensor) or not isinstance(declared, TensorType):
        return declared
    shape, strides = tuple(map(int, found.shape)), tuple(map(int, found.stride()))
    return TensorType(found.dtype, shape, strides, declared.device)


@cache
def _takes_sizes(op: Op, place: int) -> bool:
    """Whether an argument is a size, or a list of them, as its schema says."""
    if op.schema is None or place >= len(op.schema.arguments):
        return False
    # The types of arguments call a size an int; only the text tells it from one.
    name = re.escape(op.schema.arguments[place].name)
    return re.search(rf"\bSymInt[^ ,]* {name}\b", str(op.schema)) is not None


def _resized_arg(arg: Arg, takes_sizes: bool, sizes: Mapping[int, int]) -> Arg:
    if isinstance(arg, tuple):
        return tuple(_resized_arg(a, takes_sizes, sizes) for a in arg)
    return sizes.get(arg, arg) if takes_sizes and type(arg) is int else arg


def _resized(type: Type, sizes: Mapping[int, int]) -> Type:
    """Raises ValueError for strides that belong to no order of the dimensions."""
    if not isinstance(type, TensorType) or not sizes:
        return type
    shape = tuple(sizes.get(s, s) if isinstance(s, int) else s for s in type.shape)
    if shape == type.shape:
        return type
    return TensorType(type.dtype, shape, _strides(type, shape), type.device)


def _strides(type: TensorType, shape: tuple[object, ...]) -> tuple[int, ...] | None:
    """Strides for another shape: dimensions keep their order in memory, expanded ones stay so."""
    if type.strides is None:
        return None
    if any(True for _ in dims_in(type.strides)):
        raise ValueError("symbolic strides")
    old = [hint(s) for s in type.strides]
    order = sorted((d for d in range(type.rank) if old[d]), key=lambda d: (-old[d], d))
    dense = contiguous_strides(tuple(hint(type.shape[d]) for d in order))
    if [old[d] for d in order if type.shape[d] != 1] != [
        s for d, s in zip(order, dense, strict=True) if type.shape[d] != 1
    ]:
        raise ValueError("strides with gaps")
    new = dict(zip(order, contiguous_strides(tuple(shape[d] for d in order)), strict=True))  # type: ignore[misc]
    return tuple(hint(new[d]) if d in new else 0 for d in range(type.rank))


def _smaller_constant(node: Node, sizes: Mapping[int, int]) -> Node:
    """The first elements of each dimension that gets smaller."""
    held = node.kwarg("value")
    type = _resized(node.result.type, sizes)
    if type == node.result.type:
        return node
    if not isinstance(held, Constant) or held.data is None or not isinstance(type, TensorType):
        raise ValueError("a constant without data")
    with unset_fake_temporarily():
        data = held.tensor
        for dim, size in enumerate(type.shape):
            data = data.narrow(dim, 0, hint(size))
        constant = Constant.of(data)
    result = Value(node.result.name, type)
    return dataclasses.replace(node, kwargs=(("value", constant),), results=(result,))
