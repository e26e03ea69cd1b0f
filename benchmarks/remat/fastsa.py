"""Rematerialization by FastSA's measure (Imanishi et al., NeurIPS 2023): every node of the joint
graph takes a second, half or a quarter of the first peak is allowed.

Two accounts of each model. As FastSA counts: tangents of one, every node makes memory, views too.
As it runs: cross-entropy in the graph, views are free, what is kept stays.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any, Final

from benchmarks.remat.graphs import (
    as_fastsa_counts,
    as_it_runs,
    joint_graph,
    with_tangents_of_one,
)
from benchmarks.remat.models import FASTSA, MODELS, THEIR_NODES
from benchmarks.remat.results import write
from rewright.passes.remat.judge import Verdict, judge
from rewright.passes.remat.problem import Problem, lower_bound
from rewright.passes.remat.solve import fit

SHARES: Final = (0.5, 0.25)
MORE_SHARES: Final = (0.9, 0.8, 0.7, 0.6, 0.5, 0.25)


def peak_of(problem: Problem) -> int:
    verdict = judge(problem, problem.given_order)
    assert isinstance(verdict, Verdict)
    return verdict.peak


def row(problem: Problem, shares: Sequence[float | None]) -> dict[str, Any]:
    """What each share of the first peak costs, and how small it can get for None."""
    first = peak_of(problem)
    found: dict[str, Any] = {
        "steps": len(problem.steps),
        "peak": first,
        "bound": lower_bound(problem) / first,
    }
    for share in shares:
        began = time.perf_counter()
        plan = fit(problem, None if share is None else int(share * first))
        found["least" if share is None else f"{share:.2f}"] = {
            "memory": plan.peak / first,
            "cost": plan.seconds / problem.seconds - 1,
            "seconds_to_plan": time.perf_counter() - began,
        }
    return found


def show(name: str, found: dict[str, Any]) -> None:
    parts = [
        f"{share} {at['memory']:.3f} {100 * at['cost']:+.1f}% {at['seconds_to_plan']:.1f}s"
        for share, at in found.items()
        if isinstance(at, dict)
    ]
    print(f"{name:18} {found['steps']:5} bound {found['bound']:.3f}", *parts, sep=" | ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    given = parser.parse_args()
    as_counted: dict[str, Any] = {}
    as_run: dict[str, Any] = {}
    for name in given.models:
        make = MODELS[name]
        shares = SHARES if name in FASTSA else MORE_SHARES
        as_counted[name] = row(as_fastsa_counts(joint_graph(make, with_tangents_of_one)), shares)
        as_counted[name]["nodes_of_fastsa"] = THEIR_NODES.get(name)
        show(name, as_counted[name])
        as_run[name] = row(as_it_runs(joint_graph(make)), (*shares, None))
        show("  as it runs", as_run[name])
    theirs = [as_counted[name] for name in given.models if name in FASTSA]
    means = {
        share: {key: mean(at[share][key] for at in theirs) for key in ("memory", "cost")}
        for share in ("0.50", "0.25")
        if theirs
    }
    print(means)
    if len(given.models) == len(MODELS):
        write("fastsa", {"as_fastsa_counts": as_counted, "as_it_runs": as_run, "means": means})


if __name__ == "__main__":
    main()
