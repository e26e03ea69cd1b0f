"""The gradient of a site in a joint graph: what autograd made of it, node by node.

Autograd's nodes are found by what they read: the product's gradient multiplies with the transposed
factors, the softmax's is an operator of its own, and each step's is undone in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from rewright.ir import Graph, Kind, Node, Value
from rewright.passes.attention.site import COPIES, PRODUCTS, Site

SOFTMAX_BACKWARD: Final = "aten._softmax_backward_data.default"
_TURNS: Final = ("aten.permute.default", "aten.transpose.int", "aten.t.default")


@dataclass(frozen=True)
class Gradient:
    """`given` is the gradient of what the site makes. The products that make the gradients of
    queries [N, T, D], keys and values; `key_is_turned`: that of keys is [N, D, S]."""

    given: Value
    query: Node
    key: Node
    value: Node
    key_is_turned: bool
    inside: frozenset[str]


class NotFound(Exception):
    """The backward of a site is not what autograd makes of it. The message says where."""


def gradient_of(site: Site, graph: Graph) -> Gradient:
    """Raises NotFound."""
    return _Search(site, graph).run()


class _Search:
    def __init__(self, site: Site, graph: Graph) -> None:
        self.site, self.graph = site, graph
        self.inside: set[str] = set()

    def run(self) -> Gradient:
        value, given = self.gradient_of_values()
        scores = self.gradient_of_scores(given)
        query, key, turned = self.gradients_of_factors(scores)
        return Gradient(given, query, key, value, turned, frozenset(self.inside))

    def gradient_of_values(self) -> tuple[Node, Value]:
        """dV = P^T dO."""
        weights = self.site.values.args[0]
        assert isinstance(weights, Value)
        for turned in self.turns_of(weights):
            for reader in self.backward(turned):
                if reader.op.name in PRODUCTS and reader.args[0] is turned:
                    given = reader.args[1]
                    assert isinstance(given, Value)
                    self.inside |= {turned.name, reader.result.name}
                    return reader, given
        raise NotFound("nothing multiplies the transposed probabilities")

    def gradient_of_scores(self, given: Value) -> Value:
        """Through dP = dO V^T and the softmax, back to what the scores' product gets."""
        before = set(self.inside)
        for product in self.backward(given):
            if product.op.name in PRODUCTS and product.args[0] is given:
                value = self.through(product.result, SOFTMAX_BACKWARD)
                if value is not None and self.is_own(value):
                    return self.through_steps(value)
                self.inside = set(before)  # of another site, whose result has the same gradient
        raise NotFound("the gradient does not reach a softmax")

    def is_own(self, value: Value) -> bool:
        """Whether the gradient of a softmax is that of the site's."""
        read = self.graph.producers[value].args[1]
        while isinstance(read, Value) and read != self.site.softmax.result:
            node = self.graph.producers.get(read)
            carries = node is not None and (node.op.kind is Kind.VIEW or node.op.name in COPIES)
            read = node.args[0] if node is not None and carries else None
        return read is not None

    def through(self, value: Value, wanted: str) -> Value | None:
        """From a value through views and casts to the result of an operator that reads it."""
        self.inside.add(value.name)
        while True:
            readers = list(self.backward(value))
            if len(readers) != 1:
                return None
            (node,) = readers
            self.inside |= {v.name for v in node.results}
            value = node.result
            if node.op.name == wanted:
                return value
            if node.op.kind is not Kind.VIEW and node.op.name not in COPIES:
                return None

    def through_steps(self, value: Value) -> Value:
        """Back through the gradients of the steps, each of one reader, to what products read."""
        while True:
            readers = list(self.backward(value))
            if len(readers) != 1:
                return value
            (node,) = readers
            if node.op.kind not in (Kind.VIEW, Kind.POINTWISE):
                raise NotFound(f"%{node.name} ({node.op}) also gets the gradient of the scores")
            self.inside |= {v.name for v in node.results}
            value = node.result

    def gradients_of_factors(self, scores: Value) -> tuple[Node, Node, bool]:
        """dQ = dS K and dK = dS^T Q, or its transpose Q^T dS."""
        query: Node | None = None
        key: Node | None = None
        turned = False
        for reader in self.backward(scores):
            self.inside |= {v.name for v in reader.results}
            if reader.op.name in PRODUCTS and reader.args[0] is scores:
                query = reader
            elif reader.op.name in PRODUCTS:
                key, turned = reader, True
            elif reader.op.name in _TURNS:
                key = self.only_product(reader.result)
            else:
                raise NotFound(f"%{reader.name} ({reader.op}) also gets the gradient of the scores")
        if query is None or key is None:
            raise NotFound("queries or keys get no gradient")
        return query, key, turned

    def only_product(self, value: Value) -> Node:
        readers = list(self.backward(value))
        if len(readers) != 1 or readers[0].op.name not in PRODUCTS:
            raise NotFound(f"%{value.name} is read by others too")
        self.inside |= {v.name for v in readers[0].results}
        return readers[0]

    # --- readers --------------------------------------------------------------------------------

    def backward(self, value: Value) -> Iterator[Node]:
        readers = self.graph.readers.get(value, ())
        return (node for node in readers if node.phase == "backward")

    def turns_of(self, value: Value) -> Iterator[Value]:
        """The value transposed, by whoever does so."""
        for reader in self.graph.readers.get(value, ()):
            if reader.op.name in _TURNS:
                yield reader.result
