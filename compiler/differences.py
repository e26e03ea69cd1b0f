"""What `rewright diff` tells: of two stages of a compile, or of two compiles."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rewright.diffing import Change, changes
from rewright.ir import OptionError
from rewright.looking import renames, stage_after, stage_before
from rewright.record import Record
from rewright.report import PassRow
from rewright.report_json import to_json
from rewright.tables import bytes_text, seconds_text, table

# Nodes that differ only in their names, of which the text lists so many.
LISTED: Final = 8
_COLUMNS: Final = ("nodes", "calls", "peak", "estimated")


@dataclass(frozen=True)
class Side:
    """One of the two graphs: what it is called here, and the row of the pass that left it."""

    name: str
    row: PassRow


@dataclass(frozen=True)
class Difference:
    """`passes` are those between two stages, each with the row before it."""

    left: Side
    right: Side
    passes: tuple[tuple[PassRow, PassRow], ...]
    changes: tuple[Change, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "left": to_json(self.left),
            "right": to_json(self.right),
            "passes": [to_json(after) for _, after in self.passes],
            "changes": [change.as_json() for change in self.changes],
        }

    def __str__(self) -> str:
        lines = [f"{self.left.name} -> {self.right.name}", self._table(), *self._changes()]
        counted = Counter(change.kind for change in self.changes)
        total = ", ".join(_counted(count, kind) for kind, count in counted.items())
        return "\n".join([*lines, total or "the graphs are equal, node by node"])

    def _table(self) -> str:
        """A line for each pass that changed something, and one for all."""
        said = [(b.spec, _cells(a, b)) for a, b in self.passes]
        rows = [(name, *cells) for name, cells in said if any(" -> " in c for c in cells)]
        rows.append(("in all", *_cells(self.left.row, self.right.row)))
        return table(("", *_COLUMNS), rows)

    def _changes(self) -> Iterator[str]:
        renamed = [change for change in self.changes if change.kind == "renamed"]
        yield from (str(change) for change in self.changes if change not in renamed[LISTED:])
        if len(renamed) > LISTED:
            yield f"renamed  {len(renamed) - LISTED} more"


def _counted(count: int, kind: str) -> str:
    if kind != "kernel":
        return f"{count} {kind}"
    return "1 new kernel" if count == 1 else f"{count} new kernels"


def _cells(a: PassRow, b: PassRow) -> list[str]:
    return [
        _pair(str(a.nodes), str(b.nodes)),
        _pair(str(a.calls), str(b.calls)),
        _pair(bytes_text(a.peak_bytes), bytes_text(b.peak_bytes)),
        _pair(seconds_text(a.estimated_seconds), seconds_text(b.estimated_seconds)),
    ]


def _pair(before: str, after: str) -> str:
    return after if before == after else f"{before} -> {after}"


def between_stages(record: Record, before: str | None, after: str | None) -> Difference:
    """From the graph as it came, or before a pass, to the schedule, or after a pass. Raises
    OptionError for stages in the wrong order."""
    first = 0 if before is None else stage_before(record, before)
    last = stage_after(record, after)
    if first >= last:
        raise OptionError(
            f"nothing lies between the graph before {before or 'any pass'} and that after {after}",
            help="--before names the first pass, --after the last",
        )
    a, b = record.stages[first][1], record.stages[last][1]
    rows = record.report.passes
    left, right = (
        Side(f"{record.report.graph} after {rows[i].name}", rows[i]) for i in (first, last)
    )
    passes = tuple(itertools.pairwise(rows[first : last + 1]))
    return Difference(left, right, passes, tuple(changes(a, b, renames(record, first, last))))


def between_compiles(
    records: tuple[Record, Record], names: Sequence[str], after: str | None
) -> Difference:
    """The schedules of two compiles, or their graphs after a pass that both ran."""
    places = [stage_after(record, after) for record in records]
    graphs = [r.stages[place][1] for r, place in zip(records, places, strict=True)]
    left, right = (
        Side(name, record.report.passes[place])
        for name, record, place in zip(names, records, places, strict=True)
    )
    return Difference(left, right, (), tuple(changes(graphs[0], graphs[1])))
