"""From a place in a large graph to the least graph that is broken there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rewright.bisect.broken import Broken, Data, Fault, HeldData, RandomData
from rewright.bisect.child import Died, in_child
from rewright.bisect.finding import Case
from rewright.bisect.running import Subject
from rewright.bisect.shrink import part, shrunk
from rewright.bisect.within import surroundings
from rewright.ir import Graph

# A predicate for graphs that are put through a subject and run on some data.
Judge = Callable[[Subject, Data], Broken]
Values = Callable[[], Mapping[str, Any]]
# What is wrong below is wrong because of what is wrong above: the first few places will do.
MOST_PLACES: Final = 4


@dataclass(frozen=True)
class Start:
    """A part of a graph that is broken alone, as `judge` says; what it was found around."""

    graph: Graph
    subject: Subject
    data: Data
    broken: Broken
    fault: Fault
    names: tuple[str, ...] = ()


def start(
    graph: Graph,
    subject: Subject,
    judge: Judge,
    around: Sequence[tuple[str, ...]],
    values: Values,
) -> Start | None:
    """The first part of `graph`, near one of the places `around`, else all of it, that is broken
    alone: on random numbers if that will do, else on the `values` of a run."""
    held: list[Data] = []
    for parts in (_near(graph, around), [((), graph)]):
        for data in (RandomData(), None):
            if data is None:
                held = held or [HeldData(values())]
            known = held[0] if data is None else data
            broken = judge(subject, known)
            for names, candidate in parts:
                fault = broken(candidate)
                if fault is not None:
                    return Start(candidate, subject, known, broken, fault, names)
    return None


def _near(graph: Graph, around: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], Graph]]:
    """Parts around each of the places, small ones of all places first."""
    found: list[tuple[tuple[str, ...], Graph]] = []
    for names in around[:MOST_PLACES]:
        for near in surroundings(graph, names):
            wanted = set(near)
            found.append((names, part(graph, (n for n in graph.nodes if n.name in wanted))))
    return sorted(found, key=lambda pair: len(pair[1].nodes))


def smallest(found: Start, judge: Judge, seconds: float) -> Case:
    """The least graph that is broken like the one to start with."""
    data, broken = found.data, found.broken.like(found.fault)
    held, apart = isinstance(data, HeldData), found.subject.setting.apart
    graph = shrunk(found.graph, _holds(broken, apart), seconds)
    if held:
        # Of a small graph random numbers may do, where they did not of a large one.
        random = judge(found.subject, RandomData()).like(found.fault)
        if random(graph) is not None:
            data, broken = RandomData(), random
            graph = shrunk(graph, _holds(broken, apart), seconds)
    # Of a loss of time that is small, clocks do not say the same twice.
    return Case(graph, found.subject, data, broken, broken(graph) or found.fault)


def _holds(broken: Broken, apart: bool) -> Callable[[Graph], bool]:
    """Asked in a process of its own: ATen's inner operators check nothing, and what is tried may
    be what they cannot bear."""

    def holds(graph: Graph) -> bool:
        if not apart:
            return broken(graph) is not None
        try:
            return bool(in_child(lambda: b"" if broken(graph) is None else b"broken"))
        except Died:
            return False

    return holds
