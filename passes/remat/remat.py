"""The remat pass: one graph, scheduled anew within so many bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rewright.costmodel import call_seconds
from rewright.ir import Graph
from rewright.passes.base import Env, Pass
from rewright.passes.memory import PlanMemory, peak_bytes
from rewright.passes.specs import Bytes

from .budget import fitted, refusal
from .graphs import Scheduled
from .problem import Order

LEAST: Final = Bytes(0)
# Tensors of fewer bytes share one arena, which is there from beginning to end; others come and go,
# so that gradients can take the place of what they were computed from.
SMALL: Final = Bytes(8 << 10)
# A kernel that adds up more than so many results holds them all, where a few kernels hold a few.
MOST_READ: Final = 8


@dataclass(frozen=True)
class Remat(Pass, name="remat", takes="fused", gives="fused"):
    """Run some calls again, and all in another order, so that a run allocates at most `budget`
    bytes; 0 asks for as few as can be reached. In a training step, what the user's checkpoints save
    and compute again stays so, unless `override-tags`. Raises BudgetError.

    before:
        graph f(%x: f32[8, 8], %y: f32[8, 8]) {
          %a = aten.mm.default(%x, %y) : f32[8, 8]
          %b = aten.mm.default(%a, %y) : f32[8, 8]
          %c = aten.mm.default(%b, %y) : f32[8, 8]
          %d = aten.sum.default(%c) : f32[]
          %e = aten.add.Tensor(%a, %d) : f32[8, 8]
          return %e
        }
    after:
        graph f(%x: f32[8, 8], %y: f32[8, 8]) {
          %a = aten.mm.default(%x, %y) : f32[8, 8]
          %b = aten.mm.default(%a, %y) : f32[8, 8]
          %c = aten.mm.default(%b, %y) : f32[8, 8]
          %d = aten.sum.default(%c) : f32[]
          %a_1 = aten.mm.default(%x, %y) : f32[8, 8]
          %e = aten.add.Tensor(%a_1, %d) : f32[8, 8]
          return %e
        }
    """

    budget: Bytes = LEAST
    override_tags: bool = False

    def run(self, graph: Graph, env: Env) -> Graph:
        scheduled = Scheduled(graph, call_seconds(env.cost, graph))
        memory = PlanMemory(most=SMALL)

        def planned(order: Order) -> int:
            found = scheduled.rescheduled(order).graph
            return peak_bytes(memory.run(found, Env(env.cost, env.target)))

        found = fitted(scheduled, self.budget or None, planned, env.seed)
        if self.budget and found.peak > self.budget:
            raise refusal(scheduled, found, self.budget)
        env.log.decide("remat", graph.name, str(found))
        if list(found.schedule.order) == list(range(len(scheduled.nodes))):
            return graph
        changed = scheduled.rescheduled(found.schedule.order)
        return self.gave(changed.graph, changed.runs)
