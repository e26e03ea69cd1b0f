"""Train the CPU's model on one split of the data set and judge it on the other.

    python -m benchmarks.costmodel.train [--write]

prints, for each family of calls of models that training never saw, how far off the model is;
`--write` also writes the shipped model.
"""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.stats import kendalltau

from benchmarks.costmodel.dataset import load
from rewright.calibrate.chain import cold_bytes
from rewright.costmodel.features import Features, features, sketch_features
from rewright.costmodel.forest import Floats
from rewright.costmodel.learned import Head, filled
from rewright.costmodel.model_file import Model, write_model
from rewright.costmodel.sketch import sketch_region
from rewright.costmodel.training import SCREEN, Rows, grow, train_head
from rewright.ir import Kind
from rewright.ir.parse import parse
from rewright.ir.target import Target

MODEL: Final = Path(__file__).parents[2] / "costmodel" / "models" / "cpu.npz"


@dataclass(frozen=True)
class Timed:
    """A call of the data set: its row, its features and, of a kernel, those of its sketch."""

    row: Mapping[str, Any]
    features: Features
    sketch: Features | None


def timed_calls(rows: Sequence[Mapping[str, Any]], target: Target) -> list[Timed]:
    found = []
    for row in rows:
        graph = parse(row["text"])
        (node,) = graph.nodes
        sketch = None
        if node.op.kind is Kind.REGION:
            sketch = sketch_features(sketch_region(node), target)
        cold = cold_bytes(graph, row["cold"])
        found.append(Timed(row, features(node, target, cold), sketch))
    return found


def rows_of(calls: Sequence[Timed], *, sketches: bool = False) -> Rows:
    chosen = [c.sketch if sketches and c.sketch is not None else c.features for c in calls]
    return Rows(
        np.array([f.numbers for f in chosen]),
        np.array([f.floor for f in chosen]),
        np.array([c.row["seconds"] for c in calls]),
        [c.row["family"] for c in calls],
        [f.operator for f in chosen],
    )


@dataclass(frozen=True)
class Judged:
    """Predictions of calls that training never saw."""

    predicted: Floats
    low: Floats
    high: Floats
    known: Any
    measured: Floats

    def summary(self) -> dict[str, float]:
        errors = np.abs(self.predicted / self.measured - 1)
        inside = (self.low <= self.measured) & (self.measured <= self.high)
        return {
            "calls": len(errors),
            "median": float(np.median(errors)),
            "mape": float(errors.mean()),
            "p90": float(np.quantile(errors, 0.9)),
            "kendall": float(kendalltau(self.predicted, self.measured)[0]),
            "coverage": float(inside.mean()),
            "known": float(self.known.mean()),
        }


def judge(head: Head, rows: Rows) -> Judged:
    numbers = filled(rows.features, rows.operators, head.usual)
    known = head.knows(rows.operators) & head.gate.admits(numbers)
    predicted, low, high = head.predict(numbers, rows.floors)
    return Judged(predicted, low, high, known, rows.seconds)


def together(parts: Sequence[Judged]) -> Judged:
    names = ("predicted", "low", "high", "known", "measured")
    return Judged(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def show(name: str, s: Mapping[str, float]) -> None:
    print(
        f"{name:12} {s['calls']:5.0f} calls  median {s['median']:6.1%}  mean {s['mape']:6.1%}  "
        f"p90 {s['p90']:6.1%}  tau {s['kendall']:.3f}  in bounds {s['coverage']:6.1%}  "
        f"known {s['known']:6.1%}",
        flush=True,
    )


def main(*, write: bool) -> None:
    started = time.monotonic()
    data = load()
    calls = timed_calls(data.calls, data.target)
    by_family: dict[str, list[Timed]] = collections.defaultdict(list)
    for call in calls:
        by_family[call.features.family].append(call)
    print(f"{len(calls)} calls, {time.monotonic() - started:.0f} s to read", flush=True)
    heads, judged = {}, []
    for family, members in sorted(by_family.items()):
        train = [c for c in members if c.row["split"] == "train"]
        held = [c for c in members if c.row["split"] == "judge"]
        heads[family] = train_head(rows_of(train))
        judged.append(judge(heads[family], rows_of(held)))
        show(family, judged[-1].summary())
    show("all", together(judged).summary())
    kernels = {
        split: rows_of([c for c in by_family["kernel"] if c.row["split"] == split], sketches=True)
        for split in ("train", "judge")
    }
    screen = grow(kernels["train"].features, kernels["train"].above, SCREEN)
    above = screen.predict(kernels["judge"].features)
    errors = np.abs(np.exp(above - kernels["judge"].above) - 1)
    print(f"screening: median {np.median(errors):.1%}, mean {errors.mean():.1%}")
    if write:
        MODEL.parent.mkdir(exist_ok=True)
        basis = f"{len(calls)} calls timed on {data.target.name}"
        about = {"basis": basis, "source": data.target.source}
        write_model(MODEL, Model(heads, screen, about))
        print(f"{MODEL}: {MODEL.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the shipped model")
    main(write=parser.parse_args().write)
