"""Reads that jump from lane to lane: 16 rows at a time are transposed into a tile first."""

from __future__ import annotations

from dataclasses import dataclass

from rewright.codegen.cpp.index import Block, Counter, counter
from rewright.codegen.cpp.kernel import Kernel
from rewright.codegen.cpp.text import STORAGE, VECTOR, factor_text, size_text
from rewright.ir import Size
from rewright.ir.loops import Affine, Axis, Let, Load
from rewright.ir.loops.schedule import LANES, tiled_loads


@dataclass(frozen=True)
class Tile:
    """The rows `axis` in [first, end) of a nest, and the reads that a tile holds.

    `rows` counts tiles together with the other row axes; `lanes` is the axis that lanes run along.
    """

    axis: Axis
    lanes: Axis
    rows: Counter
    loads: tuple[Let, ...]

    @property
    def first(self) -> str:
        return f"{self.axis.name}_first"

    @property
    def end(self) -> str:
        return f"{self.axis.name}_end"

    def bounds(self) -> list[str]:
        """Lines that define which rows belong to the tile."""
        place, size = f"{self.axis.name}_tile", size_text(self.axis.size)
        self.rows.used.add(place)
        return [
            f"const i64 {self.first} = {place} * {LANES};",
            f"const i64 {self.end} = size_min({self.first} + {LANES}, {size});",
        ]

    def loop(self) -> str:
        name = self.axis.name
        return f"for (i64 {name} = {self.first}; {name} < {self.end}; ++{name}) {{"

    def holds(self, name: str) -> bool:
        return any(load.name == name for load in self.loads)

    def read(self, let: Let, width: Size, column: str) -> str:
        """The line that takes one step of lanes, at `column`, out of the tile."""
        at = f"({self.axis.name} - {self.first}) * {factor_text(width)}"
        at += f" + {column}" if column else ""
        return f"const {VECTOR[let.term.dtype]} {let.name} = load({let.name}_tile + {at}, n);"

    def fill(self, kernel: Kernel, block: Block, width: Size, *, strip: bool) -> list[str]:
        """Lines that transpose every read of the tile: whole rows, or one step of lanes.

        `block` is outside the loop over rows; `width` is the length of a row of the tile.
        """
        gone = {self.axis.name, self.lanes.name} if strip else {self.axis.name}
        height, lines = f"static_cast<int>({self.end} - {self.first})", []
        for let in self.loads:
            assert isinstance(let.term, Load)
            at = let.term.at
            start = block.index(Affine(tuple(t for t in at.terms if t[0] not in gone), at.offset))
            source = f"{kernel.names[let.term.buffer]} + {self.first}"
            source += f" + {start}" if start != "0" else ""
            step = size_text(at.coefficient(self.lanes.name))
            arguments = f"{source}, {step}, {let.name}_tile, {size_text(width)}, {height}"
            call = f"transpose_strip({arguments})" if strip else f"transpose({arguments}, n)"
            lines.append(f"{call};")
        return lines

    def arrays(self, kernel: Kernel, width: Size) -> list[str]:
        """Lines that declare the tile's memory."""
        storage = {b.name: STORAGE[b.type.dtype] for b in kernel.nest.inputs}
        return [
            f"alignas(64) {storage[let.term.buffer]} {let.name}_tile[{size_text(width * LANES)}];"
            for let in self.loads
            if isinstance(let.term, Load)
        ]


def tile_of(kernel: Kernel, lanes: Axis) -> Tile | None:
    """The tile that the kernel's schedule asks for."""
    nest, axis = kernel.nest, kernel.plan.tile
    if axis is None:
        return None
    names = set(tiled_loads(nest, lanes, axis))
    lets = {s.name: s for s in nest.statements() if isinstance(s, Let) and s.name in names}
    tiles = Axis(f"{axis.name}_tile", (axis.size + LANES - 1) // LANES)
    rows = [tiles if a == axis else a for a in kernel.plan.outer]
    return Tile(axis, lanes, counter("r", rows), tuple(lets.values()))
