"""The body of a Triton kernel: positions and masks of its blocks, then the nest's statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from rewright.codegen.triton.blocks import Blocks, programs
from rewright.codegen.triton.indices import Indices, Text
from rewright.codegen.triton.online import online
from rewright.codegen.triton.primitives import TYPES
from rewright.codegen.triton.reductions import reduction
from rewright.codegen.triton.terms import Terms, literal
from rewright.ir import divisible, product
from rewright.ir.loops import Axis, Let, Nest, Reduce, Stage, Statement, Store


class Body:
    """Lines of one kernel, grown statement by statement.

    `inputs` and `outputs` give each buffer's parameter; `widen` is a method call that gives
    positions the type of indices, empty where 32 bits do.
    """

    def __init__(
        self,
        nest: Nest,
        blocks: Blocks,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        widen: str,
    ) -> None:
        self.nest, self.blocks, self.widen = nest, blocks, widen
        self.outputs = outputs
        self.lines: list[str] = []
        self._margin = ""
        self._origin = ""
        self._reads_again = False
        self.stages = nest.stages
        self.sums: Mapping[str, Reduce] = {}
        if blocks.style == "looped":
            self.stages, self.sums = online(nest.stages)
        self.axes = {"row": blocks.row_axes, "col": blocks.col_axes}
        self.masks: dict[str, str] = {}
        self.indices = Indices(
            dim_of={a.name: dim for dim, group in self.axes.items() for a in group},
            counts={a.name: a.size for a in nest.axes},
            position={dim: g[0].name if len(g) == 1 else dim for dim, g in self.axes.items()},
            masks=self.masks,
        )
        self.terms = Terms(self.indices, inputs, {b.name: b.type.dtype for b in nest.inputs})

    def write(self) -> None:
        style = self.blocks.style
        rows = "tl.arange(0, ROWS)" if style == "line" else "tl.arange(0, ROWS)[:, None]"
        cols = "tl.arange(0, COLS)[None, :]"
        if style == "tile":
            across = self.indices.size(programs(self.blocks.col_axes, self.blocks.cols))
            self._position("row", f"{self._program(f' // {across}')} * ROWS + {rows}")
            self._position("col", f"{self._program(f' % {across}')} * COLS + {cols}")
        else:
            self._position("row", f"{self._program()} * ROWS + {rows}")
        if style == "kept":
            self._position("col", f"{cols}{self.widen}")
        for stage in self.stages:
            if style in ("whole", "looped") and stage.per == "column":
                self._loop(stage)
            else:
                self._stage(stage)

    # --- positions --------------------------------------------------------------------------

    def _program(self, part: str = "") -> str:
        """The number of the program's block."""
        number = f"(tl.program_id(0){part})" if part else "tl.program_id(0)"
        return f"{number}{self.widen}"

    def _position(self, dim: str, block: str) -> None:
        """Where the program's block is along a dimension, axis by axis, and what of it exists."""
        axes = self.axes[dim]
        width = self.blocks.rows if dim == "row" else self.blocks.cols
        position, count = self.indices.position[dim], product(a.size for a in axes)
        self._line(f"{position} = {block}")
        if count == 0 or not divisible(count, width):
            self.masks[dim] = f"in_{dim}s"
            self._line(f"in_{dim}s = {position} < {self.indices.size(count)}")
        if len(axes) > 1:
            self._unravel(position, axes)

    def _unravel(self, position: str, axes: Sequence[Axis]) -> None:
        rest = position
        for axis in reversed(axes[1:]):
            size = self.indices.size(axis.size)
            self._line(f"{axis.name} = {rest} % {size}")
            outer = axes[0].name if axis is axes[1] else f"{position}_rest"
            self._line(f"{outer} = {rest} // {size}")
            rest = outer

    # --- stages -----------------------------------------------------------------------------

    def _stage(self, stage: Stage) -> None:
        for statement in stage.body:
            if isinstance(statement, Store):
                self._store(statement)
            elif statement.name not in self.terms.dims:  # else it is still in registers
                self._define(statement)

    def _define(self, statement: Let | Reduce) -> None:
        if isinstance(statement, Let):
            self._let(statement, self.terms.text(statement.term))
        elif self.nest.cols:
            self._let(statement, self._across(statement, self._block(statement)))
        else:
            self._let(statement, self._returned(statement, self._operand(statement)))

    def _let(self, statement: Let | Reduce, text: Text) -> None:
        self.terms.dims[statement.name] = text.dims
        self._line(f"{statement.name} = {text.text}", statement.origin)

    def _store(self, store: Store) -> None:
        value = self.terms.text(store.value)
        index = self.indices.index(store.at)
        # After a reduction even a single value is a block of one row.
        dims = value.dims | ({"row"} if self.nest.order else set())
        index = self.indices.spread(index, frozenset(dims))
        place = f"{self.outputs[store.buffer]} + {index.closed}"
        mask = self.indices.mask(index.dims)
        self._line(f"tl.store({place}, {value.text}{mask})", f"-> {store.buffer}")

    # --- reductions -------------------------------------------------------------------------

    def _loop(self, stage: Stage) -> None:
        """A column stage in steps, of a whole row's reduction one; reductions keep a block of
        partial results."""
        reduces = [s for s in stage.body if isinstance(s, Reduce)]
        for reduce in reduces:
            dtype = _combined_in(reduce)
            self._parts(reduce, literal(reduction(reduce.how, dtype).neutral, dtype))
            if reduce.name in self.sums:
                self._parts(self.sums[reduce.name], "0.0")
        if self.blocks.style == "whole" and reduces:
            self._part_from_stages_before()
        count = self.indices.size(product(a.size for a in self.nest.cols))
        width = "STEP" if self.blocks.step and not reduces else "COLS"
        self._line(f"for start in range(0, {count}, {width}):")
        self._margin = "    "
        step = f"start + tl.arange(0, {width})[None, :]"
        self._position("col", f"({step}){self.widen}" if self.widen else step)
        for statement in stage.body:
            self._in_loop(statement)
        self._margin = ""
        for reduce in reduces:
            self._come_together(reduce)

    def _part_from_stages_before(self) -> None:
        """Else what two stages read of a row would be in registers from one to the other: Triton
        makes one read of two between which nothing happens."""
        if self._reads_again:
            self._line("tl.debug_barrier()")
        self._reads_again = True

    def _come_together(self, reduce: Reduce) -> None:
        parts = Text(f"{reduce.name}_parts", frozenset({"row", "col"}))
        self._let(reduce, self._across(reduce, parts))
        if reduce.name in self.sums:
            total = self.sums[reduce.name]
            given = f"{parts.text}, {total.name}_parts, {reduce.name}"
            self._let(total, Text(f"sum_of_exponentials({given})", frozenset({"row"})))

    def _parts(self, reduce: Reduce, neutral: str) -> None:
        block = f"tl.full((ROWS, COLS), {neutral}, {TYPES[_combined_in(reduce)]})"
        self._line(f"{reduce.name}_parts = {block}", reduce.origin)

    def _in_loop(self, statement: Statement) -> None:
        if isinstance(statement, Reduce):
            parts = f"{statement.name}_parts"
            block = self._block(statement)
            if statement.name in self.sums:
                total = f"{self.sums[statement.name].name}_parts"
                given = f"{block.text}, {parts}, {total}"
                self._line(f"{parts}, {total} = with_exponential({given})")
                return
            how = reduction(statement.how, _combined_in(statement))
            self._line(f"{parts} = {how.of.format(parts, block.closed)}")
        elif isinstance(statement, Let):
            self._define(statement)
        else:
            self._store(statement)

    def _block(self, reduce: Reduce) -> Text:
        """What is reduced as a block along the columns, neutral where no column is."""
        text, dtype = self._operand(reduce), _combined_in(reduce)
        dims = text.dims | {"col"}
        if "col" in self.masks:
            neutral = literal(reduction(reduce.how, dtype).neutral, dtype)
            return Text(f"tl.where({self.masks['col']}, {text.text}, {neutral})", dims)
        if "col" in text.dims:
            return text
        return Text(f"tl.broadcast_to({text.text}, (ROWS, COLS))", dims)

    def _operand(self, reduce: Reduce) -> Text:
        return self.terms.as_type(reduce.term, _combined_in(reduce))

    def _across(self, reduce: Reduce, block: Text) -> Text:
        across = reduction(reduce.how, _combined_in(reduce)).across.format(block.text)
        return self._returned(reduce, Text(across, frozenset({"row"})))

    def _returned(self, reduce: Reduce, text: Text) -> Text:
        if _combined_in(reduce) == reduce.term.dtype:
            return text
        return Text(f"{text.closed}.to({TYPES[reduce.term.dtype]})", text.dims)

    # --- lines ------------------------------------------------------------------------------

    def _line(self, text: str, origin: str = "") -> None:
        """A line, with the IR node it belongs to where that is another one than before."""
        comment = f"  # {origin}" if origin and origin != self._origin else ""
        self._origin = origin or self._origin
        self.lines.append(f"{self._margin}{text}{comment}")


def _combined_in(reduce: Reduce) -> torch.dtype:
    """`any` and `all` of numbers are of their truth."""
    return torch.bool if reduce.how in ("any", "all") else reduce.term.dtype
