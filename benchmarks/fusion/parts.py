"""Graphs that the fuse pass is given, as parts for the exact planner, and its own plan of each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from benchmarks.fusion.exact import Part
from rewright.ir import Graph, Node, hint
from rewright.passes import Env
from rewright.passes.fuse.plan import NEIGHBOURHOOD, FusionPlan, Start
from rewright.passes.log import DecisionLog


@dataclass(frozen=True)
class Parts:
    """A graph's parts: `units[p]` are the places, among the graph's units, of the nodes of part
    `p`."""

    plan: FusionPlan
    units: Sequence[Sequence[int]]
    parts: Sequence[Part]

    def kernels_of(self, fused: Graph, part: int) -> list[int]:
        """The kernels in which `fused`, of the same graph, computes a part."""
        place: dict[str, int] = {}
        for number, unit in enumerate(self.units[part]):
            place |= {v.name: number for v in self.plan.units.nodes[unit].results}
        made: dict[int, None] = {}
        for node in fused.nodes:
            inside = [n for _, body in node.graphs for n in body.nodes] or [node]
            names = {v.name for n in inside for v in n.results} & place.keys()
            made[sum(1 << number for number in {place[name] for name in names})] = None
        return [kernel for kernel in made if kernel]


def parts_of(graph: Graph, env: Env) -> Parts:
    start = Start(graph, env.target)
    plan = FusionPlan(start, dataclasses.replace(env, log=DecisionLog()), 64, 0)
    near = _near(plan)
    found = [units for units in _connected(near) if len(units) > 1]
    return Parts(plan, found, [_part(plan, units, near, env) for units in found])


def _part(plan: FusionPlan, units: Sequence[int], near: Mapping[int, set[int]], env: Env) -> Part:
    place = {unit: number for number, unit in enumerate(units)}
    needs, apart = _before(plan, place)
    shared = tuple(sum(1 << place[other] for other in near[unit]) for unit in units)

    @cache
    def seconds(kernel: int) -> float:
        members = [unit for number, unit in enumerate(units) if kernel >> number & 1]
        if not plan.maker.leaving(members):
            return 0.0
        node: Node | str = plan.maker.region(members)
        if isinstance(node, str):
            if len(members) > 1:
                return math.inf
            node = plan.units.nodes[members[0]]
        return env.cost.estimate([node])[0].mean

    return Part(needs, apart, shared, seconds)


def _near(plan: FusionPlan) -> dict[int, set[int]]:
    """Units that may share a kernel, and do share data: one reads what the other makes, or both
    read the same and run at about the same time."""
    near: dict[int, set[int]] = {unit: set() for unit in plan.domains}
    for value, readers in plan.units.readers.items():
        maker = plan.units.number.get(value)
        made = [(maker, reader) for reader in readers if maker is not None]
        both = [(a, b) for a, b in combinations(readers, 2) if b - a <= NEIGHBOURHOOD]
        for a, b in (*made, *both):
            if a in near and b in near and _fits(plan, a, b):
                near[a].add(b)
                near[b].add(a)
    return near


def _fits(plan: FusionPlan, a: int, b: int) -> bool:
    """Their spaces are one, or the first is small and may be computed inside the second."""
    first, second = plan.domains[a], plan.domains[b]
    is_smaller = first.rows is None and hint(first.elements) < hint(second.elements)
    return first.join(second) is not None or is_smaller


def _connected(near: Mapping[int, set[int]]) -> list[list[int]]:
    found: list[list[int]] = []
    left = dict.fromkeys(near)
    while left:
        todo, part = [next(iter(left))], set[int]()
        while todo:
            unit = todo.pop()
            if unit not in part:
                part.add(unit)
                todo += near[unit]
        found.append(sorted(part))
        for unit in part:
            del left[unit]
    return found


def _before(plan: FusionPlan, place: Mapping[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What must run before each unit of a part, and of that what units outside must follow."""
    needs: list[int] = []
    apart: list[int] = []
    for sources in plan.groups.sources:
        own = outer = 0
        for source in sources:
            is_inside = source in place
            own |= needs[source] | (1 << place[source] if is_inside else 0)
            outer |= apart[source] if is_inside else needs[source]
        needs.append(own)
        apart.append(outer)
    return tuple(needs[unit] for unit in place), tuple(apart[unit] for unit in place)
