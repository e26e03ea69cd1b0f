"""What an index of a view's result means in its source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rewright.ir.dims import Dim, Size, bounds
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Arg, Graph, Node, Value
from rewright.ir.loops.affine import ZERO, Affine, delinearize, linear
from rewright.ir.ops import Kind

Index = tuple[Affine, ...]


def view_source(
    node: Node, result: Value, index: Index, sizes: Mapping[str, Size]
) -> tuple[Value, Index]:
    """The value behind a view and the index there of element `index` of `result`.

    Raises UnsupportedError when the view has no affine index map, NeedSplit (see affine.py).
    """
    rule = VIEWS.get(node.op.name)
    source = node.args[0]
    if rule is None or not isinstance(source, Value):
        raise UnsupportedError(f"{node.op} has no index map")
    return source, rule(node, result, index, sizes)


def _same(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    return index


def _reshape(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    source = node.operands[0].tensor
    return delinearize(linear(index, result.tensor.shape), source.shape, sizes)


def _permute(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    order = node.args[1]
    assert isinstance(order, tuple)
    source: list[Affine] = [ZERO] * len(index)
    for place, dim in enumerate(order):
        source[_dim(dim, len(index))] = index[place]
    return tuple(source)


def _transpose(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    a, b = _dim(node.args[1], len(index)), _dim(node.args[2], len(index))
    source = list(index)
    source[a], source[b] = index[b], index[a]
    return tuple(source)


def _t(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    return tuple(reversed(index))


def _expand(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    return broadcast(index, result.tensor.shape, node.operands[0].tensor.shape)


def _unsqueeze(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    dim = _dim(node.args[1], len(index))
    return index[:dim] + index[dim + 1 :]


def _squeeze(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    shape = node.operands[0].tensor.shape
    if len(node.args) == 1:
        dropped = {d for d, size in enumerate(shape) if size == 1}
    else:
        dims = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        dropped = {_dim(d, len(shape)) for d in dims} if shape else set()
        dropped = {d for d in dropped if shape[d] == 1}
    rest = iter(index)
    return tuple(ZERO if d in dropped else next(rest) for d in range(len(shape)))


def _slice(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    shape = node.operands[0].tensor.shape
    dim = _dim(node.arg("dim"), len(shape))
    start = slice_start(node, shape[dim])
    step = node.arg("step")
    if not isinstance(step, int):
        raise UnsupportedError("a slice whose step is known only at run time")
    moved = index[dim].scaled(step).shifted(start)
    return (*index[:dim], moved, *index[dim + 1 :])


def slice_start(node: Node, size: Size) -> Size:
    """The first element a slice takes, as `place_from_front`."""
    return place_from_front(node.arg("start"), size)


def place_from_front(start: object, size: Size) -> Size:
    """Where a slice begins: torch counts from the end when it is negative, and moves it into the
    dimension. Raises UnsupportedError when neither is known before the graph runs."""
    if start is None:
        return 0
    if isinstance(start, Dim):
        return _not_negative(start, "the start of a slice")
    if not isinstance(start, int):
        raise UnsupportedError("the start of a slice is not a size")
    if isinstance(size, int):
        return min(max(start + size if start < 0 else start, 0), size)
    # A start beyond the end leaves no element to be read.
    return start if start >= 0 else _not_negative(size + start, "the start of a slice")


def select_place(place: object, size: Size) -> Size:
    """The index that a select takes. Raises UnsupportedError when its sign is not known."""
    if isinstance(place, int):
        return place if place >= 0 else size + place
    if isinstance(place, Dim):
        return _not_negative(place, "the index of a select")
    raise UnsupportedError("the index of a select is not a size")


def _not_negative(size: Size, what: str) -> Size:
    if bounds(size)[0] < 0:
        raise UnsupportedError(f"{what} may be negative")
    return size


def _select(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    shape = node.operands[0].tensor.shape
    dim = _dim(node.args[1], len(shape))
    place = select_place(node.args[2], shape[dim])
    return (*index[:dim], Affine((), place), *index[dim:])


def _split(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    dim = _dim(node.arg("dim"), len(index))
    start: Size = 0
    for part in node.results:
        if part == result:
            break
        start = start + part.tensor.shape[dim]
    return (*index[:dim], index[dim].shifted(start), *index[dim + 1 :])


def _unbind(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    dim = _dim(node.arg("dim"), len(index) + 1)
    place = node.results.index(result)
    return (*index[:dim], Affine((), place), *index[dim:])


def _diagonal(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    """The last dimension of the result runs along both."""
    rank = node.operands[0].tensor.rank
    offset, first, second = (node.arg(name) for name in ("offset", "dim1", "dim2"))
    if not isinstance(offset, int):
        raise UnsupportedError("a diagonal that is known only at run time")
    row, column = _dim(first, rank), _dim(second, rank)
    rest = iter(index[:-1])
    along = {
        row: index[-1].shifted(max(-offset, 0)),
        column: index[-1].shifted(max(offset, 0)),
    }
    return tuple(along[d] if d in along else next(rest) for d in range(rank))


def _unfold(node: Node, result: Value, index: Index, sizes: Mapping[str, Size]) -> Index:
    """Windows: element `k` of window `i` is element `i * step + k`."""
    rank = node.operands[0].tensor.rank
    step = node.args[3]
    if not isinstance(step, int) or rank == 0:
        raise UnsupportedError("windows whose distance is known only at run time")
    dim = _dim(node.args[1], rank)
    moved = index[dim].scaled(step) + index[-1]
    return (*index[:dim], moved, *index[dim + 1 : -1])


def broadcast(index: Index, shape: tuple[Size, ...], source: tuple[Size, ...]) -> Index:
    """The index in an operand of shape `source` of a result of shape `shape` (torch's rules)."""
    skipped = len(shape) - len(source)
    return tuple(
        ZERO if size == 1 and shape[d + skipped] != 1 else index[d + skipped]
        for d, size in enumerate(source)
    )


def _dim(dim: Arg, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank if rank else 0


Rule = Callable[[Node, Value, Index, Mapping[str, Size]], Index]

VIEWS: Final[dict[str, Rule]] = {
    "aten.alias.default": _same,
    "aten.detach.default": _same,
    "aten.positive.default": _same,
    "aten.view.default": _reshape,
    "aten._unsafe_view.default": _reshape,
    "aten._reshape_alias.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten.permute.default": _permute,
    "aten.transpose.int": _transpose,
    "aten.t.default": _t,
    "aten.expand.default": _expand,
    "aten.unsqueeze.default": _unsqueeze,
    "aten.squeeze.default": _squeeze,
    "aten.squeeze.dim": _squeeze,
    "aten.squeeze.dims": _squeeze,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    "aten.unbind.int": _unbind,
    "aten.diagonal.default": _diagonal,
    "aten.unfold.default": _unfold,
}


def is_view(node: Node) -> bool:
    """True for views with an index map: inside a kernel they cost nothing."""
    return node.op.kind is Kind.VIEW and node.op.name in VIEWS


def view_roots(graph: Graph) -> dict[Value, Value]:
    """For each value of a graph the one behind a chain of such views."""
    roots = {i.value: i.value for i in graph.inputs}
    for node in graph.nodes:
        source = roots[node.operands[0]] if is_view(node) else None
        roots.update((value, source or value) for value in node.results)
    return roots
