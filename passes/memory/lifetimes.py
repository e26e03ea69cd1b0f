"""When each buffer of a schedule comes and goes, and which of them may live in the arena."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf

import torch

from rewright.ir import (
    Graph,
    Kind,
    Node,
    TensorType,
    Value,
    lasts,
    out_variant,
    storage_roots,
    symbols_of,
)


@dataclass(frozen=True)
class Lifetime:
    """A value that owns storage: made at step `start`, last read at step `last` (inclusive).

    `placed`: it gets an address in the arena; otherwise it is a tensor of its own, because it
    leaves the graph, because ATen allocates it, or because it is on another device than the arena.
    """

    value: Value
    start: int
    last: int
    placed: bool


def lifetimes(graph: Graph, most: float = inf) -> tuple[Lifetime, ...]:
    """Lifetimes of everything the schedule allocates, in order of allocation; what has over `most`
    bytes is not placed."""
    roots = storage_roots(graph)
    last: dict[Value, int] = {}
    for step, node in enumerate(graph.nodes):
        for value in (*node.operands, *node.results):
            last[roots[value]] = step
    leaving = {roots[v] for v in graph.returned}
    found: list[Lifetime] = []
    for step, node in enumerate(graph.nodes):
        for value in node.results:
            if roots[value] != value or not _allocates(node, value):
                continue
            placed = value not in leaving and takes_destination(node) and _is_sized(value)
            placed = placed and value.tensor.nbytes_hint <= most
            end = len(graph.nodes) if value in leaving else last[value]
            found.append(Lifetime(value, step, end, placed))
    home = _home(found)
    return tuple(replace(f, placed=f.placed and f.value.tensor.device == home) for f in found)


def _home(found: Iterable[Lifetime]) -> torch.device | None:
    """The device of the arena: where most of what could be placed lies."""
    sizes: Counter[torch.device] = Counter()
    for lifetime in found:
        if lifetime.placed:
            sizes[lifetime.value.tensor.device] += lifetime.value.tensor.nbytes_hint
    return max(sizes, key=sizes.__getitem__, default=None)


def _allocates(node: Node, value: Value) -> bool:
    return isinstance(value.type, TensorType) and not lasts(node)


def _is_sized(value: Value) -> bool:
    """True when the size is known before the graph runs."""
    return all(s.hint is not None for s in symbols_of(value.tensor.shape))


def takes_destination(node: Node) -> bool:
    """True when the node can be told where to write its results."""
    if node.op.kind is Kind.REGION:
        return True
    return len(node.results) == 1 and out_variant(node.op) is not None


def frees_after(graph: Graph, found: tuple[Lifetime, ...]) -> Mapping[int, tuple[Value, ...]]:
    """Step -> values whose storage is not read after it; what leaves the graph is never freed."""
    frees: dict[int, list[Value]] = {}
    for lifetime in found:
        if lifetime.last < len(graph.nodes):
            frees.setdefault(lifetime.last, []).append(lifetime.value)
    return {step: tuple(values) for step, values in frees.items()}
