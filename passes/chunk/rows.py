"""Where the rows of a node's operands and results lie: which of them can be computed in parts.

Rows are one axis of a value. A node keeps them apart when each row of its results needs that row of
its operands alone, and adds them up when a result is a sum over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from rewright.ir import Arg, Kind, Node, Size, TensorType, Value, hint

EXPAND: Final = "aten.expand.default"
# A result that has no rows: it is a sum over them.
SUMMED: Final = -1


class NotByRows(Exception):
    """Says why a node does not keep rows apart."""


@dataclass
class Rows:
    """Where the rows are: an axis for each value that has them, SUMMED for one that adds them
    up."""

    count: Size
    axes: dict[Value, int] = field(default_factory=dict)

    def put(self, value: Value, axis: int) -> None:
        """Raises NotByRows where the rows of a value are known to lie elsewhere."""
        shape = value.tensor.shape
        if axis != SUMMED and not (0 <= axis < len(shape) and shape[axis] == self.count):
            raise NotByRows(f"%{value.name} has its rows nowhere")
        if self.axes.setdefault(value, axis) != axis:
            raise NotByRows(f"%{value.name} has rows in two ways")

    def of(self, value: Value) -> int | None:
        found = self.axes.get(value)
        return None if found == SUMMED else found

    def has(self, value: Value, elements: int) -> bool:
        """True for a value of rows that has at least so many elements."""
        return self.of(value) is not None and hint(value.tensor.numel) >= elements

    def settle(self, node: Node) -> None:
        """Find out about all operands and results of a node from those that are known to have rows.
        Raises NotByRows."""
        if node.op.kind is Kind.POINTWISE or node.op.name == EXPAND:
            known = (v for v in (*node.operands, *node.results) if self.of(v) is not None)
            _pointwise(self, node, next(known))
            return
        rule = _RULES.get(node.op.name)
        if rule is None:
            raise NotByRows(f"{node.op} of %{node.name} is not known to keep rows apart")
        rule(self, node)


def _pointwise(rows: Rows, node: Node, known: Value) -> None:
    """By broadcasting."""
    result = node.result
    axis = rows.axes[known] + result.tensor.rank - known.tensor.rank
    rows.put(result, axis)
    for value in node.operands:
        type = value.type
        place = axis - result.tensor.rank + (type.rank if isinstance(type, TensorType) else 0)
        if isinstance(type, TensorType) and place >= 0 and type.shape[place] == rows.count:
            rows.put(value, place)


def _first_known(rows: Rows, *values: Value) -> int | None:
    return next((a for v in values if (a := rows.of(v)) is not None), None)


def _along(rows: Rows, node: Node, places: Sequence[int]) -> None:
    """Operands at these places, and the result, have their rows on one axis, which is not the one
    that the operator works along."""
    operands = [a for place in places if isinstance(a := node.args[place], Value)]
    axis = _first_known(rows, node.results[0], *operands)
    assert axis is not None
    if _dim(node.arg("dim"), node.results[0].tensor.rank) == axis:
        raise NotByRows(f"{node.op} of %{node.name} works along the rows")
    for value in (*node.results, *operands):
        rows.put(value, axis)


def _created(rows: Rows, node: Node) -> None:
    """Whoever reads it has said where its rows are."""


def _permuted(rows: Rows, node: Node) -> None:
    (source,), result = node.operands, node.result
    dims = tuple(_dim(d, source.tensor.rank) for d in _ints(node.arg("dims")))
    axis = rows.of(source)
    if axis is not None:
        rows.put(result, dims.index(axis))
    else:
        rows.put(source, dims[rows.axes[result]])


def _product(rows: Rows, node: Node) -> None:
    """`mm`, and `addmm` where it does not add rows up."""
    *bias, left, right = node.operands
    result = node.result
    if rows.of(left) == 1 or rows.of(right) == 0:
        if bias:
            raise NotByRows(f"%{node.name} adds rows up, and more to them")
        rows.put(left, 1)
        rows.put(right, 0)
        rows.put(result, SUMMED)
        return
    axis = _first_known(rows, left, right, result)
    assert axis is not None
    rows.put(result, axis)
    rows.put((left, right)[axis], axis)
    if rows.of((right, left)[axis]) is not None:
        raise NotByRows(f"%{node.name} multiplies rows with rows")
    for value in bias:
        if value.tensor.rank == 2 or axis == 1:
            raise NotByRows(f"%{node.name} adds something of two axes")


def _reduced(rows: Rows, node: Node, adds: bool) -> None:
    (source,), result = node.operands, node.result
    axis, rank = rows.of(source), source.tensor.rank
    if axis is None:
        raise NotByRows(f"%{node.name} is made of what has no rows")
    dims = {_dim(d, rank) for d in _ints(node.arg("dim"))} or set(range(rank))
    if axis in dims and not adds:
        raise NotByRows(f"{node.op} of %{node.name} works along the rows")
    before = 0 if node.arg("keepdim") is True else sum(d < axis for d in dims)
    rows.put(result, SUMMED if axis in dims else axis - before)


def _dim(dim: Arg, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank


def _ints(dims: Arg) -> Iterator[int]:
    for dim in dims if isinstance(dims, tuple) else ():
        assert isinstance(dim, int)
        yield dim


_RULES: Final[Mapping[str, Callable[[Rows, Node], None]]] = {
    "aten.mm.default": _product,
    "aten.addmm.default": _product,
    "aten.permute.default": _permuted,
    "aten.sum.dim_IntList": partial(_reduced, adds=True),
    "aten.amax.default": partial(_reduced, adds=False),
    "aten.logsumexp.default": partial(_reduced, adds=False),
    "aten.full.default": _created,
    "aten._softmax.default": partial(_along, places=(0,)),
    "aten._log_softmax.default": partial(_along, places=(0,)),
    "aten._softmax_backward_data.default": partial(_along, places=(0, 1)),
    "aten._log_softmax_backward_data.default": partial(_along, places=(0, 1)),
    "aten.gather.default": partial(_along, places=(0, 2)),
    "aten.scatter.value": partial(_along, places=(0, 2)),
    "aten.scatter.src": partial(_along, places=(0, 2, 3)),
}
