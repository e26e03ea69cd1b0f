"""Schedules with recomputation: the judge against planted faults, the solver against brute force,
the C against its twin."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterator
from random import Random

import pytest

from rewright.passes.remat.anneal import Annealer, Settings
from rewright.passes.remat.canonical import canonical_order, reordered
from rewright.passes.remat.judge import Fault, FaultKind, Verdict, first_fault, judge, live_bytes
from rewright.passes.remat.problem import Order, Problem, Step, lower_bound
from rewright.passes.remat.solve import Front, Schedule, fit, solve, without_useless
from rewright.passes.remat.twin import anneal_slowly


def chain(length: int, size: int = 100) -> Problem:
    """Layers forward and backward; the gradient of the first is kept."""
    steps = [Step(f"f{i}", 1.0, (i - 1,) if i else (), (i,)) for i in range(length)]
    gradient: tuple[int, ...] = ()
    for i in reversed(range(length)):
        made = 2 * length - 1 - i
        reads = (i, *((i - 1,) if i else ()), *gradient)
        steps.append(Step(f"b{i}", 1.0, reads, (made,), again=i > 0))
        gradient = (made,)
    return Problem(tuple(steps), (size,) * (2 * length), frozenset(gradient))


def peak_of(problem: Problem) -> int:
    verdict = judge(problem, problem.given_order)
    assert isinstance(verdict, Verdict)
    return verdict.peak


def drawn(seed: int, count: int) -> Problem:
    """A random graph: some steps make two values, some may not run again."""
    draw = Random(seed)
    steps: list[Step] = []
    sizes: list[int] = []
    for i in range(count):
        known = range(len(sizes))
        reads = tuple(draw.sample(known, min(len(known), draw.randint(0, 3))))
        makes = tuple(len(sizes) + k for k in range(draw.choice((1, 1, 1, 2))))
        sizes += [draw.randint(0, 20) for _ in makes]
        again = draw.random() < 0.85
        workspace = draw.choice((0, 0, 0, 7))
        steps.append(Step(f"s{i}", draw.randint(1, 9), reads, makes, workspace, again))
    kept = (value for value in range(len(sizes)) if draw.random() < 0.2)
    return Problem(tuple(steps), tuple(sizes), frozenset((*steps[-1].makes, *kept)))


# --- the judge ----------------------------------------------------------------------------------

SMALL = Problem(
    (
        Step("a", 1.0, (), (0,)),
        Step("b", 2.0, (0,), (1,)),
        Step("c", 4.0, (1,), (2,), workspace=5),
        Step("d", 8.0, (0, 2), (3,), again=False),
    ),
    (10, 20, 3, 1),
    frozenset({3}),
)


def test_a_value_lives_from_where_it_is_made_to_where_it_is_last_read() -> None:
    assert live_bytes(SMALL, (0, 1, 2, 3)) == [10, 30, 10 + 20 + 3 + 5, 10 + 3 + 1]
    assert judge(SMALL, (0, 1, 2, 3)) == Verdict(38, 2, 15.0)


def test_what_is_made_again_does_not_live_between() -> None:
    assert live_bytes(SMALL, (0, 1, 2, 0, 3)) == [10, 30, 28, 13, 14]
    assert judge(SMALL, (0, 1, 2, 0, 3)) == Verdict(30, 1, 16.0)


def test_what_is_kept_lives_on_and_its_second_making_does_not() -> None:
    steps = (
        Step("a", 1.0, (), (0, 1)),
        Step("b", 1.0, (0,), (2,)),
        Step("c", 1.0, (0, 1, 2), (3,)),
    )
    problem = Problem(steps, (10, 4, 7, 1), frozenset({1, 3}))
    assert live_bytes(problem, (0, 1, 2)) == [14, 21, 22]
    assert live_bytes(problem, (0, 1, 0, 2)) == [14, 21, 10 + 4 + 4 + 7, 22]
    assert judge(problem, (0, 1, 2, 0)) == Fault(FaultKind.USELESS, 3, "a at place 3")


@pytest.mark.parametrize(
    ("order", "kind"),
    [
        ((0, 1, 2, 3, 4), FaultKind.UNKNOWN),
        ((0, 1, -1, 2, 3), FaultKind.UNKNOWN),
        ((0, 1, 2), FaultKind.MISSING),
        ((), FaultKind.MISSING),
        ((1, 0, 2, 3), FaultKind.UNMADE),
        ((0, 2, 1, 3), FaultKind.UNMADE),
        ((0, 1, 3, 2), FaultKind.UNMADE),
        ((0, 1, 2, 3, 3), FaultKind.TWICE),
        ((0, 1, 2, 3, 0), FaultKind.USELESS),
        ((0, 0, 0, 1, 2, 3), FaultKind.USELESS),
        ((0, 1, 1, 1, 2, 3), FaultKind.USELESS),
    ],
)
def test_faults_are_found(order: Order, kind: FaultKind) -> None:
    fault = first_fault(SMALL, order)
    assert fault is not None and fault.kind is kind
    assert judge(SMALL, order) == fault


def moved(order: list[int], step: int, by: int) -> list[int]:
    """With the first run of a step so many places further on."""
    place = order.index(step)
    rest = order[:place] + order[place + 1 :]
    return [*rest[: place + by], step, *rest[place + by :]]


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (lambda order: [*order, 0], FaultKind.USELESS),  # a run after all that reads it
        (
            lambda order: [*order[:1], *order[:1], *order],
            FaultKind.USELESS,
        ),  # the same at once again
        (lambda order: moved(order, 12, -1), FaultKind.UNMADE),  # a backward before its forward
        (lambda order: moved(order, 22, 1), FaultKind.UNMADE),  # two gradients change places
        (lambda order: moved(order, 3, 1), FaultKind.UNMADE),  # a layer after the next
        (lambda order: order[:-1], FaultKind.MISSING),  # the last gradient is forgotten
        (lambda order: [i for i in order if i != 11], FaultKind.UNMADE),  # a layer is forgotten
        (lambda order: [*order, 23], FaultKind.TWICE),  # what may run once
        (lambda order: [*order[:5], 24, *order[5:]], FaultKind.UNKNOWN),
    ],
)
def test_faults_planted_in_a_schedule_are_found(
    planted: Callable[[list[int]], list[int]], kind: FaultKind
) -> None:
    problem = chain(12)
    schedule = fit(problem, int(0.6 * peak_of(problem)))
    assert first_fault(problem, schedule.order) is None
    assert len(schedule.order) > len(problem.steps)
    fault = judge(problem, planted(list(schedule.order)))
    assert isinstance(fault, Fault) and fault.kind is kind


def test_a_run_that_is_left_out_is_held_against_the_peak() -> None:
    problem = chain(12)
    schedule = fit(problem, int(0.6 * peak_of(problem)))
    seen, once = set[int](), []
    for step in schedule.order:
        once += [] if step in seen else [step]
        seen.add(step)
    found = judge(problem, once)
    assert isinstance(found, Verdict)
    assert found.peak > schedule.peak and found.seconds < schedule.seconds


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": (10, 20, 3)},
        {"sizes": (10, 20, 3, -1)},
        {"steps": SMALL.steps[1:]},
        {"steps": (*SMALL.steps, Step("e", 1.0, (), (3,)))},
    ],
)
def test_problems_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="value"):
        dataclasses.replace(SMALL, **change)  # type: ignore[arg-type]


# --- brute force --------------------------------------------------------------------------------


def best_by_force(problem: Problem, budget: int, longest: int) -> float | None:
    """The least seconds of any schedule within the budget and so many runs, by trying all."""
    found: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    while found:
        seconds, order = heapq.heappop(found)
        if set(order) == set(range(len(problem.steps))):
            verdict = judge(problem, without_useless(problem, order))
            if isinstance(verdict, Verdict) and verdict.peak <= budget:
                return verdict.seconds
        if len(order) < longest:
            found_more(problem, seconds, order, found)
    return None


def found_more(
    problem: Problem,
    seconds: float,
    order: tuple[int, ...],
    found: list[tuple[float, tuple[int, ...]]],
) -> None:
    made = {v for i in order for v in problem.steps[i].makes}
    for i, step in enumerate(problem.steps):
        if made.issuperset(step.reads) and (step.again or i not in order) and (i,) != order[-1:]:
            heapq.heappush(found, (seconds + step.seconds, (*order, i)))


@pytest.mark.parametrize("seed", range(12))
def test_the_front_is_as_good_as_brute_force(seed: int) -> None:
    problem = drawn(seed, 5)
    front = solve(problem)
    for schedule in front.schedules:
        by_force = best_by_force(problem, schedule.peak, 7)
        assert by_force is not None and schedule.seconds <= by_force
    assert best_by_force(problem, front.least.peak - 1, 7) is None


# --- the front ----------------------------------------------------------------------------------


def sound(problem: Problem, front: Front) -> Iterator[tuple[int, float]]:
    for schedule in front.schedules:
        assert judge(problem, schedule.order) == Verdict(
            schedule.peak,
            live_bytes(problem, schedule.order).index(schedule.peak),
            schedule.seconds,
        )
        yield schedule.peak, schedule.seconds


@pytest.mark.parametrize("seed", range(20))
def test_fronts_of_random_graphs_are_sound_and_monotone(seed: int) -> None:
    problem = drawn(100 + seed, 40)
    points = list(sound(problem, solve(problem)))
    assert points == sorted(points, reverse=True)
    assert [s for _, s in points] == sorted(s for _, s in points)
    assert points[-1][0] >= lower_bound(problem)


def test_a_chain_is_recomputed_once_where_half_of_it_fits() -> None:
    problem = chain(40)
    front = solve(problem)
    first = judge(problem, problem.given_order)
    assert isinstance(first, Verdict)
    half = front.within(first.peak // 2)
    assert half is not None and half.seconds <= 1.28 * first.seconds
    assert front.within(front.least.peak - 1) is None


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_one_budget_can_be_asked_for(share: float) -> None:
    problem = chain(40)
    first = judge(problem, problem.given_order)
    assert isinstance(first, Verdict)
    seen: list[Schedule] = []
    found = fit(problem, int(share * first.peak), progress=seen.append)
    assert found.peak <= share * first.peak and seen
    verdict = judge(problem, found.order)
    assert isinstance(verdict, Verdict)
    assert (verdict.peak, verdict.seconds) == (found.peak, found.seconds)


def test_what_cannot_be_met_gets_the_least_peak() -> None:
    problem = chain(40)
    least = fit(problem, None)
    assert fit(problem, lower_bound(problem) - 1).peak == least.peak
    assert least.peak < 0.35 * fit(problem, 10**9).peak


def test_the_same_problem_gets_the_same_front() -> None:
    assert solve(drawn(7, 60)) == solve(drawn(7, 60))


def shuffled(problem: Problem, seed: int) -> tuple[Problem, list[int]]:
    """The same under other names and numbers, its steps in another order that can run; and where
    each of them stood."""
    draw = Random(seed)
    order: list[int] = []
    made: set[int] = set()
    while len(order) < len(problem.steps):
        ready = [
            i
            for i, step in enumerate(problem.steps)
            if i not in order and made.issuperset(step.reads)
        ]
        order.append(draw.choice(ready))
        made.update(problem.steps[order[-1]].makes)
    numbers = draw.sample(range(len(problem.sizes)), len(problem.sizes))
    steps = tuple(
        dataclasses.replace(
            problem.steps[i],
            name=f"renamed {i}",
            reads=tuple(numbers[v] for v in problem.steps[i].reads),
            makes=tuple(numbers[v] for v in problem.steps[i].makes),
        )
        for i in order
    )
    sizes = dict(zip(numbers, problem.sizes, strict=True))
    kept = frozenset(numbers[v] for v in problem.kept)
    return Problem(steps, tuple(sizes[v] for v in range(len(sizes))), kept), order


@pytest.mark.parametrize("seed", range(8))
def test_plans_depend_on_neither_names_nor_the_order_of_the_graph(seed: int) -> None:
    problem = drawn(seed, 40)
    other, stood = shuffled(problem, seed)
    assert other != problem
    budget = int(0.7 * peak_of(problem))
    for chosen in (budget, None):
        plan, again = fit(problem, chosen), fit(other, chosen)
        assert plan.order == tuple(stood[i] for i in again.order)


@pytest.mark.parametrize("seed", range(8))
def test_the_canonical_order_runs(seed: int) -> None:
    problem = drawn(seed, 60)
    order = canonical_order(problem)
    verdict = judge(problem, order)
    assert isinstance(verdict, Verdict)
    assert judge(reordered(problem, order), problem.given_order) == verdict


# --- the bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_no_schedule_gets_below_the_bound(seed: int) -> None:
    problem = drawn(seed, 5)
    bound = lower_bound(problem)
    assert best_by_force(problem, bound - 1, 7) is None


def test_the_bound_knows_what_cannot_be_made_again() -> None:
    once = Step("mask", 1.0, (), (0,), again=False)
    wide = Step("wide", 1.0, (0,), (1,))
    end = Step("end", 1.0, (0, 2), (3,))
    problem = Problem((once, wide, Step("narrow", 1.0, (1,), (2,)), end), (5, 50, 9, 1))
    assert lower_bound(problem) == 5 + 50 + 9 == peak_of(problem)


def test_the_bound_knows_that_kept_values_pile_up() -> None:
    steps = [Step(f"a{i}", 1.0, (), (2 * i,)) for i in range(4)]
    steps += [Step(f"b{i}", 1.0, (2 * i,), (2 * i + 1,)) for i in range(4)]
    problem = Problem(tuple(steps), (30, 10) * 4, frozenset({1, 3, 5, 7}))
    assert lower_bound(problem) == 4 * 10 + 30 == fit(problem, None).peak


# --- the twin -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_the_twin_makes_the_same_moves(seed: int) -> None:
    problem = drawn(seed, 30)
    verdict = judge(problem, problem.given_order)
    assert isinstance(verdict, Verdict)
    settings = Settings(verdict.peak * 2 // 3, 700, seed, hot=0.1, cold=0.01)
    quick = Annealer(problem).anneal(problem.given_order, settings)
    assert quick == anneal_slowly(problem, problem.given_order, settings, 128)
    assert quick != list(problem.given_order)
