"""Kernels that reduce along rows."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Final

from rewright.codegen.cpp.index import counter
from rewright.codegen.cpp.kernel import count_of
from rewright.codegen.cpp.text import STORAGE, size_text
from rewright.codegen.cuda.terms import Printer
from rewright.codegen.cuda.writer import Writer, pack_width
from rewright.ir import hint
from rewright.ir.loops import Let, Reduce, Stage, Statement, Store, needed

# A row of up to this many elements has a warp; a block has so many warps then.
WARP_ROW: Final = 512
WARPS: Final = 4
# Elements of a row that a thread has at most where it holds them in registers, registers that it
# has for what a stage leaves to later ones (with more, ptxas spills some of the 64 that each of
# 1024 threads has), and threads of a block for a row.
HELD: Final = 32
LEFT: Final = 48
FEWEST, MOST = 128, 1024


class Rows(Writer):
    """Threads share the columns of a row: a warp of it, or the whole block."""

    def write(self) -> list[str]:
        self.over, self.columns = counter("c", self.nest.cols), count_of(self.nest.cols)
        self.width = pack_width(self.nest, self.nest.cols)
        self.team = _team(hint(self.columns), self.width)
        self._row()
        step = self.team * self.width
        self.turns = -(-self.columns // step) if isinstance(self.columns, int) else 0
        self.keeps = 0 < self.turns * self.width <= HELD
        self.bodies = [list(stage.body) for stage in self.nest.stages]
        self.read_back: frozenset[str] = frozenset()
        self.defined: set[str] = set()
        if self.keeps:
            self._registers()
        for stage, statements in zip(self.nest.stages, self.bodies, strict=True):
            self._stage(stage, statements)
        return self.lines

    def _row(self) -> None:
        """Which row the thread works on, and its number `t` among those that do."""
        rows, many = count_of(self.nest.rows), WARPS if self.team == 32 else 1
        self.threads, self.blocks = (self.team * many, 1), (rows + (many - 1)) // many
        over, at = counter("r", self.nest.rows), "i64(blockIdx.x)"
        if many > 1:
            at = f"{at} * {many} + threadIdx.x / 32"
            self.line(f"if ({at} >= {size_text(rows)}) return;")
        if self.nest.rows:
            self.place(over, at)
        self.line(f"const int t = threadIdx.x{' % 32' if many > 1 else ''};")

    def _registers(self) -> None:
        """Room for what a stage reads of its columns that an earlier one has computed; the nest
        has each stage compute that again."""
        read_back: dict[str, str] = {}
        defined: set[str] = set()
        for place, stage in enumerate(self.nest.stages):
            if stage.per == "column":
                body = self.bodies[place] = needed(stage.body, defined)
                lets = [s for s in body if isinstance(s, Let)]
                read_back |= {s.name: STORAGE[s.term.dtype] for s in lets if s.name in defined}
                defined |= {s.name for s in lets}
        if self._left(read_back.keys()) > LEFT:
            self.keeps, self.bodies = False, [list(stage.body) for stage in self.nest.stages]
            return
        for name, type in read_back.items():
            self.line(f"{type} {name}_held[{self.turns * self.width}];")
        self.read_back = frozenset(read_back)

    def _left(self, names: Set[str]) -> int:
        """Registers of a thread for the most that any stage leaves to later ones."""
        made, read, most = [set[str]()], [set[str]()], 0
        for body in self.bodies:
            lets = {s.name for s in body if isinstance(s, Let)}
            read.append(lets & made[-1])
            made.append(made[-1] | (lets & names))
        for place in range(1, len(read)):
            most = max(most, len(made[place - 1] & set[str]().union(*read[place:])))
        return most * self.turns * self.width

    def _stage(self, stage: Stage, statements: Sequence[Statement]) -> None:
        if stage.per == "row":
            for statement in statements:
                if isinstance(statement, Store):
                    self.open("if (t == 0)")
                    self.store(statement)
                    self.close()
                else:
                    self.let(Let(statement.name, statement.term), self.printer())
            return
        reduces = [s for s in statements if isinstance(s, Reduce)]
        self.start(reduces)
        self._columns(statements)
        self.finish(reduces, "across", self.team)

    def _columns(self, body: Sequence[Statement]) -> None:
        name, width = self.over.name, self.width
        times = f" * {width}" if width > 1 else ""
        if self.keeps:
            self.line("#pragma unroll")
            self.open(f"for (int k = 0; k < {self.turns}; ++k)")
            self.line(f"const i64 {name} = i64(k * {self.team} + t){times};")
            self.open(f"if ({name} < {size_text(self.columns)})")
        else:
            step = self.team * width
            bounds = f"{name} < {size_text(self.columns)}; {name} += {step}"
            self.open(f"for (i64 {name} = i64(t){times}; {bounds})")
        self.place(self.over)
        if width == 1:
            self._body(body, self.printer())
        else:
            statements = [s for s in body if not self._is_held(s)]
            inner = self.nest.cols[-1]
            printer = self.packs(statements, width, inner)
            stores = [s for s in statements if isinstance(s, Store)]
            self.open_packs(stores, width, inner)
            self._body(body, printer, stores)
            self.close_packs(stores)
        if self.keeps:
            self.close()
            self.defined |= {s.name for s in body if isinstance(s, Let)}
        self.close()

    def _is_held(self, statement: Statement) -> bool:
        return self.keeps and isinstance(statement, Let) and statement.name in self.defined

    def _body(
        self, body: Sequence[Statement], printer: Printer, packed: Sequence[Store] = ()
    ) -> None:
        place = f"k * {self.width} + v" if self.width > 1 else "k"
        for statement in body:
            if self._is_held(statement):
                assert isinstance(statement, Let)
                held = f"{statement.name}_held[{place}]"
                self.line(f"const {STORAGE[statement.term.dtype]} {statement.name} = {held};")
            elif isinstance(statement, Let):
                self.let(statement, printer)
                if statement.name in self.read_back:
                    self.line(f"{statement.name}_held[{place}] = {statement.name};")
            elif isinstance(statement, Reduce):
                self.combine(statement, printer)
            elif packed:
                out = packed.index(statement)
                self.line(f"out{out}.at[v] = {self.stored(statement)};")
            else:
                self.store(statement)


def _team(cols: int, width: int) -> int:
    """Threads for a row: a warp for a short one, else a block in which each has a few packs."""
    if cols <= WARP_ROW:
        return 32
    wanted = max(1, cols // (width * 2))
    return min(MOST, max(FEWEST, 1 << (wanted - 1).bit_length()))
