"""Which format is quickest, at which sizes: told by a clock that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from error_budgets import WIDTH, mlp, samples
from rewright.api import export
from rewright.costmodel import Roofline
from rewright.driver import target_of
from rewright.ir import Graph, Node
from rewright.ir.dims import Dim, Symbol
from rewright.ir.pt2 import load
from rewright.options import Options
from rewright.passes import Env, Quantize
from rewright.passes.budget import ErrorBudget
from rewright.passes.quantize.quantize import least_size

MANY = 24


@dataclass
class Clock:
    """int8-weight is quickest with many rows, int8 with few. No format is much quicker than float
    at the sizes at which it is not the quickest."""

    def race(self, calls: Sequence[Graph]) -> list[float]:
        return [self._seconds(call.nodes[0]) for call in calls]

    def _seconds(self, node: Node) -> float:
        many = node.operands[0].tensor.shape[0] == MANY
        if node.op.name != "rw.quantized_linear":
            return 4.0
        best = 1.0 if node.kwarg("format") == "int8" else 2.0
        return best if (node.kwarg("format") == "int8") != many else 3.5


def formats(dynamic: Any) -> set[str]:
    """What the layers become, whatever the error."""
    model, given = mlp(), samples(3, rows=MANY)
    graph, bindings = load(export(model, given[0], None, dynamic))
    target = target_of(Options.of({}))
    env = Env(
        cost=Roofline(target),
        target=target,
        tools=Clock(),  # type: ignore[arg-type]
        error=ErrorBudget.of(10.0),
        samples=tuple(bindings.flatten(x, {}) for x in given),
    )
    made = Quantize(formats="int8+int8-weight").run(graph, env)
    nodes = [n for n in made.nodes if n.op.name == "rw.quantized_linear"]
    return {str(n.kwarg("format")) for n in nodes}


def test_fixed_sizes_are_what_counts() -> None:
    assert formats(None) == {"int8-weight"}


def test_of_dynamic_sizes_the_smallest_count_as_much_as_those_seen() -> None:
    rows = torch.export.Dim("rows", min=1, max=512)
    assert formats({"input": {0: rows}}) == {"int8"}


@pytest.mark.parametrize(("low", "least"), [(0, 1), (1, 1), (2, 2)])
def test_the_smallest_sizes_are_not_empty(low: int, least: int) -> None:
    size = Dim.of(Symbol("B0", 8, low, 64))
    assert least_size(size * WIDTH) == least * WIDTH
    assert least_size(7) == 7
