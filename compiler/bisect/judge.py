"""Are results right? Each is compared with the same graph in float64, by the measure of the house:
relative L2 over all results at most twice that of ATen in the graph's own types, plus 1e-6.

One result may be small beside the others, so each by itself may be off too, by more; where ATen
itself has few digits of it left, nothing can be said.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from rewright.ir import Graph, Value
from rewright.ir.interpret import interpret

if TYPE_CHECKING:
    from rewright.passes.budget import ErrorBudget

FLOOR: Final = 1e-6
# For one result of several: its error may be this many times ATen's own, plus that.
TIMES: Final = 16.0
FLOOR_OF_ONE: Final = 1e-5
# ATen's own error from which on a result says nothing.
HOPELESS: Final = 0.25

Results = Sequence[Any]


@dataclass(frozen=True)
class Verdict:
    """How far results are from float64, how far they may be, and which of them is meant."""

    error: float
    allowed: float
    which: str = ""

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed

    @property
    def excess(self) -> float:
        """The error in units of what is allowed."""
        return self.error / self.allowed if self.allowed else math.inf

    def __str__(self) -> str:
        where = f" of {self.which}" if self.which else ""
        return f"relative error {self.error:.2g}{where} where {self.allowed:.2g} is allowed"


@dataclass(frozen=True)
class Reference:
    """What a graph says: its results in float64 and by ATen in its own types. Results are outputs,
    then what inputs hold that the graph updates."""

    graph: Graph
    exact: Results
    eager: Results
    budget: ErrorBudget | None = None

    @staticmethod
    def of(graph: Graph, inputs: Sequence[Any], budget: ErrorBudget | None = None) -> Reference:
        """Raises whatever the graph itself raises on these inputs."""
        exact = run(graph, inputs, lambda given: interpret(graph, given, dtype=torch.float64))
        eager = run(graph, inputs, lambda given: interpret(graph, given))
        return Reference(graph, exact, eager, budget)

    def verdict(self, found: Results) -> Verdict:
        """That of all results together, or of the one that is worst where that does not hold."""
        if len(found) != len(self.exact):
            return Verdict(math.inf, 0.0, f"{len(found)} results, not {len(self.exact)}")
        if self.budget is not None and self._within_budget(found):
            return Verdict(0.0, FLOOR)
        whole = self._whole(found)
        each = [self._of_one(place, found) for place in range(len(found))]
        broken = [verdict for verdict in each if not verdict.holds]
        impossible = [verdict for verdict in broken if math.isinf(verdict.error)]
        if impossible or (broken and whole.holds):
            return max(impossible or broken, key=lambda verdict: verdict.excess)
        return whole

    def _within_budget(self, found: Results) -> bool:
        """As an error budget is measured: beside ATen."""
        assert self.budget is not None
        floating = [isinstance(x, Tensor) and x.is_floating_point() for x in self.eager]
        exact, ours = (
            [x for x, f in zip(results, floating, strict=True) if f]
            for results in (self.eager, found)
        )
        return self.budget.error(exact, ours) <= self.budget.limit

    def _whole(self, found: Results) -> Verdict:
        ours = aten = norm = 0.0
        for a, b, e in zip(found, self.eager, self.exact, strict=True):
            if not _is_floating(e) or _misfit(a, b) is not None:
                continue
            known = e.isfinite() & b.isfinite()
            ours += _square(a, e, known)
            aten += _square(b, e, known)
            norm += float(e.double()[known].square().sum())
        scale = norm or 1.0
        return Verdict((ours / scale) ** 0.5, 2 * (aten / scale) ** 0.5 + FLOOR)

    def _of_one(self, place: int, found: Results) -> Verdict:
        ours, aten, exact = found[place], self.eager[place], self.exact[place]
        which = self.name(place)
        misfit = _misfit(ours, aten)
        if misfit is not None:
            return Verdict(math.inf, 0.0, f"%{which}, which is {misfit}")
        if not isinstance(exact, Tensor) or not isinstance(aten, Tensor):
            return Verdict(0.0 if ours == aten else math.inf, 0.0, f"%{which}")
        if not _is_floating(exact):
            same = torch.equal(ours, aten) or not torch.equal(aten.to(exact.dtype), exact)
            return Verdict(0.0 if same else math.inf, 0.0, f"%{which}")
        own = relative(aten, exact, aten)
        allowed = math.inf if own > HOPELESS else TIMES * own + FLOOR_OF_ONE
        return Verdict(relative(ours, exact, aten), allowed, f"%{which}")

    def name(self, place: int) -> str:
        """The value that a result is."""
        outputs = self.graph.outputs
        if place < len(outputs):
            output = outputs[place]
            return output.name if isinstance(output, Value) else f"output {place}"
        return self.graph.updates[place - len(outputs)][0].name


def run(graph: Graph, inputs: Sequence[Any], call: Callable[[list[Any]], list[Any]]) -> list[Any]:
    """The results of a call that computes what `graph` says, on copies of the inputs and under one
    seed."""
    copies = [_copy(x) for x in inputs]
    kept = list(copies)  # whoever is called may empty the list
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outputs = call(copies)
    return [*outputs, *(kept[place] for place in updated(graph))]


def updated(graph: Graph) -> list[int]:
    """Places of the inputs that a graph writes to, in the order of its updates."""
    places = {input.value: place for place, input in enumerate(graph.inputs)}
    return [places[target] for target, _ in graph.updates]


def _copy(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    if 0 in x.stride():  # a clone would not be expanded
        return x.as_strided(x.shape, x.stride(), x.storage_offset()).detach()
    return x.clone()


def relative(found: Tensor, exact: Tensor, aten: Tensor) -> float:
    """Relative L2 where float64 and ATen have numbers; infinite where `found` has none there."""
    known = exact.isfinite() & aten.isfinite()
    off, norm = _square(found, exact, known), float(exact.double()[known].square().sum())
    if off == 0.0:
        return 0.0
    return (off / norm) ** 0.5 if norm else math.inf


def _square(found: Tensor, exact: Tensor, known: Tensor) -> float:
    distance = (found.double()[known] - exact.double()[known]).square().sum()
    return math.inf if not distance.isfinite() else float(distance)


def _is_floating(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _misfit(ours: Any, aten: Any) -> str | None:
    """What is wrong with a result besides its numbers."""
    looks = [
        (str(x.dtype), list(x.shape)) if isinstance(x, Tensor) else type(x) for x in (ours, aten)
    ]
    return None if looks[0] == looks[1] else f"{_spell(looks[0])}, not {_spell(looks[1])}"


def _spell(look: Any) -> str:
    return f"{look[0]}{look[1]}" if isinstance(look, tuple) else look.__name__
