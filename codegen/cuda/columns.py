"""Kernels that reduce across rows."""

from __future__ import annotations

from rewright.codegen.cpp.index import counter
from rewright.codegen.cpp.kernel import count_of
from rewright.codegen.cpp.text import size_text
from rewright.codegen.cuda.writer import Writer
from rewright.ir.loops import Let, Reduce, Stage

# A block's threads, across rows and down the columns of each.
ACROSS, DOWN = 32, 8


class Columns(Writer):
    """Every thread has a row of its own, next to its neighbours', and an eighth of its columns."""

    def write(self) -> list[str]:
        rows, cols = count_of(self.nest.rows), count_of(self.nest.cols)
        self.threads, self.blocks = (ACROSS, DOWN), (rows + (ACROSS - 1)) // ACROSS
        over, self.over = counter("r", self.nest.rows), counter("c", self.nest.cols)
        at = f"i64(blockIdx.x) * {ACROSS} + threadIdx.x"
        self.line(f"const bool active = {at} < {size_text(rows)};")
        if self.nest.rows:  # threads beyond the last row look at that, and write nothing
            last = size_text(rows - 1)
            self.place(over, f"size_min({at}, {last})")
        for stage in self.nest.stages:
            self._stage(stage, size_text(cols))
        return self.lines

    def _stage(self, stage: Stage, cols: str) -> None:
        printer = self.printer()
        if stage.per == "column":
            reduces = [s for s in stage.body if isinstance(s, Reduce)]
            self.start(reduces)
            name = self.over.name
            self.open(
                f"for (i64 {name} = threadIdx.y; active && {name} < {cols}; {name} += {DOWN})"
            )
            self.place(self.over)
        for statement in stage.body:
            if isinstance(statement, Let):
                self.let(statement, printer)
            elif isinstance(statement, Reduce):
                if stage.per == "column":
                    self.combine(statement, printer)
                else:
                    self.let(Let(statement.name, statement.term), printer)
            elif stage.per == "column":
                self.store(statement)
            else:
                self.open("if (active && threadIdx.y == 0)")
                self.store(statement)
                self.close()
        if stage.per == "column":
            self.close()
            self.finish(reduces, "down", DOWN)
