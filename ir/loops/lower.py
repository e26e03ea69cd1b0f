"""From a region (a graph of ATen nodes that becomes one kernel) to a loop nest.

The iteration space is that of the region's reductions, or of its largest output when it has none.
Every output is evaluated at the index with the same row-major position, or where views stand in the
way at that of the same axes in another order; axes are cut where reshapes need it and merged again
where nothing tells the parts apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rewright.ir.dims import Size, equal, exact_div, hint, product
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Graph, Node, Value, fresh_names
from rewright.ir.loops.affine import Affine, Axis, NeedSplit, axis_index, delinearize, linear
from rewright.ir.loops.keep import kept_scalars
from rewright.ir.loops.merge import merge_axes
from rewright.ir.loops.nest import (
    Buffer,
    Let,
    Nest,
    Order,
    Ref,
    Stage,
    Statement,
    Store,
    subterms,
)
from rewright.ir.loops.reductions import order_of, reduced_count, reduced_dims
from rewright.ir.loops.scope import Defined, Scope
from rewright.ir.ops import Kind
from rewright.ir.types import TensorType

# Cutting axes ends long before this; the bound turns a mistake into a message.
MAX_CUTS: Final = 64

# Other orders of a space's dimensions that are tried for an output, see `_arrangements`.
MAX_ORDERS: Final = 24


@dataclass(frozen=True, slots=True)
class Space:
    """The iteration space of a region: a shape, and which of its dimensions are reduced."""

    shape: tuple[Size, ...]
    reduced: tuple[int, ...] = ()
    order: Order | None = None


def lower(region: Graph, name: str, *, fast: bool = False) -> Nest:
    """The loop nest that computes `region`; `fast` lifts the rounding between its nodes.

    Raises UnsupportedError with a sentence saying which node stands in the way.
    """
    space = space_of(region)
    axes = [(Axis(f"a{d}", size), d in space.reduced) for d, size in enumerate(space.shape)]
    for _ in range(MAX_CUTS):
        try:
            return _lower(region, name, space, axes, fast)
        except NeedSplit as needed:
            axes = cut(axes, needed)
    raise UnsupportedError(f"the views of {name} cut its axes without end")


def space_of(region: Graph) -> Space:
    """The iteration space of a region. Raises UnsupportedError when it has no outputs."""
    outputs = region_outputs(region)
    if not outputs:
        raise UnsupportedError("a region without outputs")
    for node in needed_nodes(region.nodes, outputs):
        if node.op.kind is Kind.REDUCTION and reduced_count(node) != 1:
            return Space(node.operands[0].tensor.shape, reduced_dims(node), order_of(node))
    return Space(max((v.tensor for v in outputs), key=lambda t: hint(t.numel)).shape)


def needed_nodes(nodes: Sequence[Node], results: Iterable[Value]) -> list[Node]:
    """Those of `nodes`, in their order, that computing `results` takes."""
    read = set(results)
    found: list[Node] = []
    for node in reversed(nodes):
        if any(value in read for value in node.results):
            found.append(node)
            read.update(node.operands)
    return found[::-1]


def region_outputs(region: Graph) -> tuple[Value, ...]:
    return tuple(v for v in region.outputs if isinstance(v, Value))


def cut(axes: Sequence[tuple[Axis, bool]], needed: NeedSplit) -> list[tuple[Axis, bool]]:
    """The axes with one of them in two."""
    result: list[tuple[Axis, bool]] = []
    for axis, reduced in axes:
        if axis.name != needed.axis:
            result.append((axis, reduced))
            continue
        outer = exact_div(axis.size, needed.inner)
        assert outer is not None, "an axis is only cut where that leaves no rest"
        result.append((Axis(f"{axis.name}o", outer), reduced))
        result.append((Axis(f"{axis.name}i", needed.inner), reduced))
    return result


def _lower(
    region: Graph, name: str, space: Space, axes: Sequence[tuple[Axis, bool]], fast: bool
) -> Nest:
    moving = [(a, reduced) for a, reduced in axes if a.size != 1]
    columns = frozenset(a.name for a, reduced in moving if reduced)
    scope = Scope(region, [a for a, _ in moving], columns, space.order, fast=fast)
    outputs = _outputs(region)
    stores = [_store(scope, value, b.name) for value, b in outputs]
    # Of a result without elements a store that does not move with the loops would happen once.
    empty = {b.name for _, b in outputs if 0 in b.type.shape}
    stores = [s for s in stores if s.at.terms or s.buffer not in empty]
    if not stores:
        raise UnsupportedError("its results have no elements")
    nest = Nest(
        name=name,
        rows=tuple(a for a, reduced in moving if not reduced),
        cols=tuple(a for a, reduced in moving if reduced),
        order=space.order if columns else None,
        inputs=tuple(Buffer(i.value.name, i.value.tensor) for i in region.inputs),
        outputs=tuple(buffer for _, buffer in outputs),
        stages=_stages(scope, stores),
    )
    return replace(merge_axes(nest), kept=kept_scalars(nest))


def _outputs(region: Graph) -> list[tuple[Value, Buffer]]:
    """The buffer of each output; what is an input, or returned twice, is copied into its own."""
    fresh = fresh_names(i.value.name for i in region.inputs)
    return [(v, Buffer(fresh(v.name), v.tensor)) for v in region_outputs(region)]


def _store(scope: Scope, value: Value, buffer: str) -> Store:
    """Where the element of `value` that belongs to the current index is written.

    Any arrangement of the axes reaches each element once; the first is taken that every view on
    the way back to the region's inputs can follow.
    """
    refused: UnsupportedError | None = None
    for axes in _arrangements(scope, value):
        position = linear([axis_index(a) for a in axes], [a.size for a in axes])
        try:
            index = delinearize(position, value.tensor.shape, scope.sizes)
            return Store(buffer, offset_of(value.tensor, index), scope.at(value, index))
        except UnsupportedError as error:
            refused = refused or error
    raise refused or UnsupportedError(f"%{value.name} has not as many elements as its kernel")


def _arrangements(scope: Scope, value: Value) -> Iterator[list[Axis]]:
    """Axes that together run over the elements of `value`, outermost first: all, or the rows; in
    the order of the space, then in other orders of its dimensions."""
    rows = [a for a in scope.axes if a.name not in scope.columns]
    fits = [
        axes
        for axes in (rows, list(scope.axes))
        if equal(product(a.size for a in axes), value.tensor.numel)
    ]
    # Without columns both are the same; an empty tensor may be either.
    yield from fits[:1] if not scope.columns else fits
    for axes in fits:
        dims = [list(group) for _, group in itertools.groupby(axes, key=_dimension)]
        for order in itertools.islice(itertools.permutations(dims), 1, MAX_ORDERS):
            yield list(itertools.chain(*order))


def _dimension(axis: Axis) -> str:
    """The dimension of the space that an axis is, or is a part of."""
    return axis.name.rstrip("oi")


def offset_of(type: TensorType, index: Sequence[Affine]) -> Affine:
    """Where the element `index` of a tensor lies."""
    total = Affine()
    for part, stride in zip(index, type.layout, strict=True):
        total = total + part.scaled(stride)
    return total


# --- staging ------------------------------------------------------------------------------------


def _stages(scope: Scope, stores: Sequence[Store]) -> tuple[Stage, ...]:
    """Row and column stages in turn, each with the statements it needs, in definition order."""
    needed = _closure(scope, (s.value.name for s in stores), across_stages=True)
    made = {name: scope.defined[name] for name in scope.defined if name in needed}
    last = max((scope.defined[s.value.name].ready for s in stores), default=0)
    stages: list[Stage] = []
    for depth in range(last + 1):
        rows: list[Statement] = [d.statement for d in made.values() if _in_row(scope, d, depth)]
        reduces = [n for n, d in made.items() if _is_reduce(d) and d.depth == depth]
        columns: list[Store] = []
        for store in stores:
            if scope.defined[store.value.name].ready != depth:
                continue
            if store.at.reads(scope.columns) or not scope.is_row(store.value.name):
                columns.append(store)
            else:
                rows.append(store)
        stored = [store.value.name for store in columns]
        body = [made[n].statement for n in _column_closure(scope, reduces, stored)]
        stages.append(Stage("row", tuple(rows)))
        stages.append(Stage("column", (*body, *columns)))
    return tuple(s for s in stages if s.body)


def _is_reduce(made: Defined) -> bool:
    return not isinstance(made.statement, Let)


def _in_row(scope: Scope, made: Defined, depth: int) -> bool:
    return isinstance(made.statement, Let) and not made.per_column and made.depth == depth


def _closure(scope: Scope, roots: Iterable[str], *, across_stages: bool) -> set[str]:
    found: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in found or (not across_stages and scope.is_row(name)):
            continue
        found.add(name)
        statement = scope.defined[name].statement
        todo += [t.name for t in subterms(statement.term) if isinstance(t, Ref)]
    return found


def _column_closure(scope: Scope, reduces: Sequence[str], stored: Sequence[str]) -> list[str]:
    """Column statements that a stage needs for its reductions and stores, in definition order."""
    terms = [scope.defined[name].statement.term for name in reduces]
    inner = [t.name for term in terms for t in subterms(term) if isinstance(t, Ref)]
    found = _closure(scope, [*inner, *stored], across_stages=False) | set(reduces)
    return [name for name in scope.defined if name in found]
