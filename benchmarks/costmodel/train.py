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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.costmodel.dataset import Dataset, load
from benchmarks.costmodel.judging import Judged, judge, saved, show, show_savings, together
from rewright.calibrate.chain import cold_bytes
from rewright.costmodel.context import Surroundings
from rewright.costmodel.context_training import TimedProgram, train_surroundings
from rewright.costmodel.features import SHARED_PARTS, Features, features
from rewright.costmodel.learned import Head, Learned
from rewright.costmodel.model_file import Model, write_model
from rewright.costmodel.reuse import far_values, walk
from rewright.costmodel.screen_training import Pair, sketch_rows, train_screen
from rewright.costmodel.screening import Screen, Screening
from rewright.costmodel.sketch import Sketch, sketch_region
from rewright.costmodel.training import Rows, level, train_head
from rewright.ir import Kind
from rewright.ir.parse import parse
from rewright.ir.target import Target

MODELS: Final = Path(__file__).parents[2] / "costmodel" / "models"


@dataclass(frozen=True)
class Timed:
    """A call of the data set: its row, the machine, its features and, of a kernel, its sketch."""

    row: Mapping[str, Any]
    target: Target
    features: Features
    sketch: Sketch | None

    @property
    def key(self) -> tuple[str, str]:
        return self.row["machine"], self.row["key"]


def timed_calls(data: Dataset) -> list[Timed]:
    found = []
    for row in data.calls:
        graph, target = parse(row["text"]), data.targets[row["machine"]]
        (node,) = graph.nodes
        sketch = None
        if node.op.kind is Kind.REGION:
            sketch = sketch_region(node)
        cold = cold_bytes(graph, row["cold"])
        found.append(Timed(row, target, features(node, target, cold), sketch))
    return found


def rows_of(calls: Sequence[Timed]) -> Rows:
    chosen = [c.features for c in calls]
    return Rows(
        np.array([f.numbers for f in chosen]),
        np.array([f.parts for f in chosen]),
        np.array([c.row["seconds"] for c in calls]),
        [c.row["family"] for c in calls],
        [f.operator for f in chosen],
        SHARED_PARTS.get(chosen[0].family, ()),
    )


@dataclass(frozen=True)
class Choice:
    """Kernels apart, and one that does the work of all."""

    apart: Sequence[Timed]
    whole: Timed

    @property
    def saving(self) -> float:
        """As a share of the time apart."""
        apart: float = sum(c.row["seconds"] for c in self.apart)
        return 1 - float(self.whole.row["seconds"]) / apart

    def pair(self) -> Pair:
        sketches, ratio = [_sketch(c) for c in self.apart], 1 - self.saving
        whole = self.whole
        return Pair(sketches, _sketch(whole), ratio, whole.row["family"], whole.target)


def choices(data: Dataset, kernels: Sequence[Timed], split: str) -> list[Choice]:
    """Those all of whose kernels are of a split."""
    by_key = {c.key: c for c in kernels if c.row["split"] == split}
    found = []
    for pair in data.pairs:
        keys = [(pair["machine"], key) for key in (pair["together"], *pair["apart"])]
        if all(key in by_key for key in keys):
            whole, *apart = (by_key[key] for key in keys)
            found.append(Choice(apart, whole))
    return found


def _sketch(call: Timed) -> Sketch:
    assert call.sketch is not None
    return call.sketch


def _sketch_rows(calls: Sequence[Timed]) -> Rows:
    seconds = np.array([c.row["seconds"] for c in calls])
    families = [c.row["family"] for c in calls]
    return sketch_rows([(_sketch(c), c.target) for c in calls], seconds, families)


def full_doubt(
    data: Dataset, kernels: Sequence[Timed], held_out: Mapping[tuple[str, str], float]
) -> float:
    """What nine in ten savings are off by that full models say for families that they did not
    see; `held_out` are their seconds by key."""
    misses = []
    for choice in choices(data, kernels, "train"):
        apart = sum(held_out[c.key] for c in choice.apart)
        misses.append(1 - held_out[choice.whole.key] / apart - choice.saving)
    return level(np.abs(misses))


def train_screening(data: Dataset, kernels: Sequence[Timed], doubt: float) -> Screen:
    """Trained on one split; prints how far off it is on the other."""
    of_split = {s: [c for c in kernels if c.row["split"] == s] for s in ("train", "judge")}
    pairs = [c.pair() for c in choices(data, kernels, "train")]
    screen = train_screen(_sketch_rows(of_split["train"]), pairs, doubt)
    rows = _sketch_rows(of_split["judge"])
    expected = rows.parts @ screen.weights
    show("parts alone", Judged.of(expected, rows.seconds).summary())
    found = expected * np.exp(screen.forest.predict(rows.filled(screen.weights, {})))
    show("screening", Judged.of(found, rows.seconds).summary())
    held = choices(data, kernels, "judge")
    on = {target: Screening(target, screen) for target in data.targets.values()}
    shares = []
    for pair in (c.pair() for c in held):
        gain = on[pair.target].gain(pair.apart, pair.together)
        shares.append(gain.seconds / sum(on[pair.target].seconds(pair.apart)))
    measured = np.array([c.saving for c in held])
    show_savings("screening", saved(np.array(shares), measured))
    return screen


def _full_savings(data: Dataset, kernels: Sequence[Timed], head: Head) -> None:
    """The same by the full model."""
    held = choices(data, kernels, "judge")
    calls = list({id(c): c for h in held for c in (*h.apart, h.whole)}.values())
    rows = rows_of(calls)
    seconds, _, _ = head.predict(head.filled(rows.features, rows.parts, rows.operators), rows.parts)
    of = dict(zip(map(id, calls), seconds.tolist(), strict=True))
    shares = [1 - of[id(h.whole)] / sum(of[id(c)] for c in h.apart) for h in held]
    show_savings("full model", saved(np.array(shares), np.array([h.saving for h in held])))


def about(data: Dataset) -> Mapping[str, Any]:
    basis = f"{len(data.calls)} calls timed on {len(data.targets)} machines"
    return {"basis": basis, "source": [t.source for t in data.targets.values()]}


def timed_programs(data: Dataset, model: Model, split: str) -> list[TimedProgram]:
    """What the calls of programs take alone is asked of the model."""
    on = {
        name: Learned(target, model.heads, model.screen, "")
        for name, target in data.targets.items()
    }
    found = []
    for row in data.programs:
        if row["split"] != split:
            continue
        cost, seconds = on[row["machine"]], np.array(row["seconds"])
        run = walk(parse(row["text"]))
        nodes = [call.node for call in run.calls]
        alone = cost.estimate(nodes, far_values(run, cost.target))
        kept = np.array([e.seconds for e in alone]), seconds, row["start"] + row["others"]
        if nodes and seconds.min() > 0:
            found.append(TimedProgram(run, *kept, cost.target, row["family"]))
    return found


def surroundings(data: Dataset, model: Model) -> Surroundings:
    """Trained on one split; prints how far off programs are on the other, as a sum of calls alone
    and with what was learned."""
    trained = train_surroundings(timed_programs(data, model, "train"))
    held = timed_programs(data, model, "judge")
    whole = np.array([p.within.sum() + p.besides for p in held])
    alone = np.array([p.alone.sum() for p in held])
    within = [
        trained.seconds(p.found, p.alone.tolist(), p.target).sum()
        + trained.besides(p.found, p.target)
        for p in held
    ]
    show("calls alone", Judged.of(alone, whole).summary())
    show("in programs", Judged.of(np.array(within), whole).summary())
    return trained


def main(*, write: bool) -> None:
    started = time.monotonic()
    data = load()
    calls = timed_calls(data)
    by_family: dict[str, list[Timed]] = collections.defaultdict(list)
    for call in calls:
        by_family[call.features.family].append(call)
    print(f"{len(calls)} calls, {time.monotonic() - started:.0f} s to read", flush=True)
    heads, judged, held_out = {}, [], dict[tuple[str, str], float]()
    for family, members in sorted(by_family.items()):
        train = [c for c in members if c.row["split"] == "train"]
        held = [c for c in members if c.row["split"] == "judge"]
        heads[family], logs = train_head(rows_of(train))
        held_out |= zip((c.key for c in train), np.exp(logs).tolist(), strict=True)
        judged.append(judge(heads[family], rows_of(held)))
        show(family, judged[-1].summary())
    show("all", together(judged).summary())
    doubt = full_doubt(data, by_family["kernel"], held_out)
    screen = train_screening(data, by_family["kernel"], doubt)
    print(
        f"savings are off by {screen.pair_doubt:.0%} screened, by {doubt:.0%} with the full model"
    )
    _full_savings(data, by_family["kernel"], heads["kernel"])
    model = Model(heads, screen, about(data))
    model = replace(model, surroundings=surroundings(data, model))
    if write:
        path = MODELS / "cpu.npz"
        path.parent.mkdir(exist_ok=True)
        write_model(path, model)
        print(f"{path.name}: {path.stat().st_size} bytes")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the shipped model")
    main(write=parser.parse_args().write)
