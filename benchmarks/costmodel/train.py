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

from benchmarks.costmodel.dataset import load
from benchmarks.costmodel.judging import judge, show, together
from rewright.calibrate.chain import cold_bytes
from rewright.costmodel.features import Features, features, sketch_features
from rewright.costmodel.model_file import Model, write_model
from rewright.costmodel.sketch import sketch_region
from rewright.costmodel.training import SCREEN, Rows, grow, train_head
from rewright.ir import Kind
from rewright.ir.parse import parse
from rewright.ir.target import Target

MODELS: Final = Path(__file__).parents[2] / "costmodel" / "models"


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
        np.array([f.parts for f in chosen]),
        np.array([c.row["seconds"] for c in calls]),
        [c.row["family"] for c in calls],
        [f.operator for f in chosen],
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
    one = np.ones(1)  # the only part of a sketch is its floor
    screen = grow(kernels["train"].features, kernels["train"].over(one), SCREEN)
    over = screen.predict(kernels["judge"].features)
    errors = np.abs(np.exp(over - kernels["judge"].over(one)) - 1)
    print(f"screening: median {np.median(errors):.1%}, mean {errors.mean():.1%}")
    if write:
        path = MODELS / "cpu.npz"
        path.parent.mkdir(exist_ok=True)
        basis = f"{len(calls)} calls timed on {data.target.name}"
        about = {"basis": basis, "source": data.target.source}
        write_model(path, Model(heads, screen, about))
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the shipped model")
    main(write=parser.parse_args().write)
