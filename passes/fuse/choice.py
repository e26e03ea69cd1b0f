"""Which of several plans for one graph to take, when a model estimates them whole."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import replace
from typing import Final

from rewright.costmodel import (
    CostModel,
    Estimate,
    Kernels,
    Roofline,
    Sketch,
    Walk,
    expected_seconds,
)
from rewright.ir import Graph, Node, Value
from rewright.ir.target import Target

# Of several estimates the least is likely to be too low. So another plan replaces the one before
# it when that saves so much of what the calls take that it changes.
DOUBT: Final = 0.05


class Asking:
    """A `CostModel` that asks another; what is built on it answers some questions otherwise."""

    def __init__(self, cost: CostModel) -> None:
        self._cost = cost

    @property
    def target(self) -> Target:
        return self._cost.target

    def estimate(self, nodes: Sequence[Node], cold: Collection[Value] = ()) -> list[Estimate]:
        return self._cost.estimate(nodes, cold)

    def program(self, found: Walk, alone: Sequence[Estimate]) -> Estimate:
        return self._cost.program(found, alone)

    def compare(self, a: Sequence[Node], b: Sequence[Node]) -> Estimate:
        return self._cost.compare(a, b)

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        return self._cost.gain(apart, together, kernels)


class Joining(Asking):
    """Joins whatever saves traffic, by the roofline, and is as sure of it as the model."""

    def __init__(self, cost: CostModel) -> None:
        super().__init__(cost)
        self._roofline = Roofline(cost.target)

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        by_traffic = self._roofline.gain(apart, together)
        return replace(super().gain(apart, together), seconds=by_traffic.seconds)


class Cautious(Asking):
    """Counts on no more of a gain than is sure."""

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        found = super().gain(apart, together, kernels)
        return replace(found, seconds=found.low)


def ways(cost: CostModel) -> Sequence[CostModel]:
    """Models to plan by: steps that are each right may add up to a plan that is not."""
    return (cost,) if isinstance(cost, Roofline) else (Joining(cost), cost, Cautious(cost))


def shortest(cost: CostModel, plans: Sequence[Graph]) -> int:
    """The place of the plan to take; without a reason it is the first."""
    times = [[(_key(n), t) for n, t in expected_seconds(cost, plan)] for plan in plans]
    best = 0
    for place in range(1, len(plans)):
        before, after = times[best], times[place]
        kept = {call for call, _ in after}
        changed = sum(seconds for call, seconds in before if call not in kept)
        if sum(s for _, s in before) - sum(s for _, s in after) > DOUBT * changed:
            best = place
    return best


def _key(call: Node) -> Hashable:
    """Equal for calls of two plans that do the same."""
    inside = tuple(v.name for _, body in call.graphs for v in body.values)
    return call.op, call.results, inside
