"""Schedules for all budgets: a ladder of them, down by annealing and up again by relaxing.

Down: from the order given, budget after budget, each annealed from the schedule of the one before,
to the least peak that is reached. Up: from there each budget starts from the schedule below it,
which fits it, so that a larger budget never takes longer. What a budget gets is the rung below it:
the same in every process, whatever is asked first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .anneal import Annealer, Settings
from .judge import Verdict, judge
from .problem import Order, Problem, lower_bound

# Budgets on the way down, as shares of the first peak, and moves for each step of the problem.
DOWN: Final = (0.8, 0.65, 0.5, 0.4, 0.32, 0.25, 0.2, 0.16, 0.125, 0.1, 0.08, 0.06, 0.0)
MOVES_DOWN: Final = 60
# Rungs on the way up are so far apart, in shares of the first peak.
APART: Final = 0.02
MOVES_UP: Final = 20
LEAST_MOVES: Final = 20_000
# A budget that is missed is tried again with bytes worth so many times more.
STIFFER: Final = 4.0
TRIES: Final = 3


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
    for share in DOWN:
        budget = max(int(share * search.first.peak), search.bound)
        down.append(search.fitting(down[-1], budget))
        progress(down[-1])
    found = [min(down, key=lambda s: (s.peak, s.seconds))]
    for budget in _rungs(found[0].peak, search.first.peak):
        start = min((s for s in (*down, found[-1]) if s.peak <= budget), key=lambda s: s.seconds)
        found.append(search.relaxed(start, budget))
        progress(found[-1])
    return Front(tuple(_front([*down, *found])), search.bound)


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

    def moves(self, each: int) -> int:
        return max(LEAST_MOVES, each * len(self.problem.steps))

    def fitting(self, start: Schedule, budget: int) -> Schedule:
        """A schedule within the budget, or the one of the least peak found."""
        settings = Settings(budget, self.moves(MOVES_DOWN), self.seed)
        best = start
        for _ in range(TRIES):
            found = self.judged(self.annealer.anneal(best.order, settings))
            best = min(best, found, key=lambda s: (max(s.peak, budget), s.seconds))
            if best.peak <= budget:
                break
            settings = replace(settings, stiff=STIFFER * settings.stiff)
        return best

    def relaxed(self, start: Schedule, budget: int) -> Schedule:
        """One within the budget that takes no longer than one that is."""
        settings = Settings(budget, self.moves(MOVES_UP), self.seed, hot=2e-4)
        found = self.judged(self.annealer.anneal(start.order, settings))
        return found if found.peak <= budget and found.seconds < start.seconds else start


def without_useless(problem: Problem, order: Order) -> list[int]:
    """The same without runs again of which nothing is read, or only by such runs."""
    runs: dict[int, int] = {}
    for i in order:
        runs[i] = runs.get(i, 0) + 1
    wanted, kept = set(problem.kept), []
    for i in reversed(order):
        step = problem.steps[i]
        if runs[i] == 1 or wanted & set(step.makes):
            wanted -= set(step.makes) - problem.kept
            wanted |= set(step.reads)
            kept.append(i)
        else:
            runs[i] -= 1
    return kept[::-1]
