"""The interpreter with values moved by rounding: how much a graph depends on the last place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from drawn_inputs import inputs_for
from fuzz.compare import FLOOR, Run
from rewright.ir import Graph, Kind, Node, TensorType, Value, values_in
from rewright.ir.interpret import _Run, interpret

RUNS = 8


class _Shaken(_Run):
    """Moves what is not exact (what differs from float64) a unit in the last place up or down."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[object],
        wide: Mapping[str, Any],
        generator: torch.Generator,
    ) -> None:
        super().__init__(graph, inputs, None)
        self._wide = wide
        self._generator = generator

    def _results(self, node: Node) -> Sequence[Any]:
        results = super()._results(node)
        if node.op.kind is Kind.VIEW:
            return results
        return [
            self._moved(result, self._wide[value.name])
            for value, result in zip(node.results, results, strict=True)
        ]

    def _moved(self, result: Any, wide: Tensor) -> Any:
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        step = torch.finfo(result.dtype).eps
        sign = torch.randint(-1, 2, result.shape, generator=self._generator)
        moved = (result.double() * (1 + step * sign)).to(result.dtype)
        return torch.where(result.double() == wide, result, moved)


def shaken(graph: Graph, sizes: Mapping[str, int]) -> Iterator[Run]:
    wide: dict[str, Any] = {}
    given = [_wide(x) for x in inputs_for(graph, sizes)]
    interpret(
        graph, given, dtype=torch.float64, watch=lambda v, result: wide.update({v.name: result})
    )
    with torch.no_grad():
        for seed in range(RUNS):
            inputs = inputs_for(graph, sizes)
            generator = torch.Generator().manual_seed(seed)
            outputs = _Shaken(graph, inputs, wide, generator).outputs()
            yield Run([*outputs, *inputs])


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


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
