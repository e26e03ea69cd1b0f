"""Evaluating a region element by element: each value at an index becomes a named scalar.

`Scope.at(value, index)` walks from a result back to the region's inputs. The same value at the
same index is the same scalar; equal terms are one statement. Statements remember whether they vary
along the columns and how many reductions must be complete before them; staging uses that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from rewright.ir.dims import Dim, Size, divisible, equal, exact_div, hint, product
from rewright.ir.errors import UnsupportedError
from rewright.ir.expr import PREDICATES, Call, Expr, Literal, Operand
from rewright.ir.graph import Graph, Node, Value
from rewright.ir.loops.affine import ZERO, Affine, Axis, axis_index, blocks, delinearize, linear
from rewright.ir.loops.nest import (
    Apply,
    Convert,
    Inside,
    Let,
    Load,
    Number,
    Order,
    Position,
    Reduce,
    Ref,
    Round,
    Term,
    Within,
    subterms,
)
from rewright.ir.loops.views import VIEWS, Index, broadcast, view_source
from rewright.ir.ops import Kind
from rewright.ir.pointwise import compute_dtype, scalar_expr
from rewright.ir.types import TensorType

# A node may be evaluated at this many places of a region, on average, and some more in small ones.
MOST_TIMES: Final = 4
MOST_READS: Final = 48

Guards = tuple[Within, ...]
Read = tuple[Value, Index, Guards]
Rule = Callable[["Scope", Node, Value, Index, Guards], Term]


@dataclass(frozen=True, slots=True)
class Defined:
    """A statement with what staging needs: its reach and the number of reductions before it."""

    statement: Let | Reduce
    per_column: bool
    depth: int

    @property
    def ready(self) -> int:
        """Depth at which the name can be read."""
        return self.depth + 1 if isinstance(self.statement, Reduce) else self.depth


class Scope:
    """The statements of one region over given axes. `columns` are the axes that reductions sum, in
    `order` (None without reductions). `fast`: floats inside the region are not rounded to the half
    types of their nodes, except by casts."""

    def __init__(
        self,
        region: Graph,
        axes: Sequence[Axis],
        columns: frozenset[str],
        order: Order | None,
        *,
        fast: bool = False,
    ) -> None:
        self.order = order
        self.fast = fast
        self.axes = tuple(axes)
        self.columns = columns
        self.sizes = {a.name: a.size for a in axes}
        self.defined: dict[str, Defined] = {}
        self._values: dict[Read, Ref] = {}
        self._terms: dict[object, Ref] = {}
        self._producers = region.producers
        self._origin = ""
        cols = [a for a in axes if a.name in columns]
        self.col_count = product(a.size for a in cols)
        self._col_position = linear([axis_index(a) for a in cols], [a.size for a in cols])

    # --- values -----------------------------------------------------------------------------

    def at(self, value: Value, index: Index, guards: Guards = ()) -> Ref:
        """The scalar that is element `index` of `value`; unspecified where a guard is false.

        Chains of pointwise nodes and views may be long: what they read is evaluated first.
        """
        wanted = (value, index, guards)
        todo = [wanted]
        while todo:
            read = todo[-1]
            if read in self._values:
                todo.pop()
                continue
            missing = [r for r in self._reads(*read) if r not in self._values]
            todo += reversed(missing)
            if not missing:
                self._refuse_repetition()
                reader, self._origin = self._origin, read[0].name
                self._values[read] = self._evaluate(*read)
                self._origin = reader
        return self._values[wanted]

    def _refuse_repetition(self) -> None:
        """Reads at shifted places may double with every node of a chain of slices and joins."""
        if len(self._values) > MOST_TIMES * len(self._producers) + MOST_READS:
            raise UnsupportedError("its nodes would be computed again for each place they are read")

    def _reads(self, value: Value, index: Index, guards: Guards) -> list[Read]:
        """The elements that an element of a view or of a pointwise node is made of."""
        node = self._producers.get(value)
        if node is None:
            return []
        if node.op.name in VIEWS:
            return [(*view_source(node, value, index, self.sizes), guards)]
        if node.op.kind is not Kind.POINTWISE:
            return []
        shape = node.result.tensor.shape
        operands = (v for v in scalar_expr(node).operands if isinstance(v, Value))
        return [
            (v, broadcast(index, shape, v.type.shape), guards)
            for v in operands
            if isinstance(v.type, TensorType)
        ]

    def _evaluate(self, value: Value, index: Index, guards: Guards) -> Ref:
        node = self._producers.get(value)
        if node is None:
            return self._load(value, index, guards)
        if node.op.name in VIEWS:
            return self._values[*view_source(node, value, index, self.sizes), guards]
        if node.op.kind is Kind.POINTWISE:
            return self._pointwise(node, index, guards)
        from rewright.ir.loops.operators import OPERATORS

        rule = OPERATORS.get(node.op.name)
        if rule is None:
            raise UnsupportedError(f"{node.op} has no loop form")
        return self.result(value, rule(self, node, value, index, guards))

    def _load(self, value: Value, index: Index, guards: Guards) -> Ref:
        type = value.tensor
        if any(size == 0 for size in type.shape):
            # No element is ever asked for; but a read that does not move with the loops, as one
            # with a stride of zero, would happen before they find that there is nothing to do.
            return self.let(Number(0, compute_dtype(type.dtype)))
        offset = Affine()
        for part, stride in zip(index, type.layout, strict=True):
            offset = offset + part.scaled(stride)
        return self.let(Load(value.name, offset, compute_dtype(type.dtype), guards))

    def _pointwise(self, node: Node, index: Index, guards: Guards) -> Ref:
        element = scalar_expr(node)
        shape = node.result.tensor.shape
        scalars: list[Term] = []
        for operand, dtype in zip(element.operands, element.operand_dtypes, strict=True):
            if not isinstance(operand, Value) or not isinstance(operand.type, TensorType):
                raise UnsupportedError(f"{node.op} reads a scalar known only at run time")
            inner = broadcast(index, shape, operand.type.shape)
            read = to_storage(self.at(operand, inner, guards), operand.type.dtype, dtype)
            scalars.append(read if dtype is torch.bool else convert(read, element.compute))
        return self.result(node.result, self.build(element.expr, scalars, element.compute))

    def build(self, expr: Expr, operands: Sequence[Term], dtype: torch.dtype) -> Term:
        """A scalar expression over terms, one statement per primitive."""
        if isinstance(expr, Operand):
            return operands[expr.index]
        if isinstance(expr, Literal):
            return Number(expr.value, dtype)
        assert isinstance(expr, Call)
        args = tuple(self.build(a, operands, dtype) for a in expr.args)  # type: ignore[arg-type]
        return self.apply(expr.name, *args)

    def result(self, value: Value, term: Term) -> Ref:
        """The term as the node's result: converted, and rounded to what its dtype can hold."""
        dtype = value.tensor.dtype
        typed = convert(term, compute_dtype(dtype))
        is_lifted = self.fast and dtype.is_floating_point and not self._is_cast(value)
        if dtype != compute_dtype(dtype) and not is_lifted:
            typed = Round(typed, dtype, compute_dtype(dtype))
        return self.let(typed)

    def _is_cast(self, value: Value) -> bool:
        return self._producers[value].op.name in _CASTS

    # --- statements -------------------------------------------------------------------------

    def let(self, term: Term) -> Ref:
        """Name a term; an equal term keeps the name it has, and the node it was made for."""
        if isinstance(term, Ref):
            return term
        found = self._terms.get(term)
        if found is not None:
            return found
        ref = Ref(f"t{len(self.defined)}", term.dtype)
        self.defined[ref.name] = Defined(Let(ref.name, term, self._origin), *self._reach(term))
        self._terms[term] = ref
        return ref

    def apply(self, name: str, *args: Term) -> Ref:
        """A primitive of named operands; the result is a mask for predicates."""
        if name.startswith("logical_"):
            args = tuple(convert(a, torch.bool) for a in args)
        named = tuple(a if isinstance(a, Number) else self.let(a) for a in args)
        value = named[0].dtype
        if name == "select":
            # Between a number and a truth value the number's type is the result's.
            value = next((a.dtype for a in named[1:] if a.dtype != torch.bool), torch.bool)
            branches = (convert(a, value) for a in named[1:])
            named = (named[0], *(b if isinstance(b, Number) else self.let(b) for b in branches))
        if value == torch.bool:
            if name == "sign":
                return self.let(named[0])
            name = _ON_MASKS.get(name, name)
        dtype = torch.bool if name in PREDICATES else value
        return self.let(Apply(name, named, dtype))

    def reduce(self, how: str, term: Term) -> Ref:
        """Combine `term` over all columns."""
        key = ("reduce", how, term)
        found = self._terms.get(key)
        if found is not None:
            return found
        ref = Ref(f"t{len(self.defined)}", term.dtype)
        _, depth = self._reach(term)
        self.defined[ref.name] = Defined(Reduce(ref.name, how, term, self._origin), True, depth)
        self._terms[key] = ref
        return ref

    def sweep(self, index: Index, shape: Sequence[Size], dims: Sequence[int], who: str) -> Index:
        """`index` with the dimensions `dims` of an array of `shape` running over the columns.

        Raises UnsupportedError when the region's columns are not these dimensions, or when what
        remains of the index moves along the columns.
        """
        sizes = [shape[d] for d in dims]
        count = product(sizes)
        if count == 1:
            return tuple(ZERO if d in dims else part for d, part in enumerate(index))
        if not equal(count, self.col_count):
            raise UnsupportedError(f"%{who} reduces {count} elements, its kernel {self.col_count}")
        if any(index[d].reads(self.columns) for d in range(len(index)) if d not in dims):
            raise UnsupportedError(f"%{who} is a reduction that is read across its rows")
        inner = delinearize(self._col_position, sizes, self.sizes)
        place = dict(zip(dims, inner, strict=True))
        return tuple(place.get(d, part) for d, part in enumerate(index))

    def within(self, at: Affine, low: Size, high: Size) -> Within:
        """The guard `low <= at < high`, told by as few axes as can tell it: where the inner axes of
        `at` never leave a block that both bounds are multiples of, the block's number decides."""
        for block in sorted({abs(hint(c)) for _, c in at.terms if isinstance(c, int)} - {0, 1}):
            if not all(divisible(size, block) for size in (low, high, at.offset)):
                continue
            number, rest = blocks(at, block, self.sizes)
            if number is not None and rest.terms:
                low, high = exact_div(low, block) or 0, exact_div(high, block) or 0
                return Within(number, low, high)
        return Within(at, low, high)

    def is_row(self, name: str) -> bool:
        """True when the name can be read as one value per row."""
        made = self.defined[name]
        return isinstance(made.statement, Reduce) or not made.per_column

    def _reach(self, term: Term) -> tuple[bool, int]:
        per_column, depth = False, 0
        for part in subterms(term):
            if isinstance(part, Ref):
                made = self.defined[part.name]
                per_column |= not self.is_row(part.name)
                depth = max(depth, made.ready)
            elif isinstance(part, (Load, Position)):
                per_column |= part.at.reads(self.columns)
            if isinstance(part, (Load, Inside)):
                per_column |= any(g.at.reads(self.columns) for g in part.guards)
        return per_column, depth


_CASTS: Final = frozenset({"aten._to_copy.default", "prims.convert_element_type.default"})

# On truth values these mean the same, and only the right-hand ones exist for masks.
_ON_MASKS: Final = {
    "add": "logical_or",
    "maximum": "logical_or",
    "fmax": "logical_or",
    "bit_or": "logical_or",
    "mul": "logical_and",
    "minimum": "logical_and",
    "fmin": "logical_and",
    "bit_and": "logical_and",
    "bit_xor": "logical_xor",
    "bit_not": "logical_not",
}


def to_storage(term: Term, dtype: torch.dtype, storage: torch.dtype) -> Term:
    """`term`, a value that a tensor of `dtype` holds, as one of `storage` would hold it."""
    typed = convert(term, compute_dtype(storage))
    if storage in (dtype, compute_dtype(storage)):
        return typed
    return Round(typed, storage, compute_dtype(storage))


def convert(term: Term, dtype: torch.dtype) -> Term:
    """`term` in another compute type."""
    if term.dtype == dtype:
        return term
    if isinstance(term, Number):
        is_truth = dtype == torch.bool and not isinstance(term.value, Dim)
        return Number(bool(term.value) if is_truth else term.value, dtype)
    return Convert(term, dtype)


def number(value: object, dtype: torch.dtype) -> Number:
    """A number as an element of `dtype` holds it, up to rounding."""
    if isinstance(value, Dim):
        return Number(value, dtype)
    if not isinstance(value, (bool, int, float)):
        raise UnsupportedError("a number that is known only at run time")
    if dtype.is_floating_point:
        return Number(float(value), dtype)
    return Number(bool(value) if dtype == torch.bool else int(value), dtype)
