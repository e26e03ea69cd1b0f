"""Time drawn calls on this machine.

    python -m benchmarks.costmodel.measure CALLS PAIRS SAMPLES [SECONDS]

appends a JSON line a call to SAMPLES; what is there already is not timed again. Calls are in random
order, those of a pair next to each other: after SECONDS it stops with a fair sample.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

from benchmarks.costmodel.lines import Row, append_lines, read_lines
from rewright.calibrate.bench import Bench, Sample
from rewright.calibrate.corpus import Call
from rewright.calibrate.host import host
from rewright.costmodel import Roofline
from rewright.ir.alone import call_name
from rewright.ir.parse import parse

BATCH: Final = 24
# A call that is expected to take longer takes too long to time.
LONGEST: Final = 0.05


def groups(rows: Mapping[str, Row], pairs: Sequence[Row]) -> list[list[str]]:
    """Keys of calls to be timed, those of a pair next to each other."""
    found, seen = [], set[str]()
    for pair in pairs:
        keys = [k for k in (pair["together"], *pair["apart"]) if k not in seen and k in rows]
        seen.update(keys)
        found.append(keys)
    found += [[key] for key in rows if key not in seen]
    Random(1).shuffle(found)
    return [keys for keys in found if keys]


def is_short(row: Row, cost: Roofline) -> bool:
    (estimate,) = cost.estimate(parse(row["text"]).nodes)
    return estimate.seconds < LONGEST


def main(calls: Path, pairs: Path, samples: Path, seconds: float = math.inf) -> None:
    warnings.simplefilter("ignore")
    rows = {call_name(row["text"], row["cold"]): row for row in read_lines(calls)}
    done = {line["key"] for line in read_lines(samples)}
    in_turn = [key for keys in groups(rows, read_lines(pairs)) for key in keys if key not in done]
    roofline = Roofline(host())
    todo = [key for key in in_turn if is_short(rows[key], roofline)]
    bench, started = Bench(host()), time.monotonic()
    for first in range(0, len(todo), BATCH):
        if time.monotonic() - started > seconds:
            break
        keys = todo[first : first + BATCH]
        append_lines(samples, measured(bench, keys, [rows[key] for key in keys]))
        print(
            f"{first + len(keys)} of {len(todo)} calls, {time.monotonic() - started:.0f} s",
            flush=True,
        )


def measured(bench: Bench, keys: Sequence[str], rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """A line a call: its sample, or what kept it from running."""
    calls = [Call(parse(row["text"]), tuple(row["cold"])) for row in rows]
    names = {id(call): key for call, key in zip(calls, keys, strict=True)}
    for call, found in bench.measure(calls):
        line: dict[str, Any] = {"key": names[id(call)]}
        if isinstance(found, Sample):
            yield line | dataclasses.asdict(found)
        else:
            yield line | {"error": f"{type(found).__name__}: {str(found)[:200]}"}


if __name__ == "__main__":
    drawn, paired, timed = map(Path, sys.argv[1:4])
    main(drawn, paired, timed, float(sys.argv[4]) if len(sys.argv) > 4 else math.inf)
