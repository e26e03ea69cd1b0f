"""From an `rw.attention` to what a kernel of it computes: where a head's queries, keys, values and
results lie, and a score as a scalar expression of the product of a query and a key.

Scores, masks and biases are no tensors there. What makes them is part of the expression, down to
what is read from memory; what repeats or turns operands is part of the places where these lie.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rewright.ir.dims import equal
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Graph, Node, Value, fresh_names
from rewright.ir.loops.affine import Affine, Axis, NeedSplit, axis_index, delinearize, linear
from rewright.ir.loops.lower import MAX_CUTS, cut, offset_of
from rewright.ir.loops.nest import Buffer, Convert, Let, Load, Ref, Round, Term, subterms
from rewright.ir.loops.scope import Scope
from rewright.ir.pointwise import compute_dtype

SOFTMAX = "aten._softmax.default"
PRODUCT = "aten.bmm.default"


@dataclass(frozen=True)
class Place:
    """Where an element of a matrix of one head lies: `at` over the batch's axes, a row's, and a
    column's."""

    buffer: str
    dtype: torch.dtype
    at: Affine


@dataclass(frozen=True)
class AttentionNest:
    """One kernel of attention. `batch` are the axes of heads; a row is a query, and `inner` and
    `width` are the axes that queries and keys, and values, have. The statements compute `taken`,
    what the softmax is taken of, from `given`, a product of a query and a key."""

    name: str
    batch: tuple[Axis, ...]
    row: Axis
    key: Axis
    inner: Axis
    width: Axis
    queries: Place
    keys: Place
    values: Place
    results: Place
    given: str
    taken: Ref
    statements: tuple[Let, ...]
    inputs: tuple[Buffer, ...]
    outputs: tuple[Buffer, ...]
    nodes: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """What it is computed in."""
        return compute_dtype(self.queries.dtype)

    def origins(self) -> tuple[str, ...]:
        """The IR nodes that it computes, in order."""
        return self.nodes


@dataclass(frozen=True)
class Parts:
    """The two products of a body, and the softmax between them."""

    scores: Node
    softmax: Node
    values: Node


def parts_of(body: Graph) -> Parts:
    """Raises UnsupportedError for a body that is not a product, a softmax and a product."""
    softmaxes = [n for n in body.nodes if n.op.name == SOFTMAX]
    products = [n for n in body.nodes if n.op.name == PRODUCT]
    if len(softmaxes) != 1 or len(products) != 2:
        raise UnsupportedError("its body is not two products and a softmax between them")
    return Parts(products[0], softmaxes[0], products[1])


def lower_attention(body: Graph, name: str) -> AttentionNest:
    """What a kernel of the body of an `rw.attention` computes.

    Raises UnsupportedError with a sentence saying what stands in the way.
    """
    parts = parts_of(body)
    shape = parts.softmax.result.tensor.shape
    batch = [Axis(f"a{d}", size) for d, size in enumerate(shape[:-2])]
    for _ in range(MAX_CUTS):
        try:
            return _Lowering(body, parts, batch).nest(name)
        except NeedSplit as needed:
            batch = [a for a, _ in cut([(a, False) for a in batch], needed)]
    raise UnsupportedError(f"the views of {name} cut its axes without end")


class _Lowering:
    """One try, over given axes of the batch."""

    def __init__(self, body: Graph, parts: Parts, batch: Sequence[Axis]) -> None:
        self.body, self.parts = body, parts
        rows, keys = parts.scores.result.tensor.shape[-2:]
        inner = parts.scores.operands[0].tensor.shape[-1]
        width = parts.values.result.tensor.shape[-1]
        last = parts.softmax.result.tensor.rank
        sizes = zip(range(last - 2, last + 2), (rows, keys, inner, width), strict=True)
        self.row, self.key, self.inner, self.width = (Axis(f"a{d}", size) for d, size in sizes)
        self.batch = tuple(batch)
        # What lies between the two products is evaluated as if the products were there.
        ours = (parts.scores, parts.softmax, parts.values)
        self.between = replace(body, nodes=tuple(n for n in body.nodes if n not in ours))
        axes = (*batch, self.row, self.key, self.inner, self.width)
        self.scope = Scope(self.between, axes, frozenset(), None)

    def nest(self, name: str) -> AttentionNest:
        scores, softmax, values = self.parts.scores, self.parts.softmax, self.parts.values
        query, key = scores.operands
        weights, value = values.operands
        self._only_carries(weights, softmax.result)
        taken = self._score(softmax.operands[0])
        places = (
            self._place(query, (self.row, self.inner)),
            self._place(key, (self.inner, self.key)),
            self._place(value, (self.key, self.width)),
        )
        statements, given = self._statements(taken, scores.result)
        result = self._result(values.result)
        inputs = tuple(Buffer(i.value.name, i.value.tensor) for i in self.body.inputs)
        outputs = (Buffer(result.buffer, self._output().tensor),)
        nodes = tuple(n.name for n in self.body.nodes)
        axes = (self.batch, self.row, self.key, self.inner, self.width)
        return AttentionNest(
            name, *axes, *places, result, given, taken, statements, inputs, outputs, nodes
        )

    # --- operands -------------------------------------------------------------------------------

    def _head(self) -> Affine:
        """The number of a head."""
        return linear([axis_index(a) for a in self.batch], [a.size for a in self.batch])

    def _place(self, matrix: Value, axes: tuple[Axis, Axis]) -> Place:
        """Where a factor of a product is read from."""
        found = self.scope.at(matrix, (self._head(), *map(axis_index, axes)))
        for given in self.body.inputs:
            term = self._read(found, given.value.tensor.dtype)
            if term is not None and term.buffer == given.value.name and not term.guards:
                return Place(term.buffer, given.value.tensor.dtype, term.at)
        raise UnsupportedError(f"%{matrix.name} is computed, and not only looked at otherwise")

    def _read(self, ref: Ref, dtype: torch.dtype) -> Load | None:
        """The read that a value is, as a tensor of `dtype` holds it."""
        term: Term = ref
        while not isinstance(term, Load):
            if isinstance(term, Ref):
                term = self.scope.defined[term.name].statement.term
            elif isinstance(term, Round) and term.storage == dtype:
                term = term.arg
            else:
                return None
        return term

    def _only_carries(self, weights: Value, probabilities: Value) -> None:
        """Raises UnsupportedError where something is done to the probabilities but rounding."""
        index = (self._head(), axis_index(self.row), axis_index(self.key))
        scope = Scope(self.between, self.scope.axes, frozenset(), None, fast=True)
        scope.at(weights, index)
        for made in scope.defined.values():
            for term in subterms(made.statement.term):
                if isinstance(term, Load) and term.buffer != probabilities.name:
                    raise UnsupportedError("something is done to its probabilities")
        if not all(_carries(made.statement.term) for made in scope.defined.values()):
            raise UnsupportedError("something is done to its probabilities")

    # --- scores ---------------------------------------------------------------------------------

    def _score(self, scores: Value) -> Ref:
        """What the softmax is taken of, where a row meets a key."""
        index = (*map(axis_index, self.batch), axis_index(self.row), axis_index(self.key))
        sizes = [a.size for a in (*self.batch, self.row, self.key)]
        return self.scope.at(
            scores, delinearize(linear(index, sizes), scores.tensor.shape, self.scope.sizes)
        )

    def _statements(self, taken: Ref, scores: Value) -> tuple[tuple[Let, ...], str]:
        """What `taken` needs, in order, but for the statement that reads the product."""
        needed, todo = set[str](), [taken.name]
        while todo:
            name = todo.pop()
            if name not in needed:
                needed.add(name)
                terms = subterms(self.scope.defined[name].statement.term)
                todo += [t.name for t in terms if isinstance(t, Ref)]
        made = [d.statement for n, d in self.scope.defined.items() if n in needed]
        given = [s for s in made if isinstance(s.term, Load) and s.term.buffer == scores.name]
        if len(given) != 1:
            raise UnsupportedError("its scores depend on other scores too")
        rest = tuple(s for s in made if s is not given[0])
        assert all(isinstance(s, Let) for s in rest)
        return rest, given[0].name  # type: ignore[return-value]

    # --- results --------------------------------------------------------------------------------

    def _output(self) -> Value:
        (output,) = self.body.outputs
        if not isinstance(output, Value):
            raise UnsupportedError("it gives no tensor")
        return output

    def _result(self, product_: Value) -> Place:
        """Where a result goes: the order of axes is found in which the output reads the product
        row by row."""
        output = self._output()
        if not equal(output.tensor.numel, product_.tensor.numel):
            raise UnsupportedError("its result is not all of the product, once")
        wanted = linear(
            (self._head(), axis_index(self.row), axis_index(self.width)), product_.tensor.shape
        )
        for axes in itertools.permutations((*self.batch, self.row, self.width)):
            position = linear([axis_index(a) for a in axes], [a.size for a in axes])
            try:
                index = delinearize(position, output.tensor.shape, self.scope.sizes)
                term = self._read(self.scope.at(output, index), output.tensor.dtype)
            except (NeedSplit, UnsupportedError):
                continue
            if term is not None and term.buffer == product_.name and term.at == wanted:
                at = offset_of(output.tensor, index)
                fresh = fresh_names(i.value.name for i in self.body.inputs)
                return Place(fresh(output.name), output.tensor.dtype, at)
        raise UnsupportedError("its result is not the product in another order")


def _carries(term: Term) -> bool:
    return isinstance(term, (Load, Convert, Round))
