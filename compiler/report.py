"""What a compile did: pass by pass, and where each node runs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rewright.costmodel import graph_estimate
from rewright.ir import Graph, Kind, Node, UnsupportedError, lasts, shares_input_storage
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

    def noting(self, *notes: str) -> Report:
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def built(self, seconds: float) -> Report:
        return dataclasses.replace(self, build_seconds=seconds)

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


def report_of(source: Graph, result: PipelineResult, env: Env, pass_seconds: float) -> Report:
    """The report of a pipeline's run."""
    nodes = tuple(node_rows(source, result.graph))
    passes = tuple(pass_rows(source, result, env))
    return Report(source.name, env.target.name, passes, nodes, pass_seconds=pass_seconds)


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
    quiet = node.op.kind is Kind.STORAGE or lasts(node)
    return not quiet and not shares_input_storage(node)


def node_rows(source: Graph, final: Graph) -> Iterator[NodeRow]:
    """Where each node of the source graph went, found by the names of its results."""
    place: dict[str, tuple[str, str]] = {}
    for node in final.nodes:
        kernel = node.name if node.op.kind is Kind.REGION else ""
        place |= dict.fromkeys((v.name for v in node.results), (_runs(node), kernel))
        for inner in node.graph("body").nodes if kernel else ():
            place |= dict.fromkeys((v.name for v in inner.results), ("ours", kernel))
    for node in source.nodes:
        found = (place[n] for n in _followed(node.name, final) if n in place)
        runs, kernel = next(found, ("gone", ""))
        yield NodeRow(node.name, node.op.name, runs, kernel, str(node.loc or ""))


def _followed(name: str, final: Graph) -> list[str]:
    """The names that stand in `final` for what was called `name` in the graph it came from."""
    names = [name]
    for step in final.history:
        renamed = dict(step.renamed)
        names = [new for old in names for new in renamed.get(old, (old,))]
    return names


def _runs(node: Node) -> str:
    if node.op.kind is Kind.REGION:
        return "ours"
    if shares_input_storage(node):
        return "view"
    return "constant" if lasts(node) else "aten"


def refuse_fallback(source: Graph, final: Graph) -> None:
    """Raises UnsupportedError when a node of `source` is left to ATen.

    Library calls (matmul, convolution, attention) are lowerings; any other ATen call is not.
    """
    from rewright.ir import op

    rows = [r for r in node_rows(source, final) if r.runs == "aten"]
    left = [r for r in rows if op(r.op).kind is not Kind.CONTRACTION]
    if left:
        counted = Counter(r.op for r in left)
        named = ", ".join(f"{name} ({n})" if n > 1 else name for name, n in counted.items())
        nodes = "1 node has" if len(left) == 1 else f"{len(left)} nodes have"
        raise UnsupportedError(
            f"{nodes} no kernel of ours: {named}",
            who="fallback",
            help="fallback='aten' runs them as ATen",
        )
