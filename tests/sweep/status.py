"""What is known of the sweep: which cases fail and why, which operators run in our own kernels.

`status.json` may only improve: a sweep that finds a new failure, or an operator that has lost its
kernel, fails.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sweep.cases import DIRECTIONS, Case, dtypes_of, operators

STATUS: Final = Path(__file__).with_name("status.json")
PASSED: Final = ("correct", "skipped")


@dataclass(frozen=True)
class Status:
    """`counts`: by direction and dtype, (correct, compared); `failures`: case to reason; `own`: by
    direction, the operators whose samples all compile under `fallback="error"`."""

    counts: Mapping[str, tuple[int, int]]
    failures: Mapping[str, str]
    own: Mapping[str, frozenset[str]]

    @staticmethod
    def of(results: Iterable[Mapping[str, Any]]) -> Status:
        counts: dict[str, list[int]] = {}
        failures: dict[str, str] = {}
        own: dict[str, set[str]] = {direction: set() for direction in DIRECTIONS}
        for result in results:
            case = Case.parse(result["case"])
            if result["status"] == "skipped":
                continue
            row = counts.setdefault(f"{case.direction} {case.dtype}", [0, 0])
            row[0] += result["status"] == "correct"
            row[1] += 1
            if result["status"] != "correct":
                failures[result["case"]] = f"{result['status']}: {result['detail']}"
            elif result["own"] and case.dtype == telling_dtype(case):
                own[case.direction].add(case.operator)
        return Status(
            {name: (row[0], row[1]) for name, row in sorted(counts.items())},
            dict(sorted(failures.items())),
            {direction: frozenset(names) for direction, names in own.items()},
        )

    @staticmethod
    def read(path: Path) -> Status:
        if not path.exists():
            return Status({}, {}, {direction: frozenset() for direction in DIRECTIONS})
        held = json.loads(path.read_text())
        return Status(
            {name: tuple(row) for name, row in held["counts"].items()},
            held["failures"],
            {direction: frozenset(names) for direction, names in held["own"].items()},
        )

    def write(self, path: Path) -> None:
        held = {
            "counts": dict(self.counts),
            "failures": dict(sorted(self.failures.items())),
            "own": {direction: sorted(names) for direction, names in self.own.items()},
        }
        path.write_text(json.dumps(held, indent=1) + "\n")

    def restricted(self, cases: Sequence[Case]) -> Status:
        """What is known of some cases. Counts are of all cases, so they are left out."""
        names = {str(case) for case in cases}
        telling = {(c.direction, c.operator) for c in cases if c.dtype == telling_dtype(c)}
        return Status(
            {},
            {name: why for name, why in self.failures.items() if name in names},
            {d: frozenset(n for n in own if (d, n) in telling) for d, own in self.own.items()},
        )

    def worse_than(self, before: Status) -> Iterator[str]:
        for name, why in self.failures.items():
            if name not in before.failures:
                yield f"{name}: {why}"
        for direction in DIRECTIONS:
            for name in sorted(before.own[direction] - self.own[direction]):
                yield f"{name} {direction} no longer runs in our own kernels alone"

    def updated(self, found: Status, cases: Sequence[Case]) -> Status:
        """This with what was found of some cases: of a row, as many are compared as ever were in
        one sweep, and all are correct that are no failures."""
        names = {str(case) for case in cases}
        kept = {name: why for name, why in self.failures.items() if name not in names}
        failures = {**kept, **found.failures}
        failed = Counter(f"{c.direction} {c.dtype}" for c in map(Case.parse, failures))
        rows = {**self.counts, **found.counts}
        compared = {n: max(s.counts[n][1] for s in (self, found) if n in s.counts) for n in rows}
        counts = {name: (total - failed[name], total) for name, total in compared.items()}
        own = {d: self.own[d] | found.own[d] for d in DIRECTIONS}
        return Status(counts, failures, own)


def telling_dtype(case: Case) -> str:
    """The dtype that counts for "runs in our own kernels": float32 where the operator has it."""
    names = [
        str(d).removeprefix("torch.") for d in dtypes_of(operators()[case.operator], case.direction)
    ]
    return "float32" if "float32" in names else min(names, default="")


def print_summary(found: Status) -> None:
    for direction in DIRECTIONS:
        rows = {n: row for n, row in found.counts.items() if n.startswith(direction)}
        for name, (correct, total) in rows.items():
            print(f"{name:24} {correct:5} of {total:5} correct  {correct / total:7.2%}")
        correct, total = (sum(row[i] for row in rows.values()) for i in (0, 1))
        if total:
            own = len(found.own[direction])
            print(f"{direction:24} {correct:5} of {total:5} correct  {correct / total:7.2%}")
            print(f"{direction:24} {own} operators in our own kernels alone")
    reasons = Counter(why.split(":")[0] for why in found.failures.values())
    for reason, count in reasons.most_common():
        print(f"{count} {reason}")
