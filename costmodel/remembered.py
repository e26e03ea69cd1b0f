"""Calls that were measured, remembered: their figures go before any model's."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

from rewright.costmodel.estimate import Estimate, total
from rewright.costmodel.protocols import CostModel
from rewright.costmodel.reuse import Walk
from rewright.costmodel.roofline import call_key
from rewright.costmodel.sketch import Kernels, Sketch
from rewright.ir import Node, Value
from rewright.ir.alone import alone, call_name, obstacle
from rewright.ir.target import Target


class Remembering:
    """A `CostModel` that answers with what was measured, under its `call_name`, and asks `model`
    about the rest. Equal calls are looked up once."""

    def __init__(self, model: CostModel, measured: Mapping[str, Estimate]) -> None:
        self._model, self._measured = model, measured
        self._found: dict[Hashable, Estimate | None] = {}

    @property
    def target(self) -> Target:
        return self._model.target

    def estimate(self, nodes: Sequence[Node], cold: Collection[Value] = ()) -> list[Estimate]:
        guesses = self._model.estimate(nodes, cold)
        return [
            self._look_up(node, cold) or guess for node, guess in zip(nodes, guesses, strict=True)
        ]

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        return self._model.gain(apart, together, kernels)

    def program(self, found: Walk, alone: Sequence[Estimate]) -> Estimate:
        return self._model.program(found, alone)

    def compare(self, a: Sequence[Node], b: Sequence[Node]) -> Estimate:
        return total(self.estimate(a)) - total(self.estimate(b))

    def _look_up(self, node: Node, cold: Collection[Value]) -> Estimate | None:
        if obstacle(node) is not None:
            return None
        places = tuple(i for i, v in enumerate(dict.fromkeys(node.operands)) if v in cold)
        key = call_key(node), places
        if key not in self._found:
            name = call_name(str(alone(node)), places)
            self._found[key] = self._measured.get(name)
        return self._found[key]
