"""Judge the shipped CPU model on calls timed anew, of families of models that training never saw.

    python -m benchmarks.costmodel.fresh [COUNT]

times COUNT (all) of the judging split's calls again and writes what came out to
`benchmarks/results/costmodel.json`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.costmodel.dataset import load, this_machine
from benchmarks.costmodel.judging import Judged, saved, show, show_savings
from benchmarks.costmodel.lines import Row
from benchmarks.costmodel.measure import BATCH, groups, measured
from rewright.calibrate.bench import Bench
from rewright.calibrate.host import cpu_model, host
from rewright.cost_models import trained
from rewright.costmodel import CostModel, Estimate
from rewright.costmodel.features import family_of
from rewright.costmodel.learned import Learned
from rewright.costmodel.sketch import Sketch, sketch_region
from rewright.ir.parse import parse

RESULTS: Final = Path(__file__).parents[1] / "results" / "costmodel.json"


def timed(rows: Mapping[str, Row], keys: Sequence[str]) -> dict[str, float]:
    bench, found = Bench(host()), dict[str, float]()
    for first in range(0, len(keys), BATCH):
        part = keys[first : first + BATCH]
        for line in measured(bench, part, [rows[k] for k in part]):
            if "seconds" in line:
                found[line["key"]] = line["seconds"]
        print(f"\r{first + len(part)} of {len(keys)}", end="", file=sys.stderr, flush=True)
    return found


def predicted(cost: CostModel, row: Row) -> Estimate:
    graph = parse(row["text"])
    cold = {graph.inputs[place].value for place in row["cold"]}
    return cost.estimate(graph.nodes, cold)[0]


def judged(rows: Sequence[Row], cost: CostModel, seconds: Mapping[str, float]) -> Judged:
    found = [predicted(cost, row) for row in rows]
    known = [not any("so by the roofline" in why for why in e.because) for e in found]
    return Judged(
        np.array([e.seconds for e in found]),
        np.array([e.low for e in found]),
        np.array([e.high for e in found]),
        np.array(known),
        np.array([seconds[row["key"]] for row in rows]),
    )


def savings(
    pairs: Sequence[Row], rows: Mapping[str, Row], cost: CostModel, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Of what joining saves: by screening, which fusion asks, and by the full model."""
    kept = [p for p in pairs if all(k in seconds for k in (p["together"], *p["apart"]))]
    assert isinstance(cost, Learned) and cost.screening is not None
    screening = cost.screening
    truth, screened, full = [], [], []
    for p in kept:
        before = sum(seconds[k] for k in p["apart"])
        truth.append(1 - seconds[p["together"]] / before)
        apart, together = [_sketch(rows[k]) for k in p["apart"]], _sketch(rows[p["together"]])
        gain = screening.gain(apart, together)
        screened.append(gain.seconds / sum(screening.seconds(apart)))
        whole = predicted(cost, rows[p["together"]]).seconds
        full.append(1 - whole / sum(predicted(cost, rows[k]).seconds for k in p["apart"]))
    found = {
        name: saved(np.array(by), np.array(truth))
        for name, by in (("screening", screened), ("full model", full))
    }
    for name, summary in found.items():
        show_savings(name, summary)
    return found


def _sketch(row: Row) -> Sketch:
    return sketch_region(parse(row["text"]).nodes[0])


def main(count: int | None) -> None:
    warnings.simplefilter("ignore")
    data = load()
    here = this_machine() if this_machine() in data.targets else next(iter(data.targets))
    judge = (r for r in data.calls if r["split"] == "judge" and r["machine"] == here)
    rows = {row["key"]: row for row in judge}
    mine = (p for p in data.pairs if p["machine"] == here)
    pairs = [p for p in mine if all(k in rows for k in (p["together"], *p["apart"]))]
    keys = [key for group in groups(rows, pairs) for key in group][:count]
    seconds = timed(rows, keys)
    cost, of_family = trained(host()), dict[str, list[Row]]()
    for key in seconds:
        family = family_of(parse(rows[key]["text"]).nodes[0])
        of_family.setdefault(family, []).append(rows[key])
    found: dict[str, Any] = {}
    for family, members in sorted(of_family.items()):
        found[family] = judged(members, cost, seconds).summary()
        show(family, found[family])
    everything = [row for members in of_family.values() for row in members]
    found["all"] = judged(everything, cost, seconds).summary()
    show("all", found["all"])
    report = {
        "machine": cpu_model(),
        "calls": found,
        "savings": savings(pairs, rows, cost, seconds),
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else None)
