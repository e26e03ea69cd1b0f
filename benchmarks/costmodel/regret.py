"""What the plans cost that cost models choose, against the best one (see `oracle`).

    python -m benchmarks.costmodel.regret FILE

reads what `oracle` wrote, and writes `benchmarks/results/regret.json`. A chooser takes the plan
that it thinks the shortest; its regret is how much longer that plan takes than the one that was
fastest, both by measurements that chose nothing.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from benchmarks.costmodel.oracle import plans
from rewright.calibrate.host import cpu_model, host
from rewright.cost_models import cost_model
from rewright.costmodel import CostModel, Roofline, expected_seconds
from rewright.ir import Graph, Node, hint, is_call
from rewright.ir.alone import alone
from rewright.ir.parse import parse
from rewright.ir.target import Target
from rewright.ir.work import bytes_read, bytes_written, flops
from rewright.passes import Env, Fuse
from rewright.passes.fuse.choice import DOUBT

# Of a graph's plans, so many may be measured.
MEASURED: Final = 0.1
RESULTS: Final = Path(__file__).parents[1] / "results" / "regret.json"

Chooser = Callable[[Mapping[str, Any], Sequence[Graph]], Sequence[float]]


def calls(plan: Graph) -> list[Node]:
    return [node for node in plan.nodes if is_call(node)]


def texts(plan: Graph) -> list[str]:
    """What `oracle` writes of a plan."""
    return [str(alone(node)) for node in calls(plan)]


def by_model(cost: CostModel) -> Chooser:
    """Every plan's time; as does the pass, with a doubt for each call more than the fewest."""

    def scores(record: Mapping[str, Any], plans: Sequence[Graph]) -> list[float]:
        seconds = [[s for _, s in expected_seconds(cost, plan)] for plan in plans]
        fewest = min(map(len, seconds))
        return [sum(each) * (1 + DOUBT * (len(each) - fewest)) for each in seconds]

    return scores


def by_pass(cost: CostModel) -> Chooser:
    """The plan that the fuse pass makes when it asks a model; then those that the model finds
    short."""
    times = by_model(cost)

    def scores(record: Mapping[str, Any], plans: Sequence[Graph]) -> list[float]:
        fused = Fuse().run(parse(record["text"]), Env(cost=cost, target=cost.target))
        made, others = Counter(texts(fused)), times(record, plans)
        return [
            0.0 if Counter(calls) == made else seconds
            for calls, seconds in zip(record["calls"], others, strict=True)
        ]

    return scores


def by_flops(record: Mapping[str, Any], plans: Sequence[Graph]) -> list[float]:
    """The least arithmetic; of equals the fewest kernels."""
    return [sum(hint(flops(n)) + 1e-3 for n in calls(plan)) for plan in plans]


def by_bytes(record: Mapping[str, Any], plans: Sequence[Graph]) -> list[float]:
    """The least memory traffic, which is Inductor's rule."""
    return [sum(hint(bytes_read(n) + bytes_written(n)) for n in calls(plan)) for plan in plans]


def by_chance(record: Mapping[str, Any], plans: Sequence[Graph]) -> list[float]:
    draw = Random(record["graph"])
    return [draw.random() for _ in plans]


def regret(record: Mapping[str, Any], scores: Sequence[float]) -> tuple[float, float]:
    """Unmeasured, and with the `MEASURED` most promising plans measured."""
    first, fresh = record["first"], record["fresh"]
    best = fresh[int(np.argmin(first))]
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    tried = order[: max(1, int(MEASURED * len(scores)))]
    chosen = min(tried, key=first.__getitem__)
    return fresh[order[0]] / best - 1, fresh[chosen] / best - 1


def timed(record: Mapping[str, Any], target: Target) -> list[Graph]:
    """The plans of a record, made again. Raises ValueError when the pass makes others by now."""
    made = plans(parse(record["text"]), target) or []
    if list(map(texts, made)) != record["calls"]:
        raise ValueError(f"{record['graph']}: not the plans that were timed; run `oracle` again")
    return made


def main(path: Path) -> None:
    records = json.loads(path.read_text())
    target = host()
    made = {record["graph"]: timed(record, target) for record in records}
    learned, roofline = cost_model(target), Roofline(target)
    choosers: dict[str, Chooser] = {
        "learned model": by_model(learned),
        "fuse pass, learned": by_pass(learned),
        "fuse pass, roofline": by_pass(roofline),
        "roofline": by_model(roofline),
        "FLOPs": by_flops,
        "bytes": by_bytes,
        "chance": by_chance,
    }
    count = sum(len(r["calls"]) for r in records)
    print(f"{len(records)} graphs, {count} plans")
    report = {}
    for name, chooser in choosers.items():
        found = np.array([regret(r, chooser(r, made[r["graph"]])) for r in records])
        alone_, tried = found.T
        report[name] = {"mean": float(alone_.mean()), "measured": float(tried.mean())}
        print(
            f"{name:20} mean {alone_.mean():6.2%}  p95 {np.quantile(alone_, 0.95):6.2%}  most "
            f"{alone_.max():6.2%}   with {MEASURED:.0%} measured: mean {tried.mean():6.2%}",
            flush=True,
        )
    about = {
        "machine": cpu_model(),
        "threads": target.cores,
        "graphs": len(records),
        "plans": count,
        "regret": report,
    }
    RESULTS.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
