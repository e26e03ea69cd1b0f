"""The calls that programs are made of: what cost models learn from.

A graph is fused in several ways, the default one and others at random, so that for much of the same
work there are kernels that do it together and kernels that do it apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from rewright.costmodel import Estimate, Kernels, Roofline, Sketch, inputs_and_views
from rewright.ir import Graph, Kind, Node, Value, graph_key
from rewright.ir.alone import alone, obstacle
from rewright.ir.target import Target
from rewright.passes import DEFAULT, Env, Fuse, Pipeline


@dataclass(frozen=True)
class Call:
    """A call to be timed: its graph, and which of its inputs no cache holds."""

    graph: Graph
    cold: tuple[int, ...]


class Coin(Roofline):
    """A cost model that lets a coin decide what fuses."""

    def __init__(self, target: Target, seed: int, odds: float) -> None:
        super().__init__(target)
        self._draw, self._odds = Random(seed), odds

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        seconds = 1.0 if self._draw.random() < self._odds else -1.0
        return Estimate(seconds, seconds, seconds, ("a coin",))


def prepared(graph: Graph, target: Target) -> Graph:
    """The graph as the fuse pass gets it."""
    return Pipeline(DEFAULT).at_aten().run(graph, Env(cost=Roofline(target), target=target)).graph


def calls_of(graph: Graph, target: Target, seed: int, coins: int = 2) -> Iterator[Call]:
    """The distinct calls of a graph that `prepared` returned: fused by default, as single nodes,
    not fused at all, and by `coins` coins."""
    weights = inputs_and_views(graph)
    fused = [(Fuse(), Roofline(target)), (Fuse(max_ops=1), Roofline(target))]
    fused += [(Fuse(), Coin(target, seed + i, 0.35 + 0.4 * (i % 2))) for i in range(coins)]
    fused.append((Fuse(max_ops=0), Roofline(target)))
    seen: set[object] = set()
    for step, cost in fused:
        for node in step.run(graph, Env(cost=cost, target=target)).nodes:
            if obstacle(node) is not None:
                continue
            call = Call(alone(node), _cold(node, weights))
            key = graph_key(call.graph), call.cold
            if key not in seen:
                seen.add(key)
                yield call


def _cold(node: Node, weights: frozenset[Value]) -> tuple[int, ...]:
    """The places of a contraction's weights, which a large model reads from memory every time."""
    if node.op.kind is not Kind.CONTRACTION:
        return ()
    return tuple(i for i, v in enumerate(dict.fromkeys(node.operands)) if v in weights)
