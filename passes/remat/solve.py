"""Schedules for one budget, or for all: a ladder of them, each rung annealed by itself, then
relaxed upwards.

A rung starts from the canonical order, which anneals better than the schedule of a larger budget
does. Then, from the least peak up, each budget starts from the best schedule that fits it, the one
below among them, so that a larger budget never takes longer. What a budget gets is the rung below
it: the same in every process, whatever is asked first, and however the problem is written down.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from .anneal import Annealer, Settings
from .canonical import canonical_order, reordered
from .judge import Verdict, judge
from .problem import Order, Problem, lower_bound

# Temperatures, in mean steps of the problem: to find a schedule, to better one, and at the end.
HOT, WARM, COLD = 2.0, 0.5, 0.05
# One budget: that many times from the canonical order, with so many moves for each step.
STARTS: Final = 4
MOVES, FEWEST_MOVES = 100, 120_000
# All budgets: rungs as shares of the first peak, and the moves for one.
RUNGS: Final = (0.95, *(percent / 100 for percent in range(90, 0, -10)))
RUNG_MOVES, FEWEST_RUNG_MOVES = 60, 60_000
# Rungs on the way up are so far apart, in shares of the first peak.
APART: Final = 0.04
UP_MOVES, FEWEST_UP_MOVES = 15, 15_000
# How much more bytes are worth after a search that missed its budget.
STIFFER: Final = 4.0
# The least peak is looked for from rungs up to this share.
LOW: Final = 0.5
# The least peak: once with bytes this much stiffer; then ever less is asked for, until so many
# times in a row nothing came of it.
STIFF: Final = 16.0
TIGHTER: Final = 0.95
FRUITLESS: Final = 3
STIFF_MOVES, FEWEST_STIFF_MOVES, FEWEST_TIGHTER_MOVES = 30, 60_000, 20_000
# Where the random numbers of each kind of search begin, so that it does not matter which came
# before.
DOWN, STARTED, UP, STIFFEST, TIGHTENED = (place << 10 for place in range(5))


@dataclass(frozen=True)
class Schedule:
    """An order, the most bytes that it holds, and its seconds."""

    order: tuple[int, ...]
    peak: int
    seconds: float


@dataclass(frozen=True)
class Front:
    """Schedules of falling peak and rising time, and bytes that none gets below."""

    schedules: tuple[Schedule, ...]
    bound: int

    def within(self, budget: int) -> Schedule | None:
        """The one of least time that holds at most so many bytes."""
        return next((s for s in self.schedules if s.peak <= budget), None)

    @property
    def least(self) -> Schedule:
        """The one of the least peak."""
        return self.schedules[-1]


class _Asked(NamedTuple):
    """What came of asking for a budget."""

    budget: int
    found: Schedule


Progress = Callable[[Schedule], None]


def _silent(found: Schedule) -> None:
    pass


def solve(problem: Problem, seed: int = 0, progress: Progress = _silent) -> Front:
    """The front of peak against time. The same problem gets the same front: whatever budget it is
    for, all rungs are climbed, for one that was asked for more bytes may end with fewer."""
    search = _Search(problem, seed, progress)
    first = search.first
    down = [_Asked(first.peak, first)]
    for number, share in enumerate(RUNGS, DOWN):
        asked = int(share * first.peak)
        if asked > search.bound:
            moves = max(FEWEST_RUNG_MOVES, RUNG_MOVES * len(problem.steps))
            down.append(_Asked(asked, search.fitting(asked, moves, number)))
    found = [search.least([a.found for a in down if a.budget <= LOW * first.peak] or [first])]
    for number, budget in enumerate(_rungs(found[0].peak, first.peak), UP):
        start = _quickest((*(a.found for a in down if a.budget <= budget), found[-1]), budget)
        assert start is not None
        moves = max(FEWEST_UP_MOVES, UP_MOVES * len(problem.steps))
        found.append(search.relaxed(start, budget, moves, number))
    asked_for = (a.found for a in down)
    outside = [search.as_given, *map(search.outside, (*asked_for, *found))]
    return Front(tuple(_front(outside)), search.bound)


def fit(
    problem: Problem, budget: int | None, seed: int = 0, progress: Progress = _silent
) -> Schedule:
    """The schedule of least time within so many bytes, or of the least peak where none is found or
    no budget is given. Unlike a front's, such schedules of two budgets are not compared: the
    larger budget may by chance take longer."""
    search = _Search(problem, seed, progress)
    moves = max(FEWEST_MOVES, MOVES * len(problem.steps))
    found = [search.first]
    if budget is not None and search.bound <= budget < search.first.peak:
        for start in range(STARTS):
            missed = _quickest(found, budget) is None
            stiffer = STIFFER**start if missed else 1.0
            found.append(search.fitting(budget, moves, STARTED + start, stiffer))
    best = None if budget is None else _quickest(found, budget)
    if best is None:
        found.append(search.least(found))
        best = None if budget is None else _quickest(found, budget)
    if budget is None or best is None:
        return search.outside(_smallest(found))
    if best is not search.first:
        best = search.relaxed(best, budget, moves, UP)
    as_given = search.as_given
    fits_as_given = as_given.peak <= budget and as_given.seconds < best.seconds
    return as_given if fits_as_given else search.outside(best)


def _quickest(found: Sequence[Schedule], budget: int) -> Schedule | None:
    fitting = (schedule for schedule in found if schedule.peak <= budget)
    return min(fitting, key=lambda s: (s.seconds, s.peak), default=None)


def _smallest(found: Sequence[Schedule]) -> Schedule:
    return min(found, key=lambda s: (s.peak, s.seconds))


def _rungs(least: int, most: int) -> Iterator[int]:
    step = max(1, int(APART * most))
    yield from range(least, most, step)


def _front(found: Sequence[Schedule]) -> Iterator[Schedule]:
    """Those that no other beats in both, from the largest peak down."""
    least = float("inf")
    kept = []
    for schedule in sorted(found, key=lambda s: (s.peak, s.seconds)):
        if schedule.seconds < least:
            least = schedule.seconds
            kept.append(schedule)
    yield from reversed(kept)


class _Search:
    """Annealing with a judge, of the canonical problem. Each run of it draws numbers of its own,
    those of its `draws`."""

    def __init__(self, problem: Problem, seed: int, progress: Progress) -> None:
        self.given, self.seed, self.progress = problem, seed << 16, progress
        self.steps = canonical_order(problem)
        self.problem = reordered(problem, self.steps)
        self.annealer = Annealer(self.problem)
        self.bound, self.count = lower_bound(self.problem), len(self.steps)
        self.first = judged(self.problem, self.problem.given_order)

    @property
    def as_given(self) -> Schedule:
        return judged(self.given, self.given.given_order)

    def outside(self, schedule: Schedule) -> Schedule:
        """The same as an order of the steps given."""
        return replace(schedule, order=tuple(self.steps[i] for i in schedule.order))

    def annealed(
        self, start: Schedule, budget: int, moves: int, draws: int, hot: float, stiffer: float = 1.0
    ) -> Schedule:
        step = 1 / max(1, len(self.problem.steps))
        stiff = stiffer * Settings.stiff
        settings = Settings(budget, moves, self.seed + draws, hot * step, COLD * step, stiff)
        found = judged(self.problem, self.annealer.anneal(start.order, settings))
        self.progress(self.outside(found))
        return found

    def fitting(self, budget: int, moves: int, draws: int, stiffer: float = 1.0) -> Schedule:
        """A schedule within the budget, or near it."""
        return self.annealed(self.first, budget, moves, draws, HOT, stiffer)

    def least(self, found: Sequence[Schedule]) -> Schedule:
        """One of as small a peak as can be found."""
        start, moves = _smallest(found), max(FEWEST_STIFF_MOVES, STIFF_MOVES * self.count)
        best = _smallest((start, self.annealed(start, self.bound, moves, STIFFEST, HOT, STIFF)))
        fruitless, moves = 0, max(FEWEST_TIGHTER_MOVES, UP_MOVES * self.count)
        draws = itertools.count(TIGHTENED)
        while fruitless < FRUITLESS and best.peak > self.bound:
            budget = max(self.bound, int(TIGHTER * best.peak))
            more = self.annealed(best, budget, moves, next(draws), HOT)
            fruitless = 0 if more.peak < best.peak else fruitless + 1
            best = _smallest((best, more))
        return best

    def relaxed(self, start: Schedule, budget: int, moves: int, draws: int) -> Schedule:
        """One within the budget that takes no longer than one that is."""
        found = self.annealed(start, budget, moves, draws, WARM)
        return found if found.peak <= budget and found.seconds < start.seconds else start


def judged(problem: Problem, order: Order) -> Schedule:
    """An order that runs, without what is of no use in it."""
    needed = tuple(without_useless(problem, order))
    verdict = judge(problem, needed)
    assert isinstance(verdict, Verdict), str(verdict)
    return Schedule(needed, verdict.peak, verdict.seconds)


def without_useless(problem: Problem, order: Order) -> list[int]:
    """The same without runs again of which nothing is read, or only by such runs."""
    runs: dict[int, int] = {}
    for i in order:
        runs[i] = runs.get(i, 0) + 1
    first = {i: place for place, i in reversed(list(enumerate(order)))}
    wanted, kept = set[int](), []
    for place, i in reversed(list(enumerate(order))):
        step, makes = problem.steps[i], set(problem.steps[i].makes)
        stays = place == first[i] and not makes.isdisjoint(problem.kept)
        if runs[i] == 1 or stays or wanted & makes:
            wanted -= makes
            wanted |= set(step.reads) - problem.kept
            kept.append(i)
        else:
            runs[i] -= 1
    return kept[::-1]
