"""The rematerialization problem: in which order to run what, what to run again, what to hold.

Everything here is a number: steps read and make values, values have bytes, and nothing knows about
graphs. A value is memory: a view of it is the value itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


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
        return sum(step.seconds for step in self.steps)


Order = Sequence[int]


def lower_bound(problem: Problem) -> int:
    """Bytes that no schedule gets below: what the largest step reads, makes and needs, with what
    is kept and made by steps that it cannot run before."""
    before = _kept_before(problem)
    most = sum(problem.sizes[value] for value in problem.kept)
    for step, kept in zip(problem.steps, before, strict=True):
        own = {*step.reads, *step.makes} | kept
        most = max(most, step.workspace + sum(problem.sizes[value] for value in own))
    return most


def _kept_before(problem: Problem) -> list[frozenset[int]]:
    """For each step the kept values that are made before it in any schedule."""
    of_value: list[frozenset[int]] = [frozenset()] * len(problem.sizes)
    found = []
    for step in problem.steps:
        kept = frozenset[int]().union(*(of_value[value] for value in step.reads))
        found.append(kept)
        own = kept | (problem.kept & set(step.makes))
        for value in step.makes:
            of_value[value] = own
    return found
