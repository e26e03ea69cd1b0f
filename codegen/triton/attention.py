"""Attention as a Triton kernel: a program for some queries of one head, tile by tile of keys.

Scores live in a tile only, and probabilities are summed up as the keys go by (`heads.py` has the
way along the tiles). Products of half types are exact and added up in f32, by tensor cores; weights
are rounded to the type of the values first. Products of f32 are added up in f32. The order of keys
is that of runs, the same in every call of a shape.
"""

from __future__ import annotations

from typing import Final

from rewright.codegen.triton import heads
from rewright.codegen.triton.blocks import programs
from rewright.codegen.triton.heads import LIVE, PRECISION, Buffers, HeadBody, Tiles
from rewright.ir import Size, product
from rewright.ir.loops import AttentionNest
from rewright.ir.loops.tiles import DEAD

# Rows, keys, warps and stages by the width of a head, for halves and for f32.
_OF_HALVES: Final = {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 4, 3)}
_OF_SINGLES: Final = {64: (64, 32, 4, 2), 128: (32, 32, 4, 2), 256: (16, 32, 4, 2)}


def tiles_of(nest: AttentionNest) -> Tiles:
    """How a nest is cut. Raises UnsupportedError for what tiles of Triton cannot hold."""
    return heads.tiles_of(nest, _OF_HALVES, _OF_SINGLES, "key")


def attention_programs(nest: AttentionNest, tiles: Tiles) -> Size:
    return product(a.size for a in nest.batch) * programs([nest.row], tiles.rows)


class AttentionBody(HeadBody):
    """A program has rows, and walks along keys."""

    def __init__(self, nest: AttentionNest, tiles: Tiles, buffers: Buffers, widen: str) -> None:
        super().__init__(nest, tiles, buffers, widen, walked="key")
        self.nest = nest

    def write(self) -> None:
        # Last rows first: they see most where attention is causal.
        self._own_block(self.nest.batch, last_first=True)
        self._operands()
        self._let_lasting()
        if heads.may_skip(self.nest):
            self._at_most_twice()
        else:
            self._start()
            self._over_all_tiles()
        self._result()

    def _operands(self) -> None:
        """Queries, and where keys and values lie."""
        nest = self.nest
        self._line("inner = tl.arange(0, INNER)")
        self._line("width = tl.arange(0, WIDTH)")
        self._own_matrix("queries", nest.queries, "inner")
        self._line(f"keys_at = {self._places(nest.keys, {nest.inner.name: 'inner[:, None]'})}")
        self._matrix_at("values", nest.values, "width")

    def _start(self) -> None:
        self._line('top = tl.full((ROWS, 1), float("-inf"), tl.float32)')
        self._line("total = tl.zeros((ROWS, 1), tl.float32)")
        self._line("made = tl.zeros((ROWS, WIDTH), tl.float32)")

    def _result(self) -> None:
        self._line("share = tl.where(total == 0, 0.0, 1.0 / total)  # nothing to attend to gives 0")
        self._give(self.nest.results, "made * share", "width")
        if self.nest.sums is not None:
            self._line("sums = tl.where(total == 0, 0.0, top + tl.log(total))")
            self._give(self.nest.sums, "sums")

    def _at_most_twice(self) -> None:
        """Once without the tiles that are dead; and once more with them for a row that met nothing
        alive, where they might have counted, of large finite masks."""
        self._start()
        self._line(f"dead = {DEAD}")
        self._line("again = True")
        with self._block("while again:"):
            self._start()
            self._line("left_out = False")
            self._over_live_tiles()
            met = f"(top > {LIVE})" + (" | ~in_rows" if "row" in self.masks else "")
            self._line(f"again = left_out & any_tile(~({met}))")
            self._line('dead = float("-inf")')

    def _judged(self, score: str) -> None:
        super()._judged(score)
        self._line(f'left_out = left_out | any_tile(there & ~live & ({score}[1] > float("-inf")))')

    def _tile(self, known: bool) -> None:
        nest, inner = self.nest, self.nest.inner
        down = self._walk(known)
        step = self._scaled(self.key, nest.keys.at.coefficient(self.key))
        is_padded = inner.size != self.tiles.inner
        mask = self._mask("col", f"(inner[:, None] < {inner.size})" if is_padded else "")
        self._line(f"keys = tl.load(keys_at + {step}{mask})")
        self._line(f"{nest.given} = tl.dot(queries, keys, {PRECISION})")
        self._let(self._in_tile(known, nest.taken.name))
        self._line(f"score = {self._score()}")
        self._line("weights, factor, top, total = weights_of(score, top, total)")
        self._tile_of("values", nest.values, "width", down)
        self._line("weights = weights.to(values.dtype)")
        self._line(f"made = tl.dot(weights, values, made * factor, {PRECISION})")
