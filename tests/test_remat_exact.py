"""The solver against CP-SAT, where that proves an optimum."""

from __future__ import annotations

import pytest

from benchmarks.remat.exact import optimum
from rewright.passes.remat.problem import Problem
from rewright.passes.remat.solve import fit
from test_remat_solver import chain, drawn, peak_of

pytest.importorskip("ortools")

# How much of the way from the least peak to the first one is allowed; the less, the harder. A chain
# in little memory runs its first layers more often than the oracle considers.
CASES: dict[str, tuple[Problem, float]] = {
    **{f"chain {length}": (chain(length), 0.5) for length in (4, 5, 6)},
    **{f"drawn {s} at {share}": (drawn(s, 9), share) for s in range(8) for share in (0, 0.25, 0.5)},
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_takes_no_longer_than_the_proven_optimum(name: str) -> None:
    problem, share = CASES[name]
    least = fit(problem, None).peak
    budget = least + int(share * (peak_of(problem) - least))
    plan, best = fit(problem, budget), optimum(problem, budget)
    assert best is not None and plan.peak <= budget
    assert plan.seconds <= 1.01 * best


def test_the_oracle_knows_what_cannot_be() -> None:
    problem = chain(3)
    assert optimum(problem, peak_of(problem)) == problem.seconds
    assert optimum(problem, 2 * 100 - 1) is None
