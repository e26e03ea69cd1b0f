"""A pass of your own, found by its name as soon as its class exists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

import rewright
from examples.mlp import mlp
from rewright.ir import Graph, Node, Value, flops, hint, op
from rewright.passes import Env, Pass

HALF = torch.bfloat16


@dataclass(frozen=True)
class HalfProducts(Pass, name="half-products", takes="aten", gives="aten"):
    """Multiply in bfloat16 where a product takes at least `least` million operations."""

    least: int = 1

    def run(self, graph: Graph, env: Env) -> Graph:
        nodes = tuple(made for node in graph.nodes for made in self._rewritten(node, env))
        return graph if nodes == graph.nodes else self.gave(graph.with_nodes(nodes), {})

    def _rewritten(self, node: Node, env: Env) -> Iterator[Node]:
        millions = hint(flops(node)) / 1e6
        if node.op.name != "aten.addmm.default" or node.result.tensor.dtype == HALF:
            return (yield node)
        if millions < self.least:
            env.log.refuse(self.name, node.name, f"{millions:.1f} million operations are few")
            return (yield node)
        env.log.decide(self.name, node.name, f"{millions:.1f} million operations in bfloat16")
        yield from (halves := [cast(v, f"{node.name}.{v.name}", HALF) for v in node.operands])
        product = Value(f"{node.name}.half", replace(node.result.tensor, dtype=HALF))
        yield replace(node, args=tuple(half.result for half in halves), results=(product,))
        yield cast(product, node.name, node.result.tensor.dtype)


def cast(value: Value, name: str, dtype: torch.dtype) -> Node:
    results = (Value(name, replace(value.tensor, dtype=dtype)),)
    return Node(op("aten._to_copy.default"), (value,), (("dtype", dtype),), results)


def main() -> None:
    """Behind `decompose`, which makes products of linear layers, and before all other passes."""
    model, (x,) = mlp(32, widths=(64, 1024, 64, 10))
    program = rewright.optimize(model, (x,), passes="decompose,half-products,default", freeze=True)
    print(program.why("half-products"))
    with torch.no_grad():
        print(f"relative error {float((program(x) - model(x)).norm() / model(x).norm()):.0e}")


if __name__ == "__main__":
    main()
