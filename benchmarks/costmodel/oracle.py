"""What decisions cost: every way to fuse small graphs, built and timed, against what models choose.

    python -m benchmarks.costmodel.oracle FILE

writes to FILE, as JSON, what every plan of every graph takes, and with it what is needed to judge
any cost model: the calls of each plan.
"""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.costmodel.small_graphs import small_graphs
from rewright.calibrate.bench import Repeated, repeated, undisturbed
from rewright.calibrate.corpus import prepared
from rewright.calibrate.host import host
from rewright.calibrate.programs import executables
from rewright.costmodel import Estimate, Kernels, Roofline, Sketch
from rewright.costmodel.timings import Timings
from rewright.ir import Graph, is_call
from rewright.ir.alone import alone
from rewright.ir.target import Target
from rewright.passes import Env, Fuse

FEWEST, MOST = 16, 128
MOST_SCRIPTS: Final = 600
ROUNDS: Final = 15


class Script(Roofline):
    """A cost model whose first answers are given, and whose others are yes."""

    def __init__(self, target: Target, answers: Sequence[bool]) -> None:
        super().__init__(target)
        self.answers = list(answers)
        self.asked = 0

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        if self.asked == len(self.answers):
            self.answers.append(True)
        seconds = 1.0 if self.answers[self.asked] else -1.0
        self.asked += 1
        return Estimate(seconds, seconds, seconds)


def plans(graph: Graph, target: Target) -> list[Graph] | None:
    """Every way in which the fuse pass can leave a graph; None when there are too many."""
    found: dict[object, Graph] = {}
    todo: list[list[bool]] = [[]]
    seen = 0
    while todo:
        given = todo.pop()
        script = Script(target, given)
        fused = Fuse().run(graph, Env(cost=script, target=target))
        found.setdefault(_plan_key(fused), fused)
        seen += 1
        if len(found) > MOST or seen > MOST_SCRIPTS:
            return None
        answers = script.answers[: script.asked]
        todo += [[*answers[:i], not answers[i]] for i in range(len(given), len(answers))]
    return list(found.values())


def _plan_key(fused: Graph) -> object:
    """Names the values that each call of a graph gives, and what is inside it."""
    calls = (node for node in fused.nodes if is_call(node))
    return frozenset(
        (n.results, tuple(v.name for _, g in n.graphs for v in g.values)) for n in calls
    )


def timed(made: Sequence[Repeated], rounds: int, seed: int = 0) -> Timings:
    """Every plan once a round, in random order."""
    draw = random.Random(seed)
    found = []
    with undisturbed():
        for _ in range(rounds):
            order = list(range(len(made)))
            draw.shuffle(order)
            took = {i: made[i].sample() for i in order}
            found.append(tuple(took[i] for i in range(len(made))))
    return Timings(tuple(found))


def record(name: str, graph: Graph, target: Target) -> dict[str, Any] | None:
    """What each plan of a graph took twice over, and its calls; None for too many or too few."""
    ready = prepared(graph, target)
    fused = plans(ready, target)
    if fused is None or len(fused) < FEWEST:
        return None
    programs = executables(fused, Env(cost=Roofline(target), target=target))
    made = [repeated(program) for program in programs]
    for plan in made:
        plan.warm_up()
    first, fresh = timed(made, ROUNDS), timed(made, ROUNDS, seed=1)
    baseline = min(range(len(made)), key=first.quiet)
    return {
        "graph": name,
        "text": str(ready),
        "calls": [[str(alone(n)) for n in plan.nodes if is_call(n)] for plan in fused],
        "first": [first.quiet_ratio(i, baseline) for i in range(len(made))],
        "fresh": [fresh.quiet_ratio(i, baseline) for i in range(len(made))],
        "seconds": first.quiet(baseline),
    }


def records() -> Iterator[dict[str, Any]]:
    target = host()
    for name, graph in small_graphs():
        found = record(name, graph, target)
        if found is None:
            print(f"{name}: left out", flush=True)
            continue
        print(f"{name}: {len(found['calls'])} plans, up to {max(found['first']):.2f}x", flush=True)
        yield found


def main(path: Path) -> None:
    warnings.simplefilter("ignore")
    path.write_text(json.dumps(list(records())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
