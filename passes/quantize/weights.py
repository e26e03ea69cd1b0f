"""Weights in the formats that were asked for, computed once: a search needs them many times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rewright.ir import Arg, Graph, Input, Node, TensorType, Value
from rewright.ir.interpret import Reference, interpret
from rewright.passes.budget import Plan
from rewright.passes.emitter import Emitter
from rewright.passes.quantize.formats import Format
from rewright.passes.quantize.sites import Site, in_formats, names_beside


class Weights:
    """Of one graph's sites, whose parameters are those of `sample`."""

    def __init__(self, graph: Graph, found: Mapping[str, Site], sample: Sequence[Any]) -> None:
        self._graph, self._sites = graph, found
        inputs = dict(zip((i.value for i in graph.inputs), sample, strict=True))
        self._values = _computed(graph, found, inputs)
        self._fresh = names_beside(graph)
        self._made: dict[object, tuple[tuple[Value, ...], list[Tensor]]] = {}

    def change(self, site: Site, format: Format, read: Tensor) -> Tensor:
        """What a format changes in a site's result, on some rows of what it read."""
        weight, packed = self._packed(site, format)
        part = Value(self._fresh(site.read.name), _type_of(read))
        given = dict(zip(weight, packed, strict=True)) | {part: read}
        emit = Emitter(self._fresh, site.node)
        new = self._run(site.made(part, weight, format, emit), emit.nodes, given)
        emit = Emitter(self._fresh, site.node)
        types = [site.type_of(part)]
        (made,) = emit.call(site.node.op, *_reading(site.node, site.read, part), types)
        return (new - self._run(made, emit.nodes, given)).float()

    def measured(
        self, plan: Plan, samples: Sequence[Sequence[Any]], instead: Mapping[str, Reference]
    ) -> list[list[Any]]:
        """What the graph gives for samples with the formats of a plan, and with some nodes computed
        otherwise."""
        given: dict[Value, Tensor] = {}

        def known(site: Site, format: Format, emit: Emitter) -> tuple[Value, ...]:
            weight, packed = self._packed(site, format)
            given.update(zip(weight, packed, strict=True))
            return weight

        nodes = in_formats(self._graph, self._sites, plan, self._fresh, known)
        inputs = (*self._graph.inputs, *map(Input, given))
        graph = dataclasses.replace(self._graph, inputs=inputs, nodes=tuple(nodes), updates=())
        return [interpret(graph, [*s, *given.values()], instead=instead) for s in samples]

    def _packed(self, site: Site, format: Format) -> tuple[tuple[Value, ...], list[Tensor]]:
        key = site.key(format)
        if key not in self._made:
            emit = Emitter(self._fresh, site.node)
            values = site.packed(format, emit)
            graph = Graph("weight", (Input(site.rows),), tuple(emit.nodes), values)
            self._made[key] = values, interpret(graph, [self._values[site.rows]])
        return self._made[key]

    def _run(self, wanted: Value, nodes: Sequence[Node], given: Mapping[Value, Tensor]) -> Tensor:
        known = {**self._values, **given}
        made = {v for node in nodes for v in node.results}
        needed = dict.fromkeys(v for node in nodes for v in node.operands if v not in made)
        graph = Graph("site", tuple(map(Input, needed)), tuple(nodes), (wanted,))
        (result,) = interpret(graph, [known[v] for v in needed])
        return result  # type: ignore[no-any-return]


def _type_of(tensor: Tensor) -> TensorType:
    return TensorType(tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()))


def _reading(node: Node, old: Value, new: Value) -> tuple[tuple[Arg, ...], dict[str, Arg]]:
    """The arguments of a call that reads another value in the place of one."""
    changed = node.replace({old: new})
    return changed.args, dict(changed.kwargs)


def _computed(
    graph: Graph, found: Mapping[str, Site], inputs: Mapping[Value, Any]
) -> Mapping[Value, Any]:
    """Inputs, and weights and biases that are computed of parameters."""
    operands = {v for site in found.values() for v in site.node.operands if v is not site.read}
    rows = {site.rows for site in found.values()}
    wanted = tuple((operands | rows) - set(inputs))
    needed, todo = set[str](), list(wanted)
    while todo:
        node = graph.producers.get(todo.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            todo += node.operands
    nodes = tuple(n for n in graph.nodes if n.name in needed)
    part = dataclasses.replace(graph, nodes=nodes, outputs=wanted, updates=())
    results = interpret(part, [inputs[i.value] for i in graph.inputs])
    return {**inputs, **dict(zip(wanted, results, strict=True))}
