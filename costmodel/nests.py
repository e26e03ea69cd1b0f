"""What a loop nest does, counted: the full model's view of a kernel.

A sketch sees nodes and their types; a nest has what views, merged axes, stages and the schedule
make of them: which reads lie side by side, which are made lane by lane, what is done once a row.
Counts are of vectors of 16 lanes, as the C++ emitter prints them (`codegen/cpp`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from rewright.costmodel.facts import CLASSES
from rewright.ir import divisible, equal, hint
from rewright.ir.loops import (
    Affine,
    Apply,
    Axis,
    Buffer,
    Convert,
    Load,
    Nest,
    Reduce,
    Stage,
    Statement,
    Store,
    Within,
    indices_of,
    needed,
    reads,
    subterms,
)
from rewright.ir.loops.nest import Inside, Position, Round
from rewright.ir.loops.schedule import LANES, Schedule, schedule

LINE_BYTES: Final = 64

# What is counted. A vector is read side by side, behind a window of lanes, from one place, out of a
# turned tile, across a jump, or lane by lane: at a fixed distance, anywhere, where a guard allows.
# Half types are converted when they are read and written, and rounded to in between. The last step
# of a loop may have fewer lanes; what is done in those is counted again.
LOADS: Final = ("load", "window", "broadcast", "tile", "across", "strided", "each", "where")
STORES: Final = ("store", "store_across", "store_strided", "store_each")
WORK: Final = ("simple", "divisions", "converts")
# Functions that take long, by what they have in common; in eight bytes they are others.
_FUNCTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "exp": ("exp", "exp2", "expm1", "sigmoid"),
    "log": ("log", "log2", "log10", "log1p"),
    "erf": ("erf", "erfc", "erfinv"),
    "trig": ("sin", "cos", "tan"),
    "tanh": ("tanh", "sinh", "cosh"),
    "pow": ("pow", "hypot"),
    "rare": ("asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh", "lgamma"),
}
_FUNCTION_OF: Final = {name: group for group, names in _FUNCTIONS.items() for name in names}
FUNCTIONS: Final = tuple(_FUNCTIONS)
WIDE: Final = tuple(f"wide_{name}" for name in ("simple", "divisions", *FUNCTIONS))
HALVES: Final = (
    *("bf16_read", "bf16_written", "bf16_rounded"),
    *("f16_read", "f16_written", "f16_rounded"),
)
TAILS: Final = ("tail_loads", "tail_windows", "tail_stores", "tail_work")
PLACES: Final = ("positions", "positions_each", "masks", "masks_each")
LOOPS: Final = ("rows", "steps", "tails", "reductions", "totals")
COUNTED: Final = (
    *(*LOADS, *STORES, *WORK, *FUNCTIONS, *WIDE),
    *(*HALVES, *PLACES, *LOOPS, *TAILS),
)

_HALVES: Final = {torch.bfloat16: "bf16", torch.float16: "f16"}
# Lanes are walked one by one.
_ONE_BY_ONE: Final = ("across", "strided", "each", "where")


@dataclass(frozen=True)
class NestFacts:
    """The loops of a nest and what they do.

    `inner` is how long the innermost loop is, `outer` how often it runs. `counts` are what the
    busiest of `threads` threads does. `statements` are those of the longest stage. `lines` are the
    bytes of the cache lines touched, `step` the most bytes between lanes.
    """

    style: str
    rows: int
    columns: int
    inner: int
    outer: int
    threads: int
    imbalance: float
    tiled: bool
    stages: int
    statements: int
    reads: int
    writes: int
    counts: Mapping[str, float]
    bytes_read: int
    bytes_written: int
    lines: float
    step: int
    halves: int
    doubles: int
    integers: int


def nest_facts(nest: Nest, cores: int) -> NestFacts:
    """Counts at the hints of all sizes, as `cores` threads share them."""
    plan = schedule(nest)
    sizes = {axis.name: max(1, hint(axis.size)) for axis in nest.axes}
    counting = _Counting(nest, plan, sizes)
    counting.count()
    threads, imbalance = _threads(nest, plan, sizes, cores)
    busy = imbalance / threads
    touched = _Touched(sizes)
    for stage in nest.stages:
        touched.add(stage)
    types = {b.name: b.type.dtype for b in (*nest.inputs, *nest.outputs)}
    read, written = touched.bytes(types, nest.inputs), touched.bytes(types, nest.outputs)
    return NestFacts(
        style=plan.style,
        rows=math.prod(sizes[a.name] for a in nest.rows),
        columns=math.prod(sizes[a.name] for a in nest.cols),
        inner=counting.inner,
        outer=counting.outer,
        threads=threads,
        imbalance=imbalance,
        tiled=plan.tile is not None,
        stages=len(nest.stages),
        statements=max((len(s.body) for s in nest.stages), default=0),
        reads=len(nest.inputs),
        writes=len(nest.outputs),
        counts={name: counting.counts[name] * busy for name in COUNTED},
        bytes_read=sum(read.values()),
        bytes_written=sum(written.values()),
        lines=touched.lines(types),
        step=touched.longest_step(counting.lanes, types),
        **_widths({**read, **written}, types),
    )


def _threads(nest: Nest, plan: Schedule, sizes: Mapping[str, int], cores: int) -> tuple[int, float]:
    """How many threads work, and how much more the busiest does than the mean."""
    if plan.shared == "nothing":
        return 1, 1.0
    if plan.shared == "blocks":
        units = -(-math.prod(sizes[a.name] for a in nest.cols) // plan.unit)
    else:
        units = math.prod(sizes[a.name] for a in plan.outer)
        if plan.tile is not None:
            units = units // sizes[plan.tile.name] * -(-sizes[plan.tile.name] // LANES)
        if plan.vector is not None:
            units *= -(-sizes[plan.vector.name] // plan.unit)
    threads = min(cores, max(1, units // plan.grain))
    return threads, -(-units // threads) * threads / max(1, units)


class _Counting:
    """A walk over the stages of a nest, as the emitter of its style takes it."""

    def __init__(self, nest: Nest, plan: Schedule, sizes: Mapping[str, int]) -> None:
        self.nest, self.plan, self.sizes = nest, plan, sizes
        self.lanes: tuple[Axis, ...] = nest.cols
        if plan.style != "lanes":
            self.lanes = (plan.vector,) if plan.vector is not None else ()
        self.inner = math.prod(sizes[a.name] for a in self.lanes)
        self.outer = math.prod(sizes[a.name] for a in (*nest.rows, *nest.cols)) // self.inner
        self.counts: defaultdict[str, float] = defaultdict(float)
        self._steps = -(-self.inner // LANES)
        self._filled = self.inner / (LANES * self._steps)
        self._columns = math.prod(sizes[a.name] for a in nest.cols)
        self._rows = self.outer if plan.style != "columns" else self.outer // self._columns
        self._names = frozenset(a.name for a in self.lanes)
        self._moving: set[str] = set()
        self._stored: set[str] = set()
        # Whether what is counted runs in steps of lanes.
        self._stepping = False

    def count(self) -> None:
        self.counts["rows"] += self._rows
        for stage in self.nest.stages:
            self._loop(stage)
            for statement in needed(stage.body, self._stored):
                self._statement(statement, stage)

    def _loop(self, stage: Stage) -> None:
        """The steps of a stage's own loop."""
        if self.plan.style == "lanes" and stage.per == "row":
            return
        times = self._rows * (self._columns if self._of_columns(stage) else 1)
        self.counts["steps"] += times * self._steps
        self.counts["tails"] += times * (self.inner % LANES != 0)

    def _of_columns(self, stage: Stage) -> bool:
        return self.plan.style == "columns" and stage.per == "column"

    def _times(self, stage: Stage, moves: bool) -> float:
        """How many vectors of a statement are computed."""
        if self.plan.style == "lanes":
            return self._rows * (self._steps if stage.per == "column" else 1)
        if not moves:
            strips = max(1.0, self._steps / self.plan.vectors)
            return self._rows * (self._columns * strips if self._of_columns(stage) else 1)
        return self._rows * self._steps * (self._columns if self._of_columns(stage) else 1)

    def _statement(self, statement: Statement, stage: Stage) -> None:
        moves = isinstance(statement, (Store, Reduce)) or self._moves(statement)
        times = self._times(stage, moves)
        self._stepping = moves and not (self.plan.style == "lanes" and stage.per == "row")
        if isinstance(statement, Store):
            self._store(statement, times)
            return
        if moves:
            self._moving.add(statement.name)
        if isinstance(statement, Reduce):
            self.counts["reductions"] += times
            self.counts["totals"] += self._rows
        elif statement.name in self._stored:  # kept by an earlier stage
            self.counts["load"] += times
            return
        for term in subterms(statement.term):
            self._term(term, times)
        if statement.name in self.nest.kept:
            self._stored.add(statement.name)
            self.counts["store"] += times

    def _moves(self, statement: Statement) -> bool:
        if any(at.reads(self._names) for at in indices_of(statement)):
            return True
        return any(name in self._moving for name in reads(statement))

    def _term(self, term: object, times: float) -> None:
        match term:
            case Load():
                self._read(term, times)
            case Apply(name=what, dtype=dtype):
                wide = dtype.itemsize == 8
                self.counts["wide_" * wide + _kind(what)] += times
                self._in_tail("tail_work", times)
            case Convert():
                self.counts["converts"] += times
            case Round(storage=storage):
                name = _HALVES.get(storage)
                self.counts["converts" if name is None else f"{name}_rounded"] += times
            case Position(at=at):
                each = self._way(at) in ("each", "across")
                self.counts["positions_each" if each else "positions"] += times
            case Inside(guards=guards):
                each = self._guarded(guards) == "where"
                self.counts["masks_each" if each else "masks"] += times

    def _read(self, load: Load, times: float) -> None:
        dtype, way = self._type(load.buffer), self._load(load)
        wide = max(1, dtype.itemsize // 4)
        self.counts[way] += times * wide * (self._filled if way in _ONE_BY_ONE else 1)
        if way in ("load", "window"):
            self._in_tail("tail_loads" if way == "load" else "tail_windows", times * wide)
        if dtype in _HALVES:
            self.counts[f"{_HALVES[dtype]}_read"] += times

    def _store(self, store: Store, times: float) -> None:
        dtype, way = self._type(store.buffer), self._way(store.at)
        wide = max(1, dtype.itemsize // 4)
        if way in ("load", "broadcast"):
            self.counts["store"] += times * wide
            self._in_tail("tail_stores", times * wide)
        else:
            self.counts[f"store_{way}"] += times * wide * self._filled
        if dtype in _HALVES:
            self.counts[f"{_HALVES[dtype]}_written"] += times

    def _in_tail(self, name: str, times: float) -> None:
        if self._stepping and self.inner % LANES:
            self.counts[name] += times / self._steps

    def _type(self, buffer: str) -> torch.dtype:
        buffers = (*self.nest.inputs, *self.nest.outputs)
        return next(b.type.dtype for b in buffers if b.name == buffer)

    # --- how lanes lie --------------------------------------------------------------------------

    def _load(self, load: Load) -> str:
        way, guard = self._way(load.at), self._guarded(load.guards)
        if guard is None:
            return "tile" if way == "strided" and self._in_tile(load) else way
        return "window" if guard == "window" and way == "load" else "where"

    def _in_tile(self, load: Load) -> bool:
        tile = self.plan.tile
        return tile is not None and load.at.coefficient(tile.name) == 1 and not load.guards

    def _guarded(self, guards: Sequence[Within]) -> str | None:
        """The worst of the guards that differ from lane to lane."""
        ways = {self._way(g.at) for g in guards} - {"broadcast"}
        return None if not ways else "window" if ways == {"load"} else "where"

    def _way(self, at: Affine) -> str:
        """How the lanes of a vector lie at that index."""
        if not at.reads(self._names):
            return "broadcast"
        inner = self.lanes[-1]
        step = at.coefficient(inner.name)
        if not self._is_linear(at) and not divisible(inner.size, LANES):
            return "across" if step == 1 and self.sizes[inner.name] >= LANES else "each"
        return "broadcast" if step == 0 else "load" if step == 1 else "strided"

    def _is_linear(self, at: Affine) -> bool:
        """True when the index moves by one step all along the lanes, whatever axes they run
        over."""
        inner, total = at.coefficient(self.lanes[-1].name), 1
        for axis in reversed(self.lanes):
            if not equal(at.coefficient(axis.name), inner * total):
                return False
            total *= self.sizes[axis.name]
        return True


def _kind(primitive: str) -> str:
    """What is counted of a primitive."""
    found = _FUNCTION_OF.get(primitive)
    return found or ("divisions" if CLASSES.get(primitive, 0) == 1 else "simple")


class _Touched:
    """Which elements of each buffer the loops touch, as the axes that an index moves along."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.indices: dict[str, dict[Affine, None]] = {}

    def add(self, stage: Stage) -> None:
        for statement in stage.body:
            if isinstance(statement, Store):
                self.indices.setdefault(statement.buffer, {})[statement.at] = None
                continue
            for term in subterms(statement.term):
                if isinstance(term, Load):
                    self.indices.setdefault(term.buffer, {})[term.at] = None

    def elements(self, at: Affine) -> int:
        return math.prod(self.sizes.get(name, 1) for name, _ in at.terms)

    def bytes(self, types: Mapping[str, torch.dtype], buffers: Iterable[Buffer]) -> dict[str, int]:
        """By buffer; indices that differ by their offset alone touch other elements."""
        found = {}
        for buffer in buffers:
            name = buffer.name
            whole = hint(buffer.type.storage_elements)
            seen = sum(self.elements(at) for at in self.indices.get(name, ()))
            found[name] = min(seen, whole) * types[name].itemsize
        return found

    def lines(self, types: Mapping[str, torch.dtype]) -> float:
        """Bytes of cache lines, when each run of neighbours has lines of its own."""
        total = 0.0
        for name, indices in self.indices.items():
            item = types[name].itemsize
            for at in indices:
                run = next(
                    (self.sizes.get(axis, 1) for axis, factor in at.terms if hint(factor) == 1), 1
                )
                runs = self.elements(at) / run
                total += runs * max(run * item, min(LINE_BYTES, run * item + LINE_BYTES / 2))
        return total

    def longest_step(self, lanes: Sequence[Axis], types: Mapping[str, torch.dtype]) -> int:
        """Bytes between lanes, of the access where they are farthest apart."""
        return max(
            (
                abs(hint(at.coefficient(lanes[-1].name))) * types[name].itemsize
                for name, indices in self.indices.items()
                for at in indices
                if lanes
            ),
            default=0,
        )


def _widths(moved: Mapping[str, int], types: Mapping[str, torch.dtype]) -> dict[str, int]:
    """Bytes of half types, of double, and of integers and truth."""
    found = {"halves": 0, "doubles": 0, "integers": 0}
    for name, nbytes in moved.items():
        dtype = types[name]
        if not dtype.is_floating_point:
            found["integers"] += nbytes
        elif dtype.itemsize <= 2:
            found["halves"] += nbytes
        elif dtype.itemsize == 8:
            found["doubles"] += nbytes
    return found
