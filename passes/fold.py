"""Constant folding: what depends on nothing but constants is computed once, at compile time.

Values are computed by the reference interpreter, so a folded float is the one eager gives; only
what lives on the CPU is folded, because another device may round otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch

from rewright.ir import (
    Constant,
    Dim,
    Graph,
    Kind,
    Node,
    RewrightError,
    TensorType,
    Value,
    leaves,
    may_repeat,
    op,
)
from rewright.passes.aliases import Aliases
from rewright.passes.base import Env, Pass
from rewright.passes.dce import names_of, split_dead
from rewright.passes.scalars import scalar_arguments


@dataclass(frozen=True)
class Fold(Pass, name="fold", takes="aten", gives="aten"):
    """Compute what depends on constants only; pass one-element constants as numbers.

    before:
        graph f(%x: f32[2]) {
          %a = rw.constant(data=[1.0, 4.0]) : f32[2]
          %b = aten.sqrt.default(%a) : f32[2]
          %c = aten.full.default([], 0.5) : f32[]
          %d = aten.mul.Tensor(%x, %c) : f32[2]
          %e = aten.add.Tensor(%d, %b) : f32[2]
          return %e
        }
    after:
        graph f(%x: f32[2]) {
          %b = rw.constant(data=[1.0, 2.0]) : f32[2]
          %d = aten.mul.Scalar(%x, 0.5) : f32[2]
          %e = aten.add.Tensor(%d, %b) : f32[2]
          return %e
        }

    Refuses: results that leave the graph, which are new tensors at every call; results with more
    than `limit` elements beyond those of the constants they are made from.
    """

    limit: int = 4096

    def run(self, graph: Graph, env: Env) -> Graph:
        folded = self._fold(graph, env)
        changed = scalar_arguments(folded)
        kept, dropped = split_dead(changed)
        if changed is graph and not dropped:
            return graph
        return self.gave(changed.with_nodes(kept), dict.fromkeys(names_of(dropped), ()))

    def _fold(self, graph: Graph, env: Env) -> Graph:
        known = _known(graph, self.limit)
        values = self._wanted(graph, known, env)
        if not values:
            return graph
        made = _evaluate(graph, known, values)
        if isinstance(made, str):
            env.log.refuse(self.name, values[0].name, made)
            return graph
        return graph.with_nodes(n for node in graph.nodes for n in _replaced(node, made))

    def _wanted(self, graph: Graph, known: Mapping[str, int], env: Env) -> list[Value]:
        """The values to keep as constants: read by something that is not folded itself."""
        aliases = Aliases(graph)
        read = {value.name for value in graph.returned}
        wanted: list[Value] = []
        for node in reversed(graph.nodes):
            # A view costs nothing at run time; as a constant it would be stored a second time.
            if not _is_folded(node, known) or node.op.kind is Kind.VIEW:
                read.update(value.name for value in node.operands)
                continue
            values = [value for value in node.results if value.name in read]
            why = next((w for v in values if (w := _obstacle(v, aliases)) is not None), None)
            if why is None:
                wanted.extend(reversed(values))
                continue
            env.log.refuse(self.name, node.name, why)
            read.update(value.name for value in node.operands)
        return wanted[::-1]


def _known(graph: Graph, limit: int) -> dict[str, int]:
    """Values that can be computed now, and how many stored elements a constant of each may count
    on: its own, but none for what a creation operator writes without reading."""
    known: dict[str, int] = {}
    for node in graph.nodes:
        if _is_constant(node):
            known[node.name] = _elements(node)
        elif _is_creation(node):
            known[node.name] = 0
        elif _is_computable(node) and all(v.name in known for v in node.operands):
            room = limit + sum(known[name] for name in {v.name for v in node.operands})
            if _elements(node) <= room:
                known.update((v.name, _elements(node)) for v in node.results)
    return known


def _is_folded(node: Node, known: Mapping[str, int]) -> bool:
    return bool(node.operands) and bool(node.results) and node.results[0].name in known


def _is_constant(node: Node) -> bool:
    data = node.kwarg("value")
    return (
        node.op.name == "rw.constant"
        and isinstance(data, Constant)
        and data.data is not None
        and _is_static_here(node.result)
    )


def _is_creation(node: Node) -> bool:
    """Writes a tensor from numbers alone. What `aten.empty` writes is nothing to rely on."""
    pure = node.op.kind is Kind.CREATION and may_repeat(node) and not node.operands
    named = node.op.name.startswith("aten.") and "empty" not in node.op.name
    return pure and named and _is_computable_here(node)


def _is_computable(node: Node) -> bool:
    torch_op = node.op.namespace in ("aten", "prims") and not node.graphs
    return torch_op and bool(node.operands) and may_repeat(node) and _is_computable_here(node)


def _is_computable_here(node: Node) -> bool:
    arguments = leaves((node.args, *(a for _, a in node.kwargs)))
    return not any(isinstance(a, Dim) for a in arguments) and all(
        _is_static_here(value) for value in (*node.operands, *node.results)
    )


def _is_static_here(value: Value) -> bool:
    type = value.type
    return isinstance(type, TensorType) and type.device.type == "cpu" and _is_static(type.shape)


def _is_static(sizes: tuple[object, ...]) -> TypeGuard[tuple[int, ...]]:
    return all(isinstance(size, int) for size in sizes)


def _elements(node: Node) -> int:
    return sum(size for v in node.results if isinstance(size := v.tensor.numel, int))


def _obstacle(value: Value, aliases: Aliases) -> str | None:
    if aliases.leaves(value.name):
        return f"%{value.name} leaves the graph and is a new tensor at every call"
    if value.tensor.strides is not None:
        return f"%{value.name} is not contiguous, as constants are"
    return None


def _evaluate(
    graph: Graph, known: Mapping[str, int], values: list[Value]
) -> dict[str, Constant] | str:
    """Each value as a constant, by name, or why they could not be computed."""
    from rewright.ir.interpret import interpret

    nodes = [node for node in graph.nodes if node.results and node.results[0].name in known]
    part = Graph(graph.name, (), tuple(nodes), tuple(values))
    needed, _ = split_dead(part)
    try:
        results = interpret(part.with_nodes(needed), ())
    except (RewrightError, RuntimeError, IndexError, TypeError, ValueError) as error:
        return f"computing it now fails: {error}"
    return {
        value.name: Constant.of(result)
        for value, result in zip(values, results, strict=True)
        if isinstance(result, torch.Tensor)
    }


def _replaced(node: Node, made: Mapping[str, Constant]) -> list[Node]:
    """A constant for each result that became one, else the node as it is."""
    constants = [value for value in node.results if value.name in made]
    if not constants:
        return [node]
    return [
        dataclasses.replace(
            node,
            op=op("rw.constant"),
            args=(),
            kwargs=(("value", made[value.name]),),
            results=(value,),
        )
        for value in constants
    ]
