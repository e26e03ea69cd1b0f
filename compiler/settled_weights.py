"""A program whose weights will not change: what is computed of them once is computed now.

In a process of ours parameters may be written to between calls, so `rw.frozen` keeps them beside
what it made of them. A folder holds only what is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewright.ir import Graph, Input, Node, values_in
from rewright.ir.interpret import interpret

if TYPE_CHECKING:
    from rewright.driver import Program


def settled(program: Program, state: Mapping[str, Tensor]) -> tuple[Program, Mapping[str, Tensor]]:
    """The program with what is frozen among its inputs, and the tensors that it then reads.

    What a library packs in a layout of its own cannot be stored, and stays to be computed.
    """
    from rewright.building import build_program

    graph, held = _settled(program.graph, state)
    if graph is program.graph:
        return program, state
    stages = dataclasses.replace(program.plan.stages, graph=graph)
    plan = dataclasses.replace(program.plan, stages=stages)
    recipe = dataclasses.replace(program.recipe, graph=graph)
    return dataclasses.replace(program, plan=plan, recipe=recipe, built=build_program(recipe)), held


def _settled(graph: Graph, state: Mapping[str, Tensor]) -> tuple[Graph, Mapping[str, Tensor]]:
    made: dict[str, Tensor] = {}
    inputs: list[Input] = []
    nodes: list[Node] = []
    for node in graph.nodes:
        results = _results(node, state)
        if results is None:
            nodes.append(node)
            continue
        made |= {v.name: x for v, x in zip(node.results, results, strict=True)}
        inputs += [Input(v, "param") for v in node.results]
    if not made:
        return graph, state
    read = {v for node in nodes for v in node.operands} | graph.returned
    read |= {v for pair in graph.updates for v in pair} | set(values_in(graph.outputs))
    kept = [i for i in graph.inputs if i.value in read or i.value.name not in state]
    new = dataclasses.replace(graph, inputs=(*kept, *inputs), nodes=tuple(nodes))
    names = {i.value.name for i in kept}
    return new, {**{n: x for n, x in state.items() if n in names}, **made}


def _results(node: Node, state: Mapping[str, Tensor]) -> list[Tensor] | None:
    """What a frozen node gives, where that can be stored."""
    if node.op.name != "rw.frozen" or any(v.name not in state for v in node.operands):
        return None
    results = interpret(node.graph("body"), [state[v.name] for v in node.operands])
    if any(x.layout != torch.strided or x.is_mkldnn for x in results):
        return None
    return [x.detach() for x in results]  # those that share memory are stored once
