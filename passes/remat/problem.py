"""The rematerialization problem: in which order to run what, what to run again, what to hold.

Everything here is a number: steps read and make values, values have bytes, and nothing knows about
graphs. A value is memory: a view of it is the value itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import fsum
from operator import or_

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Step:
    """What runs as a whole: `seconds` of work that reads values and makes others, and holds
    `workspace` bytes meanwhile. `again` is false for what may run only once: random numbers,
    effects."""

    name: str
    seconds: float
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    workspace: int = 0
    again: bool = True


@dataclass(frozen=True)
class Problem:
    """Steps in an order in which they can run, each value made by exactly one of them.

    `sizes` are the bytes of each value; `kept` are values that stay from when they are first made
    to the end (when a step that makes one runs again, for something else, that is let go at once).
    What is there all the time (parameters, inputs) is no value. An order between effects is
    a value of no bytes that one makes and the next reads.
    """

    steps: tuple[Step, ...]
    sizes: tuple[int, ...]
    kept: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        made: set[int] = set()
        for step in self.steps:
            for value in step.reads:
                if value not in made:
                    raise ValueError(f"{step.name} reads value {value}, which is not made before")
            for value in step.makes:
                if value in made or not 0 <= value < len(self.sizes):
                    raise ValueError(f"{step.name} makes value {value}, which is made or unknown")
            made.update(step.makes)
        if len(made) != len(self.sizes) or min(self.sizes, default=0) < 0:
            raise ValueError("every value is made by a step, and has no negative size")

    @cached_property
    def maker(self) -> tuple[int, ...]:
        """The step that makes each value."""
        of = {value: i for i, step in enumerate(self.steps) for value in step.makes}
        return tuple(of[value] for value in range(len(self.sizes)))

    @property
    def given_order(self) -> tuple[int, ...]:
        """The schedule that runs every step once, as they stand."""
        return tuple(range(len(self.steps)))

    @property
    def seconds(self) -> float:
        """Of every step, once."""
        return fsum(step.seconds for step in self.steps)


Order = Sequence[int]


def lower_bound(problem: Problem) -> int:
    """Bytes that no schedule gets below.

    When a step runs for the first time, there is what it reads, makes and needs, and what was made
    before in any schedule and cannot be made again although something that comes after in any
    schedule reads it. When the last of the kept values is made, all others are there."""
    order = _Precedence(problem)
    sizes = np.array(problem.sizes, np.int64)
    live = np.array([step.workspace for step in problem.steps], np.int64)
    for value, made in enumerate(problem.maker):
        live += sizes[value] * order.surely_live(value, made)
    return max(int(live.max(initial=0)), _while_kept_pile_up(problem))


class _Precedence:
    """Which steps have first runs before that of which others in any schedule, as bits."""

    def __init__(self, problem: Problem) -> None:
        self.problem, count = problem, len(problem.steps)
        self.readers: list[list[int]] = [[] for _ in problem.sizes]
        self.before = [0] * count
        for i, step in enumerate(problem.steps):
            for value in step.reads:
                self.readers[value].append(i)
                self.before[i] |= self.before[problem.maker[value]] | 1 << problem.maker[value]
        self.after = [0] * count
        for i in reversed(range(count)):
            for value in problem.steps[i].makes:
                for reader in self.readers[value]:
                    self.after[i] |= self.after[reader] | 1 << reader

    def surely_live(self, value: int, made: int) -> NDArray[np.bool_]:
        """For each step whether the value is there when it first runs."""
        found = 1 << made
        for reader in self.readers[value]:
            found |= 1 << reader
        if value in self.problem.kept:
            found |= self.after[made]
        elif not self.problem.steps[made].again:
            needed = reduce(or_, (self.before[reader] for reader in self.readers[value]), 0)
            found |= self.after[made] & needed
        count = len(self.problem.steps)
        packed = np.frombuffer(found.to_bytes(count // 8 + 1, "little"), np.uint8)
        return np.unpackbits(packed, count=count, bitorder="little").astype(np.bool_)


def _while_kept_pile_up(problem: Problem) -> int:
    """When steps make their kept values, in whichever order, all those made before are there, and
    what the step reads, makes and needs besides. The order in which that peaks least is that of
    falling needs (as for jobs with tails on one machine: Jackson, 1955)."""
    jobs = []
    for step in problem.steps:
        kept = sum(problem.sizes[v] for v in step.makes if v in problem.kept)
        other = {*step.reads, *step.makes} - problem.kept
        if kept:
            jobs.append((step.workspace + sum(problem.sizes[v] for v in other), kept))
    piled = most = 0
    for need, kept in sorted(jobs, reverse=True):
        piled += kept
        most = max(most, piled + need)
    return most
