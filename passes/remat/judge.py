"""The judge of schedules with recomputation: short, obvious, and knowing nothing of how one was
found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from math import fsum

from .problem import Order, Problem


class FaultKind(Enum):
    UNKNOWN = "no such step"
    MISSING = "a step that never runs"
    UNMADE = "a value that is read before it is made"
    TWICE = "a step that runs twice and must not"
    USELESS = "a step that runs again for nobody"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a schedule, at which of its places."""

    kind: FaultKind
    place: int
    detail: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.detail}"


@dataclass(frozen=True)
class Verdict:
    """What a correct schedule takes: the most bytes that are live at once, at which of its places,
    and the seconds of all that runs."""

    peak: int
    place: int
    seconds: float


def judge(problem: Problem, order: Order) -> Verdict | Fault:
    """Run through a schedule: a value lives from where it is made to where it is last read before
    it is made again; one that is kept lives from where it is first made to the end, and what is
    made of it again is let go at once."""
    fault = first_fault(problem, order)
    if fault is not None:
        return fault
    live = live_bytes(problem, order)
    peak = max(live, default=0)
    seconds = fsum(problem.steps[i].seconds for i in order)  # whatever the order, to the bit
    return Verdict(peak, live.index(peak) if live else 0, seconds)


def live_bytes(problem: Problem, order: Order) -> list[int]:
    """Bytes at each place of a correct schedule."""
    changes = [0] * (len(order) + 1)
    for value, first, last in lifetimes(problem, order):
        changes[first] += problem.sizes[value]
        changes[last + 1] -= problem.sizes[value]
    held = accumulate(changes[:-1])
    return [bytes + problem.steps[i].workspace for bytes, i in zip(held, order, strict=True)]


def lifetimes(problem: Problem, order: Order) -> list[tuple[int, int, int]]:
    """(value, where it is made, where it is last needed), for every time that one is made."""
    made: dict[int, int] = {}
    needed: dict[int, int] = {}
    found = []
    end = len(order) - 1
    for place, i in enumerate(order):
        for value in problem.steps[i].reads:
            needed[value] = place
        for value in problem.steps[i].makes:
            if value in problem.kept:
                found.append((value, place, place if value in made else end))
            elif value in made:
                found.append((value, made[value], needed[value]))
            made[value] = needed[value] = place
    found += [(v, place, needed[v]) for v, place in made.items() if v not in problem.kept]
    return found


def first_fault(problem: Problem, order: Order) -> Fault | None:
    made: set[int] = set()
    ran: set[int] = set()
    for place, i in enumerate(order):
        if not 0 <= i < len(problem.steps):
            return Fault(FaultKind.UNKNOWN, place, f"{i} at place {place}")
        step = problem.steps[i]
        if i in ran and not step.again:
            return Fault(FaultKind.TWICE, place, f"{step.name}, the second time at place {place}")
        for value in step.reads:
            if value not in made:
                return Fault(FaultKind.UNMADE, place, f"value {value} by {step.name} at {place}")
        made.update(step.makes)
        ran.add(i)
    missing = [step.name for i, step in enumerate(problem.steps) if i not in ran]
    if missing:
        return Fault(FaultKind.MISSING, len(order), missing[0])
    return _useless(problem, order)


def _useless(problem: Problem, order: Order) -> Fault | None:
    """A step that runs again makes something that is read before it is made once more."""
    last_use: dict[tuple[int, int], bool] = {}
    at: dict[int, int] = {}
    ran: set[int] = set()
    again: list[int] = []
    for place, i in enumerate(order):
        for value in problem.steps[i].reads:
            last_use[value, at[value]] = True
        if i in ran:
            again.append(place)
        ran.add(i)
        at.update(dict.fromkeys(problem.steps[i].makes, place))
    for place in again:
        step = problem.steps[order[place]]
        wanted = (value for value in step.makes if value not in problem.kept)
        if not any(last_use.get((value, place)) for value in wanted):
            return Fault(FaultKind.USELESS, place, f"{step.name} at place {place}")
    return None
