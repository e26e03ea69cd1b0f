"""Are results right? Each is compared with the same graph in float64, by the measure of the house:
relative L2 over all results at most twice that of ATen in the graph's own types, plus 1e-6.

One result may be small beside the others, so each by itself may not be off too far either; where
ATen itself has few digits of it left, nothing can be said. In doubt the graph is asked how much it
depends on rounding at all: of saved values that are drawn at random, a backward graph makes sums
that cancel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from rewright.bisect.shaken import seeded, shaken
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
# No rounding explains an error so many times what is allowed.
CERTAIN: Final = 1e3

Results = Sequence[Any]


@dataclass(frozen=True)
class Verdict:
    """How far results are from float64, how far they may be, and which of them is meant; without
    one it is all together, and `worst` the one that is farthest off. `moved`: how far is what
    rounding alone can do to this graph."""

    error: float
    allowed: float
    which: str = ""
    worst: str = ""
    moved: bool = False

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed

    @property
    def excess(self) -> float:
        """The error in units of what is allowed."""
        return self.error / self.allowed if self.allowed else math.inf

    def __str__(self) -> str:
        where = f" of {self.which}" if self.which else ""
        why = ", as much as rounding alone does" if self.moved and self.holds else ""
        return f"relative error {self.error:.1e}{where} where {self.allowed:.1e} is allowed{why}"


@dataclass(frozen=True)
class Reference:
    """What a graph says: its results in float64, and by ATen in its own types. Results are outputs,
    then what inputs hold that the graph updates."""

    graph: Graph
    inputs: Sequence[Any]
    exact: Results
    eager: Results
    budget: ErrorBudget | None = None

    @staticmethod
    def of(graph: Graph, inputs: Sequence[Any], budget: ErrorBudget | None = None) -> Reference:
        """Raises whatever the graph itself raises on these inputs."""
        exact = run(graph, inputs, lambda given: interpret(graph, given, dtype=torch.float64))
        eager = run(graph, inputs, lambda given: interpret(graph, given))
        return Reference(graph, inputs, exact, eager, budget)

    def verdict(self, found: Results) -> Verdict:
        """That of all results together, or of the one that is worst where that does not hold."""
        if len(found) != len(self.exact):
            return Verdict(math.inf, 0.0, f"{len(found)} results, not {len(self.exact)}")
        if self.budget is not None and self._within_budget(found):
            return Verdict(0.0, FLOOR)
        verdict = self._verdict(found, [self.eager])
        if verdict.holds or verdict.excess > CERTAIN:
            return verdict
        loose = self._verdict(found, [self.eager, *self._moved])
        return dataclasses.replace(loose, moved=True)

    @cached_property
    def _moved(self) -> list[Results]:
        """Results when every value is moved by a rounding."""
        count, places = len(self.graph.outputs), updated(self.graph)
        return [
            [*results[:count], *(results[count + place] for place in places)]
            for results in shaken(self.graph, self.inputs)
        ]

    def _verdict(self, found: Results, honest: Sequence[Results]) -> Verdict:
        whole = self._whole(found, honest)
        each = [self._of_one(place, found, honest) for place in range(len(found))]
        broken = [verdict for verdict in each if not verdict.holds]
        impossible = [verdict for verdict in broken if math.isinf(verdict.error)]
        if impossible or (broken and whole.holds):
            return max(impossible or broken, key=lambda verdict: verdict.excess)
        worst = max(broken, key=lambda verdict: verdict.excess, default=whole)
        return dataclasses.replace(whole, worst=worst.which)

    def _within_budget(self, found: Results) -> bool:
        """As an error budget is measured: beside ATen."""
        assert self.budget is not None
        floating = [place for place, x in enumerate(self.eager) if _is_floating(x)]
        aten, ours = ([results[p] for p in floating] for results in (self.eager, found))
        return self.budget.error(aten, ours) <= self.budget.limit

    def _whole(self, found: Results, honest: Sequence[Results]) -> Verdict:
        """`honest` are runs in the graph's own types: the worst of them says what is allowed."""
        places = [
            place
            for place, x in enumerate(self.exact)
            if _is_floating(x) and _misfit(found[place], self.eager[place]) is None
        ]
        known = {p: self.exact[p].isfinite() & self.eager[p].isfinite() for p in places}
        norm = sum(float(self.exact[p].double()[known[p]].square().sum()) for p in places) or 1.0

        def error(results: Results) -> float:
            squares = (_square(results[p], self.exact[p], known[p]) for p in places)
            return float((sum(squares) / norm) ** 0.5)

        return Verdict(error(found), 2 * max(map(error, honest)) + FLOOR)

    def _of_one(self, place: int, found: Results, honest: Sequence[Results]) -> Verdict:
        ours, aten, exact = found[place], self.eager[place], self.exact[place]
        which = f"%{self.name(place)}"
        misfit = _misfit(ours, aten)
        if misfit is not None:
            return Verdict(math.inf, 0.0, f"{which}, which is {misfit}")
        if not isinstance(exact, Tensor):
            return Verdict(0.0 if ours == aten else math.inf, 0.0, which)
        if not _is_floating(exact):
            # Where float64 or a rounding gives another integer, nothing is promised.
            others = [results[place] for results in honest[1:]]
            loose = any(not torch.equal(aten.to(x.dtype), x) for x in (exact, *others))
            return Verdict(0.0 if loose or torch.equal(ours, aten) else math.inf, 0.0, which)
        own = max(relative(results[place], exact, aten) for results in honest)
        allowed = math.inf if own > HOPELESS else TIMES * own + FLOOR_OF_ONE
        return Verdict(relative(ours, exact, aten), allowed, which)

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
    with seeded():
        outputs = call(copies)
    return [*outputs, *(kept[place] for place in updated(graph))]


def updated(graph: Graph) -> list[int]:
    """Places of the inputs that a graph writes to, in the order of its updates."""
    places = {input.value: place for place, input in enumerate(graph.inputs)}
    return [places[target] for target, _ in graph.updates]


def _copy(x: Any) -> Any:
    """With the same strides, also where elements share memory or leave gaps."""
    if not isinstance(x, Tensor):
        return x
    copy = x.detach().clone()
    if copy.stride() == x.stride():
        return copy
    memory = x.untyped_storage().clone()
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        memory, x.storage_offset(), x.shape, x.stride()
    )


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
