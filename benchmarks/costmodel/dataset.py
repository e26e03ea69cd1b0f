"""The data set of calls: texts, samples and where they come from, as parquet.

    python -m benchmarks.costmodel.dataset CALLS SAMPLES PAIRS PROGRAMS

packs what was drawn and timed on this machine into `costmodel/data/`, beside what other machines
gave.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow
import torch
from pyarrow import parquet

from benchmarks.costmodel.lines import Row, read_lines
from rewright.calibrate.host import cpu_model, from_record, host, to_record
from rewright.ir.alone import call_name
from rewright.ir.target import Target

FOLDER: Final = Path(__file__).parents[2] / "costmodel" / "data"
CALLS: Final = FOLDER / "cpu_calls.parquet"
PAIRS: Final = FOLDER / "cpu_pairs.parquet"
PROGRAMS: Final = FOLDER / "cpu_programs.parquet"


@dataclass(frozen=True)
class Dataset:
    """Timed calls as rows, pairs of keys, timed programs, and the machines that they were timed on:
    a row's `machine` names its target."""

    calls: Sequence[Row]
    pairs: Sequence[Row]
    programs: Sequence[Row]
    targets: Mapping[str, Target]


def load() -> Dataset:
    """What is in the repository."""
    tables = [parquet.read_table(path) for path in (CALLS, PAIRS, PROGRAMS)]
    machines = {name: about for table in tables for name, about in _machines(table).items()}
    targets = {name: from_record(m["target"], m["threads"]) for name, m in machines.items()}
    calls, pairs, programs = (table.to_pylist() for table in tables)
    return Dataset(calls, pairs, programs, targets)


def this_machine() -> str:
    """The name that its rows go by."""
    return f"{cpu_model()}, {torch.get_num_threads()} threads"


def pack(calls: Path, samples: Path, pairs: Path, programs: Path) -> None:
    """Join what was drawn with what was timed. A call that models of both splits have is one for
    training."""
    timed = {line["key"]: line for line in read_lines(samples)}
    rows: dict[str, dict[str, Any]] = {}
    for drawn in read_lines(calls):
        key = call_name(drawn["text"], drawn["cold"])
        if "seconds" not in timed.get(key, ()):
            continue
        row = rows.setdefault(key, {**timed[key], **drawn})
        if drawn["split"] == "train":
            row.update(drawn)
    kept = [p for p in read_lines(pairs) if all(k in rows for k in (p["together"], *p["apart"]))]
    FOLDER.mkdir(exist_ok=True)
    _write(CALLS, rows.values())
    _write(PAIRS, kept)
    _write(PROGRAMS, read_lines(programs))
    print(f"{len(rows)} calls, {len(kept)} pairs")


def _write(path: Path, rows: Iterable[Row]) -> None:
    """Rows of this machine instead of those that there are."""
    name = this_machine()
    mine = [{"machine": name, **row} for row in rows]
    machines, others = {name: _about()}, []
    if path.exists():
        table = parquet.read_table(path)
        machines = _machines(table) | machines
        others = [row for row in table.to_pylist() if row["machine"] != name]
    table = pyarrow.Table.from_pylist(others + mine)
    table = table.replace_schema_metadata({"machines": json.dumps(machines)})
    parquet.write_table(table, path, compression="zstd", compression_level=19)


def _machines(table: pyarrow.Table) -> dict[str, Any]:
    return dict(json.loads(table.schema.metadata[b"machines"]))


def _about() -> dict[str, Any]:
    return {
        "target": to_record(host()),
        "threads": torch.get_num_threads(),
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": "20 % quantile of the rounds over an anchor's, times the anchor's quiet time",
    }


if __name__ == "__main__":
    pack(*map(Path, sys.argv[1:5]))
