"""Graphs as the page holds them: each different node once, as a row; a stage is a list of rows.

A row is `[op, kind, names, types, reads, loc, phase, text, body]`. `text` is the node's own text,
line for line as the graph prints it; `body` is None, or what a region computes: the values that it
is given, the names that they have inside, its rows, and the values that it returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewright.ir import Graph, Kind, Node, Value, values_in
from rewright.ir.show import show_loc, show_node, show_type
from rewright.page.folds import folds


@dataclass
class Rows:
    """The rows of all stages; equal ones are held once."""

    rows: list[list[Any]] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)

    def add(self, node: Node, text: str) -> int:
        """The number of a node's row."""
        if text not in self._known:
            row = self._row(node, text)
            self._known[text] = len(self.rows)
            self.rows.append(row)
        return self._known[text]

    def _row(self, node: Node, text: str) -> list[Any]:
        return [
            node.op.name,
            node.op.kind.value,
            _names(node.results),
            [show_type(value.type) for value in node.results],
            _names(dict.fromkeys(node.operands)),
            "" if node.loc is None else show_loc(node.loc),
            node.phase or "",
            text,
            self._body(node) if node.op.kind is Kind.REGION else None,
        ]

    def _body(self, node: Node) -> dict[str, Any]:
        body = node.graph("body")
        return {
            "given": _names(values_in(node.args)),
            "inputs": _names(i.value for i in body.inputs),
            "rows": [self.add(inner, show_node(inner, "    ")) for inner in body.nodes],
            "outputs": _names(values_in(body.outputs)),
        }


def stages_of(stages: Sequence[tuple[str, Graph]], rows: Rows) -> list[dict[str, Any]]:
    """The stages of a compile; one that is as the stage before only says so (`same`)."""
    made: list[dict[str, Any]] = []
    before: Graph | None = None
    for spec, graph in stages:
        shown = {"same": True} if graph == before else _stage(graph, rows)
        made.append({"spec": spec, **shown})
        before = graph
    return made


def _stage(graph: Graph, rows: Rows) -> dict[str, Any]:
    head, texts, tail = _parts(graph)
    return {
        "head": head,
        "rows": [rows.add(*pair) for pair in zip(graph.nodes, texts, strict=True)],
        "tail": tail,
        "inputs": [[i.value.name, show_type(i.value.type), i.role] for i in graph.inputs],
        "returned": _names(dict.fromkeys(_leaving(graph))),
        "folds": [fold.as_json() for fold in folds(graph, texts)],
    }


def _parts(graph: Graph) -> tuple[str, list[str], str]:
    """The text of a graph up to its first node, of each node, and behind the last."""
    texts = [show_node(node, "  ") for node in graph.nodes]
    lines = str(graph).split("\n")
    last = len(lines) - len(graph.updates) - 2  # what is returned, and a brace
    first = last - sum(1 + text.count("\n") for text in texts)
    return "\n".join(lines[:first]), texts, "\n".join(lines[last:])


def _leaving(graph: Graph) -> Iterator[Value]:
    yield from values_in(graph.outputs)
    yield from (value for _, value in graph.updates)


def _names(values: Iterable[Value]) -> list[str]:
    return [value.name for value in values]
