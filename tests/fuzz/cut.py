"""Cutting a graph that fails: what is above a node becomes an input, what is below is not returned.

Hypothesis shrinks what was drawn, choice by choice, with a run of the C++ compiler for each try; a
cut takes away half a graph at once. It comes after hypothesis, and ends when no cut fails alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from drawn_graphs import tidy
from drawn_inputs import kind_of
from rewright.ir import Graph, Input, RewrightError, Value
from rewright.ir.show import show


def cut(graph: Graph, fails: Callable[[Graph], bool], seconds: float) -> Graph:
    """A graph that fails and of which no cut does, or the least found within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        smaller = (g for g in _cuts(graph) if size(g) < size(graph) and time.monotonic() < end)
        found = next((g for g in smaller if fails(g)), None)
        if found is None:
            break
        graph = found
    return graph


def size(graph: Graph) -> tuple[int, int, int]:
    return len(graph.nodes), len(graph.outputs) + len(graph.updates), len(show(graph))


def _cuts(graph: Graph) -> Iterator[Graph]:
    """Graphs with less in them, those with much less first."""
    made = dict.fromkeys((*graph.outputs, *(v for _, v in graph.updates)))
    if len(made) > 1:
        yield from (_only(graph, v) for v in made if isinstance(v, Value))
    for place in range(len(graph.outputs) if len(graph.outputs) > 1 else 0):
        rest = graph.outputs[:place] + graph.outputs[place + 1 :]
        yield tidy(replace(graph, outputs=rest))
    for node in reversed(graph.nodes):
        for value in node.results:
            yield _from_input(graph, value)
    for node in graph.nodes:
        for operand in node.operands:
            if operand.type == node.results[0].type:
                yield tidy(graph.substitute({node.results[0]: operand}))


def _only(graph: Graph, value: Value) -> Graph:
    inputs = tuple(replace(i, mutable=False) for i in graph.inputs)
    return tidy(replace(graph, inputs=inputs, outputs=(value,), updates=()))


def _from_input(graph: Graph, value: Value) -> Graph:
    """With an input in place of what a node makes."""
    number = 1 + max(
        (int("".join(filter(str.isdigit, v.name)) or 0) for v in graph.values), default=0
    )
    input = Value(f"{kind_of(value.tensor.dtype)}{number}", value.type)
    try:
        changed = graph.substitute({value: input})
    except RewrightError:
        return graph
    return tidy(replace(changed, inputs=(*graph.inputs, Input(input))))
