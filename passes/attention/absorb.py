"""Taking into an attention's body what is around it: masks and biases that are cheap to compute
where they are needed, and views and copies of queries, keys, values and results."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from typing import Final

from rewright.ir import Graph, Input, Kind, Node, UnsupportedError, Value, fresh_names, hint
from rewright.ir.effects import effects_of
from rewright.ir.loops import JOIN, OPERATORS, is_view, lower_attention_backward
from rewright.ir.work import flops
from rewright.passes.attention.backward import BACKWARD
from rewright.passes.attention.site import COPIES

# Nodes that one operand may bring along, and arithmetic on an element that is worth repeating for
# every head rather than reading the result.
MOST_NODES: Final = 48
MOST_WORK: Final = 16

SUM: Final = "aten.sum.dim_IntList"
# What makes keys or values of parts, or of the same ones again.
_JOINED: Final = (JOIN, "aten.repeat.default")

# Results whose copies a kernel makes, each by itself.
_COPIES: Final = tuple(((place,), False) for place in range(3))

# What makes an element of one element, besides pointwise operators.
_ELEMENTWISE: Final = frozenset({"aten.tril.default", "aten.triu.default", *COPIES})


class Absorber:
    """Knows one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._producers = graph.producers
        self._cheaply: dict[Value, list[Node]] = {}  # layers share masks, and masks have diamonds
        self._places = {node.name: place for place, node in enumerate(graph.nodes)}

    def absorbed(self, attention: Node, *, joined: bool = False) -> Node:
        """The same attention, or gradient of one, over what its operands are made of; with
        `joined`, over the parts that keys and values are joined from, too."""
        operands = [v for v in attention.args if isinstance(v, Value)]
        is_backward = attention.op.name == BACKWARD
        matrices, kept = (4, 2) if is_backward else (3, 0)
        inside: dict[str, Node] = {}
        for place, value in enumerate(operands[: len(operands) - kept]):
            if place >= matrices:
                taken = self._cheap(value)
            else:
                taken = self.carriers(value, joined=joined and place in (1, 2))
            inside |= {node.name: node for node in taken}
        if not inside:
            return attention
        nodes = sorted(inside.values(), key=lambda node: self._places[node.name])
        return _with_nodes(attention, operands, nodes, kept)

    def carriers(self, value: Value, *, joined: bool = False) -> list[Node]:
        """What hands a value on in another shape, or as a tensor of its own; with `joined`, also
        what joins it, and what hands its parts on."""
        found: dict[str, Node] = {}
        todo = [value]
        while todo:
            node = self._producers.get(todo.pop())
            if node is None or node.name in found:
                continue
            if is_view(node) or _is_copy(node) or (joined and node.op.name in _JOINED):
                found[node.name] = node
                todo += node.operands
        return list(found.values())

    def with_copy(
        self, attention: Node, place: int = 0, *, sums: bool = False
    ) -> tuple[Node, Node | None]:
        """The attention that makes what one of its results is copied to, and that copy; or what it
        is added up to."""
        is_end = _is_sum if sums else _is_copy
        chain: list[Node] = []
        value = attention.results[place]
        while not chain or not is_end(chain[-1]):
            readers = self._graph.readers.get(value, ())
            if len(readers) != 1 or value in self._graph.returned:
                return attention, None
            (node,) = readers
            if len(node.results) != 1 or not (is_view(node) or is_end(node)):
                return attention, None
            chain.append(node)
            value = node.result
        return _ended_in(attention, place, chain), chain[-1]

    def with_copies(self, gradient: Node) -> tuple[Node, set[str]]:
        """A gradient that has a kernel, with as many copies and sums of its results as that can
        make, and these. Raises UnsupportedError when it has none."""
        lower_attention_backward(gradient.graph("body"), "attention")
        ended: set[str] = set()
        # Heads that share keys share values: either both gradients are added up, or none.
        for places, sums in (*_COPIES, ((1, 2), True), *_COPIES):
            with suppress(UnsupportedError):
                while (found := self._longer(gradient, places, sums)) is not None:
                    lower_attention_backward(found[0].graph("body"), "attention")
                    gradient = found[0]
                    ended |= found[1]
        return gradient, ended

    def _longer(
        self, gradient: Node, places: tuple[int, ...], sums: bool
    ) -> tuple[Node, set[str]] | None:
        """The gradient up to the next copy, or sum, of all these results, and these."""
        ends = set()
        for place in places:
            gradient, end = self.with_copy(gradient, place, sums=sums)
            if end is None:
                return None
            ends.add(end.name)
        return gradient, ends

    def _cheap(self, value: Value) -> list[Node]:
        """What computes a value of no more bytes than it has."""
        if value not in self._cheaply:
            self._cheaply[value] = self._found_cheap(value)
        return self._cheaply[value]

    def _found_cheap(self, value: Value) -> list[Node]:
        node = self._producers.get(value)
        if node is None or effects_of(node) or len(node.results) != 1:
            return []
        if is_view(node):
            return [node, *self._cheap(node.operands[0])]
        if node.op.kind is Kind.CREATION:
            return [node] if node.op.name in OPERATORS and not node.operands else []
        if node.op.kind is not Kind.POINTWISE and node.op.name not in _ELEMENTWISE:
            return []
        taken = {n.name: n for operand in node.operands for n in self._cheap(operand)}
        found = [node, *taken.values()]
        read = sum(hint(leaf.tensor.nbytes) for leaf in _leaves(found))
        if len(found) > MOST_NODES or _work(found) > MOST_WORK:
            return []
        return found if read <= hint(node.result.tensor.nbytes) else []


def _is_copy(node: Node) -> bool:
    return node.op.name in COPIES and node.result.tensor.dtype == node.operands[0].tensor.dtype


def _is_sum(node: Node) -> bool:
    return node.op.name == SUM


def _leaves(nodes: list[Node]) -> list[Value]:
    made = {v for node in nodes for v in node.results}
    return [v for v in dict.fromkeys(v for n in nodes for v in n.operands) if v not in made]


def _work(nodes: list[Node]) -> float:
    """Operations an element of the largest of the results takes, about."""
    most = max(hint(n.result.tensor.numel) for n in nodes)
    return sum(hint(flops(n)) for n in nodes) / max(most, 1)


def _with_nodes(attention: Node, operands: list[Value], nodes: list[Node], kept: int = 0) -> Node:
    """With nodes in its body; its last `kept` operands stay the last."""
    body = attention.graph("body")
    fresh = fresh_names(v.name for v in body.values)
    made = {v for node in nodes for v in node.results}
    last = operands[len(operands) - kept :]
    before_last = operands[: len(operands) - kept]
    read = dict.fromkeys([*before_last, *(v for node in nodes for v in node.operands), *last])
    inputs = {v: Value(fresh(v.name), v.type) for v in read if v not in made}
    inner: dict[Value, Value] = dict(inputs)
    taken = []
    for node in nodes:
        inner |= {v: Value(fresh(v.name), v.type) for v in node.results}
        results = tuple(inner[v] for v in node.results)
        taken.append(dataclasses.replace(node.replace(inner), results=results))
    given = (i.value for i in body.inputs)
    before = {own: inner[outer] for own, outer in zip(given, operands, strict=True)}
    renamed = body.substitute(before)
    new = dataclasses.replace(
        renamed,
        inputs=tuple(Input(v) for v in inputs.values()),
        nodes=(*taken, *(node.replace(before) for node in body.nodes)),
    )
    return dataclasses.replace(attention, args=tuple(inputs), graphs=(("body", new),))


def _ended_in(attention: Node, place: int, chain: list[Node]) -> Node:
    body = attention.graph("body")
    outputs, results = list(body.outputs), list(attention.results)
    output = outputs[place]
    assert isinstance(output, Value)
    fresh = fresh_names(v.name for v in body.values)
    inner = {results[place]: output}
    added = []
    for node in chain:
        inner[node.result] = Value(fresh(node.result.name), node.result.type)
        added.append(dataclasses.replace(node.replace(inner), results=(inner[node.result],)))
    results[place] = chain[-1].result
    outputs[place] = inner[results[place]]
    new = dataclasses.replace(body, nodes=(*body.nodes, *added), outputs=tuple(outputs))
    return dataclasses.replace(attention, results=tuple(results), graphs=(("body", new),))
