"""The pass that computes a loss over many classes some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from rewright.ir import Arg, CheckError, Graph, Node, Size, TensorType, Value, fresh_names
from rewright.ir.infer import can_infer
from rewright.passes.base import Env, Pass
from rewright.passes.chunk.region import LOSS, Region, region_of
from rewright.passes.chunk.rows import EXPAND, SUMMED, NotByRows
from rewright.passes.emitter import Emitter

# Products of fewer rows are slower, row by row.
FEWEST_ROWS: Final = 64
# They are told the sizes of their results.
SIZED: Final = frozenset({"aten.full.default", EXPAND})


@dataclass(frozen=True)
class ChunkLoss(Pass, name="chunk-loss", takes="aten", gives="aten"):
    """In a joint graph, compute logits, what the loss makes of them and their gradients in so many
    parts, each of some rows (exact, as in StreamBP: Luo et al., 2025). No part needs another, so a
    schedule need not hold them together. Gradients that are sums over rows are added up part by
    part, and so rounded otherwise.

    before:
        graph f(%h: f32[128, 4], %w: f32[4, 9], %i: i64[128, 1], %g: f32[128, 1] tangent) {
          %l = aten.mm.default(%h, %w) : f32[128, 9] forward
          %p = aten._log_softmax.default(%l, 1, false) : f32[128, 9] forward
          %y = aten.gather.default(%p, 1, %i) : f32[128, 1] forward
          %d = aten.mul.Tensor(%p, %g) : f32[128, 9] backward
          %wt = aten.permute.default(%w, [1, 0]) : f32[9, 4] strides [1, 9] backward
          %dh = aten.mm.default(%d, %wt) : f32[128, 4] backward
          return %y, %dh
        }
    after:
        graph f(%h: f32[128, 4], %w: f32[4, 9], %i: i64[128, 1], %g: f32[128, 1] tangent) {
          %wt = aten.permute.default(%w, [1, 0]) : f32[9, 4] strides [1, 9] backward
          %l_1 = aten.slice.Tensor(%h, 0, 0, 64) : f32[64, 4] forward
          %l_2 = aten.mm.default(%l_1, %w) : f32[64, 9] forward
          %p_1 = aten._log_softmax.default(%l_2, 1, false) : f32[64, 9] forward
          %y_1 = aten.slice.Tensor(%i, 0, 0, 64) : i64[64, 1] forward
          %y_2 = aten.gather.default(%p_1, 1, %y_1) : f32[64, 1] forward
          %d_1 = aten.slice.Tensor(%g, 0, 0, 64) : f32[64, 1] backward
          %d_2 = aten.mul.Tensor(%p_1, %d_1) : f32[64, 9] backward
          %dh_1 = aten.mm.default(%d_2, %wt) : f32[64, 4] backward
          %l_3 = aten.slice.Tensor(%h, 0, 64, 128) : f32[64, 4] forward
          %l_4 = aten.mm.default(%l_3, %w) : f32[64, 9] forward
          %p_2 = aten._log_softmax.default(%l_4, 1, false) : f32[64, 9] forward
          %y_3 = aten.slice.Tensor(%i, 0, 64, 128) : i64[64, 1] forward
          %y_4 = aten.gather.default(%p_2, 1, %y_3) : f32[64, 1] forward
          %d_3 = aten.slice.Tensor(%g, 0, 64, 128) : f32[64, 1] backward
          %d_4 = aten.mul.Tensor(%p_2, %d_3) : f32[64, 9] backward
          %dh_2 = aten.mm.default(%d_4, %wt) : f32[64, 4] backward
          %y = aten.cat.default([%y_2, %y_4]) : f32[128, 1] forward
          %dh = aten.cat.default([%dh_1, %dh_2]) : f32[128, 4] backward
          return %y, %dh
        }

    Refuses: tables whose sizes change; logits, or what is as large, that something else reads; an
    operator that is not known to keep rows apart.
    """

    chunks: int = 8

    def run(self, graph: Graph, env: Env) -> Graph:
        for loss in [node for node in graph.nodes if node.op.name == LOSS]:
            if loss.result not in graph.producers:
                continue  # in parts with another loss of the same logits
            try:
                region = region_of(graph, loss)
                parts = tuple(self._parts(region.rows.count))
                graph = _Writer(region, parts).graph()
            except NotByRows as why:
                env.log.refuse(self.name, loss.name, str(why))
            except CheckError as error:
                env.log.refuse(self.name, loss.name, error.message)
            else:
                env.log.decide(self.name, loss.name, f"is computed in {len(parts)} parts")
        return graph

    def _parts(self, count: object) -> Iterator[tuple[int, int]]:
        """From which row to which. Raises NotByRows when there are too few."""
        assert isinstance(count, int)
        most = min(self.chunks, count // FEWEST_ROWS)
        if most < 2:
            raise NotByRows(f"{count} rows are too few to part")
        step = -(-count // most)
        for first in range(0, count, step):
            yield first, min(first + step, count)


@dataclass
class _Part:
    """Some rows: what stands for each value in them."""

    first: int
    last: int
    values: dict[Value, Value] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return self.last - self.first


class _Writer:
    """The graph with a region in parts. Nodes of the region wait until something outside reads
    what they make; then they are written, one part after the other."""

    def __init__(self, region: Region, parts: Sequence[tuple[int, int]]) -> None:
        self.region, self.rows = region, region.rows
        self.parts = [_Part(first, last) for first, last in parts]
        self.fresh = fresh_names(v.name for v in region.graph.values)
        self.nodes: list[Node] = []
        self.waiting: list[Node] = []

    def graph(self) -> Graph:
        for node in self.region.graph.nodes:
            inside = node.name in self.region.names
            if any(
                self.is_whole(value) if inside else value in self.region.made
                for value in node.operands
            ):
                self.write()
            (self.waiting if inside else self.nodes).append(node)
        self.write()
        return self.region.graph.with_nodes(self.nodes)

    def is_whole(self, value: Value) -> bool:
        """True for a sum over rows, which is known when all parts are."""
        return value in self.region.made and self.rows.axes[value] == SUMMED

    def write(self) -> None:
        sums: dict[Value, Value] = {}
        for part in self.parts:
            for node in self.waiting:
                self.write_part(node, part, sums)
        for node in self.waiting:
            for value in node.results:
                if self.region.leaves(value) and self.rows.axes[value] != SUMMED:
                    self.join(node, value)
        self.waiting = []

    def write_part(self, node: Node, part: _Part, sums: dict[Value, Value]) -> None:
        emit = Emitter(self.fresh, node)
        args = tuple(self.argument(node, a, part, emit) for a in node.args)
        kwargs = dict(node.kwargs)
        if self.rows.axes[node.results[0]] == SUMMED:
            self.add_up(node, args, part, sums, emit)
        else:
            types = None if can_infer(node.op) else [self.narrowed(v, part) for v in node.results]
            made = emit.call(node.op, args, kwargs, types)
            part.values.update(zip(node.results, made, strict=True))
        self.nodes += emit.nodes

    def argument(self, node: Node, arg: Arg, part: _Part, emit: Emitter) -> Arg:
        """The same for some rows."""
        if isinstance(arg, Value):
            return self.sliced(arg, part, emit)
        says_sizes = node.op.name in SIZED and arg == node.result.tensor.shape
        return self.shape(node.result, part) if says_sizes else arg

    def sliced(self, value: Value, part: _Part, emit: Emitter) -> Value:
        axis = self.rows.of(value)
        if axis is not None and value not in part.values:
            bounds = (axis, part.first, part.last)
            part.values[value] = emit("aten.slice.Tensor", value, *bounds)
        return value if axis is None else part.values[value]

    def narrowed(self, value: Value, part: _Part) -> TensorType:
        type = value.tensor
        if type.strides is not None:
            raise NotByRows(f"it is not known how some rows of %{value.name} lie")
        return TensorType(type.dtype, self.shape(value, part), None, type.device)

    def shape(self, value: Value, part: _Part) -> tuple[Size, ...]:
        sizes, axis = value.tensor.shape, self.rows.axes[value]
        return (*sizes[:axis], part.count, *sizes[axis + 1 :])

    def add_up(
        self, node: Node, args: Sequence[Arg], part: _Part, sums: dict[Value, Value], emit: Emitter
    ) -> None:
        """Onto what the parts before have come to: in single precision where it is less."""
        (value,) = node.results
        before, low = sums.get(value), value.tensor.dtype.itemsize < 4
        if before is not None and node.op.name == "aten.mm.default" and not low:
            found = emit("aten.addmm.default", before, *args)
        else:
            found = emit.call(node.op, tuple(args), dict(node.kwargs))[0]
            if low:
                found = emit("aten._to_copy.default", found, dtype=torch.float32)
            if before is not None:
                found = emit("aten.add.Tensor", before, found)
        if part is self.parts[-1]:
            if low:
                emit("aten._to_copy.default", found, dtype=value.tensor.dtype)
            emit.end_in(value)
        sums[value] = found

    def join(self, node: Node, value: Value) -> None:
        emit = Emitter(self.fresh, node)
        emit("aten.cat.default", tuple(p.values[value] for p in self.parts), self.rows.axes[value])
        emit.end_in(value)
        self.nodes += emit.nodes
