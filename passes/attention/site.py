"""Finding attention by what it computes: a contraction, something done to each score, a softmax
over the keys, and a contraction with the values.

How it is spelled does not matter: from a softmax the search goes back and forth through views,
casts and elementwise operators. What is between the first contraction and the softmax is kept as
the steps that a score takes; when all of them only scale it and add to it, they are one scale and
one bias.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rewright.ir import Graph, Kind, Node, Size, Value, equal, product, runs_as
from rewright.ir.loops import zeros_of

PRODUCTS: Final = frozenset({"aten.bmm.default", "aten.mm.default", "aten.baddbmm.default"})
SOFTMAX: Final = "aten._softmax.default"
DROPOUT: Final = "aten.native_dropout.default"
BERNOULLI: Final = "aten.bernoulli.p"
_SLICE: Final = "aten.slice.Tensor"

# Operators that hand on what they are given, as a tensor of its own.
COPIES: Final = frozenset({"aten.clone.default", "aten._to_copy.default"})
# Operators that hand on what they are given, in another shape, dtype or place.
_CARRIERS: Final = frozenset(
    {
        *("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"),
        *("aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.default"),
        *("aten.expand.default", "aten.alias.default", "aten.detach.default"),
        *COPIES,
    }
)


@dataclass(frozen=True)
class Step:
    """One node between the scores and the softmax; argument `place` is the score."""

    node: Node
    place: int


@dataclass(frozen=True)
class Site:
    """`scores` = a @ b for each of `batch` and for rows and keys; `steps` lead to what `softmax` is
    taken of, `after` from it to the product with the values; one of them may be a `dropout`.
    `sinks`, when there are some, are scores [..., rows, 1] that take probability and have no value.
    `zeros` is what makes probabilities 0 in rows whose scores are all minus infinity, if anything
    does.
    """

    scores: Node
    steps: tuple[Step, ...]
    softmax: Node
    after: tuple[Node, ...]
    values: Node
    batch: tuple[Size, ...]
    sinks: Value | None = None
    zeros: Node | None = None

    @property
    def dropout(self) -> Node | None:
        return next((n for n in self.after if n.op.name == DROPOUT), None)

    @property
    def score_shape(self) -> tuple[Size, ...]:
        """Of the scores as the softmax sees them, without sinks."""
        last = self.steps[-1].node if self.steps else self.scores
        return last.result.tensor.shape

    @property
    def query(self) -> Value:
        value = self.scores.args[_first_factor(self.scores)]
        assert isinstance(value, Value)
        return value

    @property
    def key(self) -> Value:
        """[..., D, S]: transposed, as it is multiplied."""
        value = self.scores.args[_first_factor(self.scores) + 1]
        assert isinstance(value, Value)
        return value

    @property
    def value(self) -> Value:
        value = self.values.args[_first_factor(self.values) + 1]
        assert isinstance(value, Value)
        return value


def sites(graph: Graph, *, zeros: bool = False) -> Iterator[Site | tuple[Node, str]]:
    """Every attention of a graph; for a softmax that belongs to none, the node and why. With
    `zeros` also where rows without a live score are set to 0, as `scaled_dot_product_attention`
    does where it comes in its parts."""
    for node in graph.nodes:
        if node.op.name == SOFTMAX:
            is_read_once = len(graph.readers.get(node.result, ())) == 1
            found = _site(graph, node, zeros_of(graph, node) if zeros and is_read_once else None)
            yield found if isinstance(found, Site) else (node, found)


def _site(graph: Graph, softmax: Node, zeros: Node | None) -> Site | str:
    rank = softmax.result.tensor.rank
    if rank < 2 or softmax.args[1] not in (-1, rank - 1):
        return "the softmax is not over the last dimension"
    forth = _forth(graph, softmax if zeros is None else zeros)
    if isinstance(forth, str):
        return forth
    after, values = forth
    taken_of = softmax.args[0]
    assert isinstance(taken_of, Value)
    joined = _sinks(graph, taken_of, after)
    aside = None if zeros is None else graph.producers[zeros.operands[0]].operands[0]
    back = _back(graph, taken_of if joined is None else joined[0], aside)
    if isinstance(back, str):
        return back
    sinks = None if joined is None else joined[1]
    shape = softmax.result.tensor.shape
    kept = tuple(n for n in after if n.op.name != _SLICE)
    if len(kept) != len(after) and sinks is None:
        return "some of the probabilities are left out"
    site = Site(*back, softmax, kept, values, shape[:-2], sinks, zeros)
    return _misfit(site) or site


def _sinks(graph: Graph, scores: Value, after: tuple[Node, ...]) -> tuple[Value, Value] | None:
    """Scores and sinks, where a last column is joined to the scores and cut off the
    probabilities."""
    node = graph.producers.get(scores)
    cuts = [n for n in after if n.op.name == _SLICE]
    if node is None or node.op.name != "aten.cat.default" or len(cuts) != 1:
        return None
    parts, rank = node.args[0], scores.tensor.rank
    if not isinstance(parts, tuple) or len(parts) != 2 or node.arg("dim") not in (-1, rank - 1):
        return None
    own, sinks = parts
    assert isinstance(own, Value) and isinstance(sinks, Value)
    (cut,) = cuts
    whole, kept = cut.operands[0].tensor, cut.result.tensor
    is_last = cut.arg("start") == 0 and equal(kept.shape[-1], own.tensor.shape[-1])
    if sinks.tensor.shape[-1] != 1 or not is_last or not equal(whole.shape[-2], kept.shape[-2]):
        return None
    return own, sinks


# --- from the softmax to the values -------------------------------------------------------------


def _forth(graph: Graph, made: Node) -> tuple[tuple[Node, ...], Node] | str:
    """What carries the probabilities that are `made`, and the product that reads them."""
    after: list[Node] = []
    value = made.result
    while True:
        if value in graph.returned:
            return f"%{value.name} leaves the graph"
        readers = graph.readers.get(value, ())
        if len(readers) != 1:
            return f"%{value.name} has {len(readers)} readers"
        (node,) = readers
        if node.op.name in PRODUCTS:
            if node.args[_first_factor(node)] is not value:
                return f"%{value.name} is not the left factor of %{node.name}"
            return tuple(after), node
        if node.op.name == DROPOUT:
            if (why := _not_redrawn(node, after)) is not None:
                return why
        elif node.op.name not in _CARRIERS and node.op.name != _SLICE:
            return f"%{node.name} ({node.op}) does something to the probabilities"
        after.append(node)
        value = node.results[0]


def _not_redrawn(dropout: Node, after: list[Node]) -> str | None:
    """Why a dropout's mask cannot be drawn without the probabilities."""
    if runs_as(dropout) != BERNOULLI:
        return f"%{dropout.name} draws its mask as no other operator does"
    if not dropout.args[2] or any(n.op.name == DROPOUT for n in after):
        return f"%{dropout.name} ({dropout.op}) does something to the probabilities"
    return None


# --- from the softmax to the scores -------------------------------------------------------------


def _back(graph: Graph, value: Value, aside: Value | None) -> tuple[Node, tuple[Step, ...]] | str:
    """The product that makes the scores, and the steps from there to `value`, in order. What makes
    `aside` may read them, too."""
    steps: list[Step] = []
    while True:
        node = graph.producers.get(value)
        if node is None:
            return f"%{value.name} is an input, and no scores"
        readers = [r for r in graph.readers.get(value, ()) if aside not in r.results]
        if len(readers) != 1 or value in graph.returned:
            return f"%{value.name} is read by others too"
        if node.op.name in PRODUCTS:
            return node, tuple(reversed(steps))
        place = _score_among(graph, node)
        if isinstance(place, str):
            return place
        steps.append(Step(node, place))
        value = node.args[place]  # type: ignore[assignment]


def _score_among(graph: Graph, node: Node) -> int | str:
    """Which argument of an elementwise node or a view is the score: the one that comes from a
    product of matrices."""
    if node.op.kind not in (Kind.POINTWISE, Kind.VIEW):
        return f"%{node.name} ({node.op}) is not done to each score by itself"
    places = [
        place
        for place, arg in enumerate(node.args)
        if isinstance(arg, Value) and _comes_from_product(graph, arg)
    ]
    if len(places) != 1:
        return f"%{node.name} has {len(places)} operands that may be scores"
    return places[0]


def _comes_from_product(graph: Graph, value: Value) -> bool:
    """Through elementwise operators and views, a product of matrices that is as large."""
    size = value.tensor.numel
    todo, seen = [value], set[str]()
    while todo:
        current = todo.pop()
        node = graph.producers.get(current)
        if node is None or current.name in seen or not equal(current.tensor.numel, size):
            continue
        seen.add(current.name)
        if node.op.name in PRODUCTS:
            return True
        if node.op.kind in (Kind.POINTWISE, Kind.VIEW):
            todo += node.operands
    return False


# --- whether they fit together ------------------------------------------------------------------


def _misfit(site: Site) -> str | None:
    """Shapes along the way keep rows and keys apart and last, and the batch in its order."""
    rows, keys = site.score_shape[-2:]
    batch = product(site.batch)
    before = [site.scores.result, *(s.node.result for s in site.steps)]
    for value in (*before, *(n.results[0] for n in site.after)):
        shape = value.tensor.shape
        has_sinks = site.sinks is not None and value not in before
        if not equal(shape[-2], rows) or not (has_sinks or equal(shape[-1], keys)):
            return f"%{value.name} mixes rows and keys"
        if not equal(product(shape[:-2]), batch):
            return f"%{value.name} repeats or takes from the batch"
    for node in (*(s.node for s in site.steps), *site.after):
        if node.op.kind is Kind.VIEW and node.op.name not in _CARRIERS:
            return f"%{node.name} changes the order of dimensions"
    return None


def _first_factor(node: Node) -> int:
    return 1 if node.op.name == "aten.baddbmm.default" else 0
