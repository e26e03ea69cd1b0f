"""Decomposition of composite operators in graphs that did not come through AOTAutograd, such as
those written as text: what the importer's table takes apart is taken apart here too.

Torch's own decomposition is traced on fake tensors, once for each structure. Nodes with symbolic
sizes stay as they are: a trace holds for the sizes it saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rewright.ir import (
    Arg,
    Dim,
    Graph,
    Input,
    Node,
    RewrightError,
    TensorType,
    Value,
    fresh_names,
    graph_key,
    leaves,
    map_leaves,
    map_values,
    op,
    ordered,
)
from rewright.passes.base import Env, Pass
from rewright.passes.dce import split_dead

Table = Mapping[torch._ops.OperatorBase, Callable[..., Any]]


@dataclass(frozen=True)
class Decompose(Pass, name="decompose", takes="aten", gives="aten"):
    """Take composite operators apart that have no kernel of their own.

    before:
        graph f(%x: f32[2, 4], %w: f32[5, 4], %b: f32[5]) {
          %y = aten.linear.default(%x, %w, %b) : f32[2, 5]
          return %y
        }
    after:
        graph f(%x: f32[2, 4], %w: f32[5, 4], %b: f32[5]) {
          %y_permute = aten.permute.default(%w, [1, 0]) : f32[4, 5] strides [1, 4]
          %y = aten.addmm.default(%b, %x, %y_permute) : f32[2, 5]
          return %y
        }

    Refuses: nodes with symbolic sizes or effects; decompositions whose results have other strides.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        from rewright.ir.decompositions import decomposition_table, may_come_apart
        from rewright.ir.expand import expand

        if not any(may_come_apart(node.op.target) for node in graph.nodes):
            return graph
        table = decomposition_table()
        traced: dict[Hashable, Graph | str] = {}
        bodies = {node.name: self._body(node, table, traced, env) for node in graph.nodes}
        if not any(bodies.values()):
            return graph
        fresh = fresh_names(value.name for value in graph.values)
        # A region stands for its body, so inlining regions is all that is left to do.
        wrapped = graph.with_nodes(_region(n, bodies[n.name], fresh) for n in graph.nodes)
        return self.gave(expand(wrapped), _parts(wrapped))

    def _body(
        self, node: Node, table: Table, traced: dict[Hashable, Graph | str], env: Env
    ) -> Graph | None:
        """What the node is made of; None when it stays whole."""
        if node.op.target not in table:
            return None
        if ordered(node):
            env.log.refuse(self.name, node.name, f"{node.op} has an effect and stays whole")
            return None
        if not _is_static(node):
            env.log.refuse(self.name, node.name, f"{node.op} with symbolic sizes stays whole")
            return None
        inputs = tuple(Input(value) for value in dict.fromkeys(node.operands))
        alone = Graph("node", inputs, (node,), node.results)
        key = graph_key(alone)
        if key not in traced:
            traced[key] = _trace(alone, table)
        found = traced[key]
        if isinstance(found, str):
            env.log.refuse(self.name, node.name, found)
            return None
        return found


def _is_static(node: Node) -> bool:
    arguments = leaves((node.args, *(a for _, a in node.kwargs)))
    return not any(isinstance(a, Dim) for a in arguments) and all(
        isinstance(value.type, TensorType)
        and all(isinstance(size, int) for size in (*value.type.shape, *value.type.layout))
        for value in (*node.operands, *node.results)
    )


def _trace(alone: Graph, table: Table) -> Graph | str:
    """The decomposition of a one-node graph, or why there is none that fits."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    from rewright.ir.fx_import import from_fx

    (node,) = alone.nodes

    def call(*tensors: torch.Tensor) -> list[object]:
        given = dict(zip((i.value for i in alone.inputs), tensors, strict=True))
        args, kwargs = _filled(node, given)
        assert node.op.target is not None
        returned = node.op.target(*args, **kwargs)
        return list(returned) if isinstance(returned, (list, tuple)) else [returned]

    with FakeTensorMode():
        inputs = [_like(i.value.tensor) for i in alone.inputs]
        try:
            module = make_fx(call, decomposition_table=table)(*inputs)  # type: ignore[arg-type]
            body = from_fx(module, name="body")
        except (RewrightError, RuntimeError) as error:
            return f"{node.op} stays whole, its decomposition fails: {error}"
    why = _misfit(node, body)
    return body.with_nodes(split_dead(body)[0]) if why is None else why


def _misfit(node: Node, body: Graph) -> str | None:
    """Why the traced body does not stand for the node."""
    if any(inner.op is node.op for inner in body.nodes):
        return f"{node.op} stays whole, its decomposition contains itself"
    types = [value.type for value in body.outputs if isinstance(value, Value)]
    if types != [value.type for value in node.results]:
        return f"{node.op} stays whole, its decomposition gives other types"
    return None


def _filled(
    node: Node, given: Mapping[Value, torch.Tensor]
) -> tuple[list[object], dict[str, object]]:
    def fill(arg: Arg) -> object:
        return given[arg] if isinstance(arg, Value) else arg

    kwargs = {name: map_leaves(arg, fill) for name, arg in node.kwargs}
    return [map_leaves(arg, fill) for arg in node.args], kwargs


def _like(type: TensorType) -> torch.Tensor:
    return torch.empty_strided(type.shape, type.layout, dtype=type.dtype, device=type.device)  # type: ignore[arg-type]


def _region(node: Node, body: Graph | None, fresh: Callable[[str], str]) -> Node:
    """The node as a region that says what it is made of; the node itself when it stays whole."""
    if body is None:
        return node
    names = {
        value: Value(fresh(f"{node.name}_{value.name}"), value.type)
        for inner in body.nodes
        for value in inner.results
    }
    nodes = (
        dataclasses.replace(
            inner.replace(names),
            results=tuple(names[value] for value in inner.results),
            loc=node.loc,
            seq_nr=node.seq_nr,
            phase=node.phase,
        )
        for inner in body.nodes
    )
    outputs = tuple(map_values(output, names) for output in body.outputs)
    named = dataclasses.replace(body, nodes=tuple(nodes), outputs=outputs)
    operands = tuple(dict.fromkeys(node.operands))
    return Node(op("rw.fused"), operands, (), node.results, (("body", named),))


def _parts(wrapped: Graph) -> dict[str, tuple[str, ...]]:
    """What each decomposed node became; its own name goes to what computes its result."""
    found: dict[str, tuple[str, ...]] = {}
    for node in wrapped.nodes:
        for _, body in node.graphs:
            inner = (v for n in body.nodes for v in n.results if v not in body.returned)
            found[node.name] = (*(v.name for v in inner), *(v.name for v in node.results))
    return found
