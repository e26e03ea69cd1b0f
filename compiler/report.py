"""What a compile did: pass by pass, and where each node runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rewright.costmodel import graph_estimate
from rewright.ir import Graph, Kind, Node, UnsupportedError, shares_input_storage
from rewright.ir.target import Target
from rewright.options import Options
from rewright.passes import Env, PipelineResult, peak_bytes


@dataclass(frozen=True)
class PassRow:
    """One line of the pass table. Peak is in bytes beyond the inputs, time in seconds."""

    spec: str
    nodes_before: int
    nodes: int
    kernels: int
    peak_bytes: int
    estimated_seconds: float


@dataclass(frozen=True)
class NodeRow:
    """Where a node of the source graph runs: ours (in `kernel`), aten, view, constant or gone."""

    name: str
    op: str
    runs: str
    kernel: str
    loc: str


@dataclass(frozen=True)
class Report:
    """Everything there is to say about one compile, as data."""

    graph: str
    target: str
    passes: tuple[PassRow, ...]
    nodes: tuple[NodeRow, ...]
    notes: tuple[str, ...] = ()
    pass_seconds: float = 0.0
    build_seconds: float = 0.0

    def noting(self, note: str) -> Report:
        return dataclasses.replace(self, notes=(*self.notes, note))

    def timed(self, *, passes: float, build: float) -> Report:
        return dataclasses.replace(self, pass_seconds=passes, build_seconds=build)

    def counts(self) -> dict[str, int]:
        """Nodes of the source graph by where they run."""
        return dict(sorted(Counter(n.runs for n in self.nodes).items()))

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        from rewright.tables import pass_table

        counted = ", ".join(f"{count} {what}" for what, count in self.counts().items())
        lines = [pass_table(self.passes), f"nodes: {counted}"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def report_of(
    source: Graph, result: PipelineResult, env: Env, options: Options, target: Target
) -> Report:
    """The report of a pipeline's run. Raises UnsupportedError under `fallback="error"`."""
    rows = tuple(node_rows(source, result.graph))
    if options.fallback == "error":
        _refuse_fallback(rows)
    return Report(source.name, target.name, tuple(pass_rows(source, result, env)), rows)


def pass_rows(source: Graph, result: PipelineResult, env: Env) -> Iterator[PassRow]:
    """A line for the graph as it came, and one after each pass."""
    graphs = [("import", source)]
    graphs += [(s.spec, s.snapshot) for s in result.stages if s.snapshot is not None]
    before = len(source.nodes)
    for spec, graph in graphs:
        yield PassRow(
            spec,
            before,
            sum(1 for n in graph.nodes if n.op.kind is not Kind.STORAGE),
            sum(1 for n in graph.nodes if is_launched(n)),
            peak_bytes(graph),
            graph_estimate(env.cost, graph).seconds,
        )
        before = len(graph.nodes)


def is_launched(node: Node) -> bool:
    """True for a node that is a call of its own: no view, constant or allocation."""
    quiet = node.op.kind is Kind.STORAGE or node.op.name == "rw.constant"
    return not quiet and not shares_input_storage(node)


def node_rows(source: Graph, final: Graph) -> Iterator[NodeRow]:
    """Where each node of the source graph went, found by the names of its results."""
    place: dict[str, tuple[str, str]] = {}
    for node in final.nodes:
        for name in (v.name for v in node.results):
            place[name] = (_runs(node), "")
        for inner in node.graph("body").nodes if node.op.kind is Kind.REGION else ():
            for value in inner.results:
                place[value.name] = ("ours", node.name)
    for node in source.nodes:
        runs, kernel = place.get(node.name, ("gone", ""))
        yield NodeRow(node.name, node.op.name, runs, kernel, str(node.loc or ""))


def _runs(node: Node) -> str:
    if node.op.kind is Kind.REGION:
        return "ours"
    if shares_input_storage(node):
        return "view"
    return "constant" if node.op.name == "rw.constant" else "aten"


def _refuse_fallback(rows: tuple[NodeRow, ...]) -> None:
    """Library calls (matmul, convolution, attention) are lowerings; any other ATen call is not."""
    from rewright.ir import op

    left = [r for r in rows if r.runs == "aten" and op(r.op).kind is not Kind.CONTRACTION]
    if left:
        named = ", ".join(dict.fromkeys(r.op for r in left))
        raise UnsupportedError(
            f"{len(left)} nodes have no kernel of ours: {named}",
            who="fallback",
            help="fallback='aten' runs them as ATen",
        )
