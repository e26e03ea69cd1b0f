"""Do it: a group of nodes as one `rw.fused` node with a body."""

from __future__ import annotations

from collections.abc import Sequence

from rewright.ir import Graph, Input, Kind, Node, Value, op
from rewright.ir.loops import VIEWS


def make_region(graph: Graph, members: Sequence[Node], extra: Sequence[Node] = ()) -> Node:
    """The region of `members` (in order). `extra` are nodes copied into it: views and constants
    that they read, already in front of their readers. Results are the values read elsewhere."""
    inside = {v for node in (*members, *extra) for v in node.results}
    outputs = tuple(v for node in members for v in node.results if _leaves(graph, v, members))
    wanted = {id(node) for node in (*members, *extra)}
    body_nodes = tuple(node for node in graph.nodes if id(node) in wanted)
    operands = dict.fromkeys(v for node in body_nodes for v in node.operands if v not in inside)
    body = Graph("body", tuple(Input(v) for v in operands), body_nodes, outputs)
    last = members[-1]
    return Node(
        op=op("rw.fused"),
        args=tuple(operands),
        kwargs=(),
        results=outputs,
        graphs=(("body", body),),
        loc=last.loc,
        seq_nr=last.seq_nr,
        phase=last.phase,
    )


def _leaves(graph: Graph, value: Value, members: Sequence[Node]) -> bool:
    """True when something outside the region reads the value, itself or through a view of it."""
    inside = {id(node) for node in members}
    todo = [value]
    while todo:
        value = todo.pop()
        if value in graph.returned:
            return True
        for reader in graph.readers.get(value, ()):
            if is_view(reader):
                todo += reader.results
            elif id(reader) not in inside:
                return True
    return False


def copied_nodes(graph: Graph, members: Sequence[Node], *, views_of_outside: bool) -> list[Node]:
    """Views and creations that the members read and that cost nothing inside the region.

    A view of a value made outside is copied only with `views_of_outside`; otherwise the region
    takes the view itself as a strided input.
    """
    own = {v for node in members for v in node.results}
    copied: dict[int, Node] = {}
    todo = [v for node in members for v in node.operands]
    while todo:
        value = todo.pop()
        node = graph.producers.get(value)
        if node is None or value in own or id(node) in copied:
            continue
        if not is_free(node):
            continue
        if is_view(node) and not views_of_outside and _root(graph, value) not in own:
            continue
        copied[id(node)] = node
        todo += node.operands
    return [node for node in graph.nodes if id(node) in copied]


def _root(graph: Graph, value: Value) -> Value:
    """The value behind a chain of views."""
    node = graph.producers.get(value)
    while node is not None and is_view(node) and node.operands:
        value = node.operands[0]
        node = graph.producers.get(value)
    return value


def is_view(node: Node) -> bool:
    return node.op.kind is Kind.VIEW and node.op.name in VIEWS


def is_free(node: Node) -> bool:
    """A node that every region may copy: it costs no memory traffic inside a kernel."""
    return is_view(node) or node.op.name in FREE_CREATIONS


FREE_CREATIONS = frozenset(
    {
        "aten.full.default",
        "aten.zeros.default",
        "aten.ones.default",
        "aten.new_full.default",
        "aten.new_zeros.default",
        "aten.new_ones.default",
        "aten.scalar_tensor.default",
        "aten.arange.default",
        "aten.arange.start",
        "aten.arange.start_step",
    }
)
