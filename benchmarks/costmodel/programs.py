"""Time whole programs of drawn models, call by call: what calls take among others.

    python -m benchmarks.costmodel.programs FILE

appends a JSON line a program to FILE; what is there already is not timed again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.costmodel.calls import Draw, draws, graphs_of
from benchmarks.costmodel.lines import append_lines, read_lines
from rewright.calibrate.bench import Bench
from rewright.calibrate.host import host
from rewright.calibrate.profile import profile
from rewright.costmodel import Roofline, graph_estimate
from rewright.driver import planned
from rewright.ir import Graph, is_call
from rewright.options import Options
from rewright.passes import Env
from rewright.sources import random_inputs

# Models of a family, for inference and trained, by split.
MODELS: Final = {"train": (4, 2), "judge": (3, 1)}
# Longer texts hold constants; longer runs say nothing about calls in caches.
LONGEST_TEXT: Final = 1 << 20
LONGEST_RUN: Final = 0.2


def chosen() -> Iterator[Draw]:
    for draw in draws():
        inferred, trained = MODELS[draw.split]
        if draw.number < (inferred if draw.phase == "inference" else trained):
            yield draw


def row(bench: Bench, draw: Draw, place: int, graph: Graph) -> dict[str, Any] | None:
    """None for a program that is too long, or whose sizes are symbols. The roofline plans, as no
    model may be trained yet."""
    if graph.symbols:
        return None
    torch.manual_seed(0)
    target = host()
    plan = planned(graph, Options(), Env(cost=Roofline(target), target=target))
    text, inputs = str(plan.fused), random_inputs(graph)
    if len(text) > LONGEST_TEXT or graph_estimate(plan.env.cost, plan.fused).seconds > LONGEST_RUN:
        return None
    found = profile(bench, plan.recipe(retain=True), inputs)
    calls = [node.name for node in plan.fused.nodes if is_call(node)]
    return {
        "model": f"{draw.name}/{place}",
        "family": draw.family,
        "split": draw.split,
        "text": text,
        "seconds": [found.steps.get(name, 0.0) for name in calls],
        "start": found.start,
        "others": found.seconds - found.start - sum(found.steps.get(n, 0.0) for n in calls),
        "whole": found.whole,
    }


def main(file: Path) -> None:
    warnings.simplefilter("ignore")
    bench = Bench(host())
    done = {line["model"].rpartition("/")[0] for line in read_lines(file)}
    for draw in chosen():
        if draw.name in done:
            continue
        try:
            graphs, _ = graphs_of(draw)
            rows = [row(bench, draw, i, graph) for i, graph in enumerate(graphs)]
        except Exception as error:  # transformers and torch refuse some sizes
            print(f"{draw.name}: {type(error).__name__}: {str(error)[:120]}", flush=True)
            continue
        append_lines(file, [r for r in rows if r is not None])
        print(f"{draw.name}: {[len(r['seconds']) if r else None for r in rows]}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
