"""A training step within a memory budget: what stands in the place of PyTorch's partitioner.

PyTorch's own partition is the start: what it computes again is fused into who reads it. Both halves
are brought to the fused level as they always are, joined into one graph, scheduled within the
budget, and parted where the schedule passes from forward to backward. AOTAutograd gets modules
that only show their signature; the graphs lie in their `meta`, where the compilers look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import fx

from rewright.costmodel import call_seconds
from rewright.driver import environment, pipeline_of
from rewright.ir import Graph, UnsupportedError
from rewright.ir.fx_import import import_graph
from rewright.ir.fx_sizes import SizeTable
from rewright.options import Options
from rewright.passes import Env, Pipeline
from rewright.passes.remat import Fitted, Halves, Order, TrainingStep, fitted
from rewright.step_memory import Promise, step_memory
from rewright.step_signatures import Parts, outputs_of, placeholders, signatures
from rewright.torch_compat import pinned_outputs

SCHEDULED: Final = "rewright_scheduled"


@dataclass(frozen=True)
class ScheduledHalf:
    """A forward or backward that has been through all passes but the last, what was decided for its
    step, and what a forward checks before it runs."""

    graph: Graph
    fitted: Fitted
    promise: Promise | None = None

    def __deepcopy__(self, memo: object) -> ScheduledHalf:
        return self


def scheduled_half(gm: fx.GraphModule) -> ScheduledHalf | None:
    """What `partition_within` left in a module."""
    found = gm.meta.get(SCHEDULED)
    return found if isinstance(found, ScheduledHalf) else None


def partition_within(parts: Parts, returned: int, options: Options) -> Parts:
    """The halves of a step, as PyTorch parted it, as halves that keep the memory budget.

    `returned` counts the forward's outputs to its caller. Raises BudgetError, and UnsupportedError
    for a step whose halves share more than tensors and sizes.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        step, env = fused_step(parts, returned, options)
        halves, found = _halves(step, env, options)
    forward, backward = signatures(parts, halves)
    memory, promise = step_memory(halves), None
    if options.budget is not None and memory.symbols:
        promise = Promise(memory, options.budget)
    forward.meta[SCHEDULED] = ScheduledHalf(halves.forward, found, promise)
    backward.meta[SCHEDULED] = ScheduledHalf(halves.backward, found)
    return forward, backward


def fused_step(parts: Parts, returned: int, options: Options) -> tuple[TrainingStep, Env]:
    """Both parts after the passes that come before memory is planned, and what those used."""
    from rewright.backend import roles_of

    sizes = SizeTable()
    forward = import_graph(parts[0], "forward", sizes)
    backward = import_graph(parts[1], "backward", sizes, roles_of(parts[1]))
    env, note = environment(forward, options)
    passes = pipeline_of(options, kernels=note is None)
    fusing = Pipeline(tuple(p for p in passes if p.gives != "kernel" and p.name != "remat"))
    forward, backward = (fusing.run(graph, env).graph for graph in (forward, backward))
    pinned = frozenset(pinned_outputs(parts[0]))
    return TrainingStep(forward, backward, returned, _handed(parts, returned), pinned), env


def _handed(parts: Parts, returned: int) -> Mapping[int, int]:
    """For each input of the backward that the forward hands it, which output that is."""
    handed = enumerate(outputs_of(parts[0])[returned:], returned)
    of_name = {node.name: i for i, node in handed if isinstance(node, fx.Node)}
    found = {}
    for place, node in enumerate(placeholders(parts[1])):
        if node.name in of_name:
            found[place] = of_name[node.name]
        elif not node.name.startswith("tangents_"):
            raise UnsupportedError(
                f"the backward reads {node.name}, which its forward does not hand over",
                who="memory_budget",
            )
    return found


def _halves(step: TrainingStep, env: Env, options: Options) -> tuple[Halves, Fitted]:
    scheduled = step.scheduled(call_seconds(env.cost, step.joined))

    def planned(order: Order) -> int:
        return step_memory(step.halves(scheduled, order)).peak

    found = fitted(scheduled, options.budget, planned, env.seed)
    return step.halves(scheduled, found.schedule.order), found
