"""Traces of buffers, and plans for them, as CSV files.

A trace has the columns of MiniMalloc's: `id`, `lower` and `upper` (the step where a buffer comes,
and the first where it is gone), `size` in bytes. A plan has one more, `offset`, and is read as a
trace too. Cells are plain: no quotes, no commas.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rewright.ir import ImportFailure, TextError, did_you_mean
from rewright.ir.source import Source
from rewright.ir.text_files import read_text, replace_file
from rewright.passes.memory.problem import Buffer, MemoryPlan, MemoryProblem

COLUMNS: Final = ("id", "lower", "upper", "size")
OFFSET: Final = "offset"


def read_trace(path: Path) -> tuple[Buffer, ...]:
    """The buffers of a trace, in its order. Raises ImportFailure for a file that cannot be read,
    TextError for a mistake in it."""
    source = Source(read_text(path), str(path))
    lines = _lines(source)
    if not lines:
        raise ImportFailure(f"{path} is empty; a trace has the columns {', '.join(COLUMNS)}")
    header, *rows = lines
    places = _columns(header)
    buffers: dict[str, Buffer] = {}
    for row in rows:
        if len(row.cells) != len(header.cells):
            raise row.error(
                f"{len(header.cells)} columns were named, and this line has {len(row.cells)} cells"
            )
        name = row.cells[places["id"]]
        if name in buffers:
            raise row.error(f"there is a buffer '{name}' already", places["id"])
        buffers[name] = _buffer(name, row, places)
    return tuple(buffers.values())


@dataclass(frozen=True)
class _Line:
    source: Source
    start: int  # in the text
    text: str

    @property
    def cells(self) -> list[str]:
        return [cell.strip() for cell in self.text.split(",")]

    def error(self, message: str, cell: int | None = None) -> TextError:
        """One that marks a cell, or all of the line."""
        before, marked = 0, self.text
        if cell is not None:
            parts = self.text.split(",")
            before, marked = sum(len(part) + 1 for part in parts[:cell]), parts[cell]
        return TextError(message, excerpt=self.source.excerpt(self.start + before, len(marked)))

    def integer(self, cell: int) -> int:
        text = self.cells[cell]
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise self.error(f"'{text}' is not a whole number of up to 18 digits", cell)
        return int(text)


def _lines(source: Source) -> list[_Line]:
    """All but the blank ones."""
    found, start = [], 0
    for text in source.text.split("\n"):
        if text.strip():
            found.append(_Line(source, start, text.rstrip("\r")))
        start += len(text) + 1
    return found


def _columns(header: _Line) -> dict[str, int]:
    """Where each column stands."""
    names = header.cells
    for place, name in enumerate(names):
        if name not in (*COLUMNS, OFFSET):
            near = did_you_mean(name, COLUMNS)
            raise header.error(f"a trace has no column '{name}'{near}", place)
        if name in names[:place]:
            raise header.error(f"there are two columns '{name}'", place)
    for name in COLUMNS:
        if name not in names:
            wanted = ", ".join(COLUMNS)
            raise header.error(f"a trace has the columns {wanted}; '{name}' is missing")
    return {name: place for place, name in enumerate(names)}


def _buffer(name: str, row: _Line, places: dict[str, int]) -> Buffer:
    lower, upper, size = (row.integer(places[column]) for column in COLUMNS[1:])
    if upper <= lower:
        raise row.error(f"a buffer that comes at {lower} is gone at {upper}", places["upper"])
    if size < 0:
        raise row.error(f"a buffer of {size} bytes", places["size"])
    return Buffer(name, lower, upper, size)


def write_plan(problem: MemoryProblem, plan: MemoryPlan, path: Path) -> None:
    """Write the trace of a problem with offsets. Raises ArtefactError."""
    rows: list[Sequence[object]] = [(*COLUMNS, OFFSET)]
    for b, offset in zip(problem.buffers, plan.offsets, strict=True):
        rows.append((b.name, b.start, b.stop, b.nbytes, offset))
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))
