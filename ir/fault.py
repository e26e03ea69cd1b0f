"""A broken rule of a graph, before it is known in which text to point at it."""

from __future__ import annotations

from rewright.ir.errors import CheckError, Excerpt, UnsupportedError
from rewright.ir.graph import Graph, Node


class Fault(Exception):
    """What is wrong, at which node, and which of the values in its line to mark."""

    def __init__(
        self, message: str, node: Node | None = None, mark: str = "", help: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.mark = mark
        self.help = help

    def located(self, graph: Graph) -> CheckError:
        """The error for people, with the line of `graph`'s text that holds the node."""
        excerpt = None if self.node is None else _excerpt(graph, self.node, self.mark)
        return CheckError(self.message, excerpt=excerpt, help=self.help)


def _excerpt(graph: Graph, node: Node, mark: str) -> Excerpt | None:
    """None for what the text form has no words for."""
    from rewright.ir.show import show, show_node

    try:
        first = show_node(node).partition("\n")[0]
        lines = show(graph).splitlines()
    except UnsupportedError:
        return None
    number = next((i for i, line in enumerate(lines) if line.strip() == first), None)
    if number is None:
        return None
    line = lines[number]
    wanted = f"%{mark}" if mark else node.op.name
    return Excerpt(graph.name, number + 1, _column(line, wanted), line, len(wanted))


def _column(line: str, wanted: str) -> int:
    """Where `wanted` stands after the equals sign, or at all; 1-based."""
    after = line.find(wanted, line.find(" = ") + 1)
    return max(after, line.find(wanted), 0) + 1
