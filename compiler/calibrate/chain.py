"""One call many times over: how kernels and operators are timed.

A call inside a compiled program costs its work and its step in the call sequence; so what is timed
is a program that makes the call over and over, built and run like any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from rewright.ir import Graph, Input, Value


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
