"""How long a plan takes to find: one budget on graphs of 1,000 to 20,000 nodes, and all budgets.

Seconds are those of one core (CPU time), so that what else runs counts for little. The graphs are
Llama-like training steps of more and more layers, each node a step.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import torch
from torch import nn

from benchmarks.remat.fastsa import peak_of
from benchmarks.remat.graphs import Model, as_fastsa_counts, joint_graph
from benchmarks.remat.llama import BATCH, WIDTH, Block, mean_square
from benchmarks.remat.results import write
from rewright.passes.remat.problem import Problem
from rewright.passes.remat.solve import Schedule, fit, solve

LAYERS: Final = (6, 32, 48, 116)


@dataclass(frozen=True)
class Row:
    """Seconds to a first plan within half of the first peak, to the last one, and to the front."""

    steps: int
    first: float
    last: float
    cost: float
    front: float
    schedules: int


def row(problem: Problem) -> Row:
    budget, began = peak_of(problem) // 2, time.process_time()
    fitting: list[float] = []

    def seen(found: Schedule) -> None:
        if found.peak <= budget:
            fitting.append(time.process_time() - began)

    plan = fit(problem, budget, progress=seen)
    last = time.process_time() - began
    front = solve(problem)
    whole = time.process_time() - began - last
    cost = plan.seconds / problem.seconds - 1
    return Row(len(problem.steps), fitting[0], last, cost, whole, len(front.schedules))


def model(layers: int) -> Model:
    return nn.Sequential(*(Block() for _ in range(layers))), (torch.zeros(BATCH, 1024, WIDTH),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layers", nargs="*", type=int, default=list(LAYERS))
    given = parser.parse_args()
    rows = []
    for layers in given.layers:
        graph = joint_graph(partial(model, layers), mean_square)
        rows.append(row(as_fastsa_counts(graph)))
        print(rows[-1], flush=True)
    if tuple(given.layers) == LAYERS:
        write("speed", [asdict(found) for found in rows])


if __name__ == "__main__":
    main()
