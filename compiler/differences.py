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

# More changes of one sort than so many are told in one line.
FEW: Final = 4
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
        return self.text(every=False)

    def text(self, *, every: bool) -> str:
        """The table, the changes, and how many there are. Many of one sort are one line, unless
        `every` change is asked for."""
        told = map(str, self.changes) if every else _summarized(self.changes)
        counted = Counter(change.kind for change in self.changes)
        total = ", ".join(_counted(count, kind) for kind, count in counted.items())
        names = f"{self.left.name} -> {self.right.name}"
        return "\n".join([names, self._table(), *told, total or "the graphs are equal"])

    def _table(self) -> str:
        """A line for each pass that changed something, and one for all."""
        said = [(b.spec, _cells(a, b)) for a, b in self.passes]
        rows = [(name, *cells) for name, cells in said if any(" -> " in c for c in cells)]
        rows.append(("in all", *_cells(self.left.row, self.right.row)))
        return table(("", *_COLUMNS), rows)


def _summarized(changes: Sequence[Change]) -> Iterator[str]:
    sorts: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        sorts.setdefault((change.kind, change.of), []).append(change)
    for (kind, of), alike in sorts.items():
        if len(alike) <= FEW:
            yield from map(str, alike)
            continue
        names = ", ".join(f"%{change.name}" for change in alike[:FEW])
        yield f"{kind:<8} {len(alike)}{of and f' ({of})'}: {names} and {len(alike) - FEW} more"


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
