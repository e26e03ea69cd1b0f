"""The fuse pass: group nodes while it is legal and saves time, then make the groups regions."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import partial

from rewright.costmodel import CostModel
from rewright.ir import Graph, Kind, Node, OptionError
from rewright.passes.base import Env, Pass
from rewright.passes.fuse.choice import shortest, ways
from rewright.passes.fuse.measured import settled
from rewright.passes.fuse.plan import FusionPlan, Start
from rewright.passes.fuse.reads import moved_reads
from rewright.passes.fuse.region import Regions
from rewright.passes.log import DecisionLog


@dataclass(frozen=True)
class _Way:
    """What a plan is made of: a graph, the model that is asked, and what was decided."""

    graph: Graph
    start: Start
    cost: CostModel
    log: DecisionLog


@dataclass(frozen=True)
class Fuse(Pass, name="fuse", takes="aten", gives="fused"):
    """Put nodes that share data into one kernel.

    before:
        graph f(%x: f32[4, 8], %y: f32[4, 8], %w: f32[8, 8]) {
          %a = aten.add.Tensor(%x, %y) : f32[4, 8]
          %b = aten.relu.default(%a) : f32[4, 8]
          %c = aten.mm.default(%b, %w) : f32[4, 8]
          return %c
        }
    after:
        graph f(%x: f32[4, 8], %y: f32[4, 8], %w: f32[8, 8]) {
          %b = rw.fused(%x, %y) body(%x: f32[4, 8], %y: f32[4, 8]) {
            %a = aten.add.Tensor(%x, %y) : f32[4, 8]
            %b = aten.relu.default(%a) : f32[4, 8]
            return %b
          } : f32[4, 8]
          %c = aten.mm.default(%b, %w) : f32[4, 8]
          return %c
        }

    `max-ops` bounds the nodes of a region (0: no regions, everything runs as ATen), `max-reads` the
    values that it reads of what the graph computes, which must all be there when it runs (0: any
    number), and then results that are larger than what is read in common are not made together;
    `horizontal`
    also joins independent nodes that read the same value. `numerics="fast"` lets regions keep more
    digits than their nodes have: half types are rounded where a region ends.

    Refuses: nodes without a kernel of ours; groups between which another node must run; iteration
    spaces that differ. Decisions that the cost model leaves open are measured where the driver
    allows it (option `measure`).
    """

    max_ops: int = 64
    max_reads: int = 0
    horizontal: bool = True
    numerics: str = "eager"

    def run(self, graph: Graph, env: Env) -> Graph:
        if self.numerics not in ("eager", "fast"):
            raise OptionError(f"numerics is 'eager' or 'fast', not '{self.numerics}'", who="fuse")
        if self.max_ops == 0:
            return graph
        way, fused = self._shortest(graph, env)
        if env.tools is not None and env.tools.seconds:
            without = replace(env, cost=way.cost, tools=None)
            return settled(partial(self._planned, way), without, env.tools)
        env.log.take(way.log)
        return fused

    def _shortest(self, graph: Graph, env: Env) -> tuple[_Way, Graph]:
        """Of the plans of several models, and with reads moved, the one that `env`'s model expects
        to be short, and how it came about."""
        graphs = [g for g in (graph, moved_reads(graph, env.target)) if g is not None]
        found: dict[Hashable, tuple[_Way, FusionPlan]] = {}
        for number, g in enumerate(graphs):
            start = Start(g, env.target)
            for cost in ways(env.cost):
                way = _Way(g, start, cost, DecisionLog())
                plan = self._grown(start, replace(env, cost=cost, log=way.log))
                found.setdefault((number, plan.key), (way, plan))
        plans = [self._built(way.graph, plan) for way, plan in found.values()]
        place = shortest(env.cost, plans) if len(plans) > 1 else 0
        return list(found.values())[place][0], plans[place]

    def _planned(self, way: _Way, env: Env) -> Graph:
        return self._built(way.graph, self._grown(way.start, env))

    def _grown(self, start: Start, env: Env) -> FusionPlan:
        plan = FusionPlan(start, env, self.max_ops, self.max_reads)
        plan.grow_vertically()
        plan.grow_inwards()
        if self.horizontal:
            plan.grow_horizontally()
        return plan

    def _built(self, graph: Graph, plan: FusionPlan) -> Graph:
        regions = Regions(graph, plan)
        regions.build()
        nodes = regions.nodes if self.numerics == "eager" else map(self._marked, regions.nodes)
        return self.gave(replace(graph, nodes=tuple(nodes)), regions.renamed())

    def _marked(self, node: Node) -> Node:
        if node.op.kind is not Kind.REGION:
            return node
        return replace(node, kwargs=(("numerics", self.numerics),))
