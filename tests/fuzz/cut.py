"""Cutting a graph that fails: with Rewright's own shrinker, on the inputs that names stand for.

Hypothesis shrinks what was drawn, choice by choice, with a run of the C++ compiler for each try; a
cut takes away half a graph at once. It comes after hypothesis, and ends when no cut fails alike.
"""

from __future__ import annotations

from collections.abc import Callable

from drawn_inputs import kind_of
from rewright.bisect.shrink import shrunk, size
from rewright.ir import Graph, Value

__all__ = ["cut", "size"]


def cut(graph: Graph, fails: Callable[[Graph], bool], seconds: float) -> Graph:
    """A graph that fails and of which no cut does, or the least found within `seconds`."""
    return shrunk(graph, fails, seconds, naming=_name)


def _name(value: Value, graph: Graph) -> str:
    """A name that says what the input holds, with a number that is not taken."""
    numbers = (int("".join(filter(str.isdigit, v.name)) or 0) for v in graph.values)
    return f"{kind_of(value.tensor.dtype)}{1 + max(numbers, default=0)}"
