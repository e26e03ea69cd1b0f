"""Weights in the formats that were asked for, computed once: a search needs them many times."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from torch import Tensor

from rewright.ir import Arg, Graph, Input, Node, TensorType, Value
from rewright.ir.interpret import Reference, interpret
from rewright.ir.loops import needed_nodes
from rewright.passes.budget import Plan
from rewright.passes.emitter import Emitter
from rewright.passes.quantize.balance import balance
from rewright.passes.quantize.formats import FORMAT_OF, FOUR_BITS, Format
from rewright.passes.quantize.rounding import Curvature, moved_steps
from rewright.passes.quantize.sites import LinearSite, Site, in_formats, names_beside, times

# Samples that weights of few bits are rounded for, together.
MOST_ROUNDED_FOR: Final = 4


class Weights:
    """Of one graph's sites; `seen` are samples of its inputs, with parameters."""

    def __init__(
        self, graph: Graph, found: Mapping[str, Site], seen: Sequence[Sequence[Any]]
    ) -> None:
        self._graph, self._sites = graph, found
        self._seen = seen[:MOST_ROUNDED_FOR]
        operands = {v for site in found.values() for v in site.node.operands if v is not site.read}
        rows = {site.rows for site in found.values()}
        self._values = _inputs(graph, seen[0]) | _computed(graph, operands | rows, seen[0])
        self._fresh = names_beside(graph)
        self._made: dict[object, tuple[tuple[Value, ...], list[Tensor]]] = {}
        self._moved: dict[object, Tensor] = {}
        self._factors: dict[Value, Tensor | None] = {}

    def moved(self, site: Site, format: Format) -> Tensor | None:
        """The steps beyond the nearest that a weight is rounded by, once `measured` with it."""
        return self._moved.get(site.key(format))

    def balance(self, read: Mapping[str, Sequence[Tensor]]) -> None:
        """Find the factors of balanced formats, from what each site read."""
        readers: dict[Value, list[Site]] = {}
        for site in self._sites.values():
            if isinstance(site, LinearSite):
                readers.setdefault(site.read, []).append(site)
        for value, found in readers.items():
            rows = list(map(self._rows, found))
            self._factors[value] = balance(read[found[0].node.name][0], rows, value.tensor.dtype)

    def factors(self, site: Site, format: Format) -> Tensor | None:
        """By what the weights of a balanced format are multiplied, and what is read divided."""
        return self._factors.get(site.read) if format.balanced else None

    def change(self, site: Site, format: Format, read: Tensor) -> Tensor:
        """What a format changes in a site's result, on some rows of what it read."""
        weight, packed = self._packed(site, format)
        part = Value(self._fresh(site.read.name), _type_of(read))
        given = dict(zip(weight, packed, strict=True)) | {part: read}
        emit = Emitter(self._fresh, site.node)
        factors = self.factors(site, format)
        taken = part if factors is None else times(part, 1 / factors, emit)
        new = self._run(site.made(taken, weight, format, emit), emit.nodes, given)
        emit = Emitter(self._fresh, site.node)
        types = [site.type_of(part)]
        (made,) = emit.call(site.node.op, *_reading(site.node, site.read, part), types)
        return (new - self._run(made, emit.nodes, given)).float()

    def measured(
        self, plan: Plan, samples: Sequence[Sequence[Any]], instead: Mapping[str, Reference]
    ) -> list[list[Any]]:
        """What the graph gives for samples with the formats of a plan, and with some nodes computed
        otherwise. Weights of few bits are rounded for the samples seen."""
        self._round(plan)
        given: dict[Value, Tensor] = {}

        def known(site: Site, format: Format, emit: Emitter) -> tuple[Value, ...]:
            weight, packed = self._packed(site, format)
            given.update(zip(weight, packed, strict=True))
            return weight

        nodes = in_formats(self._graph, self._sites, plan, self._fresh, known, self.factors)
        inputs = (*self._graph.inputs, *map(Input, given))
        graph = dataclasses.replace(self._graph, inputs=inputs, nodes=tuple(nodes), updates=())
        return [interpret(graph, [*s, *given.values()], instead=instead) for s in samples]

    def _round(self, plan: Plan) -> None:
        """Find the steps of those weights that do not have any yet."""
        chosen = [
            (self._sites[n], FORMAT_OF.get(bid.choice))
            for n, bid in plan.items()
            if n in self._sites
        ]
        todo = {
            site.key(format): (site, format)
            for site, format in chosen
            if format is not None and format.group and site.key(format) not in self._moved
        }
        if not todo:
            return
        seen = {site.read: Curvature.of(site.shape[1]) for site, _ in todo.values()}
        for sample in self._seen:
            for value, read in _computed(self._graph, seen.keys(), sample).items():
                seen[value].add(read)
        for key, (site, format) in todo.items():
            of = seen[site.read]
            weight = self._rows(site).float().contiguous()
            self._moved[key] = moved_steps(weight, of, format.group, FOUR_BITS)

    def _rows(self, site: Site) -> Tensor:
        """The weight [N, K]."""
        rows: Tensor = self._values[site.rows].detach()
        return rows if site.is_turned else rows.T

    def _packed(self, site: Site, format: Format) -> tuple[tuple[Value, ...], list[Tensor]]:
        moved = self.moved(site, format)
        key = site.key(format), moved is not None
        if key not in self._made:
            emit = Emitter(self._fresh, site.node)
            values = site.packed(format, emit, moved, self.factors(site, format))
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


def _inputs(graph: Graph, sample: Sequence[Any]) -> dict[Value, Any]:
    return dict(zip((i.value for i in graph.inputs), sample, strict=True))


def _computed(graph: Graph, wanted: Set[Value], sample: Sequence[Any]) -> dict[Value, Any]:
    """What values are on a sample."""
    made = tuple(wanted - {i.value for i in graph.inputs})
    nodes = tuple(needed_nodes(graph.nodes, made))
    part = dataclasses.replace(graph, nodes=nodes, outputs=made, updates=())
    found = dict(zip(made, interpret(part, list(sample)), strict=True))
    return found | {v: x for v, x in _inputs(graph, sample).items() if v in wanted}
