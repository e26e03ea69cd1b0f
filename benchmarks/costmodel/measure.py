"""Time drawn calls on this machine.

    python -m benchmarks.costmodel.measure CALLS SAMPLES

appends a JSON line a call to SAMPLES; what is there already is not timed again.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.costmodel.lines import append_lines, read_lines
from rewright.calibrate.bench import Bench, Sample
from rewright.calibrate.corpus import Call
from rewright.calibrate.host import host
from rewright.ir.alone import call_name
from rewright.ir.parse import parse

BATCH: Final = 24


def main(calls: Path, samples: Path) -> None:
    warnings.simplefilter("ignore")
    rows = {call_name(row["text"], row["cold"]): row for row in read_lines(calls)}
    done = {line["key"] for line in read_lines(samples)}
    todo = [key for key in rows if key not in done]
    bench, started = Bench(host()), time.monotonic()
    for first in range(0, len(todo), BATCH):
        keys = todo[first : first + BATCH]
        append_lines(samples, measured(bench, keys, [rows[key] for key in keys]))
        print(
            f"{first + len(keys)} of {len(todo)} calls, {time.monotonic() - started:.0f} s",
            flush=True,
        )


def measured(
    bench: Bench, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
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
    main(Path(sys.argv[1]), Path(sys.argv[2]))
