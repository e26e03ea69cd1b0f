"""How much a drawn graph depends on the last place, and what its results may be off by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from drawn_inputs import inputs_for
from fuzz.compare import FLOOR, Run
from rewright.bisect.shaken import shaken as shaken_runs
from rewright.ir import Graph, TensorType, Value, values_in


def shaken(graph: Graph, sizes: Mapping[str, int]) -> Iterator[Run]:
    yield from map(Run, shaken_runs(graph, inputs_for(graph, sizes)))


def floors(graph: Graph) -> list[float]:
    """What each result may be off by in any case, from the coarsest dtype on the way to it."""
    coarsest: dict[Value, float] = {i.value: 0.0 for i in graph.inputs}
    for node in graph.nodes:
        before = max((coarsest[v] for v in node.operands), default=0.0)
        for value in node.results:
            coarsest[value] = max(before, _step(value))
    updates = dict(graph.updates)
    results = [*graph.outputs, *(updates.get(i.value, i.value) for i in graph.inputs)]
    found = []
    for result in results:
        step = max((coarsest[v] for v in values_in(result)), default=0.0)
        found.append(FLOOR if step < 1e-5 else 2 * step)
    return found


def _step(value: Value) -> float:
    type = value.type
    if not isinstance(type, TensorType) or not type.dtype.is_floating_point:
        return 0.0
    return torch.finfo(type.dtype).eps
