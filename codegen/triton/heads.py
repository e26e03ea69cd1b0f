"""What kernels of attention and of its gradient share: a program has some rows, or keys, of one
head, and walks along the others tile by tile.

Which tiles a mask leaves is decided before they are read, from intervals (`ranges.py`), for many
tiles at once; the tiles that are left make runs, so that the loop over a run has no branch and
Triton reads ahead in it. Tiles in which every condition is known to hold are a loop of their own,
without conditions.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
    AttentionBackwardNest,
    Axis,
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
from rewright.ir.loops.tiles import AnyAttention, conditions, live_values

# The parameter of each input, and of each output.
Buffers = tuple[Mapping[str, str], Mapping[str, str]]

# A row that met a score above this takes nothing from those below DEAD.
LIVE: Final = -1e32
# Tiles whose intervals are found at once, and the least that Triton multiplies.
MOST_TILES: Final = 64
LEAST: Final = 16

MARGIN: Final = "    "
HALVES: Final = (torch.float16, torch.bfloat16)
PRECISION: Final = 'input_precision="ieee"'


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


# Rows, keys, warps and stages by the width of a head.
Table = Mapping[int, tuple[int, int, int, int]]


def tiles_of(nest: AnyAttention, halves: Table, singles: Table, walked: str) -> Tiles:
    """How a nest is cut, by tables for halves and for f32, where programs walk along "row" or
    "key". Raises UnsupportedError for what tiles of Triton cannot hold."""
    places = [nest.queries, nest.keys, nest.values]
    places += [nest.outer, nest.results] if isinstance(nest, AttentionBackwardNest) else []
    types = {place.dtype for place in places}
    if len(types) > 1 or not types <= {torch.float32, *HALVES}:
        names = ", ".join(sorted(DTYPE_NAMES.get(t, str(t)) for t in types))
        raise UnsupportedError(f"Triton multiplies f16, bf16 or f32, and here are {names}")
    inner, width = (max(LEAST, power_of_two(a.size)) for a in (nest.inner, nest.width))
    table = halves if types <= set(HALVES) else singles
    widest = max(inner, width)
    if widest > max(table) or not all(isinstance(a.size, int) for a in (nest.inner, nest.width)):
        raise UnsupportedError(f"heads are wider than {max(table)}, or of no known width")
    rows, keys, warps, stages = next(found for most, found in table.items() if widest <= most)
    rows, keys = (
        max(LEAST, at_most(most, axis.size)) for most, axis in ((rows, nest.row), (keys, nest.key))
    )
    step, size = (keys, nest.key.size) if walked == "key" else (rows, nest.row.size)
    tiles = at_most(MOST_TILES, (size + (step - 1)) // step)
    return Tiles(rows, keys, inner, width, tiles, warps, stages)


def attention_extents(nest: AnyAttention) -> tuple[Size, ...]:
    axes = (*nest.batch, nest.row, nest.key, nest.inner, nest.width)
    heads = product(a.size for a in nest.batch)
    counted = [heads * nest.row.size, nest.key.size]
    counts = {a.name: a.size for a in axes}
    return far_extents(counted, (*nest.inputs, *nest.outputs), nest.statements, counts)


def may_skip(nest: AnyAttention) -> bool:
    """True when scores are masked, or biased by what is read: by conditions, or sums."""
    terms = [t for s in nest.statements for t in subterms(s.term)]
    return bool(conditions(nest)) or any(isinstance(t, Load) for t in terms)


@dataclass(frozen=True)
class Side:
    """Rows, or keys: their axis, and how many a tile has. Blocks of scores extend along `dim`."""

    kind: str
    axis: Axis
    tile: int
    dim: str

    @property
    def constant(self) -> str:
        return f"{self.kind}s".upper()

    @property
    def first(self) -> str:
        return f"{self.kind}s_from"

    @property
    def last(self) -> str:
        return f"{self.kind}s_to"

    @property
    def inside(self) -> str:
        return f"in_{self.kind}s"

    @property
    def is_whole(self) -> bool:
        """Whether tiles end where the axis does."""
        return divisible(self.axis.size, self.tile)


class HeadBody(ABC):
    """Lines of one kernel, of which a program has a block of `own` and walks along `walked`, which
    is the other dimension of a block of scores. `buffers` give each buffer's parameter; `widen` is
    a method call that gives positions the type of indices, empty where 32 bits do."""

    def __init__(
        self,
        nest: AnyAttention,
        tiles: Tiles,
        buffers: Buffers,
        widen: str,
        walked: str,
    ) -> None:
        self._head, self.tiles, self.widen = nest, tiles, widen
        self.inputs, self.outputs = buffers
        self.row, self.key = nest.row.name, nest.key.name
        sides = {
            "row": Side("row", nest.row, tiles.rows, "row"),
            "key": Side("key", nest.key, tiles.keys, "col"),
        }
        self.walked = sides.pop(walked)
        (self.own,) = sides.values()
        # Which program this is, and the tiles that it walks along, where these are not all.
        self.program = "tl.program_id(0)"
        self.part: tuple[str, str] | None = None
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
        self.terms = Terms(self.indices, self.inputs, {b.name: b.type.dtype for b in nest.inputs})
        made = {nest.given} | ({nest.grad} if isinstance(nest, AttentionBackwardNest) else set())
        self.terms.dims.update(dict.fromkeys(made, frozenset({"row", "col"})))
        self.lasting = _lasting(nest, self.walked.axis.name, made)
        self.live = live_values(nest)

    # --- a program's part -----------------------------------------------------------------------

    def _own_block(self, heads: Sequence[Axis], *, last_first: bool) -> None:
        """The head, and the block of it that is the program's."""
        own = self.own
        blocks = self.indices.size(programs([own.axis], own.tile))
        self._line(f"head = {self._wide(f'{self.program} // {blocks}')}")
        turned = f"{blocks} - 1 - " if last_first else ""
        self._line(f"block = {turned}{self.program} % {blocks}")
        self._positions("head", heads)
        count = self.indices.size(own.axis.size)
        self._line(f"{own.first} = {self._wide(f'block * {own.constant}')}")
        self._line(f"{own.axis.name} = {own.first} + tl.arange(0, {own.constant})[:, None]")
        if not own.is_whole:
            self.masks[own.dim] = own.inside
            self._line(f"{own.inside} = {own.axis.name} < {count}")
        self._line(f"{own.last} = tl.minimum({own.first} + {own.constant}, {count}) - 1")

    def _positions(self, number: str, axes: Sequence[Axis], rest: str = "rest") -> None:
        """Along axes, from how many elements lie before."""
        for axis in reversed(axes[1:]):
            size = self.indices.size(axis.size)
            self._line(f"{axis.name} = {number} % {size}")
            self._line(f"{rest} = {number} // {size}")
            number = rest
        for axis in axes[:1]:
            self._line(f"{axis.name} = {number}")

    def _wide(self, position: str) -> str:
        return f"({position}){self.widen}" if self.widen else position

    def _places(self, place: Place, at: Mapping[str, str], *, outputs: bool = False) -> str:
        """Where elements lie at positions along some axes, and at the start of the others."""
        nest = self._head
        inside = {self.row, self.key, nest.inner.name, nest.width.name}
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
        text = self._condition(*parts)
        return f", mask={text}, other=0.0" if text else ""

    def _condition(self, *parts: str) -> str:
        found = [self.masks.get(p, "") if p in ("row", "col") else p for p in parts]
        return " & ".join(p for p in found if p)

    def _padded(self, width: str) -> tuple[str, str]:
        """The axis of "inner" or of "width", and where positions along it are inside."""
        axis, padded = {
            "inner": (self._head.inner, self.tiles.inner),
            "width": (self._head.width, self.tiles.width),
        }[width]
        is_whole = axis.size == padded
        return axis.name, "" if is_whole else f"({width}[None, :] < {axis.size})"

    def _give(self, place: Place, values: str, width: str = "") -> None:
        """Stores what the program's own rows or keys have, of some width or one each."""
        at, parts = {self.own.axis.name: self.own.axis.name}, [self.own.dim]
        if width:
            axis, inside = self._padded(width)
            at[axis] = f"{width}[None, :]"
            parts.append(inside)
        mask = self._condition(*parts)
        target = self._places(place, at, outputs=True)
        self._line(f"tl.store({target}, {values}{f', mask={mask}' if mask else ''})")

    def _own_matrix(self, name: str, place: Place, width: str) -> None:
        axis, inside = self._padded(width)
        at = {self.own.axis.name: self.own.axis.name, axis: f"{width}[None, :]"}
        mask = self._mask(self.own.dim, inside)
        self._line(f"{name} = tl.load({self._places(place, at)}{mask})")

    def _matrix_at(self, name: str, place: Place, width: str) -> None:
        """Where a matrix begins of which tiles are read."""
        axis, _ = self._padded(width)
        self._line(f"{name}_at = {self._places(place, {axis: f'{width}[None, :]'})}")

    def _tile_of(self, name: str, place: Place, width: str, down: str) -> None:
        step = self._scaled("down", place.at.coefficient(self.walked.axis.name))
        mask = self._mask(down, self._padded(width)[1])
        self._line(f"{name} = tl.load({name}_at + {step}{mask})")

    # --- tiles ----------------------------------------------------------------------------------

    def _over_all_tiles(self) -> None:
        walked, step = self.walked, self.walked.constant
        count = walked.axis.size
        whole = self.indices.size(count // walked.tile * walked.tile)
        first, last, end = "0", whole, self.indices.size(count)
        begin = whole
        if self.part is not None:
            first, end = (f"{tile} * {step}" for tile in self.part)
            last = f"tl.minimum({end}, {whole})"
            begin = f"tl.maximum({first}, {whole})"
            end = f"tl.minimum({end}, {self.indices.size(count)})"
        self._loop(f"for start in range({first}, {last}, {step}):", known=True)
        if not walked.is_whole:
            self._loop(f"for start in range({begin}, {end}, {step}):")

    def _over_live_tiles(self) -> None:
        """Those in which some score is not below `dead`."""
        count = self.indices.size(self.walked.axis.size)
        first, end = self.part or ("0", f"tl.cdiv({count}, {self.walked.constant})")
        with self._block(f"for chunk in range({first}, {end}, TILES):"):
            self._verdicts(count)
            self._runs("sure", known=True)
            self._runs("open")

    def _verdicts(self, count: str) -> None:
        """Which of TILES tiles are alive, and in which of them conditions are known."""
        walked = self.walked
        first, last, step = walked.first, walked.last, walked.constant
        self._line("tile = chunk + tl.arange(0, TILES)")
        self._line(f"{first} = tile{self.widen} * {step}")
        self._line(f"{last} = tl.minimum({first} + {step}, {count}) - 1")
        spans = {s.axis.name: (s.first, s.last) for s in (self.own, walked)}
        ranges = Ranges(spans, self._read_range, self.indices.size)
        self._line(f"{ranges.name(self._head.given)} = range_score()")
        for statement in self._needed({self._head.taken.name, *self.live}):
            self._line(f"{ranges.name(statement.name)} = {ranges.term(statement.term)}")
        score = ranges.name(self._head.taken.name)
        there = "" if self.part is None else f" & (tile < {self.part[1]})"
        self._line(f"there = ({first} < {count}){there}" if there else f"there = {first} < {count}")
        self._judged(score)
        known = [f"({ranges.name(n)}[{0 if v else 1}] == {int(v)})" for n, v in self.live.items()]
        self._line(f"sure = {' & '.join(['live', f'({first} + {step} <= {count})', *known])}")
        self._line("open = live & ~sure")

    def _judged(self, score: str) -> None:
        self._line(f"live = there & ({score}[1] >= dead)")

    def _read_range(self, load: Load) -> str | None:
        """The range of what is read for rows, for keys, or for the head."""
        axes = {name for name, _ in load.at.terms} & {self.row, self.key}
        if len(axes) == 2:
            return None
        (axis,) = axes or {""}
        own, walked = self.own, self.walked
        at = {
            own.axis.name: f"tl.minimum({own.first} + tl.arange(0, {own.constant}), {own.last})",
            walked.axis.name: f"tl.minimum({walked.first}[:, None] + tl.arange(0, "
            f"{walked.constant})[None, :], {walked.last}[:, None])",
        }
        place = Place(load.buffer, load.dtype, load.at)
        read = f"tl.load({self._places(place, {axis: at[axis]} if axis else {})})"
        function = {own.axis.name: "range_of_block", walked.axis.name: "range_of_tiles"}
        return f"{function.get(axis, 'range_exactly')}({read})"

    def _runs(self, kind: str, *, known: bool = False) -> None:
        step = self.walked.constant
        self._line("end = chunk + TILES")
        self._line(f"first = first_tile(tile, {kind}, chunk, end)")
        with self._block("while first < end:"):
            self._line(f"after = first_tile(tile, ~{kind}, first, end)")
            self._loop(f"for start in range(first * {step}, after * {step}, {step}):", known=known)
            self._line(f"first = first_tile(tile, {kind}, after, end)")

    def _loop(self, head: str, *, known: bool = False) -> None:
        """Over tiles; where `known`, they are whole, and live conditions hold."""
        with self._block(head):
            self._tile(known)

    @abstractmethod
    def _tile(self, known: bool) -> None: ...

    def _walk(self, known: bool) -> str:
        """Where a tile is: positions along a block of scores, and `down`, as a column. What keeps a
        read along that column inside is returned."""
        walked, step = self.walked, self.walked.constant
        along = self._wide(f"start + tl.arange(0, {step})[None, :]")
        self._line(f"{walked.axis.name} = {along}")
        self._line(f"down = {self._wide(f'start + tl.arange(0, {step})[:, None]')}")
        self.masks.pop(walked.dim, None)
        if known or walked.is_whole:
            return ""
        count = self.indices.size(walked.axis.size)
        self.masks[walked.dim] = walked.inside
        self._line(f"{walked.inside} = {walked.axis.name} < {count}")
        return f"(down < {count})"

    # --- scores ---------------------------------------------------------------------------------

    def _score(self) -> str:
        """What the softmax is taken of; nothing where there is no row or key."""
        score = self.terms.as_type(self._head.taken, torch.float32).text
        inside = self.masks.get(self.walked.dim)
        return score if inside is None else f'tl.where({inside}, {score}, float("-inf"))'

    def _needed(self, wanted: Collection[str]) -> list[Let]:
        """The statements that some scalars take, in order."""
        return _needed(self._head.statements, wanted)

    def _in_tile(self, known: bool, wanted: str) -> list[Let]:
        """The statements of a tile that a scalar needs."""
        values = self.live if known else {}
        made = [s for s in self._head.statements if s.name not in self.lasting | values.keys()]
        made = [dataclasses.replace(s, term=_settled(s.term, values)) for s in made]
        return _needed(made, {wanted})

    def _let_lasting(self) -> None:
        """The statements that are the same wherever a program walks."""
        self._let(s for s in self._head.statements if s.name in self.lasting)

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


def _needed(statements: Iterable[Let], wanted: Collection[str]) -> list[Let]:
    needed, found = set(wanted), list[Let]()
    for statement in reversed(list(statements)):
        if statement.name in needed:
            found.append(statement)
            needed.update(reads(statement))
    return found[::-1]


def _lasting(nest: AnyAttention, walked: str, changing: set[str]) -> set[str]:
    """The statements that are the same wherever a program walks."""
    changing = set(changing)
    for statement in nest.statements:
        if any(_moves(t, walked, changing) for t in subterms(statement.term)):
            changing.add(statement.name)
    return {s.name for s in nest.statements} - changing


def _moves(term: Term, axis: str, changing: set[str]) -> bool:
    if isinstance(term, Ref):
        return term.name in changing
    guards = getattr(term, "guards", ())
    ats: Sequence[Affine] = [g.at for g in guards]
    if isinstance(term, (Load, Position)):
        ats = [*ats, term.at]
    return any(at.coefficient(axis) != 0 for at in ats)


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
