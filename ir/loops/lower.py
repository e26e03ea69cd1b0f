"""From a region (a graph of ATen nodes that becomes one kernel) to a loop nest.

The iteration space is that of the region's reductions, or of its largest output when it has none.
Every output is evaluated at the index with the same row-major position; axes are cut where
reshapes need it and merged again where nothing tells the parts apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from rewright.ir.dims import Size, equal, hint, product
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Graph, Node, Value
from rewright.ir.loops.affine import Affine, Axis, NeedSplit, axis_index, delinearize, linear
from rewright.ir.loops.merge import merge_axes
from rewright.ir.loops.nest import (
    Apply,
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
from rewright.ir.loops.operators import reduced_dims
from rewright.ir.loops.scope import Defined, Scope
from rewright.ir.ops import Kind
from rewright.ir.types import TensorType

# Cutting axes ends long before this; the bound turns a mistake into a message.
MAX_CUTS: Final = 64

# Rows up to this many bytes may be kept in a scratch array between stages.
KEPT_BYTES: Final = 1 << 18

# Primitives worth a store and a load instead of a second computation.
COSTLY: Final = frozenset(
    ("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "tanh", "erf", "erfc")
    + ("sigmoid", "sin", "cos", "tan", "atan2", "asin", "acos", "atan", "sinh", "cosh", "div")
)


@dataclass(frozen=True, slots=True)
class Space:
    """The iteration space of a region: a shape, and which of its dimensions are reduced."""

    shape: tuple[Size, ...]
    reduced: tuple[int, ...] = ()
    order: Order | None = None


def lower(region: Graph, name: str) -> Nest:
    """The loop nest that computes `region`.

    Raises UnsupportedError with a sentence saying which node stands in the way.
    """
    space = space_of(region)
    axes = [(Axis(f"a{d}", size), d in space.reduced) for d, size in enumerate(space.shape)]
    for _ in range(MAX_CUTS):
        try:
            return _lower(region, name, space, axes)
        except NeedSplit as cut:
            axes = _split(axes, cut)
    raise UnsupportedError(f"the views of {name} cut its axes without end")


def space_of(region: Graph) -> Space:
    """The iteration space of a region that has at least one output."""
    for node in region.nodes:
        if node.op.kind is Kind.REDUCTION:
            return Space(node.operands[0].tensor.shape, reduced_dims(node), order_of(node))
    outputs = [v.tensor for v in region_outputs(region)]
    if not outputs:
        raise UnsupportedError("a region without outputs")
    return Space(max(outputs, key=lambda t: hint(t.numel)).shape)


def order_of(node: Node) -> Order:
    """The summation order of a reduction node: a function of its operand's type alone."""
    shape, dims = node.operands[0].tensor.shape, reduced_dims(node)
    last = len(shape) - 1
    in_lanes = last in dims and (hint(shape[last]) >= 16 or len(dims) == len(shape))
    return Order("lanes") if in_lanes else Order("columns")


def region_outputs(region: Graph) -> tuple[Value, ...]:
    return tuple(v for v in region.outputs if isinstance(v, Value))


def _split(axes: Sequence[tuple[Axis, bool]], cut: NeedSplit) -> list[tuple[Axis, bool]]:
    result: list[tuple[Axis, bool]] = []
    for axis, reduced in axes:
        if axis.name != cut.axis:
            result.append((axis, reduced))
            continue
        outer = axis.size // cut.inner
        result.append((Axis(f"{axis.name}o", outer), reduced))
        result.append((Axis(f"{axis.name}i", cut.inner), reduced))
    return result


def _lower(region: Graph, name: str, space: Space, axes: Sequence[tuple[Axis, bool]]) -> Nest:
    moving = [(a, reduced) for a, reduced in axes if a.size != 1]
    columns = frozenset(a.name for a, reduced in moving if reduced)
    scope = Scope(region, [a for a, _ in moving], columns)
    stores = [_store(scope, value) for value in region_outputs(region)]
    stages = _stages(scope, stores)
    nest = Nest(
        name=name,
        rows=tuple(a for a, reduced in moving if not reduced),
        cols=tuple(a for a, reduced in moving if reduced),
        order=space.order if columns else None,
        inputs=tuple(Buffer(i.value.name, i.value.tensor) for i in region.inputs),
        outputs=tuple(Buffer(v.name, v.tensor) for v in region_outputs(region)),
        stages=stages,
    )
    return replace(merge_axes(nest), kept=_kept(nest, scope))


def _store(scope: Scope, value: Value) -> Store:
    """Where the element of `value` that belongs to the current index is written."""
    rows = [a for a in scope.axes if a.name not in scope.columns]
    for axes in (list(scope.axes), rows):
        if not equal(product(a.size for a in axes), value.tensor.numel):
            continue
        position = linear([axis_index(a) for a in axes], [a.size for a in axes])
        index = delinearize(position, value.tensor.shape, scope.sizes)
        return Store(value.name, _offset(value.tensor, index), scope.at(value, index))
    raise UnsupportedError(f"%{value.name} has another number of elements than its kernel")


def _offset(type: TensorType, index: Sequence[Affine]) -> Affine:
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
        roots = [n for n, d in made.items() if _is_reduce(d) and d.depth == depth]
        columns: list[Store] = []
        for store in stores:
            if scope.defined[store.value.name].ready != depth:
                continue
            if store.at.reads(scope.columns) or not scope.is_row(store.value.name):
                columns.append(store)
                roots.append(store.value.name)
            else:
                rows.append(store)
        body = [made[n].statement for n in _column_closure(scope, roots, depth)]
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


def _column_closure(scope: Scope, roots: Sequence[str], depth: int) -> list[str]:
    """Column statements that the roots need in this stage, in definition order."""
    reduces = {r for r in roots if _is_reduce(scope.defined[r]) and scope.defined[r].depth == depth}
    terms = [scope.defined[r].statement.term for r in sorted(reduces)]
    inner = [t.name for term in terms for t in subterms(term) if isinstance(t, Ref)]
    starts = [*inner, *(r for r in roots if r not in reduces)]
    found = _closure(scope, starts, across_stages=False) | reduces
    return [name for name in scope.defined if name in found]


def _kept(nest: Nest, scope: Scope) -> tuple[str, ...]:
    """Costly column scalars that a later stage reads again, when a row fits a scratch array."""
    count = product(a.size for a in nest.cols)
    if not isinstance(count, int) or nest.order is None or nest.order.style != "lanes":
        return ()
    seen: set[str] = set()
    kept: list[str] = []
    for stage in nest.stages:
        lets = [s for s in stage.body if isinstance(s, Let)] if stage.per == "column" else []
        kept += [s.name for s in lets if s.name in seen and _is_costly(s) and s.name not in kept]
        seen |= {s.name for s in lets}
    room = KEPT_BYTES // max(1, count * 4)
    return tuple(kept[:room])


def _is_costly(statement: Let) -> bool:
    return isinstance(statement.term, Apply) and statement.term.name in COSTLY
