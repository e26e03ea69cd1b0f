"""Kernels without reductions: lanes run along the innermost row axis."""

from __future__ import annotations

from rewright.codegen.cpp.index import Counter, Place, counter
from rewright.codegen.cpp.kernel import (
    Kernel,
    as_let,
    indented,
    moves,
    multiple,
    shared,
    shared_rows,
)
from rewright.codegen.cpp.tiles import Tile, tile_of
from rewright.ir.loops import Axis, Let, Store
from rewright.ir.loops.schedule import LANES


def elements(kernel: Kernel) -> list[str]:
    """The body of the kernel."""
    vector = kernel.plan.vector or Axis("v", 1)
    tile = tile_of(kernel, vector)
    if tile is not None:
        return _tiled(kernel, vector, tile)
    rows = counter("r", kernel.plan.outer) if kernel.plan.outer else None
    outer = kernel.block(rows)
    inner = kernel.block(counter("v", (vector,)), outer)
    lanes, uniform = Place(inner, inner.counter), Place(outer)
    moving: set[str] = set()
    for each in kernel.nest.statements():
        _print(kernel, as_let(each), moving, lanes, uniform)
    steps = _steps(vector, inner.text())
    return _loop(kernel, rows, vector, [*outer.text(), *steps])


def _print(
    kernel: Kernel, statement: Let | Store, moving: set[str], lanes: Place, uniform: Place
) -> None:
    """Add a statement where it varies: at the lanes, or outside of them."""
    if isinstance(statement, Store):
        lanes.block.lines.append(kernel.printer(lanes).store(statement))
    elif moves(statement, lanes, moving):
        moving.add(statement.name)
        lanes.block.lines.append(kernel.printer(lanes).let(statement))
    else:
        uniform.block.lines.append(kernel.printer(uniform).let(statement))


def _tiled(kernel: Kernel, vector: Axis, tile: Tile) -> list[str]:
    """The same in tiles of 16 rows by one step of lanes."""
    outer = kernel.block(tile.rows)
    step = kernel.block(counter("v", (vector,)), outer)
    row = kernel.block(counter("u", (tile.axis,)), step)
    lanes, uniform = Place(row, step.counter), Place(row)
    moving: set[str] = set()
    for each in kernel.nest.statements():
        statement = as_let(each)
        if isinstance(statement, Let) and tile.holds(statement.name):
            moving.add(statement.name)
            row.lines.append(tile.read(statement, LANES, ""))
        else:
            _print(kernel, statement, moving, lanes, uniform)
    step.lines += [
        *tile.arrays(kernel, LANES),
        *tile.fill(kernel, step, LANES, strip=False),
        tile.loop(),
        *indented(row.text()),
        "}",
    ]
    outer.lines += [*tile.bounds(), *_steps(vector, step.text())]
    return _loop(kernel, tile.rows, vector, outer.text())


def _steps(vector: Axis, body: list[str]) -> list[str]:
    opening = f"steps<{multiple(vector.size)}>(begin, end, [&](i64 {vector.name}, auto n) {{"
    return [opening, *indented(body), "});"]


def _loop(kernel: Kernel, rows: Counter | None, vector: Axis, body: list[str]) -> list[str]:
    if rows is not None:
        opening, closing = shared_rows(kernel.plan, rows.count, vector.size)
        parameters = f"i64 {rows.name}, i64 begin, i64 end"
    else:
        opening, closing = shared(kernel.plan, vector.size)
        parameters = "i64 begin, i64 end"
    return [f"{opening}[=]({parameters}) {{", *indented(body), f"}}{closing}"]
