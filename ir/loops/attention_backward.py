"""From an `rw.attention_backward` to what a kernel of it computes.

Beside what attention.py says of a head, these are the gradient of a product of a query and a key as
a scalar expression of that of what the softmax is taken of, and which heads of queries share keys:
gradients of keys and values are sums over these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewright.ir.dims import Size, equal, product
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Arg, Graph, Node, Value
from rewright.ir.loops.affine import Affine, Axis, axis_index, delinearize, linear
from rewright.ir.loops.attention import (
    CAST,
    PROBABILITIES,
    PRODUCT,
    SOFTMAX,
    HeadLowering,
    HeadNest,
    Place,
    cut_until_affine,
    read_of,
)
from rewright.ir.loops.nest import Let, Load, Ref
from rewright.ir.loops.views import VIEWS
from rewright.ir.pointwise import compute_dtype

MUL = "aten.mul.Tensor"
SUM = "aten.sum.dim_IntList"
_CARRIERS = frozenset({"aten.clone.default", CAST})
# A sum of exponentials whose logarithm is less is of a large finite mask (codegen/cpp/ranges.h).
LIVE = -1e32

Axes = tuple[Axis, ...]


@dataclass(frozen=True)
class AttentionBackwardNest(HeadNest):
    """One kernel of the gradients of attention. The last axes of its batch are those in `group`,
    over which gradients of keys and values are added up. `outer` is the gradient of `results`, and
    `sums` are the logarithms that the forward gave. The statements also compute `slope`, the
    gradient of a product of a query and a key, from `grad`, that of `taken`."""

    group: tuple[Axis, ...]
    outer: Place
    sums: Place
    to_queries: Place
    to_keys: Place
    to_values: Place
    grad: str
    slope: Ref


@dataclass(frozen=True)
class _Made:
    """A gradient that leaves: the product that makes it, and the sum over heads on its way."""

    output: Value
    product: Node
    sum: Node | None


@dataclass(frozen=True)
class _Parts:
    """The products of a body and its softmax, there and back: of queries and keys, of the gradient
    of results and values, and what the gradients of queries, keys and values come from.
    `probabilities` are those that the forward's sums say, and `back` is the gradient of what the
    softmax is taken of: they times what their own gradient has over `mean`."""

    scores: Node
    softmax: Node
    probabilities: Node
    weights: Node
    mean: Node
    back: Node
    query: _Made
    key: _Made
    value: _Made

    @property
    def anchors(self) -> list[Node]:
        made = (self.query, self.key, self.value)
        own = [self.scores, self.softmax, self.probabilities, self.weights, self.back]
        sums = [m.sum for m in made if m.sum is not None]
        return [*own, *sums, *(m.product for m in made)]


def _parts(body: Graph) -> _Parts:
    softmax = _only(n for n in body.nodes if n.op.name == SOFTMAX)
    chosen = (n for n in body.nodes if n.op.name == "aten.where.self")
    probabilities = _only(n for n in chosen if _uncast(body, n.operands[2]) == softmax.result)
    scaled = (n for n in body.nodes if n.op.name == MUL)
    back = _only(n for n in scaled if n.operands[0] == probabilities.result)
    query, key, value = (_made(body, output) for output in body.outputs)
    last = {query.product.name, key.product.name, value.product.name}
    first = [n for n in body.nodes if n.op.name == PRODUCT and n.name not in last]
    if len(first) != 2 or len(last) != 3:
        raise UnsupportedError("its body is not five products around a softmax and its gradient")
    less = body.producers.get(back.operands[1])
    mean = None if less is None else body.producers.get(less.operands[1])
    if mean is None or mean.op.name != SUM:
        raise UnsupportedError("its gradients have nothing over a mean")
    return _Parts(first[0], softmax, probabilities, first[1], mean, back, query, key, value)


def _only(nodes: Iterable[Node]) -> Node:
    found = list(nodes)
    if len(found) != 1:
        raise UnsupportedError("its body is not a softmax and its gradient")
    return found[0]


def _uncast(body: Graph, value: Value) -> Value:
    node = body.producers.get(value)
    return node.operands[0] if node is not None and node.op.name == CAST else value


def _made(body: Graph, output: Arg) -> _Made:
    """From a result back to its product, through what carries it and one sum."""
    value, sum_ = output, None
    assert isinstance(value, Value)
    while True:
        node = body.producers.get(value)
        if node is not None and node.op.name == PRODUCT:
            assert isinstance(output, Value)
            return _Made(output, node, sum_)
        if node is not None and node.op.name == SUM and sum_ is None:
            sum_ = node
        elif node is None or not (node.op.name in VIEWS or node.op.name in _CARRIERS):
            raise UnsupportedError(f"%{value.name} is not what a product makes")
        value = node.operands[0]


def lower_attention_backward(body: Graph, name: str) -> AttentionBackwardNest:
    """What a kernel of the body of an `rw.attention_backward` computes.

    Raises UnsupportedError with a sentence saying what stands in the way.
    """
    parts = _parts(body)
    shape = parts.softmax.result.tensor.shape[:-2]
    return cut_until_affine(shape, name, lambda batch: _Backward(body, parts, batch).nest(name))


class _Backward(HeadLowering):
    def __init__(self, body: Graph, parts: _Parts, batch: Sequence[Axis]) -> None:
        factors = parts.scores.operands[0], parts.weights.operands[0]
        widths = factors[0].tensor.shape[-1], factors[1].tensor.shape[-1]
        super().__init__(body, batch, parts.softmax, widths, parts.anchors)
        self.parts = parts

    def nest(self, name: str) -> AttentionBackwardNest:
        queries, keys, values, outer = self._factors()
        taken, slope, statements, (given, grad) = self._scores()
        group = self._group(keys)
        results, sums = self._of_forward(outer)
        if sums.dtype != compute_dtype(queries.dtype):
            raise UnsupportedError("its sums are of another type than it is computed in")
        to_query = self.result(
            self.parts.query.output, self.parts.query.product.result, self.row, self.inner
        )
        to_key, to_value = (
            self._added_up(self.parts.key, group, self.inner),
            self._added_up(self.parts.value, group, self.width),
        )
        batch = (*(a for a in self.batch if a not in group), *group)
        axes = (batch, self.row, self.key, self.inner, self.width)
        nodes = tuple(n.name for n in self.body.nodes)
        return AttentionBackwardNest(
            *(name, *axes, queries, keys, values, results, given, taken, statements),
            *(self.inputs(), self.outputs(), nodes),
            group=group,
            outer=outer,
            sums=sums,
            to_queries=to_query,
            to_keys=to_key,
            to_values=to_value,
            grad=grad,
            slope=slope,
        )

    def _factors(self) -> tuple[Place, Place, Place, Place]:
        """Queries, keys, values and the gradient of results, each of which two products read."""
        parts, row, key = self.parts, self.row, self.key
        found = {
            "queries": (
                self.place(parts.scores.operands[0], row, self.inner),
                self.place(parts.key.product.operands[1], row, self.inner),
            ),
            "keys": (
                self.place(parts.scores.operands[1], self.inner, key),
                self.place(parts.query.product.operands[1], key, self.inner),
            ),
            "values": (self.place(parts.weights.operands[1], self.width, key),) * 2,
            "gradients of results": (
                self.place(parts.weights.operands[0], row, self.width),
                self.place(parts.value.product.operands[1], row, self.width),
            ),
        }
        for what, (one, other) in found.items():
            if one != other:
                raise UnsupportedError(f"its products do not read the same {what}")
        queries, keys, values, outer = (one for one, _ in found.values())
        return queries, keys, values, outer

    def _scores(self) -> tuple[Ref, Ref, tuple[Let, ...], tuple[str, ...]]:
        """What the softmax is taken of, the gradient of a product, and what these need."""
        parts, row, key = self.parts, self.row, self.key
        gradient = self.body.producers[parts.back.operands[1]].operands[0]
        weights, made = parts.value.product.operands[0], parts.probabilities.result
        self.only_carries(gradient, parts.weights.result, row, key, what="their gradients")
        self.only_carries(weights, made, key, row, what=PROBABILITIES)
        taken = self.at_head(parts.softmax.operands[0], row, key)
        slope = self.at_head(parts.query.product.operands[0], row, key)
        if self.at_head(parts.key.product.operands[0], key, row) != slope:
            raise UnsupportedError("its products do not read the same gradient of scores")
        read = (parts.scores.result, parts.back.result)
        return taken, slope, *self.statements([taken, slope], read)

    def _told(self) -> Value:
        """The sums from which probabilities are computed again: exp(score - sum), where the sum is
        not that of a large finite mask."""
        parts, made = self.parts, self.body.producers
        is_told, again, _ = parts.probabilities.operands
        compared, exp = made.get(is_told), made.get(again)
        less = None if exp is None else made.get(exp.operands[0])
        names = [n.op.name for n in (compared, exp, less) if n is not None]
        if names != ["aten.gt.Scalar", "aten.exp.default", "aten.sub.Tensor"]:
            raise UnsupportedError("its probabilities are not those that sums say")
        assert compared is not None and less is not None
        taken = _uncast(self.body, parts.softmax.operands[0])
        if _uncast(self.body, less.operands[0]) != taken or compared.args[1] != LIVE:
            raise UnsupportedError("its probabilities are of other scores")
        if compared.operands[0] != less.operands[1]:
            raise UnsupportedError("its probabilities are told by other sums")
        return less.operands[1]

    def _of_forward(self, outer: Place) -> tuple[Place, Place]:
        """Results of the forward, whose products with their gradients have the mean of the
        probabilities' gradients, and its sums."""
        factors = self.body.producers.get(self.parts.mean.operands[0])
        if factors is None or factors.op.name != MUL or _dims(self.parts.mean) != (3,):
            raise UnsupportedError("its mean is not that of products")
        given, results = (
            self.place(_uncast(self.body, x), self.row, self.width) for x in factors.operands
        )
        if given != outer:
            raise UnsupportedError("its products do not read the same gradients of results")
        return results, self.place(self._told(), self.row)

    # --- gradients of keys and values -----------------------------------------------------------

    def _group(self, keys: Place) -> Axes:
        """The axes of heads that share keys, where gradients are added up over some."""
        sums = (self.parts.key.sum, self.parts.value.sum)
        if sums == (None, None):
            return ()
        group = tuple(a for a in self.batch if a.size != 1 and keys.at.coefficient(a.name) == 0)
        for node in sums:
            if node is None or not equal(_summed(node), product(a.size for a in group)):
                raise UnsupportedError("its gradients are added up otherwise than it shares keys")
        return group

    def _added_up(self, made: _Made, group: Axes, width: Axis) -> Place:
        if made.sum is None:
            return self.result(made.output, made.product.result, self.key, width)
        left = (*(a for a in self.batch if a not in group), self.key, width)
        into = made.sum.result
        if not equal(made.output.tensor.numel, into.tensor.numel):
            raise UnsupportedError("its result is not all of the sum, once")
        self._sums_over(made.sum, group, left, self._element(made.product.result, self.key, width))
        order = linear([axis_index(a) for a in left], [a.size for a in left])
        return self.place_read(made.output, into, order, left)

    def _sums_over(self, node: Node, group: Axes, left: Axes, wanted: Load) -> None:
        """Raises UnsupportedError unless a sum takes the heads of each group together."""
        taken, dims = node.operands[0], _dims(node)
        kept = tuple(d for d in range(taken.tensor.rank) if d not in dims)
        index = self._along(left, taken, kept) | self._along(group, taken, dims)
        found = self.scope.at(taken, tuple(index[d] for d in sorted(index)))
        if read_of(found, taken.tensor.dtype, self.scope) != wanted:
            raise UnsupportedError("its gradients are added up over other heads")

    def _element(self, made: Value, *axes: Axis) -> Load:
        """A read of what a product makes."""
        every = (*self.batch, *axes)
        at = linear([axis_index(a) for a in every], [a.size for a in every])
        return Load(made.name, at, compute_dtype(made.tensor.dtype), ())

    def _along(self, axes: Axes, value: Value, dims: tuple[int, ...]) -> dict[int, Affine]:
        """The index into some dimensions of a value that axes run over."""
        position = linear([axis_index(a) for a in axes], [a.size for a in axes])
        sizes = [value.tensor.shape[d] for d in dims]
        return dict(zip(dims, delinearize(position, sizes, self.scope.sizes), strict=True))


def _dims(node: Node) -> tuple[int, ...]:
    """The dimensions that a sum is over."""
    dims, rank = node.args[1], node.operands[0].tensor.rank
    if not isinstance(dims, tuple) or not dims:
        raise UnsupportedError("its gradients are added up as a whole")
    return tuple(sorted(d % rank for d in dims if isinstance(d, int)))


def _summed(node: Node) -> Size:
    return product(node.operands[0].tensor.shape[d] for d in _dims(node))
