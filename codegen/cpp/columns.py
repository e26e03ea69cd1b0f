"""Kernels whose lanes each reduce a row of their own, in strips of neighbouring rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rewright.codegen.cpp.index import Block, Place, counter
from rewright.codegen.cpp.kernel import (
    Kernel,
    count_of,
    how,
    indented,
    moves,
    multiple,
    shared_rows,
)
from rewright.codegen.cpp.text import VECTOR, size_text
from rewright.ir.loops import Axis, Let, Reduce, Stage, Statement, Store, is_costly, reads

EACH = "for (int u = 0; u < U; ++u) {"
SHIFT = "16 * u"


@dataclass
class Strip:
    """A strip of rows in the making: `U` vectors, one after the other in every stage.

    `moving` names the scalars that differ from lane to lane, `crossing` those of them that a later
    stage reads (arrays of a strip), `totals` the reductions that are complete.
    """

    kernel: Kernel
    row: Block
    block: Block
    moving: set[str] = field(default_factory=set)
    crossing: set[str] = field(default_factory=set)
    totals: set[str] = field(default_factory=set)

    def add(self, stage: Stage) -> None:
        if stage.per == "row":
            self._row_stage(stage)
        else:
            self._column_stage(stage)

    def _row_stage(self, stage: Stage) -> None:
        place = Place(self.block, self.block.counter, SHIFT)
        lines = self._each(stage.body, place, self.row)
        self.block.lines += _loop(EACH, lines) if lines else []

    def _column_stage(self, stage: Stage) -> None:
        column = self.kernel.block(counter("c", self.kernel.nest.cols), self.block)
        place = Place(column, self.block.counter, SHIFT)
        lines = self._each(stage.body, place, column)
        unroll = [] if is_costly(stage.body) else ["#pragma GCC unroll 8"]
        column.lines += [*unroll, *_loop(EACH, lines)]
        reductions = [s for s in stage.body if isinstance(s, Reduce)]
        self.block.lines += self._sweep(column, reductions)
        self.totals.update(r.name for r in reductions)
        self.moving.update(r.name for r in reductions)

    def _each(self, body: Sequence[Statement], place: Place, outside: Block) -> list[str]:
        """Lines for one vector; what is the same for all of them goes to `outside`."""
        lines: list[str] = []
        local: set[str] = set()
        for statement in body:
            varies = isinstance(statement, (Store, Reduce)) or moves(statement, place, self.moving)
            refs = self._refs(local)
            if not varies:
                assert isinstance(statement, Let)
                outside.lines.append(self.kernel.printer(Place(outside), refs).let(statement))
                continue
            lines += self._statement(statement, place, local)
        return lines

    def _statement(self, statement: Statement, place: Place, local: set[str]) -> list[str]:
        printer = self.kernel.printer(place, self._refs(local))
        if isinstance(statement, Store):
            return [printer.store(statement)]
        if isinstance(statement, Reduce):
            return [f"{statement.name}.take(u, {printer.term(statement.term)});"]
        self.moving.add(statement.name)
        local.add(statement.name)
        lines = [printer.let(statement)]
        if statement.name in self.crossing:
            type = VECTOR[statement.term.dtype]
            self.block.lines.append(f"{type} {statement.name}_each[U];")
            lines.append(f"{statement.name}_each[u] = {statement.name};")
        return lines

    def _refs(self, local: set[str]) -> _Refs:
        return _Refs(self, local)

    def _sweep(self, column: Block, reductions: Sequence[Reduce]) -> list[str]:
        """One pass over the columns."""
        plan, count = self.kernel.plan, size_text(count_of(self.kernel.nest.cols))
        assert column.counter is not None
        name, body = column.counter.name, column.text()
        names = [r.name for r in reductions]
        made = [f"OneByOne<{how(r)}, U> {r.name};" for r in reductions]
        parameters = f"(i64 {name}{''.join(f', auto& {n}' for n in names)}) {{"
        if not reductions:
            return self._without_reductions(name, count, body)
        if plan.shared == "blocks":
            opening = f"parallel_sequence({count}, {plan.grain}, [=]{parameters}"
        else:
            opening = f"sequence({count}, [&]{parameters}"
        return [*made, opening, *indented(body), f"}}, {', '.join(names)});"]

    def _without_reductions(self, name: str, count: str, body: list[str]) -> list[str]:
        plan = self.kernel.plan
        if plan.shared != "blocks":
            return _loop(f"for (i64 {name} = 0; {name} < {count}; ++{name}) {{", body)
        return [
            f"parallel({count}, {plan.unit}, {plan.grain}, [=](i64 begin, i64 end) {{",
            *indented(_loop(f"for (i64 {name} = begin; {name} < end; ++{name}) {{", body)),
            "});",
        ]


@dataclass(frozen=True)
class _Refs:
    """What a scalar is called inside of a stage."""

    strip: Strip
    local: set[str]

    def __call__(self, name: str) -> str:
        if name in self.strip.totals:
            return f"{name}.total[u]"
        if name in self.strip.crossing & self.strip.moving - self.local:
            return f"{name}_each[u]"
        return name


def columns(kernel: Kernel) -> list[str]:
    """The body of the kernel."""
    nest, plan = kernel.nest, kernel.plan
    vector = plan.vector or Axis("v", 1)
    row = kernel.block(counter("r", plan.outer) if plan.outer else None)
    strip = Strip(kernel, row, kernel.block(counter("v", (vector,)), row))
    strip.crossing.update(_crossing(nest.stages))
    for stage in nest.stages:
        strip.add(stage)
    body = [
        f"strips<{multiple(vector.size)}, {plan.vectors}>"
        f"(begin, end, [&](i64 {vector.name}, auto width, auto n) {{",
        "  constexpr int U = decltype(width)::count;",
        *indented(strip.block.text()),
        "});",
    ]
    name = row.counter.name if row.counter else "r"
    opening, closing = shared_rows(plan, count_of(plan.outer), vector.size)
    return [
        f"{opening}[=](i64 {name}, i64 begin, i64 end) {{",
        *indented([*row.text(), *body]),
        f"}}{closing}",
    ]


def _crossing(stages: Sequence[Stage]) -> set[str]:
    """Scalars of row stages that other stages read."""
    made: dict[str, int] = {}
    found: set[str] = set()
    for place, stage in enumerate(stages):
        for statement in stage.body:
            found.update(n for n in reads(statement) if made.get(n, place) != place)
            if stage.per == "row" and isinstance(statement, Let):
                made[statement.name] = place
    return found


def _loop(opening: str, body: Sequence[str]) -> list[str]:
    return [opening, *indented(body), "}"]
