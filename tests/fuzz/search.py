"""One number, one random graph; and the least graph that fails as it does, by hypothesis."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from fuzz.cut import cut, size
from fuzz.isolated import Trouble
from rewright.ir import Graph
from rewright.ir.show import show

Examine = Callable[[Graph], Trouble | None]

# Hypothesis tries the simplest graph first, which has no nodes, and then one at random; with more
# it would go on with relatives of the first few, and each costs a run of the C++ compiler.
_SETTINGS: Final = settings(
    max_examples=2,
    derandomize=False,  # `seed` says it all
    database=None,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
)


@dataclass(frozen=True)
class Failure:
    """A graph with something wrong; after a search the least one found."""

    seed: int
    graph: Graph
    trouble: Trouble

    @property
    def operators(self) -> frozenset[str]:
        return frozenset(node.op.name for node in self.graph.nodes)


class _Failed(Exception):
    """Tells hypothesis of a failure."""


class _Enough(BaseException):
    """Takes hypothesis out of its search: it lets through what is no `Exception`."""


class Search:
    """Random graphs from `graphs`, looked into by `examine`.

    `shrinks`: whether a failure is worth the time of looking for a smaller graph, at most `seconds`
    by hypothesis and as long again by cutting.
    """

    def __init__(
        self,
        graphs: SearchStrategy[Graph],
        examine: Examine,
        shrinks: Callable[[Failure], bool] = lambda failure: True,
        seconds: float = 200.0,
    ) -> None:
        self.graphs = graphs
        self.seconds = seconds
        self.examine = examine
        self.shrinks = shrinks
        self.examined = 0

    def run(self, number: int) -> Failure | None:
        """The graph of `number`: the least that fails as it does, or None when it is right."""
        known: dict[str, Trouble | None] = {}
        failures: list[Failure] = []
        end = math.inf

        @seed(number)
        @_SETTINGS
        @given(self.graphs)
        def attempt(graph: Graph) -> None:
            nonlocal end
            if time.monotonic() > end:
                raise _Enough
            text = show(graph)
            if text not in known:
                known[text] = self._looked_into(graph, first=not failures)
            trouble = known[text]
            if trouble is None or (failures and trouble.kind != failures[0].trouble.kind):
                return
            failures.append(Failure(number, graph, trouble))
            if len(failures) == 1:
                end = time.monotonic() + (self.seconds if self.shrinks(failures[0]) else 0)
            raise _Failed

        with contextlib.suppress(_Failed, _Enough):
            attempt()
        least = min(failures, key=lambda failure: size(failure.graph), default=None)
        return least if least is None or not self.shrinks(least) else self._cut(least)

    def _cut(self, failure: Failure) -> Failure:
        troubles: dict[Graph, Trouble] = {}

        def fails(graph: Graph) -> bool:
            trouble = self.examine(graph)
            if trouble is not None and trouble.kind == failure.trouble.kind:
                troubles[graph] = trouble
            return graph in troubles

        graph = cut(failure.graph, fails, self.seconds)
        return Failure(failure.seed, graph, troubles.get(graph, failure.trouble))

    def _looked_into(self, graph: Graph, *, first: bool) -> Trouble | None:
        if not graph.nodes:
            return None
        self.examined += first
        return self.examine(graph)
