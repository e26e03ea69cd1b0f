"""The data set of calls: texts, samples and where they come from, as parquet.

    python -m benchmarks.costmodel.dataset CALLS SAMPLES PAIRS

packs what was drawn and timed into `costmodel/data/`.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow
import torch
from pyarrow import parquet

from benchmarks.costmodel.lines import read_lines
from rewright.calibrate.host import cpu_model, from_record, host, to_record
from rewright.ir.alone import call_name
from rewright.ir.target import Target

FOLDER: Final = Path(__file__).parents[2] / "costmodel" / "data"
CALLS: Final = FOLDER / "cpu_calls.parquet"
PAIRS: Final = FOLDER / "cpu_pairs.parquet"


@dataclass(frozen=True)
class Dataset:
    """Timed calls as rows, pairs of keys, and the machine that they were timed on."""

    calls: Sequence[Mapping[str, Any]]
    pairs: Sequence[Mapping[str, Any]]
    target: Target


def load() -> Dataset:
    """What is in the repository."""
    table = parquet.read_table(CALLS)
    about = json.loads(table.schema.metadata[b"about"])
    target = from_record(about["target"], about["threads"])
    return Dataset(table.to_pylist(), parquet.read_table(PAIRS).to_pylist(), target)


def pack(calls: Path, samples: Path, pairs: Path) -> None:
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
    about = {
        "target": to_record(host()),
        "threads": torch.get_num_threads(),
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": "20 % quantile of the rounds over an anchor's, times the anchor's quiet time",
    }
    FOLDER.mkdir(exist_ok=True)
    _write(CALLS, list(rows.values()), about)
    _write(PAIRS, kept, about)
    print(f"{len(rows)} calls, {len(kept)} pairs")


def _write(path: Path, rows: list[dict[str, Any]], about: Mapping[str, Any]) -> None:
    table = pyarrow.Table.from_pylist(rows)
    table = table.replace_schema_metadata({"about": json.dumps(about)})
    parquet.write_table(table, path, compression="zstd", compression_level=19)


if __name__ == "__main__":
    pack(*map(Path, sys.argv[1:4]))
