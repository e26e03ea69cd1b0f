"""A schedule that keeps a budget once its memory is planned, and the error when there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from rewright.costmodel import show_bytes
from rewright.ir import BudgetError

from .graphs import Scheduled
from .judge import lifetimes
from .problem import Order, Problem, lower_bound
from .solve import Progress, Schedule, fit, judged, solve

NAMED: Final = 8
# In a step of up to so many calls a larger budget never takes longer than a smaller one: all are
# looked at together. A larger step is scheduled for its budget alone, in a third of the time.
COMPARED: Final = 2000
# Shares of the budget that are then asked for, where a plan takes more than its schedule.
ROOM: Final = (1.0, 0.98, 0.95)


@dataclass(frozen=True)
class Fitted:
    """A schedule whose plan holds at most `peak` bytes, where as it stands the graph takes
    `first`; no schedule of what was looked at gets below `bound`. `notes` are for the report."""

    schedule: Schedule
    peak: int
    first: Schedule
    bound: int
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        slower = self.schedule.seconds / self.first.seconds - 1 if self.first.seconds else 0.0
        again = len(self.schedule.order) - len(set(self.schedule.order))
        return (
            f"peak {show_bytes(self.first.peak)} -> {show_bytes(self.peak)} "
            f"(bound {show_bytes(self.bound)}), {again} calls run again, {slower:+.1%} time"
        )


def fitted(
    scheduled: Scheduled,
    budget: int | None,
    planned: Callable[[Order], int],
    seed: int = 0,
    progress: Progress = lambda found: None,
) -> Fitted:
    """The fastest schedule found whose plan, of `planned` bytes, keeps the budget; where there is
    none, or no budget, that of the least peak."""
    problem = scheduled.problem
    first, bound = judged(problem, problem.given_order), lower_bound(problem)
    if budget is not None and (peak := planned(first.order)) <= budget:
        return Fitted(first, peak, first, bound)
    for found in _candidates(problem, budget, seed, progress):
        if budget is not None and found.peak - scheduled.overstated <= budget:
            peak = planned(found.order)
            if peak <= budget:
                return Fitted(found, peak, first, bound)
    return Fitted(found, planned(found.order), first, bound)


def _candidates(
    problem: Problem, budget: int | None, seed: int, progress: Progress
) -> Iterable[Schedule]:
    """Schedules for a budget, the fastest first; the last is that of the least peak, the same for
    every budget: its plan is what a budget can be that is refused."""
    if len(problem.steps) <= COMPARED:
        yield from solve(problem, seed, progress).schedules
        return
    if budget is not None:
        for share in ROOM:
            yield fit(problem, int(share * budget), seed, progress)
    yield fit(problem, None, seed, progress)


def refusal(scheduled: Scheduled, found: Fitted, budget: int) -> BudgetError:
    """Says why a budget cannot be kept of which `found` is the least that was found."""
    return BudgetError(
        f"{show_bytes(budget)} are not enough: the least that was found is "
        f"{show_bytes(found.peak)} (bound {show_bytes(found.bound)})\n"
        f"{_live(scheduled, found.schedule.order)}",
        who="memory_budget",
        help=f"give it {found.peak} bytes ({show_bytes(found.peak)}), or a smaller batch",
    )


def _live(scheduled: Scheduled, order: Order) -> str:
    """What is alive where a schedule holds most, a line for each of the largest."""
    problem = scheduled.problem
    alive: list[list[int]] = [[] for _ in order]
    for value, start, last in lifetimes(problem, order):
        for place in range(start, last + 1):
            alive[place].append(value)
    sizes = [sum(problem.sizes[v] for v in values) for values in alive]
    most = max(range(len(order)), key=lambda place: sizes[place])
    step = problem.steps[order[most]]
    names = {number: f"%{value.name}" for value, number in scheduled.values.items()}
    largest = sorted(alive[most], key=lambda v: (-problem.sizes[v], v))
    lines = [f"alive at %{step.name}, {show_bytes(sizes[most])}:"]
    for number in largest[:NAMED]:
        node = scheduled.nodes[problem.maker[number]]
        name = names.get(number) or f"%{problem.steps[problem.maker[number]].name}"
        loc = f" ({node.loc})" if node is not None and node.loc is not None else ""
        lines.append(f"  {show_bytes(problem.sizes[number])}: {name}{loc}")
    if len(largest) > NAMED:
        rest = sum(problem.sizes[v] for v in largest[NAMED:])
        lines.append(f"  {show_bytes(rest)}: {len(largest) - NAMED} more")
    return "\n".join(lines)
