"""Attention of few queries as two Triton kernels: a program for some of the keys of a head each, so
that all of a GPU is at work; then one for each head, which puts the parts together.

A part is what a program has at the end of its keys: results before they are divided by the sum of
exponentials, that sum, and the largest score, which exponentials are relative to. Parts are put
together in the order of their keys (Dao et al., Flash-Decoding for long-context inference, 2023).
"""

from __future__ import annotations

from typing import Final

from rewright.codegen.triton.attention import AttentionBody
from rewright.codegen.triton.blocks import programs
from rewright.codegen.triton.heads import Buffers, Tiles
from rewright.ir import Size, hint, product
from rewright.ir.loops import AttentionNest

# So many queries are few; so many programs keep a GPU at work, and so many tiles a program.
FEW: Final = 16
PROGRAMS: Final = 256
LEAST_TILES: Final = 4
MOST_PARTS: Final = 64

# What a part is, in f32: results of rows, and of each row its largest score and its sum.
MADE, TOP, TOTAL = "parts", "tops", "totals"


def parts_of(nest: AttentionNest, tiles: Tiles) -> int:
    """How many parts the keys of a head are cut into, a power of two: a function of the nest."""
    heads = product(a.size for a in nest.batch)
    known = isinstance(heads, int) and isinstance(nest.row.size, int)
    if not known or hint(nest.row.size) > FEW:
        return 1
    most = hint(nest.key.size) // (tiles.keys * LEAST_TILES)
    wanted = min(PROGRAMS // max(1, hint(heads)), most, MOST_PARTS)
    return 1 << max(0, wanted.bit_length() - 1)


def scratch(nest: AttentionNest, tiles: Tiles, parts: int) -> dict[str, Size]:
    """What is left for the second kernel, and how many elements of each there are."""
    heads = product(a.size for a in nest.batch) * programs([nest.row], tiles.rows)
    rows = heads * (parts * tiles.rows)
    return {MADE: rows * tiles.width, TOP: rows, TOTAL: rows}


class _PartsBody(AttentionBody):
    def __init__(
        self,
        nest: AttentionNest,
        tiles: Tiles,
        buffers: Buffers,
        widen: str,
        parts: int,
        names: dict[str, str],
    ) -> None:
        super().__init__(nest, tiles, buffers, widen)
        self.parts, self.names = parts, names

    def _lines_of_part(self, part: str) -> None:
        """Where the rows of a part lie."""
        self._line(f"lines = ({part}) * ROWS + tl.arange(0, ROWS)[:, None]")

    def _at(self, name: str) -> str:
        along = " * WIDTH + width[None, :]" if name == MADE else ""
        return f"{self.names[name]} + (lines{along})"


class PartBody(_PartsBody):
    """A program has rows, and walks along some keys."""

    def write(self) -> None:
        count = self.indices.size(self.nest.key.size)
        self.program, self.part = f"(tl.program_id(0) // {self.parts})", ("part_from", "part_to")
        self._line(f"part = tl.program_id(0) % {self.parts}")
        self._line(f"tiles_of_part = tl.cdiv(tl.cdiv({count}, KEYS), {self.parts})")
        self._line("part_from = part * tiles_of_part")
        self._line("part_to = part_from + tiles_of_part")
        super().write()

    def _result(self) -> None:
        self._lines_of_part("tl.program_id(0)")
        self._line(f"tl.store({self._at(MADE)}, made)")
        self._line(f"tl.store({self._at(TOP)}, top)")
        self._line(f"tl.store({self._at(TOTAL)}, total)")


class WholeBody(_PartsBody):
    """A program has rows, and puts their parts together."""

    def write(self) -> None:
        self._own_block(self.nest.batch, last_first=True)
        self._line("width = tl.arange(0, WIDTH)")
        self._start()
        with self._block(f"for part in range(0, {self.parts}):"):
            self._lines_of_part(f"tl.program_id(0) * {self.parts} + part")
            self._line(f"found = tl.load({self._at(TOP)})")
            self._line("now = tl.maximum(top, found)")
            self._line('least = tl.where(now == float("-inf"), 0.0, now)')
            self._line("before = tl.exp(top - least)")
            self._line("factor = tl.exp(found - least)")
            self._line(f"made = made * before + tl.load({self._at(MADE)}) * factor")
            self._line(f"total = total * before + tl.load({self._at(TOTAL)}) * factor")
            self._line("top = now")
        self._result()
