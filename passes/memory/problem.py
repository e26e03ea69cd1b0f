"""The static memory planning problem: give every buffer an offset in one arena.

A buffer is bytes that live over a range of steps. Two buffers that are live at the same step may
not share bytes; all others may. Everything here is a plain integer: sizes come from hints, steps
are positions in the schedule, and nothing knows about graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from typing import NamedTuple


@dataclass(frozen=True)
class Buffer:
    """`nbytes` bytes, live at the steps `start <= t < stop`. Zero bytes are legal."""

    name: str
    start: int
    stop: int
    nbytes: int

    def __post_init__(self) -> None:
        if self.stop <= self.start:
            raise ValueError(f"buffer {self.name}: lives from {self.start} to {self.stop}, never")
        if self.nbytes < 0:
            raise ValueError(f"buffer {self.name}: negative size {self.nbytes}")


@dataclass(frozen=True)
class MemoryProblem:
    """Buffers to place; every offset must be a multiple of `alignment` bytes."""

    buffers: tuple[Buffer, ...]
    alignment: int = 64

    def __post_init__(self) -> None:
        if self.alignment < 1:
            raise ValueError(f"alignment {self.alignment} is not positive")


class Block(NamedTuple):
    """A buffer as solvers see it: `size` is aligned and positive."""

    start: int
    stop: int
    size: int


Blocks = Sequence[Block]


@dataclass(frozen=True)
class MemoryPlan:
    """`offsets[i]` is where buffer `i` of the problem starts in an arena of `nbytes` bytes."""

    offsets: tuple[int, ...]
    nbytes: int


class Found(Enum):
    """How a search ended: without a solution, with one, or after as many nodes as were allowed."""

    FAILS = 0
    FITS = 1
    ENDED = 2


def round_up(nbytes: int, alignment: int) -> int:
    """The smallest multiple of `alignment` that holds `nbytes`."""
    return -(-nbytes // alignment) * alignment


def lower_bound(problem: MemoryProblem) -> int:
    """The most aligned bytes live at one step: no arena of whole aligned slots is smaller."""
    align = problem.alignment
    return peak_load((b.start, b.stop, round_up(b.nbytes, align)) for b in problem.buffers)


def peak_load(lifetimes: Iterable[tuple[int, int, int]]) -> int:
    """The largest sum of sizes live at one step, from (start, stop, size) triples."""
    return max((load for _, load in loads(lifetimes)), default=0)


def loads(lifetimes: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """The sum of sizes live from a step on, for each step where it changes."""
    changes: Counter[int] = Counter()
    for start, stop, size in lifetimes:
        changes[start] += size
        changes[stop] -= size
    steps = sorted(changes)
    return zip(steps, accumulate(changes[step] for step in steps), strict=True)


def top_of(blocks: Blocks, offsets: Sequence[int]) -> int:
    """The end of the arena that blocks at `offsets` take."""
    return max((at + block.size for at, block in zip(offsets, blocks, strict=True)), default=0)
