"""For kernels among drawn calls, kernels that do the same work apart: what fusion chooses between.

    python -m benchmarks.costmodel.pairs CALLS PAIRS

appends the parts to CALLS and a JSON line a pair to PAIRS: the key of the kernel, those of its
parts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.costmodel.lines import append_lines, read_lines
from rewright.calibrate.corpus import Coin
from rewright.calibrate.host import host
from rewright.costmodel import CostModel, Roofline
from rewright.ir import Graph, Kind, is_call
from rewright.ir.alone import alone, call_name, obstacle
from rewright.ir.loops import is_view
from rewright.ir.parse import parse
from rewright.passes import Env, Fuse

# Pairs of one graph's kernels.
MOST_OF_A_MODEL: Final = 8
# A coin that mostly lets nodes join leaves two or three kernels.
ODDS: Final = 0.7


def parts(body: Graph, step: Fuse, cost: CostModel) -> list[str] | None:
    """The kernels of a body that a cost model parts; None when there is but one, or what none of
    our kernels does."""
    fused = step.run(body, Env(cost=cost, target=cost.target))
    calls = [node for node in fused.nodes if is_call(node)]
    if len(calls) < 2 or any(n.op.kind is not Kind.REGION or obstacle(n) for n in calls):
        return None
    return [str(alone(node)) for node in calls]


def ways(body: Graph, seed: int) -> Iterator[list[str]]:
    """Different ways to do apart what a body does."""
    nodes = [n for n in body.nodes if not is_view(n)]
    seen = []
    if len(nodes) <= 4:
        seen.append(parts(body, Fuse(max_ops=1), Roofline(host())))
    seen.append(parts(body, Fuse(), Coin(host(), seed, ODDS)))
    for i, found in enumerate(seen):
        if found is not None and found not in seen[:i]:
            yield found


def pairs(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(kernel, its parts), as rows."""
    taken: dict[str, int] = {}
    for row in rows:
        graph = parse(row["text"])
        (node,) = graph.nodes
        if node.op.kind is not Kind.REGION or taken.get(row["model"], 0) >= MOST_OF_A_MODEL:
            continue
        body = node.graph("body")
        if sum(not is_view(n) for n in body.nodes) < 2:
            continue
        for found in ways(body, Random(row["text"]).randrange(1 << 30)):
            taken[row["model"]] = taken.get(row["model"], 0) + 1
            yield row, [row | {"text": text} for text in found]


def main(calls: Path, file: Path) -> None:
    rows = read_lines(calls)
    known = {call_name(row["text"], row["cold"]) for row in rows}
    more, lines = [], []
    for row, found in pairs(rows):
        keys = [call_name(part["text"], part["cold"]) for part in found]
        for key, part in zip(keys, found, strict=True):
            if key not in known:
                known.add(key)
                more.append(part)
        line = {
            "together": call_name(row["text"], row["cold"]),
            "apart": keys,
            "family": row["family"],
        }
        lines.append(line | {"split": row["split"]})
    append_lines(calls, more)
    append_lines(file, lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
