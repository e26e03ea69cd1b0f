"""Attention as a Triton kernel: a program for some queries of one head, tile by tile of keys.

Scores live in a tile only, and probabilities are summed up as the keys go by. Which tiles a mask
leaves is decided before their keys are read, from intervals (`ranges.py`), for many tiles at once;
the tiles that are left make runs, so that the loop over a run has no branch and Triton reads ahead
in it. Tiles in which every condition is known to hold are a loop of their own, without conditions.

Products of half types are exact and added up in f32, by tensor cores; weights are rounded to the
type of the values first. Products of f32 are added up in f32. The order of keys is that of runs,
the same in every call of a shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from rewright.codegen.triton.blocks import at_most, power_of_two, programs
from rewright.codegen.triton.extents import far_extents
from rewright.codegen.triton.indices import Indices, Text
from rewright.codegen.triton.ranges import Ranges
from rewright.codegen.triton.terms import Terms
from rewright.ir import DTYPE_NAMES, Size, UnsupportedError, divisible, product
from rewright.ir.loops import (
    Affine,
    Apply,
    AttentionNest,
    Convert,
    Let,
    Load,
    Number,
    Place,
    Position,
    Ref,
    Round,
    Term,
    reads,
    subterms,
)
from rewright.ir.loops.tiles import DEAD, conditions, live_values

# A row that met a score above this takes nothing from those below DEAD.
LIVE: Final = -1e32
# Tiles of keys whose intervals are found at once, and the least that Triton multiplies.
MOST_TILES: Final = 64
LEAST: Final = 16

MARGIN: Final = "    "
HALVES: Final = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Tiles:
    """A tile is of `rows` queries and `keys` keys, heads padded to `inner` and `width`; `tiles` are
    looked at together. `stages` are the tiles that are in flight."""

    rows: int
    keys: int
    inner: int
    width: int
    tiles: int
    warps: int
    stages: int

    @property
    def constants(self) -> tuple[tuple[str, int], ...]:
        names = {"ROWS": self.rows, "KEYS": self.keys, "INNER": self.inner, "WIDTH": self.width}
        return (*names.items(), ("TILES", self.tiles))

    @property
    def options(self) -> tuple[tuple[str, int], ...]:
        # Products and sums may be one here: a row's order of adding is the kernel's own anyway.
        return (("num_warps", self.warps), ("num_stages", self.stages))


# Rows, keys, warps and stages by the width of a head, for halves and for f32.
_OF_HALVES: Final = {64: (128, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 4, 3)}
_OF_SINGLES: Final = {64: (64, 32, 4, 2), 128: (32, 32, 4, 2), 256: (16, 32, 4, 2)}


def tiles_of(nest: AttentionNest) -> Tiles:
    """How a nest is cut. Raises UnsupportedError for what tiles of Triton cannot hold."""
    types = {nest.queries.dtype, nest.keys.dtype, nest.values.dtype}
    if len(types) > 1 or not types <= {torch.float32, *HALVES}:
        names = ", ".join(sorted(DTYPE_NAMES.get(t, str(t)) for t in types))
        raise UnsupportedError(f"Triton multiplies f16, bf16 or f32, and here are {names}")
    inner, width = (max(LEAST, power_of_two(a.size)) for a in (nest.inner, nest.width))
    table = _OF_HALVES if types <= set(HALVES) else _OF_SINGLES
    widest = max(inner, width)
    if widest > max(table) or not all(isinstance(a.size, int) for a in (nest.inner, nest.width)):
        raise UnsupportedError(f"heads are wider than {max(table)}, or of no known width")
    rows, keys, warps, stages = next(found for most, found in table.items() if widest <= most)
    rows, keys = (
        max(LEAST, at_most(most, axis.size)) for most, axis in ((rows, nest.row), (keys, nest.key))
    )
    tiles = at_most(MOST_TILES, (nest.key.size + (keys - 1)) // keys)
    return Tiles(rows, keys, inner, width, tiles, warps, stages)


def attention_programs(nest: AttentionNest, tiles: Tiles) -> Size:
    return product(a.size for a in nest.batch) * programs([nest.row], tiles.rows)


def attention_extents(nest: AttentionNest) -> tuple[Size, ...]:
    axes = (*nest.batch, nest.row, nest.key, nest.inner, nest.width)
    heads = product(a.size for a in nest.batch)
    counted = [heads * nest.row.size, nest.key.size]
    counts = {a.name: a.size for a in axes}
    return far_extents(counted, (*nest.inputs, *nest.outputs), nest.statements, counts)


class AttentionBody:
    """Lines of one kernel. `inputs` and `outputs` give each buffer's parameter; `widen` is a method
    call that gives positions the type of indices, empty where 32 bits do."""

    def __init__(
        self,
        nest: AttentionNest,
        tiles: Tiles,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        widen: str,
    ) -> None:
        self.nest, self.tiles, self.widen = nest, tiles, widen
        self.inputs, self.outputs = inputs, outputs
        self.row, self.key = nest.row.name, nest.key.name
        self.lines: list[str] = []
        self._margin = ""
        self.masks: dict[str, str] = {}
        axes = (*nest.batch, nest.row, nest.key, nest.inner, nest.width)
        self.indices = Indices(
            dim_of={self.row: "row", self.key: "col"},
            counts={a.name: a.size for a in axes},
            position={"row": self.row, "col": self.key},
            masks=self.masks,
        )
        self.terms = Terms(self.indices, inputs, {b.name: b.type.dtype for b in nest.inputs})
        self.terms.dims[nest.given] = frozenset({"row", "col"})
        self.lasting = _lasting(nest)
        self.live = live_values(nest)

    def write(self) -> None:
        self._rows()
        self._operands()
        self._let(s for s in self.nest.statements if s.name in self.lasting)
        if self._may_skip():
            self._over_live_tiles()
        else:
            self._start()
            self._over_all_tiles()
        self._result()

    # --- a program's part -----------------------------------------------------------------------

    def _rows(self) -> None:
        """The head, and its queries: last ones first, which see most where attention is causal."""
        nest, row = self.nest, self.row
        blocks = self.indices.size(programs([nest.row], self.tiles.rows))
        self._line(f"head = {self._wide(f'tl.program_id(0) // {blocks}')}")
        self._line(f"block = {blocks} - 1 - tl.program_id(0) % {blocks}")
        rest = "head"
        for axis in reversed(nest.batch[1:]):
            size = self.indices.size(axis.size)
            self._line(f"{axis.name} = {rest} % {size}")
            self._line(f"rest = {rest} // {size}")
            rest = "rest"
        for axis in nest.batch[:1]:
            self._line(f"{axis.name} = {rest}")
        count = self.indices.size(nest.row.size)
        self._line(f"first_row = {self._wide('block * ROWS')}")
        self._line(f"{row} = first_row + tl.arange(0, ROWS)[:, None]")
        if not divisible(nest.row.size, self.tiles.rows):
            self.masks["row"] = "in_rows"
            self._line(f"in_rows = {row} < {count}")
        self._line("rows_from = first_row")
        self._line(f"rows_to = tl.minimum(first_row + ROWS, {count}) - 1")

    def _wide(self, position: str) -> str:
        return f"({position}){self.widen}" if self.widen else position

    def _operands(self) -> None:
        """Queries, and where keys and values lie."""
        nest, inner, width = self.nest, self.nest.inner, self.nest.width
        self._line("inner = tl.arange(0, INNER)")
        self._line("width = tl.arange(0, WIDTH)")
        at = {self.row: self.row, inner.name: "inner[None, :]"}
        mask = self._mask("row", _within("inner", "[None, :]", inner.size, self.tiles.inner))
        self._line(f"queries = tl.load({self._place(nest.queries, at)}{mask})")
        self._line(f"keys_at = {self._place(nest.keys, {inner.name: 'inner[:, None]'})}")
        self._line(f"values_at = {self._place(nest.values, {width.name: 'width[None, :]'})}")

    def _place(self, place: Place, at: Mapping[str, str], *, outputs: bool = False) -> str:
        """Where elements lie at positions along some axes, and at the start of the others."""
        inside = {self.row, self.key, self.nest.inner.name, self.nest.width.name}
        parts = [
            self._scaled(at.get(name, name), factor)
            for name, factor in place.at.terms
            if name in at or name not in inside
        ]
        # An axis of one element is no part of a place, and yet the block extends along it.
        parts += [f"0 * {at[name]}" for name in at if place.at.coefficient(name) == 0]
        if place.at.offset != 0:
            parts.append(self.indices.size(place.at.offset))
        buffer = (self.outputs if outputs else self.inputs)[place.buffer]
        return f"{buffer} + ({' + '.join(parts)})" if parts else buffer

    def _scaled(self, position: str, factor: Size) -> str:
        return position if factor == 1 else f"{position} * {self.indices.size(factor)}"

    def _mask(self, *parts: str) -> str:
        """The argument that keeps a read inside; `parts` are conditions, or dimensions."""
        found = [self.masks.get(p, "") if p in ("row", "col") else p for p in parts]
        text = " & ".join(p for p in found if p)
        return f", mask={text}, other=0.0" if text else ""

    def _start(self) -> None:
        self._line('top = tl.full((ROWS, 1), float("-inf"), tl.float32)')
        self._line("total = tl.zeros((ROWS, 1), tl.float32)")
        self._line("made = tl.zeros((ROWS, WIDTH), tl.float32)")

    def _result(self) -> None:
        nest, width = self.nest, self.nest.width
        self._line("share = tl.where(total == 0, 0.0, 1.0 / total)  # nothing to attend to gives 0")
        at = {self.row: self.row, width.name: "width[None, :]"}
        place = self._place(nest.results, at, outputs=True)
        parts = (self.masks.get("row"), _within("width", "[None, :]", width.size, self.tiles.width))
        mask = " & ".join(p for p in parts if p)
        self._line(f"tl.store({place}, made * share{f', mask={mask}' if mask else ''})")

    # --- tiles ----------------------------------------------------------------------------------

    def _may_skip(self) -> bool:
        """True when scores are masked, or biased by what is read: by conditions, or sums."""
        terms = [t for s in self.nest.statements for t in subterms(s.term)]
        return bool(conditions(self.nest)) or any(isinstance(t, Load) for t in terms)

    def _over_all_tiles(self) -> None:
        count = self.nest.key.size
        whole = self.indices.size(count // self.tiles.keys * self.tiles.keys)
        self._loop(f"for start in range(0, {whole}, KEYS):", known=True)
        if not divisible(count, self.tiles.keys):
            self._loop(f"for start in range({whole}, {self.indices.size(count)}, KEYS):")

    def _over_live_tiles(self) -> None:
        """Once without the tiles that are dead; and once more with them for a row that met nothing
        alive, where they might have counted, of large finite masks."""
        count = self.indices.size(self.nest.key.size)
        self._start()
        self._line(f"dead = {DEAD}")
        self._line("again = True")
        with self._block("while again:"):
            self._start()
            self._line("left_out = False")
            with self._block(f"for base in range(0, tl.cdiv({count}, KEYS), TILES):"):
                self._verdicts(count)
                self._runs("sure", known=True)
                self._runs("open")
            met = f"(top > {LIVE})" + (" | ~in_rows" if "row" in self.masks else "")
            self._line(f"again = left_out & any_tile(~({met}))")
            self._line('dead = float("-inf")')

    def _verdicts(self, count: str) -> None:
        """Which of TILES tiles are alive, and in which of them conditions are known."""
        self._line("tile = base + tl.arange(0, TILES)")
        self._line(f"keys_from = tile{self.widen} * KEYS")
        self._line(f"keys_to = tl.minimum(keys_from + KEYS, {count}) - 1")
        spans = {self.row: ("rows_from", "rows_to"), self.key: ("keys_from", "keys_to")}
        ranges = Ranges(spans, self._read_range, self.indices.size)
        self._line(f"{ranges.name(self.nest.given)} = range_score()")
        for statement in self.nest.statements:
            self._line(f"{ranges.name(statement.name)} = {ranges.term(statement.term)}")
        score = ranges.name(self.nest.taken.name)
        self._line(f"there = keys_from < {count}")
        self._line(f"live = there & ({score}[1] >= dead)")
        self._line(f'left_out = left_out | any_tile(there & ~live & ({score}[1] > float("-inf")))')
        known = [f"({ranges.name(n)}[{0 if v else 1}] == {int(v)})" for n, v in self.live.items()]
        self._line(f"sure = {' & '.join(['live', f'(keys_from + KEYS <= {count})', *known])}")
        self._line("open = live & ~sure")

    def _read_range(self, load: Load) -> str | None:
        """The range of what is read for the rows, for the keys, or for the head."""
        axes = {name for name, _ in load.at.terms} & {self.row, self.key}
        if len(axes) == 2:
            return None
        (axis,) = axes or {""}
        at = {
            self.row: "tl.minimum(rows_from + tl.arange(0, ROWS), rows_to)",
            self.key: "tl.minimum(keys_from[:, None] + tl.arange(0, KEYS)[None, :], "
            "keys_to[:, None])",
        }
        place = Place(load.buffer, load.dtype, load.at)
        read = f"tl.load({self._place(place, {axis: at[axis]} if axis else {})})"
        function = {self.row: "range_of_rows", self.key: "range_of_keys", "": "range_exactly"}
        return f"{function[axis]}({read})"

    def _runs(self, kind: str, *, known: bool = False) -> None:
        self._line("end = base + TILES")
        self._line(f"first = first_tile(tile, {kind}, base, end)")
        with self._block("while first < end:"):
            self._line(f"after = first_tile(tile, ~{kind}, first, end)")
            self._loop("for start in range(first * KEYS, after * KEYS, KEYS):", known=known)
            self._line(f"first = first_tile(tile, {kind}, after, end)")

    def _loop(self, head: str, *, known: bool = False) -> None:
        """Over tiles; where `known`, they are whole, and live conditions hold."""
        with self._block(head):
            self._tile(known)

    def _tile(self, known: bool) -> None:
        nest, inner, width = self.nest, self.nest.inner, self.nest.width
        count = self.indices.size(nest.key.size)
        self._line(f"{self.key} = {self._wide('start + tl.arange(0, KEYS)[None, :]')}")
        self._line(f"down = {self._wide('start + tl.arange(0, KEYS)[:, None]')}")
        down = ""
        self.masks.pop("col", None)
        if not known and not divisible(nest.key.size, self.tiles.keys):
            self.masks["col"], down = "in_keys", f"(down < {count})"
            self._line(f"in_keys = {self.key} < {count}")
        step = self._scaled(self.key, nest.keys.at.coefficient(self.key))
        mask = self._mask("col", _within("inner", "[:, None]", inner.size, self.tiles.inner))
        self._line(f"keys = tl.load(keys_at + {step}{mask})")
        self._line(f'{nest.given} = tl.dot(queries, keys, input_precision="ieee")')
        self._let(self._in_tile(known))
        score = self.terms.as_type(nest.taken, torch.float32).text
        if "col" in self.masks:
            score = f'tl.where(in_keys, {score}, float("-inf"))'
        self._line(f"score = {score}")
        self._line("weights, factor, top, total = weights_of(score, top, total)")
        step = self._scaled("down", nest.values.at.coefficient(self.key))
        mask = self._mask(down, _within("width", "[None, :]", width.size, self.tiles.width))
        self._line(f"values = tl.load(values_at + {step}{mask})")
        self._line("weights = weights.to(values.dtype)")
        self._line('made = tl.dot(weights, values, made * factor, input_precision="ieee")')

    # --- scores ---------------------------------------------------------------------------------

    def _in_tile(self, known: bool) -> list[Let]:
        """The statements of a tile that its score needs."""
        values = self.live if known else {}
        made = [s for s in self.nest.statements if s.name not in self.lasting | values.keys()]
        made = [dataclasses.replace(s, term=_settled(s.term, values)) for s in made]
        needed, found = {self.nest.taken.name}, list[Let]()
        for statement in reversed(made):
            if statement.name in needed:
                found.append(statement)
                needed.update(reads(statement))
        return found[::-1]

    def _let(self, statements: Iterable[Let]) -> None:
        for statement in statements:
            text: Text = self.terms.text(statement.term)
            self.terms.dims[statement.name] = text.dims
            self._line(f"{statement.name} = {text.text}", statement.origin)

    # --- lines ----------------------------------------------------------------------------------

    def _line(self, text: str, origin: str = "") -> None:
        self.lines.append(f"{self._margin}{text}{f'  # {origin}' if origin else ''}")

    @contextmanager
    def _block(self, head: str) -> Iterator[None]:
        """The lines that are written meanwhile lie in a block."""
        self._line(head)
        self._margin += MARGIN
        yield
        self._margin = self._margin.removesuffix(MARGIN)


def _within(name: str, turned: str, size: Size, padded: int) -> str:
    """Where a padded head has elements; empty where everywhere."""
    return "" if size == padded else f"({name}{turned} < {size})"


def _lasting(nest: AttentionNest) -> set[str]:
    """The statements that are the same for all keys."""
    changing = {nest.given}
    for statement in nest.statements:
        if any(_moves(t, nest.key.name, changing) for t in subterms(statement.term)):
            changing.add(statement.name)
    return {s.name for s in nest.statements} - changing


def _moves(term: Term, key: str, changing: set[str]) -> bool:
    if isinstance(term, Ref):
        return term.name in changing
    guards = getattr(term, "guards", ())
    ats: Sequence[Affine] = [g.at for g in guards]
    if isinstance(term, (Load, Position)):
        ats = [*ats, term.at]
    return any(at.coefficient(key) != 0 for at in ats)


def _settled(term: Term, values: Mapping[str, bool]) -> Term:
    """The term where some conditions are known."""
    match term:
        case Ref(name=name) if name in values:
            return Number(values[name], torch.bool)
        case Apply(name="select", args=(Ref(name=name), yes, no)) if name in values:
            return _settled(yes if values[name] else no, values)
        case Apply(args=args):
            return dataclasses.replace(term, args=tuple(_settled(a, values) for a in args))
        case Convert(arg=arg) | Round(arg=arg):
            return dataclasses.replace(term, arg=_settled(arg, values))
    return term
