"""The error budget: what users write, the knapsack, and settling by measurement."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewright.ir import OptionError
from rewright.passes.budget import FLOAT, Bid, ErrorBudget, Plan, knapsack, settle


def bid(site: str, choice: str, error: float, seconds: float) -> Bid:
    return Bid(site, choice, error, seconds, nbytes=round(1000 * seconds))


def offers(*given: tuple[float, float]) -> list[Bid]:
    """Float, which takes a second, and choices by error and seconds."""
    made = [bid("?", FLOAT, 0.0, 1.0)]
    return made + [bid("?", f"q{i}", error, seconds) for i, (error, seconds) in enumerate(given)]


@pytest.mark.parametrize(
    ("written", "metric", "limit"),
    [
        ("kl<=0.03", "kl", 0.03),
        ("rel_l2 <= 1e-2", "rel_l2", 0.01),
        ("top1>=0.99", "top1", 0.01),
        ("0.5", "rel_l2", 0.5),
        (0.5, "rel_l2", 0.5),
        (0, "rel_l2", 0.0),
    ],
)
def test_what_users_write(written: object, metric: str, limit: float) -> None:
    found = ErrorBudget.of(written)
    assert found.metric == metric
    assert found.limit == pytest.approx(limit)


@pytest.mark.parametrize("written", ["kl>=0.1", "top1<=0.9", "mse<=1", "kl<=x", -1, "kl<=nan"])
def test_what_is_no_budget(written: object) -> None:
    with pytest.raises(OptionError):
        ErrorBudget.of(written)


def test_a_budget_prints_as_it_is_written() -> None:
    for text in ("kl<=0.03", "rel_l2<=0.01", "top1>=0.99"):
        assert str(ErrorBudget.of(text)) == text


def test_metrics() -> None:
    exact, off = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.5]])
    assert ErrorBudget.of(1).error([exact], [off]) == pytest.approx(0.1)
    assert ErrorBudget.of("top1>=0").error([exact], [off]) == pytest.approx(0.5)
    p, q = exact[1].softmax(-1), off[1].softmax(-1)
    assert ErrorBudget.of("kl<=1").error([exact], [off]) == pytest.approx(
        float((p * (p / q).log()).sum()) / 2, rel=1e-4
    )
    counted = ErrorBudget.of((lambda a, b: float((a[0] != b[0]).sum()), 2))
    assert counted.error([exact], [off]) == 1


def test_an_output_that_is_no_number_is_over_every_budget() -> None:
    exact, off = torch.ones(2, 2), torch.full((2, 2), torch.nan)
    assert ErrorBudget.of(1e9).error([exact], [off]) == float("inf")


@given(
    st.lists(
        st.lists(st.tuples(st.floats(1e-6, 2.0), st.floats(0.01, 1.5)), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    ),
    st.floats(0.01, 4.0),
)
@settings(max_examples=60, deadline=None)
def test_the_knapsack_is_about_the_best_there_is(
    given: Sequence[Sequence[tuple[float, float]]], allowed: float
) -> None:
    """Never over what is allowed, and no worse than the best at a little less than that."""
    bids = {f"s{i}": offers(*choices) for i, choices in enumerate(given)}
    chosen = knapsack(bids, allowed, "time")
    assert sum(b.error for b in chosen.values()) <= allowed * (1 + 1e-9)
    rounding = allowed * len(bids) / 4000
    every = itertools.product(*bids.values())
    fitting = (p for p in every if sum(b.error for b in p) <= allowed - rounding)
    best = min(sum(b.seconds for b in p) for p in fitting)
    assert sum(b.seconds for b in chosen.values()) <= best + 1e-9


def measuring(factor: float) -> tuple[list[Plan], Callable[[Plan], float]]:
    seen: list[Plan] = []

    def measured(plan: Plan) -> float:
        seen.append(plan)
        return factor * sum(b.error for b in plan.values())

    return seen, measured


def many(sites: int) -> dict[str, list[Bid]]:
    """Sites that differ in error, and have a middle choice."""
    return {f"s{i}": offers((0.001 * (i + 1), 0.5), (0.0002 * (i + 1), 0.7)) for i in range(sites)}


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0, 20.0])
def test_what_is_measured_holds_however_wrong_the_bids_are(factor: float) -> None:
    seen, measured = measuring(factor)
    settled = settle(many(20), ErrorBudget.of("kl<=0.1"), "time", measured)
    assert settled.changed and settled.measured <= 0.1
    assert settled.plan in seen
    assert settled.measured >= 0.05 or len(settled.changed) == 20


def test_a_budget_of_nothing_and_one_that_nothing_meets() -> None:
    seen, measured = measuring(1.0)
    assert not settle(many(3), ErrorBudget.of("kl<=0"), "time", measured).changed
    assert not seen

    def hopeless(plan: Plan) -> float:
        return float("inf")

    settled = settle(many(3), ErrorBudget.of("kl<=0.1"), "time", hopeless)
    assert not settled.changed and settled.rounds
    assert {site for site, _ in settled.blocking} == set(settled.plan)


def test_what_is_slower_is_not_chosen_for_speed_but_for_size() -> None:
    slow = {"s": [bid("s", FLOAT, 0.0, 1.0), Bid("s", "int8", 1e-6, 2.0, 250)]}
    _, measured = measuring(1.0)
    budget = ErrorBudget.of("kl<=0.1")
    assert not settle(slow, budget, "time", measured).changed
    assert settle(slow, budget, "bytes", measured).changed
