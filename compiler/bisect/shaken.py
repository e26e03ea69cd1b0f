"""The interpreter with values moved by rounding: how much a graph depends on the last place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from rewright.ir import Graph, Kind, Node, Value
from rewright.ir.interpret import _Run, interpret

RUNS: Final = 8


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

    def _moved(self, result: Any, wide: Any) -> Any:
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        step = torch.finfo(result.dtype).eps
        sign = torch.randint(-1, 2, result.shape, generator=self._generator)
        moved = (result.double() * (1 + step * sign.to(result.device))).to(result.dtype)
        return torch.where(result.double() == wide, result, moved)


def shaken(graph: Graph, inputs: Sequence[Any], runs: int = RUNS) -> Iterator[list[Any]]:
    """What comes out, each time otherwise: outputs, then what the inputs hold after it."""
    wide: dict[str, Any] = {}

    def watch(value: Value, result: Any) -> None:
        wide[value.name] = result

    with seeded():
        interpret(graph, [_wide(x) for x in inputs], dtype=torch.float64, watch=watch)
    for seed in range(runs):
        given = [x.clone() if isinstance(x, Tensor) else x for x in inputs]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad(), seeded():
            outputs = _Shaken(graph, given, wide, generator).outputs()
        yield [*outputs, *given]


@contextmanager
def seeded() -> Iterator[None]:
    """What is drawn at random on the CPU is the same each time."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(0)
    try:
        yield
    finally:
        generator.set_state(state)


def _wide(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.double() if x.is_floating_point() else x.clone()
