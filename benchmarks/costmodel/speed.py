"""How long the cost model takes to answer, on the candidates of fusing real graphs.

    python -m benchmarks.costmodel.speed

Candidates are what the fuse pass asks about in models of many families and sizes, whose drawing
takes some minutes; everything is computed anew from their sketches, as in a fresh process.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from benchmarks.costmodel.calls import draws, graphs_of
from rewright.calibrate.corpus import prepared
from rewright.calibrate.host import host
from rewright.cost_models import trained
from rewright.costmodel import CostModel, Estimate, Kernels, Roofline, Sketch
from rewright.costmodel.learned import Learned
from rewright.ir import Node, is_call
from rewright.ir.alone import alone
from rewright.passes import Env, Fuse

CANDIDATES: Final = 8000
MODELS: Final = 80

Candidate = tuple[tuple[Sketch, ...], Sketch]


class Recording(Roofline):
    """Keeps what it is asked."""

    def __init__(self, cost: CostModel) -> None:
        super().__init__(cost.target)
        self.cost, self.asked = cost, list[Candidate]()

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        self.asked.append((tuple(apart), together))
        return self.cost.gain(apart, together, kernels)


def learned() -> Learned:
    """With nothing remembered."""
    cost = trained(host())
    assert isinstance(cost, Learned)
    return cost


def candidates() -> tuple[list[Candidate], list[Node]]:
    """What fusing asks about, and the kernels that come of it."""
    recording, kernels = Recording(learned()), list[Node]()
    for draw in islice(draws(), MODELS):
        for graph in graphs_of(draw)[0]:
            if not graph.symbols:
                env = Env(cost=recording, target=host())
                fused = Fuse().run(prepared(graph, host()), env)
                kernels += (node for node in fused.nodes if is_call(node))
        if len(recording.asked) >= CANDIDATES:
            break
    return recording.asked[:CANDIDATES], kernels


def seconds_each(cost: CostModel, nodes: Sequence[Node]) -> float:
    """Of the full model, over distinct calls."""
    distinct = list({str(alone(node)): node for node in nodes}.values())
    started = time.perf_counter()
    cost.estimate(distinct)
    return (time.perf_counter() - started) / len(distinct)


def lines() -> Iterator[str]:
    asked, kernels = candidates()
    distinct = len(set(asked))
    model = learned()
    started = time.perf_counter()
    for apart, together in asked:
        model.gain(apart, together)
    each = (time.perf_counter() - started) / len(asked)
    yield f"screening: {len(asked)} candidates, {distinct} distinct, {each * 1e6:.1f} us each"
    screening = learned().screening
    assert screening is not None
    sketches = [together for _, together in asked]
    started = time.perf_counter()
    screening.seconds(sketches)
    each = (time.perf_counter() - started) / len(sketches)
    yield f"kernels at once: {len(set(sketches))} distinct of {len(sketches)}, {each * 1e6:.1f} us"
    yield f"full model, distinct calls: {seconds_each(learned(), kernels) * 1e6:.0f} us each"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in lines():
        print(line, flush=True)
