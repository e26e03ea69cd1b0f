"""Kernels without reductions."""

from __future__ import annotations

from rewright.codegen.cpp.index import counter
from rewright.codegen.cpp.kernel import count_of
from rewright.codegen.cpp.text import size_text
from rewright.codegen.cuda.terms import Printer
from rewright.codegen.cuda.writer import THREADS, Writer, pack_width
from rewright.ir.loops import Axis, Let, Store


class Elements(Writer):
    """A thread to each element, or to each pack of them."""

    def write(self) -> list[str]:
        total = count_of(self.nest.rows)
        width = pack_width(self.nest, self.nest.rows)
        over = counter("i", self.nest.rows)
        self.blocks = (total + (THREADS * width - 1)) // (THREADS * width)
        at = "i64(blockIdx.x) * blockDim.x + threadIdx.x"
        name = over.name if self.nest.rows else "i"
        self.line(f"const i64 {name} = ({at}){f' * {width}' if width > 1 else ''};")
        self.line(f"if ({name} >= {size_text(total)}) return;")
        if self.nest.rows:
            self.place(over)
        if width == 1:
            self._body(self.printer())
        else:
            self._packed(width, self.nest.rows[-1])
        return self.lines

    def _body(self, printer: Printer) -> None:
        for stage in self.nest.stages:
            for statement in stage.body:
                if isinstance(statement, Store):
                    self.store(statement)
                else:
                    # A reduction of nothing but one element is that element.
                    self.let(Let(statement.name, statement.term), printer)

    def _packed(self, width: int, inner: Axis) -> None:
        """What lies together is read and written at once; between, one element after the other."""
        statements = list(self.nest.statements())
        stores = [s for s in statements if isinstance(s, Store)]
        printer = self.packs(statements, width, inner)
        self.open_packs(stores, width, inner)
        for statement in statements:
            if isinstance(statement, Store):
                place = stores.index(statement)
                self.line(f"out{place}.at[v] = {self.stored(statement)};")
            else:
                self.let(Let(statement.name, statement.term), printer)
        self.close_packs(stores)
