"""Gradients of attention as two Triton kernels: of queries, a program for some rows of one head,
tile by tile of keys; then of keys and values, a program for some keys, tile by tile of rows, of all
heads that share them. Nothing is added up in memory, so that the order of adding is one.

Probabilities are computed again from scores and from what the forward says of each row, the
logarithm of its sum (Dao, arXiv 2307.08691, section 3.1.2). The first kernel also writes down what
is known of a row, for the second: `delta`, the sum of each result times its gradient; and where
masks may be large finite numbers, beside which the logarithm is lost, `base` and `share`, of which
probabilities are exp(score - base) * share, and `lost`, whether no tile may be left out for a block
of rows.

Products are those of `attention.py`: probabilities and gradients of scores are rounded to the type
of what they are multiplied with.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

import torch

from rewright.codegen.triton import heads
from rewright.codegen.triton.blocks import programs
from rewright.codegen.triton.heads import LIVE, PRECISION, Buffers, HeadBody, Tiles
from rewright.ir import Size, product
from rewright.ir.loops import AttentionBackwardNest, Axis
from rewright.ir.loops.tiles import DEAD

# Rows, keys, warps and stages by the width of a head, for halves and for f32; by the kernel. The
# largest of which ptxas keeps everything in registers on sm_90, in the loops that multiply. A tile
# of rows of the second kernel is within one of the first, which says what is lost.
_QUERIES_OF_HALVES: Final = {64: (128, 64, 8, 3), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)}
_KEYS_OF_HALVES: Final = {64: (64, 128, 8, 3), 128: (32, 128, 8, 3), 256: (16, 64, 8, 2)}
_QUERIES_OF_SINGLES: Final = {64: (64, 32, 8, 2), 128: (32, 32, 8, 2), 256: (16, 16, 4, 2)}
_KEYS_OF_SINGLES: Final = {64: (16, 64, 8, 2), 128: (16, 64, 8, 2), 256: (16, 16, 4, 2)}

# What the first kernel writes down for the second, a number in f32 each.
DELTA, BASE, SHARE, LOST = "delta", "base", "share", "lost"


def tiles_of_queries(nest: AttentionBackwardNest) -> Tiles:
    """Raises UnsupportedError for what tiles of Triton cannot hold."""
    return heads.tiles_of(nest, _QUERIES_OF_HALVES, _QUERIES_OF_SINGLES, "key")


def tiles_of_keys(nest: AttentionBackwardNest) -> Tiles:
    """Raises UnsupportedError for what tiles of Triton cannot hold."""
    return heads.tiles_of(nest, _KEYS_OF_HALVES, _KEYS_OF_SINGLES, "row")


def queries_programs(nest: AttentionBackwardNest, tiles: Tiles) -> Size:
    return product(a.size for a in nest.batch) * programs([nest.row], tiles.rows)


def keys_programs(nest: AttentionBackwardNest, tiles: Tiles) -> Size:
    return product(a.size for a in _heads_of_keys(nest)) * programs([nest.key], tiles.keys)


def _heads_of_keys(nest: AttentionBackwardNest) -> tuple[Axis, ...]:
    return nest.batch[: len(nest.batch) - len(nest.group)]


def notes(nest: AttentionBackwardNest, tiles: Tiles) -> dict[str, Size]:
    """What the first kernel, of these tiles, writes down, and how many of each there are."""
    rows = product(a.size for a in nest.batch) * nest.row.size
    if not heads.may_skip(nest):
        return {DELTA: rows}
    return {DELTA: rows, BASE: rows, SHARE: rows, LOST: queries_programs(nest, tiles)}


class GradientBody(HeadBody):
    """`notes` give the parameters of what is written down, and `blocks` the tiles that it is
    written down in."""

    def __init__(
        self,
        nest: AttentionBackwardNest,
        tiles: tuple[Tiles, Tiles],
        buffers: Buffers,
        widen: str,
        notes: dict[str, str],
    ) -> None:
        walked = {QueriesBody: "key", KeysBody: "row"}[type(self)]
        super().__init__(nest, tiles[walked == "row"], buffers, widen, walked=walked)
        self.nest, self.notes, self.blocks = nest, notes, tiles[0]

    def _note(self, name: str, line: str = "line") -> str:
        """Where what is known of rows lies."""
        return (
            f"{self.notes[name]} + ({line} * {self.indices.size(self.nest.row.size)} + {self.row})"
        )

    def _scores(self, known: bool, own: str, walked: str) -> set[str]:
        """What the softmax is taken of, from matrices of the program's own and of the tile; the
        statements that were made for it."""
        nest = self.nest
        self._line(f"{nest.given} = tl.dot({own}, tl.trans({walked}), {PRECISION})")
        made = self._in_tile(known, nest.taken.name)
        self._let(made)
        self._line(f"score = {self._score()}")
        return {statement.name for statement in made}

    def _slope(self, known: bool, own: str, walked: str, made: set[str]) -> None:
        """The gradient of products of queries and keys, rounded as it is multiplied."""
        nest = self.nest
        self._line(f"grads = tl.dot({own}, tl.trans({walked}), {PRECISION})")
        self._line(f"{nest.grad} = weights * (grads - delta)")
        self._let(s for s in self._in_tile(known, nest.slope.name) if s.name not in made)
        slope = self.terms.as_type(nest.slope, torch.float32).text
        inside = self.masks.get(self.walked.dim)
        slope = slope if inside is None else f"tl.where({inside}, {slope}, 0.0)"
        self._line(f"slope = ({slope}).to({walked}.dtype)")

    def _weights(self) -> str:
        share = " * share" if SHARE in self.notes else ""
        return f"tl.exp(score - base){share}"

    def _over_tiles(self) -> None:
        if LOST in self.notes:
            self._over_live_tiles()
        else:
            self._over_all_tiles()

    @abstractmethod
    def write(self) -> None: ...


class QueriesBody(GradientBody):
    """A program has rows, and walks along keys."""

    def write(self) -> None:
        nest = self.nest
        self._own_block(nest.batch, last_first=True)
        self._line("inner = tl.arange(0, INNER)")
        self._line("width = tl.arange(0, WIDTH)")
        self._own_matrix("queries", nest.queries, "inner")
        self._own_matrix("outer", nest.outer, "width")
        self._own_matrix("results", nest.results, "width")
        self._matrix_at("keys", nest.keys, "inner")
        self._matrix_at("values", nest.values, "width")
        self._let_lasting()
        self._known_of_rows()
        self._line("to_queries = tl.zeros((ROWS, INNER), tl.float32)")
        self._over_tiles()
        self._give(nest.to_queries, "to_queries", "inner")

    def _known_of_rows(self) -> None:
        self._line("delta = outer.to(tl.float32) * results.to(tl.float32)")
        self._line("delta = tl.sum(delta, 1, keep_dims=True)")
        place = self._places(self.nest.sums, {self.row: self.row})
        self._line(f"base = tl.load({place}{self._mask('row')})")
        if LOST in self.notes:
            self._line("share = tl.full((ROWS, 1), 1.0, tl.float32)")
            self._line(f"lost = any_tile(~(base > {LIVE}))")
            with self._block("if lost:"):
                self._sums_again()
            self._line(f'dead = tl.where(lost, float("-inf"), {DEAD})')
            blocks = self.indices.size(programs([self.nest.row], self.blocks.rows))
            self._line(f"tl.store({self.notes[LOST]} + (head * {blocks} + block), lost)")
        for name in (name for name in self.notes if name != LOST):
            where = self._condition("row")
            mask = f", mask={where}" if where else ""
            self._line(f"tl.store({self._note(name, 'head')}, {name}{mask})")

    def _sums_again(self) -> None:
        """The largest score and the sum of exponentials, apart, of large finite masks."""
        count = self.indices.size(self.nest.key.size)
        self._line('top = tl.full((ROWS, 1), float("-inf"), tl.float32)')
        self._line("total = tl.zeros((ROWS, 1), tl.float32)")
        with self._block(f"for start in range(0, {count}, KEYS):"):
            down = self._walk(known=False)
            self._tile_of("keys", self.nest.keys, "inner", down)
            self._scores(False, "queries", "keys")
            self._line("weights, factor, top, total = weights_of(score, top, total)")
        self._line("base = tl.where(total == 0, 0.0, top)")
        self._line("share = tl.where(total == 0, 0.0, 1.0 / total)")

    def _tile(self, known: bool) -> None:
        nest = self.nest
        down = self._walk(known)
        self._tile_of("keys", nest.keys, "inner", down)
        self._tile_of("values", nest.values, "width", down)
        made = self._scores(known, "queries", "keys")
        self._line(f"weights = {self._weights()}")
        self._slope(known, "outer", "values", made)
        self._line(f"to_queries = tl.dot(slope, keys, to_queries, {PRECISION})")


class KeysBody(GradientBody):
    """A program has keys, and walks along the rows of one head after the other."""

    def write(self) -> None:
        nest = self.nest
        self._own_block(_heads_of_keys(nest), last_first=False)
        self._line("inner = tl.arange(0, INNER)")
        self._line("width = tl.arange(0, WIDTH)")
        self._own_matrix("keys", nest.keys, "inner")
        self._own_matrix("values", nest.values, "width")
        self._line("to_keys = tl.zeros((KEYS, INNER), tl.float32)")
        self._line("to_values = tl.zeros((KEYS, WIDTH), tl.float32)")
        if nest.group:
            count = self.indices.size(product(a.size for a in nest.group))
            with self._block(f"for member in range(0, {count}):"):
                self._positions("member", nest.group, rest="others")
                self._rows_of_head(f"head * {count} + member")
        else:
            self._rows_of_head("head")
        self._give(nest.to_keys, "to_keys", "inner")
        self._give(nest.to_values, "to_values", "width")

    def _rows_of_head(self, line: str) -> None:
        self._line(f"line = {line}")
        self._matrix_at("queries", self.nest.queries, "inner")
        self._matrix_at("outer", self.nest.outer, "width")
        self._let_lasting()
        self._over_tiles()

    def _judged(self, score: str) -> None:
        blocks = self.indices.size(programs([self.nest.row], self.blocks.rows))
        place = f"{self.notes[LOST]} + (line * {blocks} + rows_from // {self.blocks.rows})"
        self._line(f"lost = tl.load({place}, mask=there, other=0.0)")
        self._line(f'dead = tl.where(lost > 0, float("-inf"), {DEAD})')
        super()._judged(score)

    def _tile(self, known: bool) -> None:
        nest = self.nest
        down = self._walk(known)
        self._tile_of("queries", nest.queries, "inner", down)
        self._tile_of("outer", nest.outer, "width", down)
        mask = self._mask("row")
        for name in (BASE, SHARE, DELTA):
            if name in self.notes:
                self._line(f"{name} = tl.load({self._note(name)}{mask})")
        if BASE not in self.notes:
            place = self._places(nest.sums, {self.row: self.row})
            self._line(f"base = tl.load({place}{mask})")
        made = self._scores(known, "keys", "queries")
        self._line(f"weights = {self._weights()}")
        self._line(f"to_values = tl.dot(weights.to(outer.dtype), outer, to_values, {PRECISION})")
        self._slope(known, "values", "outer", made)
        self._line(f"to_keys = tl.dot(slope, queries, to_keys, {PRECISION})")
