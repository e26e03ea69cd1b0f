"""Schedules for all budgets: a ladder of them, each rung annealed by itself, then relaxed upwards.

A rung starts from the order given, which anneals better than the schedule of a larger budget does.
Then, from the least peak up, each budget starts from the best schedule that fits it, the one below
among them, so that a larger budget never takes longer. What a budget gets is the rung below it: the
same in every process, whatever is asked first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .anneal import Annealer, Settings
from .judge import Verdict, judge
from .problem import Order, Problem, lower_bound

# Budgets of the rungs, as shares of the first peak, and moves for each step of the problem.
RUNGS: Final = (*(percent / 100 for percent in range(95, 9, -5)), 0.075, 0.05, 0.025, 0.0)
MOVES: Final = 60
FEWEST_MOVES, MOST_MOVES = 60_000, 200_000
# A schedule that misses its budget by little is of no use; so it is asked for less.
SPARE: Final = 0.998
# Rungs on the way up are so far apart, in shares of the first peak; moves for each step there.
APART: Final = 0.025
MOVES_UP: Final = 15
LEAST_MOVES_UP: Final = 15_000
# The least peak is looked for with bytes worth so many times more, each from the one before.
STIFFER: Final = (1.0, 4.0, 16.0)


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


def solve(
    problem: Problem, seed: int = 0, progress: Callable[[Schedule], None] = lambda found: None
) -> Front:
    """The front of peak against time. The same problem gets the same front."""
    search = _Search(problem, seed)
    down = [search.first]
    for share in RUNGS:
        budget = int(share * search.first.peak)
        if budget > search.bound or share == 0:
            down.append(search.fitting(max(budget, search.bound)))
            progress(down[-1])
    down.append(search.least(down))
    found = [min(down, key=lambda s: (s.peak, s.seconds))]
    for budget in _rungs(found[0].peak, search.first.peak):
        start = min((s for s in (*down, found[-1]) if s.peak <= budget), key=lambda s: s.seconds)
        found.append(search.relaxed(start, budget))
        progress(found[-1])
    return Front(tuple(_front([*down, *found])), search.bound)


def fit(
    problem: Problem,
    budget: int | None,
    seed: int = 0,
    progress: Callable[[Schedule], None] = lambda found: None,
) -> Schedule:
    """The schedule of least time within so many bytes, or of the least peak where none is found or
    no budget is given."""
    search = _Search(problem, seed)
    if budget is not None and search.first.peak <= budget:
        return search.first
    found = [search.first]
    if budget is not None and budget >= search.bound:
        found.append(search.fitting(budget))
        progress(found[-1])
        if found[-1].peak <= budget:
            return search.relaxed(found[-1], budget)
    found.append(search.least(found))
    progress(found[-1])
    fitting = [schedule for schedule in found if budget is not None and schedule.peak <= budget]
    if budget is not None and fitting:
        return search.relaxed(min(fitting, key=lambda s: s.seconds), budget)
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
    """Annealing with a judge."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.annealer = Annealer(problem)
        self.bound = lower_bound(problem)
        self.first = self.judged(problem.given_order)

    def judged(self, order: Order) -> Schedule:
        needed = tuple(without_useless(self.problem, order))
        verdict = judge(self.problem, needed)
        assert isinstance(verdict, Verdict), str(verdict)
        return Schedule(needed, verdict.peak, verdict.seconds)

    def fitting(self, budget: int) -> Schedule:
        """A schedule within the budget, or near it."""
        moves = min(max(FEWEST_MOVES, MOVES * len(self.problem.steps)), MOST_MOVES)
        settings = Settings(int(SPARE * budget), moves, self.seed)
        return self.judged(self.annealer.anneal(self.first.order, settings))

    def least(self, found: Sequence[Schedule]) -> Schedule:
        """One of as small a peak as can be found."""
        best = min(found, key=lambda s: (s.peak, s.seconds))
        for stiffer in STIFFER:
            settings = Settings(self.bound, FEWEST_MOVES, self.seed)
            settings = replace(settings, stiff=stiffer * settings.stiff)
            more = self.judged(self.annealer.anneal(best.order, settings))
            best = min(best, more, key=lambda s: (s.peak, s.seconds))
        return best

    def relaxed(self, start: Schedule, budget: int) -> Schedule:
        """One within the budget that takes no longer than one that is."""
        moves = max(LEAST_MOVES_UP, MOVES_UP * len(self.problem.steps))
        settings = Settings(budget, moves, self.seed, hot=2e-4)
        found = self.judged(self.annealer.anneal(start.order, settings))
        return found if found.peak <= budget and found.seconds < start.seconds else start


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
