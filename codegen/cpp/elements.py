"""Kernels without reductions: lanes run along the innermost row axis."""

from __future__ import annotations

from rewright.codegen.cpp.index import Place, counter
from rewright.codegen.cpp.kernel import (
    Kernel,
    as_let,
    count_of,
    indented,
    moves,
    multiple,
    shared,
    shared_rows,
)
from rewright.ir.loops import Axis, Store


def elements(kernel: Kernel) -> list[str]:
    """The body of the kernel."""
    plan = kernel.plan
    outer = kernel.block(counter("r", plan.outer) if plan.outer else None)
    vector = plan.vector or Axis("v", 1)
    inner = kernel.block(counter("v", (vector,)), outer)
    lanes, uniform = Place(inner, inner.counter), Place(outer)
    moving: set[str] = set()
    for each in kernel.nest.statements():
        statement = as_let(each)
        if isinstance(statement, Store):
            inner.lines.append(kernel.printer(lanes).store(statement))
        elif moves(statement, lanes, moving):
            moving.add(statement.name)
            inner.lines.append(kernel.printer(lanes).let(statement))
        else:
            outer.lines.append(kernel.printer(uniform).let(statement))
    steps = [
        f"steps<{multiple(vector.size)}>(begin, end, [&](i64 {vector.name}, auto n) {{",
        *indented(inner.text()),
        "});",
    ]
    return _loop(kernel, vector, [*outer.text(), *steps])


def _loop(kernel: Kernel, vector: Axis, body: list[str]) -> list[str]:
    plan = kernel.plan
    if plan.outer:
        opening, closing = shared_rows(plan, count_of(plan.outer), vector.size)
        row = plan.outer[0].name if len(plan.outer) == 1 else "r"
        parameters = f"i64 {row}, i64 begin, i64 end"
    else:
        opening, closing = shared(plan, vector.size)
        parameters = "i64 begin, i64 end"
    return [f"{opening}[=]({parameters}) {{", *indented(body), f"}}{closing}"]


