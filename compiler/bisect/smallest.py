"""From a place in a large graph to the least graph that is broken there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from rewright.bisect.broken import Broken, Data, Fault, HeldData, RandomData
from rewright.bisect.child import Ask, explored
from rewright.bisect.finding import Case
from rewright.bisect.running import Subject
from rewright.bisect.shrink import part, shrunk
from rewright.bisect.within import surroundings
from rewright.ir import Graph
from rewright.ir.cache import digest
from rewright.ir.show import show

# A predicate for graphs that are put through a subject and run on some data.
Judge = Callable[[Subject, Data], Broken]
Values = Callable[[], Mapping[str, Any]]
# What is wrong below is wrong because of what is wrong above: the first few places will do.
MOST_PLACES: Final = 4


@dataclass(frozen=True)
class Start:
    """A part of a graph that is broken alone, as `broken` says."""

    graph: Graph
    subject: Subject
    data: Data
    broken: Broken
    fault: Fault


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
    for parts in (_near(graph, around), [graph]):
        for data in (RandomData(), None):
            if data is None:
                held = held or [HeldData(values())]
            known = held[0] if data is None else data
            broken = judge(subject, known)
            for candidate in parts:
                fault = broken(candidate)
                if fault is not None:
                    return Start(candidate, subject, known, broken, fault)
    return None


def _near(graph: Graph, around: Sequence[tuple[str, ...]]) -> list[Graph]:
    """Parts around each of the places, small ones of all places first."""
    near = [names for place in around[:MOST_PLACES] for names in surroundings(graph, place)]
    wanted = (set(names) for names in sorted(near, key=len))
    return [part(graph, (n for n in graph.nodes if n.name in names)) for names in wanted]


def smallest(found: Start, judge: Judge, seconds: float) -> Case:
    """The least graph that is broken like the one to start with."""
    data, broken = found.data, found.broken.like(found.fault)
    least = partial(_least, found, judge, seconds)
    graph = least(found.graph, data)
    if isinstance(data, HeldData):
        # Of a small graph random numbers may do, where they did not of a large one.
        random = judge(found.subject, RandomData()).like(found.fault)
        if random(graph) is not None:
            data, broken = RandomData(), random
            graph = least(graph, data)
    # Of a loss of time that is small, clocks do not say the same twice.
    return Case(graph, found.subject, data, broken, broken(graph) or found.fault)


def _least(found: Start, judge: Judge, seconds: float, graph: Graph, data: Data) -> Graph:
    """Searched for in a process of its own: ATen's inner operators check nothing, and what is tried
    may be what they cannot bear."""
    setting = found.subject.setting
    if not setting.apart:
        broken = judge(found.subject, data).like(found.fault)
        return shrunk(graph, lambda graph: broken(graph) is not None, seconds)
    # Where processes die of the fault, each try takes one more.
    dies = found.fault.crash is not None and not found.fault.crash.place
    inner = replace(found.subject, setting=replace(setting, apart=dies))
    broken = judge(inner, data).like(found.fault)

    def search(ask: Ask) -> Graph:
        return shrunk(graph, lambda g: ask(digest(show(g)), lambda: broken(g) is not None), seconds)

    known = explored(search)
    return shrunk(graph, lambda graph: known.get(digest(show(graph)), False), seconds)
