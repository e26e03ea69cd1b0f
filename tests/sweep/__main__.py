"""Sweep: `python -m sweep`, with tests/ on the path; `make sweep` runs everything.

Results lie in build/sweep, one line a case, in a file named after the sources they hold for: a
sweep that was cut short goes on where it stopped, one of other sources starts anew. Exit status 1
when a case fails that `status.json` does not list, or runs in fewer kernels of ours than it says;
`--update` writes what is better, and refuses to write what is worse.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from sweep.cases import Case, all_cases, shard
from sweep.status import STATUS, Status, print_summary
from sweep.workers import run_all

ROOT: Final = Path(__file__).resolve().parents[2]
SWEPT: Final = ("ir", "costmodel", "passes", "codegen", "compiler", "tests/sweep")


def main() -> int:
    asked = arguments()
    cases = list(wanted(asked))
    record = ROOT / "build" / "sweep" / f"{fingerprint()}.jsonl"
    if asked.fresh:
        record.unlink(missing_ok=True)
    done = known(record)
    todo = [case for case in cases if str(case) not in done]
    print(f"{len(cases)} cases, {len(cases) - len(todo)} done before; {asked.workers} workers")
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a") as file:
        for count, result in enumerate(run_all(todo, asked.workers, asked.seconds), 1):
            done[result["case"]] = result
            file.write(json.dumps(result) + "\n")
            file.flush()
            say(result, count, len(todo))
    found = Status.of(done[str(case)] for case in cases)
    return conclude(found, cases, update=asked.update)


def conclude(found: Status, cases: Sequence[Case], *, update: bool) -> int:
    before = Status.read(STATUS).restricted(cases)
    print_summary(found)
    worse = list(found.worse_than(before)) if STATUS.exists() else []
    for line in worse:
        print(f"worse: {line}", file=sys.stderr)
    if update and not worse:
        Status.read(STATUS).updated(found, cases).write(STATUS)
        print(f"wrote {STATUS.relative_to(ROOT)}")
    return 1 if worse else 0


def arguments() -> argparse.Namespace:
    asked = argparse.ArgumentParser("python -m sweep", description=__doc__)
    asked.add_argument("--operators", nargs="+", metavar="NAME", help="only these operators")
    asked.add_argument("--dtypes", nargs="+", metavar="NAME", help="only these, as float32")
    asked.add_argument("--direction", choices=("forward", "backward"))
    asked.add_argument("--shard", default="0/1", metavar="I/N", help="every N-th case, from I")
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--seconds", type=float, default=180, help="after which a case hangs")
    asked.add_argument("--fresh", action="store_true", help="forget earlier results")
    asked.add_argument("--update", action="store_true", help="write status.json")
    return asked.parse_args()


def wanted(asked: argparse.Namespace) -> Iterator[Case]:
    number, of = (int(part) for part in asked.shard.split("/"))
    for case in shard(all_cases(), number, of):
        if asked.operators and case.operator not in asked.operators:
            continue
        if asked.dtypes and case.dtype not in asked.dtypes:
            continue
        if asked.direction in (None, case.direction):
            yield case


def fingerprint() -> str:
    """A name for torch and the sources that a result depends on."""
    total = hashlib.sha256(torch.__version__.encode())
    for folder in SWEPT:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".lark"):
                total.update(path.read_bytes())
    return total.hexdigest()[:16]


def known(record: Path) -> dict[str, Any]:
    """Results by case; a line that was cut short is not one."""
    found = {}
    for line in record.read_text().splitlines() if record.exists() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        found[result["case"]] = result
    return found


def say(result: dict[str, Any], count: int, total: int) -> None:
    if result["status"] not in ("correct", "skipped"):
        print(f"[{count}/{total}] {result['case']}: {result['status']}: {result['detail']}")
    elif count % 200 == 0:
        print(f"[{count}/{total}]", flush=True)


if __name__ == "__main__":
    sys.exit(main())
