"""From an `rw.attention` to what a kernel of it computes: where a head's queries, keys, values and
results lie, and a score as a scalar expression of the product of a query and a key.

Scores, masks and biases are no tensors there. What makes them is part of the expression, down to
what is read from memory; what repeats or turns operands is part of the places where these lie.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch

from rewright.ir.dims import Size, equal, hint
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Arg, Graph, Node, Value, fresh_names
from rewright.ir.loops.affine import Affine, Axis, NeedSplit, axis_index, delinearize, linear
from rewright.ir.loops.lower import MAX_CUTS, cut, offset_of
from rewright.ir.loops.nest import Buffer, Convert, Let, Load, Ref, Round, Term, subterms
from rewright.ir.loops.scope import Scope
from rewright.ir.loops.views import Index
from rewright.ir.numbers import number_of
from rewright.ir.pointwise import compute_dtype

SOFTMAX = "aten._softmax.default"
PRODUCT = "aten.bmm.default"
SUMS = "aten.logsumexp.default"
CAST = "aten._to_copy.default"
JOIN = "aten.cat.default"
PROBABILITIES = "its probabilities"

# Queries of a head, up to which a tile has room for those of others.
FEW: Final = 32

Lowered = TypeVar("Lowered")
Statements = tuple[tuple[Let, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Place:
    """Where an element of a matrix of one head lies: `at` over the batch's axes, a row's, and a
    column's."""

    buffer: str
    dtype: torch.dtype
    at: Affine


@dataclass(frozen=True)
class HeadNest:
    """What kernels of attention and of its gradients share. `batch` are the axes of heads; a row is
    a query, and `inner` and `width` are the axes that queries and keys, and values, have. The
    statements compute `taken`, what the softmax is taken of, from `given`, a product of a query and
    a key."""

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
class Run:
    """Keys that follow each other, `size` of them, and their values. The axis of keys is that of
    all runs; here it counts from the run's first."""

    size: Size
    keys: Place
    values: Place

    def is_shared_by(self, axis: Axis) -> bool:
        """True when all heads along an axis of the batch read the same."""
        places = (self.keys, self.values)
        return all(equal(place.at.coefficient(axis.name), 0) for place in places)


@dataclass(frozen=True)
class AttentionNest(HeadNest):
    """One kernel of attention. `sums` is where the logarithms of sums of exponentials go, when they
    are wanted. `runs` are the keys, in order, where these are joined from parts that lie apart;
    `keys` and `values` are those of the first."""

    sums: Place | None
    runs: tuple[Run, ...]

    @property
    def has_few_queries(self) -> bool:
        """At the sizes seen. What comes of pieces of the keys is kept for every query, so there had
        better be few where keys are in pieces."""
        return hint(self.row.size) <= FEW


@dataclass(frozen=True)
class Parts:
    """The two products of a body, the softmax between them, and what sums its exponentials. `zeros`
    makes probabilities 0 in rows without a live score, as kernels do anyway."""

    scores: Node
    softmax: Node
    values: Node
    sums: Node | None
    zeros: Node | None

    @property
    def probabilities(self) -> Value:
        return (self.softmax if self.zeros is None else self.zeros).result

    @property
    def all(self) -> tuple[Node, ...]:
        found = (self.scores, self.softmax, self.values, self.sums, self.zeros)
        return tuple(node for node in found if node is not None)


def parts_of(body: Graph) -> Parts:
    """Raises UnsupportedError for a body that is not a product, a softmax and a product."""
    softmaxes = [n for n in body.nodes if n.op.name == SOFTMAX]
    products = [n for n in body.nodes if n.op.name == PRODUCT]
    sums = [n for n in body.nodes if n.op.name == SUMS]
    if len(softmaxes) != 1 or len(products) != 2 or len(sums) != len(body.outputs) - 1:
        raise UnsupportedError("its body is not two products and a softmax between them")
    if sums and softmaxes[0].operands[0] not in (sums[0].operands[0], _cast_from(body, sums[0])):
        raise UnsupportedError("it sums up other scores than its softmax does")
    zeros = zeros_of(body, softmaxes[0])
    return Parts(products[0], softmaxes[0], products[1], sums[0] if sums else None, zeros)


def zeros_of(graph: Graph, softmax: Node) -> Node | None:
    """where(all(scores == -inf), 0, softmax(scores)): where rows without a live score are set to 0,
    if they are."""
    for node in graph.readers.get(softmax.result, ()):
        if node.op.name != "aten.where.self" or node.args[2] != softmax.result:
            continue
        dead, zero = (graph.producers.get(v) for v in node.operands[:2])
        if zero is not None and number_of(zero) == 0 and _is_dead(graph, dead, softmax):
            return node
    return None


def _is_dead(graph: Graph, node: Node | None, softmax: Node) -> bool:
    """True for all(scores == -inf), in a column beside the scores."""
    if node is None or node.op.name != "aten.all.dim" or not node.arg("keepdim"):
        return False
    if node.arg("dim") not in (-1, softmax.result.tensor.rank - 1):
        return False
    equals = graph.producers.get(node.operands[0])
    wanted = (softmax.args[0], -math.inf)
    return equals is not None and equals.op.name == "aten.eq.Scalar" and equals.args == wanted


def _cast_from(body: Graph, node: Node) -> Value | None:
    """What a node's operand is a cast of."""
    cast = body.producers.get(node.operands[0])
    return cast.operands[0] if cast is not None and cast.op.name == CAST else None


def lower_attention(body: Graph, name: str) -> AttentionNest:
    """What a kernel of the body of an `rw.attention` computes.

    Raises UnsupportedError with a sentence saying what stands in the way.
    """
    parts = parts_of(body)
    shape = parts.softmax.result.tensor.shape
    return cut_until_affine(shape[:-2], name, lambda batch: _Forward(body, parts, batch).nest(name))


def cut_until_affine(
    shape: Sequence[Size], name: str, lower: Callable[[Sequence[Axis]], Lowered]
) -> Lowered:
    """What `lower` makes of the axes of a batch, which are cut as its views need."""
    batch = [Axis(f"a{d}", size) for d, size in enumerate(shape)]
    for _ in range(MAX_CUTS):
        try:
            return lower(batch)
        except NeedSplit as needed:
            batch = [a for a, _ in cut([(a, False) for a in batch], needed)]
    raise UnsupportedError(f"the views of {name} cut its axes without end")


class HeadLowering:
    """One try to lower attention, over given axes of the batch. What lies between its products and
    softmaxes is evaluated as if these were there: `anchors` are all that are not looked into.
    `widths` are those of queries and keys, and of values."""

    def __init__(
        self,
        body: Graph,
        batch: Sequence[Axis],
        softmax: Node,
        widths: tuple[Size, Size],
        anchors: Sequence[Node],
    ) -> None:
        self.body = body
        shape = softmax.result.tensor.shape
        sizes = enumerate((*shape[-2:], *widths), len(shape) - 2)
        self.row, self.key, self.inner, self.width = (Axis(f"a{d}", size) for d, size in sizes)
        self.batch = tuple(batch)
        self.between = replace(body, nodes=tuple(n for n in body.nodes if n not in anchors))
        axes = (*batch, self.row, self.key, self.inner, self.width)
        self.scope = Scope(self.between, axes, frozenset(), None)

    def index(self, value: Value, *axes: Axis) -> Index:
        """Where an element of one head is, by the axes that the value has in a head."""
        index = (*map(axis_index, self.batch), *map(axis_index, axes))
        position = linear(index, [a.size for a in (*self.batch, *axes)])
        return delinearize(position, value.tensor.shape, self.scope.sizes)

    def at_head(self, value: Value, *axes: Axis) -> Ref:
        """What that element is."""
        return self.scope.at(value, self.index(value, *axes))

    # --- operands -------------------------------------------------------------------------------

    def place(self, matrix: Value, *axes: Axis) -> Place:
        """Where a factor of a product is read from."""
        return self.place_of(matrix, self.at_head(matrix, *axes), self.scope)

    def place_of(self, matrix: Value, ref: Ref, scope: Scope) -> Place:
        """The same of an element of one that `scope` knows."""
        for given in self.body.inputs:
            term = read_of(ref, given.value.tensor.dtype, scope)
            if term is not None and term.buffer == given.value.name and not term.guards:
                return Place(term.buffer, given.value.tensor.dtype, term.at)
        raise UnsupportedError(f"%{matrix.name} is computed, and not only looked at otherwise")

    def only_carries(self, value: Value, source: Value, *axes: Axis, what: str) -> None:
        """Raises UnsupportedError where something is done to a source but rounding."""
        scope = Scope(self.between, self.scope.axes, frozenset(), None, fast=True)
        scope.at(value, self.index(value, *axes))
        for made in scope.defined.values():
            for term in subterms(made.statement.term):
                if isinstance(term, Load) and term.buffer != source.name:
                    raise UnsupportedError(f"something is done to {what}")
        if not all(_carries(made.statement.term) for made in scope.defined.values()):
            raise UnsupportedError(f"something is done to {what}")

    # --- scores ---------------------------------------------------------------------------------

    def statements(self, wanted: Sequence[Ref], given: Sequence[Value]) -> Statements:
        """What the wanted scalars need, in order, and which scalars elements of `given` are, of
        which no other may be read."""
        needed, todo = set[str](), [ref.name for ref in wanted]
        while todo:
            name = todo.pop()
            if name not in needed:
                needed.add(name)
                terms = subterms(self.scope.defined[name].statement.term)
                todo += [t.name for t in terms if isinstance(t, Ref)]
        made = [d.statement for n, d in self.scope.defined.items() if n in needed]
        names = {value.name for value in given}
        reads = [s for s in made if isinstance(s.term, Load) and s.term.buffer in names]
        of = {s.term.buffer: s.name for s in reads if isinstance(s.term, Load)}
        if len(reads) != len(of) or len(of) != len(given):
            raise UnsupportedError("its scores depend on other scores too")
        rest = tuple(s for s in made if s not in reads)
        assert all(isinstance(s, Let) for s in rest)
        return rest, tuple(of[value.name] for value in given)  # type: ignore[return-value]

    # --- results --------------------------------------------------------------------------------

    def result(self, output: Arg, made: Value, *axes: Axis) -> Place:
        """Where a result goes, of which `made` has [heads, *axes]: the order of axes is found in
        which the output reads it row by row."""
        if not isinstance(output, Value):
            raise UnsupportedError("it gives no tensor")
        if not equal(output.tensor.numel, made.tensor.numel):
            raise UnsupportedError("its result is not all of the product, once")
        every = (*self.batch, *axes)
        wanted = linear([axis_index(a) for a in every], [a.size for a in every])
        return self.place_read(output, made, wanted, every)

    def place_read(
        self, output: Value, made: Value, wanted: Affine, every: Sequence[Axis]
    ) -> Place:
        """Where the element of an output is that reads `made` at the place `wanted`."""
        for axes in itertools.permutations(every):
            position = linear([axis_index(a) for a in axes], [a.size for a in axes])
            try:
                index = delinearize(position, output.tensor.shape, self.scope.sizes)
                term = read_of(self.scope.at(output, index), output.tensor.dtype, self.scope)
            except (NeedSplit, UnsupportedError):
                continue
            if term is not None and term.buffer == made.name and term.at == wanted:
                at = offset_of(output.tensor, index)
                return Place(self.buffer(output), output.tensor.dtype, at)
        raise UnsupportedError("its result is not the product in another order")

    def buffer(self, output: Value) -> str:
        """The name of the buffer of a result, which is none of an input's."""
        fresh = fresh_names(i.value.name for i in self.body.inputs)
        names = {v: fresh(v.name) for v in self.body.outputs if isinstance(v, Value)}
        return names[output]

    def inputs(self) -> tuple[Buffer, ...]:
        return tuple(Buffer(i.value.name, i.value.tensor) for i in self.body.inputs)

    def outputs(self) -> tuple[Buffer, ...]:
        outputs = (v for v in self.body.outputs if isinstance(v, Value))
        return tuple(Buffer(self.buffer(v), v.tensor) for v in outputs)


class _Forward(HeadLowering):
    """Attention, and the logarithms of its sums."""

    def __init__(self, body: Graph, parts: Parts, batch: Sequence[Axis]) -> None:
        ends = parts.scores.operands[0], parts.values.result
        widths = ends[0].tensor.shape[-1], ends[1].tensor.shape[-1]
        self.joined = {n.result: n for n in body.nodes if n.op.name == JOIN}
        super().__init__(body, batch, parts.softmax, widths, [*parts.all, *self.joined.values()])
        self.parts = parts

    def nest(self, name: str) -> AttentionNest:
        parts = self.parts
        scores, softmax, values = parts.scores, parts.softmax, parts.values
        query, key = scores.operands
        weights, value = values.operands
        self.only_carries(weights, parts.probabilities, self.row, self.key, what=PROBABILITIES)
        taken = self.at_head(softmax.operands[0], self.row, self.key)
        queries, runs = self.place(query, self.row, self.inner), self.runs(key, value)
        statements, (given,) = self.statements([taken], [scores.result])
        held = {i.value.name for i in self.body.inputs}
        if any(
            t.buffer not in held
            for s in statements
            for t in subterms(s.term)
            if isinstance(t, Load)
        ):
            raise UnsupportedError("its scores read what is joined")
        results = self.result(self.body.outputs[0], values.result, self.row, self.width)
        sums = None
        if self.parts.sums is not None:
            sums = self.result(self.body.outputs[1], self.parts.sums.result, self.row)
            if sums.dtype != compute_dtype(queries.dtype):
                raise UnsupportedError("its sums are of another type than it is computed in")
        axes = (self.batch, self.row, self.key, self.inner, self.width)
        nodes = tuple(n.name for n in self.body.nodes)
        return AttentionNest(
            *(name, *axes, queries, runs[0].keys, runs[0].values, results, given, taken),
            *(statements, self.inputs(), self.outputs(), nodes, sums, runs),
        )

    def runs(self, key: Value, value: Value) -> tuple[Run, ...]:
        """The parts that keys are joined from, and values with them."""
        keys = self.parts_at(key, self.at_head(key, self.inner, self.key), self.scope)
        values = self.parts_at(value, self.at_head(value, self.key, self.width), self.scope)
        if len(keys) != len(values):
            raise UnsupportedError("keys and values are not joined alike")
        runs = tuple(Run(n, k, v) for (n, k), (_, v) in zip(keys, values, strict=True))
        if not all(equal(n, m) for (n, _), (m, _) in zip(keys, values, strict=True)):
            raise UnsupportedError("keys and values are not joined alike")
        first = runs[0]
        if any(
            (r.keys.dtype, r.values.dtype) != (first.keys.dtype, first.values.dtype) for r in runs
        ):
            raise UnsupportedError("what its keys are joined from is not of one type")
        return runs

    def parts_at(self, matrix: Value, ref: Ref, scope: Scope) -> list[tuple[Size, Place]]:
        """Where a factor is read from, and how many keys from there."""
        size = scope.sizes[self.key.name]
        for joined in self.joined:
            term = read_of(ref, joined.tensor.dtype, scope)
            if term is not None and term.buffer == joined.name and not term.guards:
                return self.joined_parts(self.joined[joined], term.at, scope)
        return [(size, self.place_of(matrix, ref, scope))]

    def joined_parts(self, cat: Node, at: Affine, scope: Scope) -> list[tuple[Size, Place]]:
        """The same of an element of what is joined along the keys."""
        parts, dim = cat.args[0], cat.arg("dim")
        type, axis = cat.result.tensor, axis_index(self.key)
        assert isinstance(parts, tuple) and isinstance(dim, int)
        if not type.is_contiguous:
            raise UnsupportedError(f"%{cat.name} does not lie row by row")
        index, dim = delinearize(at, type.shape, scope.sizes), dim % type.rank
        along = frozenset({self.key.name})
        if index[dim] != axis or any(i.reads(along) for d, i in enumerate(index) if d != dim):
            raise UnsupportedError(f"%{cat.name} joins other things than keys")
        found: list[tuple[Size, Place]] = []
        for part in parts:
            assert isinstance(part, Value)
            size = part.tensor.shape[dim]
            if equal(size, 0):
                continue
            own = Axis(self.key.name, size)
            inner = Scope(
                self.between,
                [own if a == self.key else a for a in self.scope.axes],
                frozenset(),
                None,
            )
            ref = inner.at(part, (*index[:dim], axis_index(own), *index[dim + 1 :]))
            found += self.parts_at(part, ref, inner)
        return found


def read_of(ref: Ref, dtype: torch.dtype, scope: Scope) -> Load | None:
    """The read that a value is, as a tensor of `dtype` holds it."""
    term: Term = ref
    while not isinstance(term, Load):
        if isinstance(term, Ref):
            term = scope.defined[term.name].statement.term
        elif isinstance(term, Round) and term.storage == dtype:
            term = term.arg
        else:
            return None
    return term


def _carries(term: Term) -> bool:
    return isinstance(term, (Load, Convert, Round))
