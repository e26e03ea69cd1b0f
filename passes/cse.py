"""Common subexpressions: two nodes that compute the same thing become one."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from rewright.ir import Graph, Node, Value, effect_of, may_merge, node_key
from rewright.passes.aliases import Aliases
from rewright.passes.base import Env, Pass
from rewright.passes.sweep import Sweep


@dataclass(frozen=True)
class Cse(Pass, name="cse", takes="aten", gives="aten"):
    """Compute once what is computed twice; the first node wins.

    before:
        graph f(%x: f32[4]) {
          %a = aten.sin.default(%x) : f32[4]
          %b = aten.sin.default(%x) : f32[4]
          %c = aten.mul.Tensor(%a, %b) : f32[4]
          return %c
        }
    after:
        graph f(%x: f32[4]) {
          %a = aten.sin.default(%x) : f32[4]
          %c = aten.mul.Tensor(%a, %a) : f32[4]
          return %c
        }

    Refuses: nodes with effects; two results that the caller gets as two tensors.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        aliases, sweep = Aliases(graph), Sweep(graph)
        first: dict[Hashable, Node] = {}
        sweep.run(lambda node: self._merge(node, first, aliases, env))
        changed = sweep.graph()
        return graph if changed is graph else self.gave(changed, sweep.renamed())

    def _merge(
        self, node: Node, first: dict[Hashable, Node], aliases: Aliases, env: Env
    ) -> tuple[Value, ...] | None:
        if not node.results:
            return None
        twin = first.setdefault(node_key(node, _name), node)
        if twin is node:
            return None
        why = obstacle(node, twin, aliases)
        if why is not None:
            env.log.refuse(self.name, node.name, why)
            return None
        for old, new in zip(node.results, twin.results, strict=True):
            aliases.substitute(old, new)
        return twin.results


def obstacle(node: Node, twin: Node, aliases: Aliases) -> str | None:
    """Why `node`, which computes the same as the earlier `twin`, must run all the same."""
    if not may_merge(node, twin):
        return f"{node.op} has an effect ({effect_of(node).value}) and runs as often as it is asked"
    if any(old.type != new.type for old, new in zip(node.results, twin.results, strict=True)):
        return f"%{twin.name} has another type: its sizes are known only at run time"
    pairs = zip(node.results, twin.results, strict=True)
    return next((why for old, new in pairs if (why := aliases.obstacle(old, new))), None)


def _name(value: Value) -> Hashable:
    return value.name
