"""Numbers as people read them, and plain tables that also read well in a pipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rewright.report import KernelRow, PassRow

# Calls that a table of the slowest names.
SLOWEST: Final = 10


def bytes_text(count: float) -> str:
    """1.5 MiB"""
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f} B"


def seconds_text(seconds: float) -> str:
    """41.7 us"""
    for unit, step in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= step:
            return f"{seconds / step:.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded with spaces: the first to the left, the others to the right."""
    widths = [max(len(r[i]) for r in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join((first, *rest)).rstrip()

    return "\n".join(line(row) for row in (header, *rows))


def spec_text(spec: str) -> str:
    """A pass as a line shows it: rules that are given as text by their names."""
    return _TEXTS.sub(lambda text: f'"{", ".join(_RULES.findall(_lines(text[0])))}"', spec)


def _lines(text: str) -> str:
    return text.replace("\\n", "\n")


_TEXTS: Final = re.compile(r'"(?:[^"\\]|\\.)*\\n(?:[^"\\]|\\.)*"')
_RULES: Final = re.compile(r"\brule ([\w./-]+) (?:exact|reassociating|approximate)")


def pass_table(rows: Sequence[PassRow]) -> str:
    """The pass table: what each pass left."""
    cells = [
        (
            spec_text(row.spec),
            str(row.nodes),
            str(row.calls),
            bytes_text(row.peak_bytes),
            seconds_text(row.estimated_seconds),
        )
        for row in rows
    ]
    return table(("pass", "nodes", "calls", "peak", "estimated"), cells)


def slowest_table(rows: Sequence[KernelRow]) -> str:
    """Calls that were measured, a line for all that do the same: those that take longest."""
    kinds: dict[tuple[object, ...], list[KernelRow]] = {}
    for row in rows:
        kind = row.function or row.op, row.flops, row.read_bytes, row.written_bytes
        kinds.setdefault(kind, []).append(row)
    slowest = sorted(kinds.values(), key=_measured, reverse=True)
    cells = [_cells(_called(same[0]), same, rows) for same in slowest[:SLOWEST]]
    left = [row for same in slowest[SLOWEST:] for row in same]
    if left:
        cells.append(_cells("all others", left, rows))
    return table(("slowest", "calls", "measured", "predicted", "share"), cells)


def _called(row: KernelRow) -> str:
    """What is called, what it makes, and the line of source of that."""
    return f"{row.function or row.op} ({', '.join([f'%{row.name}', *row.locs[-1:]])})"


def _cells(name: str, same: Sequence[KernelRow], rows: Sequence[KernelRow]) -> tuple[str, ...]:
    return (
        name,
        str(len(same)),
        seconds_text(_measured(same)),
        seconds_text(sum(row.predicted_seconds for row in same)),
        f"{_measured(same) / max(_measured(rows), 1e-9):.0%}",
    )


def _measured(rows: Sequence[KernelRow]) -> float:
    return sum(row.measured_seconds or 0.0 for row in rows)
