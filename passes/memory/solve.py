"""Memory planning: fast heuristics, then an exact search where they leave something to be won.

`solve` tries the heuristics in turn and stops at the lower bound. When none comes that far, the
search looks for a smaller arena; it is bounded by its work, not by a clock, so that the same
problem always gets the same plan. `smallest` searches for as long as it may, and `within` for a
plan that is small enough; their clock decides nothing else than when to stop.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

from .fit import MOST_BLOCKS, SHORTEST, Clock, Fitter, forever
from .heuristics import HEURISTICS, Heuristic
from .problem import (
    Block,
    Blocks,
    Found,
    MemoryPlan,
    MemoryProblem,
    peak_load,
    round_up,
    top_of,
)

WORK: Final = 10_000_000  # nodes of a search within a compile, times their steps: some 40 ms


class Solution(NamedTuple):
    """A plan, and what no arena is smaller than."""

    plan: MemoryPlan
    bound: int


def solve(
    problem: MemoryProblem, heuristics: Mapping[str, Heuristic] = HEURISTICS, work: int = WORK
) -> MemoryPlan:
    """The smallest plan of `heuristics`, the first if equal, or a smaller one found by `work`."""
    blocks = blocks_of(problem)
    best = _by_heuristics(blocks, heuristics)
    if work and best.top > best.bound and len(blocks) <= MOST_BLOCKS:
        fitter = Fitter(blocks)
        best = _improved(fitter, best, work // fitter.steps, forever)
    return _plan_of(problem, best.offsets)


def smallest(problem: MemoryProblem, seconds_left: Clock) -> Solution:
    """The smallest plan that is found in time; the search ends when none can be smaller."""
    blocks = blocks_of(problem)
    best = _by_heuristics(blocks, HEURISTICS)
    if best.top > best.bound and len(blocks) <= MOST_BLOCKS:
        fitter = Fitter(blocks)
        nodes = 64 * SHORTEST * len(blocks)
        while best.top > best.bound and seconds_left() > 0:
            best = _improved(fitter, best, nodes, seconds_left)
            nodes *= 2
    return Solution(_plan_of(problem, best.offsets), best.bound)


def within(
    problem: MemoryProblem, capacity: int, seconds_left: Clock
) -> tuple[Found, MemoryPlan | None]:
    """A plan in `capacity` bytes. FAILS when there is none, ENDED when none was found in time."""
    blocks = blocks_of(problem)
    if capacity < peak_load(blocks):
        return Found.FAILS, None
    best = _by_heuristics(blocks, HEURISTICS)
    if best.top <= capacity:
        return Found.FITS, _plan_of(problem, best.offsets)
    if len(blocks) > MOST_BLOCKS:
        return Found.ENDED, None
    outcome = Fitter(blocks).fit(capacity, sys.maxsize, seconds_left)
    is_plan = outcome.found is Found.FITS
    return outcome.found, _plan_of(problem, outcome.offsets) if is_plan else None


# ---- blocks ----


def blocks_of(problem: MemoryProblem) -> Blocks:
    """The buffers that have bytes, in order, their sizes aligned."""
    sizes = (round_up(b.nbytes, problem.alignment) for b in problem.buffers)
    return [Block(b.start, b.stop, n) for b, n in zip(problem.buffers, sizes, strict=True) if n]


def _plan_of(problem: MemoryProblem, offsets: list[int]) -> MemoryPlan:
    """Offsets of the blocks, and 0 for each buffer without bytes."""
    rest = iter(offsets)
    placed = tuple(next(rest) if buffer.nbytes else 0 for buffer in problem.buffers)
    return MemoryPlan(placed, top_of(blocks_of(problem), offsets))


# ---- packing ----


class _Packing(NamedTuple):
    offsets: list[int]
    top: int
    bound: int


def _by_heuristics(blocks: Blocks, heuristics: Mapping[str, Heuristic]) -> _Packing:
    best: _Packing | None = None
    bound = peak_load(blocks)
    for place in heuristics.values():
        offsets = place(blocks)
        if offsets is None:
            continue
        top = top_of(blocks, offsets)
        if best is None or top < best.top:
            best = _Packing(offsets, top, bound)
        if top == bound:
            break
    if best is None:
        raise ValueError("none of the heuristics applies")
    return best


def _improved(fitter: Fitter, best: _Packing, nodes: int, seconds_left: Clock) -> _Packing:
    """Search with so many nodes: half of them for an arena at the bound, half of those left for one
    halfway between where the search gave up and the best, and so on."""
    step = math.gcd(*(slab.size for slab in fitter.slabs))  # all tops are multiples of it
    given_up = best.bound - step
    few = SHORTEST * len(fitter.slabs)
    while nodes >= few and best.top > best.bound and seconds_left() > 0:
        halfway = (given_up + best.top) // 2 // step * step
        capacity = best.bound if given_up < best.bound else halfway
        if capacity <= given_up:
            break
        outcome = fitter.fit(capacity, max(few, nodes // 2), seconds_left)
        nodes -= outcome.nodes
        if outcome.found is Found.FITS:
            top = max(at + s.size for at, s in zip(outcome.offsets, fitter.slabs, strict=True))
            best = best._replace(offsets=outcome.offsets, top=top)
            continue
        given_up = capacity
        if outcome.found is Found.FAILS:
            best = best._replace(bound=capacity + step)
    return best
