"""Reads at computed places, moved to before what makes the values that they read.

`gather(f(x), i)` is `f(gather(x, i))` wherever `f` works element by element, bit for bit; of `f(x)`
nothing else is computed then, and nothing written. Softmax comes apart for it, into the sums of
whole rows and what is done with each element, as its kernel does. What is read in the end lies in
memory anyway, and the library reads it, which complains of places that are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rewright.ir import (
    CheckError,
    Graph,
    Kind,
    Node,
    Size,
    TensorType,
    UnsupportedError,
    Value,
    compute_dtype,
    equal,
    fresh_names,
    hint,
    map_leaves,
)
from rewright.ir.loops import is_view
from rewright.passes.dce import split_dead
from rewright.passes.emitter import Emitter
from rewright.passes.fuse.legality import obstacle

if TYPE_CHECKING:
    from rewright.ir.target import Target

# Operators that read elements of their first operand at places that their others say.
READS: Final = (
    "aten.gather.default",
    "aten.index_select.default",
    "aten.embedding.default",
    "aten.index.Tensor",
)
SOFTMAX: Final = ("aten._log_softmax.default", "aten._softmax.default")

# A read of what is made of more values than this becomes too many reads.
MOST: Final = 4


def moved_reads(graph: Graph, target: Target) -> Graph | None:
    """The graph with its reads as early as they can be; None when there are none to move."""
    if not any(node.op.name in READS for node in graph.nodes):
        return None
    fresh = fresh_names(value.name for value in graph.values)
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes += _Read(graph, node, target, Emitter(fresh, node)).moved() or (node,)
    if len(nodes) == len(graph.nodes):
        return None
    return graph.with_nodes(split_dead(graph.with_nodes(nodes))[0])


@dataclass
class _Read:
    """A read on its way to what lies in memory; `count` are the reads that it has become, `found`
    is what is read of each value instead."""

    graph: Graph
    node: Node
    target: Target
    emit: Emitter
    count: int = 0
    found: dict[Value, Value] = field(default_factory=dict)

    def moved(self) -> Sequence[Node] | None:
        """What to do instead; None where the read stays."""
        if self.node.op.name not in READS or not self._is_possible():
            return None
        source, result = self.node.operands[0], self.node.result
        if self.graph.readers[source] != (self.node,) or not self._is_made_on_the_way(source):
            return None
        if hint(result.tensor.numel) > hint(source.tensor.numel) or self._is_spread(source):
            return None
        try:
            self._element(source)
            self.emit.end_in(result)
        except (CheckError, UnsupportedError):
            return None
        return self.emit.nodes

    def _is_possible(self) -> bool:
        """True when the other dimensions are read in order."""
        node, source = self.node, self.node.operands[0].tensor
        match node.op.name:
            case "aten.gather.default":
                index = node.operands[1].tensor
                return all(equal(index.shape[d], source.shape[d]) for d in self._others())
            case "aten.index.Tensor":
                return isinstance(node.args[1], tuple) and None not in node.args[1]
        return True

    # --- dimensions ---------------------------------------------------------------------------

    def _dims(self) -> range:
        """The dimensions of the source that are read at computed places."""
        node, rank = self.node, self.node.operands[0].tensor.rank
        match node.op.name:
            case "aten.embedding.default":
                return range(1)
            case "aten.index.Tensor":
                assert isinstance(node.args[1], tuple)
                return range(len(node.args[1]))
        dim = node.args[1]
        assert isinstance(dim, int)
        return range(dim % rank, dim % rank + 1) if rank else range(0)

    def _others(self) -> list[int]:
        return [d for d in range(self.node.operands[0].tensor.rank) if d not in self._dims()]

    def _is_spread(self, value: Value) -> bool:
        """True for what is the same all along the dimensions that are read at computed places."""
        shape: tuple[Size, ...] = value.tensor.shape
        missing = self.node.operands[0].tensor.rank - len(shape)
        kept = [d - missing for d in self._dims() if d >= missing]
        if self.node.op.name == "aten.index.Tensor":
            return not kept
        return all(shape[d] == 1 for d in kept)

    # --- elements -----------------------------------------------------------------------------

    def _element(self, value: Value) -> Value:
        """What is read of a value that is broadcast to the source's shape."""
        if self._is_spread(value):
            return value
        if value not in self.found:
            self.found[value] = self._read(value)
        return self.found[value]

    def _read(self, value: Value) -> Value:
        producer = self.graph.producers.get(value)
        if producer is not None and self._is_made_on_the_way(value):
            if producer.op.name in SOFTMAX:
                return self._of_softmax(producer)
            return self._of_pointwise(producer)
        self.count += 1
        if self.count > MOST:
            raise UnsupportedError("it would become many reads")
        whole = self.node.operands[0].tensor
        at = value
        if tuple(value.tensor.shape) != tuple(whole.shape):
            at = self.emit("aten.expand.default", value, tuple(whole.shape))
        type = TensorType(value.tensor.dtype, self.node.result.tensor.shape, None, whole.device)
        args, kwargs = (at, *self.node.args[1:]), dict(self.node.kwargs)
        return self.emit.call(self.node.op, args, kwargs, [type])[0]

    def _is_made_on_the_way(self, value: Value) -> bool:
        """True for what a kernel of ours makes and nobody wants to find in memory."""
        node = self.graph.producers.get(value)
        if node is None or value in self.graph.returned or obstacle(node, self.target) is not None:
            return False
        if node.op.kind is not Kind.POINTWISE and node.op.name not in SOFTMAX:
            return False
        readers = (r for r in self.graph.readers[value] if r is not self.node)
        return not any(is_view(r) or obstacle(r, self.target) is not None for r in readers)

    def _of_pointwise(self, node: Node) -> Value:
        def element(arg: object) -> object:
            is_tensor = isinstance(arg, Value) and isinstance(arg.type, TensorType)
            return self._element(arg) if is_tensor and isinstance(arg, Value) else arg

        args = tuple(map_leaves(arg, element) for arg in node.args)
        return self.emit.call(node.op, args, dict(node.kwargs))[0]  # type: ignore[arg-type]

    def _of_softmax(self, node: Node) -> Value:
        """x - max - log(sum(exp(x - max))), or exp(x - max) / the sum, as `ir.loops.reductions`
        has it: computed in the compute type and rounded once."""
        source, dim = node.operands[0], node.args[1]
        type, wide = source.tensor, compute_dtype(node.result.tensor.dtype)
        if type.strides is not None:
            raise UnsupportedError("its sums would be of another order")
        x = source if type.dtype == wide else self._cast(source, wide)
        top = self.emit("aten.amax.default", x, (dim,), True)
        powers = self.emit("aten.exp.default", self.emit("aten.sub.Tensor", x, top))
        total = self.emit("aten.sum.dim_IntList", powers, (dim,), True)
        here = self._element(source)
        here = here if type.dtype == wide else self._cast(here, wide)
        centred = self.emit("aten.sub.Tensor", here, self._element(top))
        if node.op.name == "aten._log_softmax.default":
            total = self._element(self.emit("aten.log.default", total))
            found = self.emit("aten.sub.Tensor", centred, total)
        else:
            scale = self._element(self.emit("aten.reciprocal.default", total))
            found = self.emit("aten.mul.Tensor", self.emit("aten.exp.default", centred), scale)
        dtype = node.result.tensor.dtype
        return found if dtype == wide else self._cast(found, dtype)

    def _cast(self, value: Value, dtype: object) -> Value:
        return self.emit("aten._to_copy.default", value, dtype=dtype)  # type: ignore[arg-type]
