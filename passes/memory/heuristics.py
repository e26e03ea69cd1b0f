"""Fast constructions of memory plans, none of which is exact.

There are two, each fed with several orders:

- **best fit**: walk through time, give each buffer the smallest free gap that holds it;
- **skyline**: look at the packed buffers as a skyline over time, take its lowest stretch and put
  there the first buffer, in a given order, whose lifetime lies within that stretch.

The skyline packs inference graphs and training steps at or near the lower bound; best fit costs
almost nothing and is better on some long traces. On small graphs where neither meets the bound, the
skyline is repeated with what stood at the top of the arena promoted to the front of the order.
There is no randomness: the same blocks always get the same offsets.
"""

from __future__ import annotations

import sys
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush

from .problem import Block, Blocks, peak_load, top_of

ENDLESS = 1 << 63  # above every offset
MOST_ROUNDS = 32
ROUND_BUDGET = 1_000_000  # rounds times blocks squared: some 30 ms

# Blocks to their offsets, in order; None: does not apply to these blocks.
Heuristic = Callable[[Blocks], list[int] | None]


# ---- best fit through time ----


def best_fit_by_start(blocks: Blocks) -> list[int]:
    """Place by start, larger first among equals, each in the smallest gap that holds it."""
    order = sorted(range(len(blocks)), key=lambda i: (blocks[i].start, -blocks[i].size))
    ending = sorted(range(len(blocks)), key=lambda i: blocks[i].stop)
    free = _FreeList()
    offsets = [0] * len(blocks)
    ended = 0
    for i in order:
        while blocks[ending[ended]].stop <= blocks[i].start:
            gone = ending[ended]
            free.give_back(offsets[gone], blocks[gone].size)
            ended += 1
        offsets[i] = free.take(blocks[i].size)
    return offsets


def best_fit_by_stop(blocks: Blocks) -> list[int]:
    """The same, walking through time backwards."""
    return best_fit_by_start([Block(-stop, -start, size) for start, stop, size in blocks])


class _FreeList:
    """The free gaps of an arena without end, as sorted (lower, upper) pairs that never touch."""

    def __init__(self) -> None:
        self._gaps: list[tuple[int, int]] = [(0, ENDLESS)]

    def take(self, size: int) -> int:
        """Cut `size` bytes off the bottom of the smallest gap that has them, the lower if equal."""
        fitting = ((hi - lo, k) for k, (lo, hi) in enumerate(self._gaps) if hi - lo >= size)
        _, k = min(fitting)
        lower, upper = self._gaps[k]
        self._gaps[k : k + 1] = [(lower + size, upper)] if lower + size < upper else []
        return lower

    def give_back(self, lower: int, size: int) -> None:
        upper = lower + size
        k = bisect(self._gaps, (lower, 0))
        if self._gaps[k][0] == upper:
            upper = self._gaps.pop(k)[1]
        if k and self._gaps[k - 1][1] == lower:
            k -= 1
            lower = self._gaps.pop(k)[0]
        self._gaps.insert(k, (lower, upper))


# ---- skyline ----

Key = Callable[[Block], tuple[int, ...]]


def longest_first(block: Block) -> tuple[int, ...]:
    return (block.start - block.stop, -block.size)


def largest_area_first(block: Block) -> tuple[int, ...]:
    return ((block.start - block.stop) * block.size,)


def largest_first(block: Block) -> tuple[int, ...]:
    return (-block.size, block.start - block.stop)


def skyline(blocks: Blocks, key: Key, most: int = sys.maxsize) -> list[int] | None:
    """Fill the skyline's lowest stretch again and again, each time with the first that fits it.

    Does not apply above `most` blocks: the time is quadratic at worst.
    """
    if len(blocks) > most:
        return None
    return _fill(blocks, sorted(range(len(blocks)), key=lambda i: key(blocks[i])))


def promoted(blocks: Blocks, key: Key) -> list[int] | None:
    """The best of several rounds of `skyline`: what tops the arena in one comes first in the next.

    The number of rounds falls with the square of the blocks, as the time of one may grow with it.
    Does not apply above a thousand blocks, where not one round is affordable.
    """
    rounds = min(MOST_ROUNDS, ROUND_BUDGET // max(1, len(blocks)) ** 2)
    if rounds == 0:
        return None
    order = sorted(range(len(blocks)), key=lambda i: key(blocks[i]))
    bound = peak_load(blocks)
    best = offsets = _fill(blocks, order)
    for _ in range(rounds):
        if top_of(blocks, best) == bound:
            break
        order = _promote_top(blocks, offsets, order)
        offsets = _fill(blocks, order)
        best = min(best, offsets, key=partial(top_of, blocks))
    return best


def _promote_top(blocks: Blocks, offsets: Sequence[int], order: Sequence[int]) -> list[int]:
    top = top_of(blocks, offsets)
    at_top = [i for i in order if offsets[i] + blocks[i].size == top]
    return at_top + [i for i in order if offsets[i] + blocks[i].size < top]


def _fill(blocks: Blocks, order: Sequence[int]) -> list[int]:
    if not blocks:
        return []
    line = _Skyline([blocks[i] for i in order])
    offsets = [0] * len(blocks)
    for _ in blocks:
        rank, height = line.place_next()
        offsets[order[rank]] = height
    return offsets


class _Skyline:
    """The tops of the packed blocks over time: a row of stretches, each named by its first step.

    A block not yet packed waits at the one stretch that its lifetime lies within. One that a
    boundary between stretches cuts waits at that boundary, until the two sides are level and merge.
    Blocks are named by their rank, the order in which they are preferred.
    """

    def __init__(self, ranked: Blocks) -> None:
        self._starts = [block.start for block in ranked]
        self._stops = [block.stop for block in ranked]
        self._sizes = [block.size for block in ranked]
        first, last = min(self._starts), max(self._stops)
        # A wall on either side spares every neighbour the question whether it is there.
        self._height = {first - 1: ENDLESS, first: 0, last: ENDLESS}
        self._stop = {first - 1: first, first: last}
        self._left = {first: first - 1, last: first}
        self._waiting = {first: list(range(len(ranked)))}
        self._cut: dict[int, list[int]] = {}  # by the first step right of the boundary
        self._lowest = [(0, first)]  # a heap; an entry is stale when its stretch has changed

    def place_next(self) -> tuple[int, int]:
        """Pack one block on the lowest stretch where one waits: its rank and its offset."""
        at = self._lowest_stretch()
        while not self._waiting[at]:
            self._raise(at)
            at = self._lowest_stretch()
        height = self._height[at]
        rank = self._waiting[at].pop(0)
        self._split(at, rank)
        return rank, height

    def _lowest_stretch(self) -> int:
        height, at = heappop(self._lowest)
        while self._height.get(at) != height:
            height, at = heappop(self._lowest)
        while self._height[self._left[at]] == height:
            at = self._left[at]
            self._merge(at, self._stop[at])
        while self._height[self._stop[at]] == height:
            self._merge(at, self._stop[at])
        return at

    def _raise(self, at: int) -> None:
        height = min(self._height[self._left[at]], self._height[self._stop[at]])
        self._height[at] = height
        heappush(self._lowest, (height, at))

    def _merge(self, at: int, right: int) -> None:
        end = self._stop.pop(right)
        self._stop[at], self._left[end] = end, at
        del self._height[right], self._left[right]
        waiting = self._waiting[at] + self._waiting.pop(right)
        for rank in self._cut.pop(right):
            if self._starts[rank] < at:
                self._cut[at].append(rank)
            elif self._stops[rank] > end:
                self._cut[end].append(rank)
            else:
                waiting.append(rank)
        self._waiting[at] = sorted(waiting)

    def _split(self, at: int, rank: int) -> None:
        """Raise the part of stretch `at` that block `rank` covers; share out who waits there."""
        start, stop, end = self._starts[rank], self._stops[rank], self._stop[at]
        height = self._height[at]
        before, cut_by_start, inside, cut_by_stop, after = self._share(at, start, stop)
        if at < start:
            self._put(at, start, height, before)
            self._left[start] = at
            self._cut[start] = cut_by_start
        self._put(start, stop, height + self._sizes[rank], inside)
        self._left[stop] = start
        if stop < end:
            self._put(stop, end, height, after)
            self._left[end] = stop
            self._cut[stop] = cut_by_stop

    def _share(self, at: int, start: int, stop: int) -> tuple[list[int], ...]:
        """The blocks waiting at `at`: before `start`, cut by it, between, cut by `stop`, after."""
        starts, stops = self._starts, self._stops
        shares: tuple[list[int], ...] = ([], [], [], [], [])
        before, cut_by_start, inside, cut_by_stop, after = shares
        for rank in self._waiting[at]:
            if stops[rank] <= start:
                before.append(rank)
            elif starts[rank] >= stop:
                after.append(rank)
            elif starts[rank] < start:
                cut_by_start.append(rank)
            elif stops[rank] > stop:
                cut_by_stop.append(rank)
            else:
                inside.append(rank)
        return shares

    def _put(self, at: int, stop: int, height: int, waiting: list[int]) -> None:
        self._stop[at], self._height[at], self._waiting[at] = stop, height, waiting
        heappush(self._lowest, (height, at))


# Cheapest first. The larger the graph, the fewer apply: planning must stay a fraction of a second.
HEURISTICS: dict[str, Heuristic] = {
    "best_fit_by_start": best_fit_by_start,
    "best_fit_by_stop": best_fit_by_stop,
    "skyline_largest_area_first": partial(skyline, key=largest_area_first),
    "skyline_longest_first": partial(skyline, key=longest_first, most=2_000),
    "skyline_largest_first": partial(skyline, key=largest_first, most=1_000),
    "promoted_longest_first": partial(promoted, key=longest_first),
    "promoted_largest_area_first": partial(promoted, key=largest_area_first),
}
