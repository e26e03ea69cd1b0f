"""Kernels whose reductions run along the lanes: each row is swept once a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rewright.codegen.cpp.index import Block, Counter, Place, counter
from rewright.codegen.cpp.kernel import Kernel, count_of, how, indented, multiple
from rewright.codegen.cpp.text import STORAGE, VECTOR, size_text
from rewright.codegen.cpp.tiles import Tile, tile_of
from rewright.ir.loops import (
    Let,
    Load,
    Reduce,
    Stage,
    Statement,
    Store,
    is_costly,
    needed,
    subterms,
)


@dataclass
class Sweeps:
    """A row in the making. `scratch` holds kept scalars that are already stored."""

    kernel: Kernel
    row: Block
    tile: Tile | None = None
    scratch: set[str] = field(default_factory=set)
    fetched: set[str] = field(default_factory=set)

    def add(self, stage: Stage) -> None:
        if stage.per == "column":
            self.row.lines += self._sweep(stage)
            return
        printer = self.kernel.printer(Place(self.row))
        for statement in stage.body:
            if isinstance(statement, Store):
                self.row.lines.append(printer.store(statement))
            elif isinstance(statement, Let):
                self.row.lines.append(printer.let(statement))

    def _sweep(self, stage: Stage) -> list[str]:
        """One pass over the columns."""
        nest = self.kernel.nest
        block = self.kernel.block(counter("j", nest.cols), self.row)
        body = needed(stage.body, self.scratch)
        ahead = self._ahead(body)
        for statement in body:
            block.lines += self._statement(statement, block, ahead)
        reductions = [s for s in body if isinstance(s, Reduce)]
        if reductions:
            return self._reduce(block, reductions, is_costly(body))
        return self._steps(block)

    def _ahead(self, body: Sequence[Statement]) -> frozenset[str]:
        """Buffers that this sweep reads first, and at other places in every row."""
        if self.kernel.plan.shared == "blocks":
            return frozenset()
        rows = frozenset(axis.name for axis in self.kernel.nest.rows)
        terms = (t for s in body if not isinstance(s, Store) for t in subterms(s.term))
        loads = [t for t in terms if isinstance(t, Load)]
        new = {t.buffer for t in loads if t.at.reads(rows)} - self.fetched
        self.fetched |= {t.buffer for t in loads}
        return frozenset(new)

    def _statement(self, statement: Statement, block: Block, ahead: frozenset[str]) -> list[str]:
        assert block.counter is not None
        printer = self.kernel.printer(Place(block, block.counter), ahead=ahead)
        if isinstance(statement, Store):
            return [printer.store(statement)]
        if isinstance(statement, Reduce):
            return [f"{_accumulator(statement)}.take({printer.term(statement.term)}, n);"]
        name, at = statement.name, f"{statement.name}_row + {block.counter.name}"
        if self.tile is not None and self.tile.holds(name):
            width = count_of(self.kernel.nest.cols)
            return [self.tile.read(statement, width, block.counter.name)]
        if name in self.scratch:
            return [f"const {VECTOR[statement.term.dtype]} {name} = load({at}, n);"]
        if name not in self.kernel.nest.kept:
            return [printer.let(statement)]
        self.scratch.add(name)
        return [printer.let(statement), f"store({at}, {name}, n);"]

    def _reduce(self, block: Block, reductions: Sequence[Reduce], costly: bool) -> list[str]:
        plan, columns = self.kernel.plan, count_of(self.kernel.nest.cols)
        assert block.counter is not None
        names = [_accumulator(r) for r in reductions]
        facts = f"<{multiple(columns)}, {'true' if costly else 'false'}>"
        slots = "".join(f", auto {name}" for name in names)
        body = f"(i64 {block.counter.name}, auto n{slots}) {{"
        if plan.shared == "blocks":
            opening = f"parallel_reduce{facts}({size_text(columns)}, {plan.grain}, [=]{body}"
        else:
            opening = f"reduce{facts}({size_text(columns)}, [&]{body}"
        return [
            *(f"AlongLanes<{how(r)}> {_accumulator(r)};" for r in reductions),
            opening,
            *indented(block.text()),
            f"}}, {', '.join(names)});",
            *(f"const {_vector(r)} {r.name} = {_accumulator(r)}.total;" for r in reductions),
        ]

    def _steps(self, block: Block) -> list[str]:
        plan, columns = self.kernel.plan, count_of(self.kernel.nest.cols)
        assert block.counter is not None
        facts, body = multiple(columns), f"[&](i64 {block.counter.name}, auto n) {{"
        if plan.shared != "blocks":
            opening = f"steps<{facts}>(0, {size_text(columns)}, {body}"
            return [opening, *indented(block.text()), "});"]
        opening = f"parallel({size_text(columns)}, {plan.unit}, {plan.grain}, "
        return [
            f"{opening}[=](i64 begin, i64 end) {{",
            f"  steps<{facts}>(begin, end, {body}",
            *indented(indented(block.text())),
            "  });",
            "});",
        ]


def lanes(kernel: Kernel) -> list[str]:
    """The body of the kernel."""
    nest, plan = kernel.nest, kernel.plan
    tile = tile_of(kernel, nest.cols[0])
    if tile is not None:
        return _tiled(kernel, tile)
    rows = counter("r", nest.rows) if nest.rows else Counter("r", ())
    row = kernel.block(rows)
    sweeps = Sweeps(kernel, row)
    for stage in nest.stages:
        sweeps.add(stage)
    if plan.shared == "blocks":
        loop = f"for (i64 {rows.name} = 0; {rows.name} < {size_text(rows.count)}; ++{rows.name}) {{"
        return [*_scratch(kernel), loop, *indented(row.text()), "}"]
    return _rows(kernel, rows, _scratch(kernel), row.text())


def _tiled(kernel: Kernel, tile: Tile) -> list[str]:
    """The same with rows taken 16 at a time."""
    outer = kernel.block(tile.rows)
    row = kernel.block(counter("u", (tile.axis,)), outer)
    sweeps = Sweeps(kernel, row, tile)
    for stage in kernel.nest.stages:
        sweeps.add(stage)
    width = count_of(kernel.nest.cols)
    outer.lines += [
        *tile.bounds(),
        *tile.fill(kernel, outer, width, strip=True),
        tile.loop(),
        *indented(row.text()),
        "}",
    ]
    scratch = [*_scratch(kernel), *tile.arrays(kernel, width)]
    return _rows(kernel, tile.rows, scratch, outer.text())


def _rows(kernel: Kernel, rows: Counter, scratch: list[str], body: list[str]) -> list[str]:
    """The loop over the rows, or the tiles of rows, of one thread."""
    count, name = size_text(rows.count), rows.name
    shared = f"parallel({count}, 1, {kernel.plan.grain}, "
    opening = shared if kernel.plan.shared == "rows" else f"serial({count}, "
    return [
        f"{opening}[=](i64 begin, i64 end) {{",
        *indented(scratch),
        f"  for (i64 {name} = begin; {name} < end; ++{name}) {{",
        *indented(indented(body)),
        "  }",
        "});",
    ]


def _scratch(kernel: Kernel) -> list[str]:
    """Arrays for what is kept from one sweep of a row to the next."""
    dtypes = {s.name: s.term.dtype for s in kernel.nest.statements() if isinstance(s, Let)}
    count = size_text(count_of(kernel.nest.cols))
    lines = []
    for name in kernel.nest.kept:
        type = STORAGE[dtypes[name]]
        if kernel.plan.shared == "blocks":  # threads share the array, not copies of it
            lines.append(f"alignas(64) {type} {name}_kept[{count}];")
            lines.append(f"{type}* const {name}_row = {name}_kept;")
        else:
            lines.append(f"alignas(64) {type} {name}_row[{count}];")
    return lines


def _accumulator(reduction: Reduce) -> str:
    return f"{reduction.name}_{reduction.how}"


def _vector(reduction: Reduce) -> str:
    return VECTOR[reduction.term.dtype]
