"""Draw the calls to be timed: every family at several sizes, inference and training.

    python -m benchmarks.costmodel.calls FILE

appends a JSON line a call to FILE; a model that is there already is not drawn again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import torch

from benchmarks.costmodel.families import JUDGING, TRAINING, drawn
from benchmarks.costmodel.lines import append_lines, read_lines
from rewright.calibrate.bench import measurable_cold
from rewright.calibrate.capture import inference_graph, training_graphs
from rewright.calibrate.corpus import Call, calls_of, prepared
from rewright.calibrate.host import host
from rewright.ir import DTYPE_NAMES, Graph, Kind

# Models of a family that are drawn, and how many of them are also trained.
MODELS: Final = {"train": (10, 5), "judge": (6, 3)}
# Calls taken of one graph: kernels, and calls of ATen.
KERNELS, OPERATORS = 22, 14


@dataclass(frozen=True)
class Draw:
    """One model of a family, for inference or a step of training."""

    family: str
    number: int
    phase: str
    split: str

    @property
    def name(self) -> str:
        return f"{self.family}/{self.number}/{self.phase}"


def draws() -> Iterator[Draw]:
    """All of them, the families in turn, so that the first few are a fair sample."""
    for number in range(max(n for n, _ in MODELS.values())):
        for split, families in (("train", TRAINING), ("judge", JUDGING)):
            inferred, trained = MODELS[split]
            for family in families:
                if number < inferred:
                    yield Draw(family, number, "inference", split)
                if number < trained:
                    yield Draw(family, number, "training", split)


def graphs_of(draw: Draw) -> tuple[list[Graph], str]:
    """The graphs of a model, and the name of the type it computes in."""
    (module, args), dtype = drawn(draw.family, draw.number)
    torch.manual_seed(0)
    if draw.phase == "inference":
        return [inference_graph(module, args)], DTYPE_NAMES[dtype]
    return training_graphs(module.train(), args), DTYPE_NAMES[dtype]


def chosen(graph: Graph, seed: str) -> list[Call]:
    """Some of the calls of a graph, at random; of a cold call that caches could hold, its warm
    twin."""
    draw = Random(seed)
    found = calls_of(prepared(graph, host()), host(), draw.randrange(1 << 30))
    calls = list(dict.fromkeys(map(_warm, found)))
    draw.shuffle(calls)
    kernels = [c for c in calls if c.graph.nodes[0].op.kind is Kind.REGION]
    others = [c for c in calls if c.graph.nodes[0].op.kind is not Kind.REGION]
    return kernels[:KERNELS] + others[:OPERATORS]


def _warm(call: Call) -> Call:
    return call if not call.cold or measurable_cold(call) else Call(call.graph, ())


def rows(draw: Draw) -> Iterator[dict[str, Any]]:
    """A row a call."""
    graphs, dtype = graphs_of(draw)
    for i, graph in enumerate(graphs):
        if graph.symbols:
            continue
        for call in chosen(graph, f"{draw.name}/{i}"):
            yield {
                "model": draw.name,
                "family": draw.family,
                "split": draw.split,
                "dtype": dtype,
                "cold": list(call.cold),
                "text": str(call.graph),
            }


def main(path: Path) -> None:
    warnings.simplefilter("ignore")
    done = {line["model"] for line in read_lines(path)}
    for draw in draws():
        if draw.name in done:
            continue
        try:
            made = list(rows(draw))
        except Exception as error:  # transformers and torch refuse some sizes
            print(f"{draw.name}: {type(error).__name__}: {str(error)[:120]}", flush=True)
            continue
        append_lines(path, made)
        print(f"{draw.name}: {len(made)} calls", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
