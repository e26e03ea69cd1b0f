"""Dead code: nodes whose results nobody reads and whose running nobody notices."""

from __future__ import annotations

from dataclasses import dataclass

from rewright.ir import Graph, Node, dims_in, late_sizes, may_drop, symbols_of, symbols_read
from rewright.passes.base import Env, Pass


@dataclass(frozen=True)
class Dce(Pass, name="dce", takes="aten", gives="aten"):
    """Drop nodes that nobody reads. Nodes with effects stay.

    before:
        graph f(%x: f32[4]) {
          %a = aten.relu.default(%x) : f32[4]
          %b = aten.sin.default(%x) : f32[4]
          return %a
        }
    after:
        graph f(%x: f32[4]) {
          %a = aten.relu.default(%x) : f32[4]
          return %a
        }
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        nodes, dropped = split_dead(graph)
        if not dropped:
            return graph
        return self.gave(graph.with_nodes(nodes), dict.fromkeys(names_of(dropped), ()))


def split_dead(graph: Graph) -> tuple[list[Node], list[Node]]:
    """The nodes that stay and those that may go, each in order.

    A node also stays when somebody reads a size that is known from it alone.
    """
    read = {value.name for value in graph.returned}
    late = {symbol: id(node) for symbol, node in late_sizes(graph).items()}
    wanted = {late[s.name] for s in symbols_of(dims_in(graph.outputs)) if s.name in late}
    kept: list[Node] = []
    dropped: list[Node] = []
    for node in reversed(graph.nodes):
        is_read = id(node) in wanted or any(value.name in read for value in node.results)
        if may_drop(node) and not is_read:
            dropped.append(node)
            continue
        kept.append(node)
        read.update(value.name for value in node.operands)
        if late:
            wanted.update(late[s.name] for s in symbols_read(node) if s.name in late)
    return kept[::-1], dropped[::-1]


def names_of(nodes: list[Node]) -> list[str]:
    return [value.name for node in nodes for value in node.results]
