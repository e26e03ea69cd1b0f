"""Making a report: what the graphs of a compile, the cost model and the log say of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

import rewright
from rewright.costmodel import Estimate, call_estimates, graph_estimate, roof
from rewright.ir import (
    Graph,
    Kind,
    Node,
    UnsupportedError,
    bytes_read,
    bytes_written,
    flops,
    hint,
    is_call,
    lasts,
    shares_input_storage,
)
from rewright.ir.show import show_type
from rewright.options import Options
from rewright.passes import Decision, Env, Stage, held, held_bytes, peak_bytes
from rewright.renames import composed, now
from rewright.report import (
    BufferRow,
    KernelRow,
    MemoryRow,
    NodeRow,
    PassRow,
    RecomputedRow,
    Report,
)
from rewright.step_part import StepPart

PHASES = ("forward", "backward")


@dataclass(frozen=True)
class Compile:
    """What a report is made of. `functions` are the names of our kernels by node; `part` is that of
    a training step within a budget."""

    source: Graph
    stages: Sequence[Stage]
    env: Env
    options: Options
    functions: Mapping[str, str]
    pass_seconds: float
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...] = ()
    part: StepPart | None = None

    @cached_property
    def final(self) -> Graph:
        kept = [s.snapshot for s in self.stages if s.snapshot is not None]
        return kept[-1] if kept else self.source


def of_part(made: Compile, part: StepPart) -> Compile:
    """The compile of a part of a step, from the graph as it came on, where that is still known."""
    notes = (*made.notes, f"the step: {part.fitted}", *part.fitted.notes)
    made = dataclasses.replace(made, notes=notes, part=part)
    if part.earlier is None:
        return made
    said = (decision for stage in part.earlier.stages for decision in stage.said)
    return dataclasses.replace(
        made,
        source=part.earlier.source,
        stages=(*part.earlier.stages, *made.stages),
        pass_seconds=part.earlier.seconds + made.pass_seconds,
        decisions=tuple(dict.fromkeys((*said, *made.decisions))),
    )


def report_of(made: Compile) -> Report:
    """The report of a pipeline's run, nothing built or measured."""
    kernels = tuple(kernel_rows(made))
    buffers = tuple(buffer_rows(made.final))
    return Report(
        rewright=rewright.__version__,
        torch=torch.__version__,
        graph=made.source.name,
        target=made.env.target.name,
        options=_chosen(made.options),
        pass_seconds=made.pass_seconds,
        build_seconds=0.0,
        measured_seconds=None,
        passes=tuple(pass_rows(made.source, made.stages, made.env)),
        nodes=tuple(node_rows(made.source, made.final)),
        kernels=kernels,
        recomputed=tuple(recomputed_rows(made, kernels)),
        buffers=buffers,
        memory=_memory(made, kernels, buffers),
        decisions=made.decisions,
        notes=made.notes,
        sources=dict(_sources(made.source.nodes)),
    )


def _chosen(options: Options) -> dict[str, str]:
    """Options that are not as they are by default; not where traces go, and not data."""
    found = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in ("trace", "calibration") and value != field.default:
            found[field.name] = ", ".join(value) if isinstance(value, tuple) else str(value)
    return found


# --- passes -------------------------------------------------------------------------------------


def pass_rows(source: Graph, stages: Sequence[Stage], env: Env) -> Iterator[PassRow]:
    """A row for the graph as it came, and one after each pass that kept its graph."""
    start = Stage("import", len(source.nodes), len(source.nodes), 0.0, source)
    cost: dict[int, tuple[int, float]] = {}  # most passes leave the very nodes that they were given
    steps = 0
    for number, stage in enumerate((start, *stages)):
        graph = stage.snapshot
        if graph is None:
            continue
        if id(graph.nodes) not in cost:
            seconds = graph_estimate(env.cost, graph).seconds
            cost[id(graph.nodes)] = peak_bytes(graph), seconds
        name = stage.spec.split("{")[0]
        kinds = Counter(decision.kind for decision in stage.said)
        yield PassRow(
            stage.spec,
            name,
            f"{number:02}-{name}.rw",
            stage.seconds,
            stage.before,
            sum(1 for n in graph.nodes if n.op.kind is not Kind.STORAGE),
            sum(1 for n in graph.nodes if is_call(n)),
            *cost[id(graph.nodes)],
            kinds["decided"],
            kinds["refused"],
            composed(dict(step.renamed) for step in graph.history[steps:]),
        )
        steps = len(graph.history)


# --- nodes --------------------------------------------------------------------------------------


def node_rows(source: Graph, final: Graph) -> Iterator[NodeRow]:
    """Where each node of the source graph went, found by the names of its results."""
    place: dict[str, tuple[str, str]] = {}
    for node in final.nodes:
        runs = _runs(node)
        kernel = node.name if runs in ("ours", "aten") else ""
        place |= dict.fromkeys((v.name for v in node.results), (runs, kernel))
        for inner in node.graph("body").nodes if runs == "ours" else ():
            place |= dict.fromkeys((v.name for v in inner.results), ("ours", kernel))
    for node in source.nodes:
        found = (place[n] for n in _followed(node.name, final) if n in place)
        runs, kernel = next(found, ("gone", ""))
        types = ", ".join(show_type(v.type) for v in node.results)
        yield NodeRow(node.name, node.op.name, types, runs, kernel, str(node.loc or ""))


def _followed(name: str, final: Graph) -> tuple[str, ...]:
    """The names that stand in `final` for what was called `name` in the graph it came from."""
    names: tuple[str, ...] = (name,)
    for step in final.history:
        names = now(names, dict(step.renamed))
    return names


def _runs(node: Node) -> str:
    if node.op.kind is Kind.REGION:
        return "ours"
    if shares_input_storage(node):
        return "view"
    return "constant" if lasts(node) else "aten"


def _sources(nodes: Iterable[Node]) -> Iterator[tuple[str, str]]:
    """The lines of the user's source that nodes come from, by their place."""
    for node in nodes:
        if node.loc is not None and node.loc.code:
            yield str(node.loc), node.loc.code
        for _, graph in node.graphs:
            yield from _sources(graph.nodes)


# --- calls --------------------------------------------------------------------------------------


def kernel_rows(made: Compile) -> Iterator[KernelRow]:
    """The calls of the schedule, in its order."""
    for node, estimate in call_estimates(made.env.cost, made.final):
        yield _kernel_row(node, estimate, made)


def _kernel_row(node: Node, estimate: Estimate, made: Compile) -> KernelRow:
    ours = node.op.kind is Kind.REGION
    inside = node.graph("body").nodes if ours else (node,)
    found = roof(node, made.env.target)
    return KernelRow(
        name=node.name,
        function=made.functions.get(node.name, ""),
        kind="ours" if ours else "aten",
        op=node.op.name,
        ops=tuple(inner.op.name for inner in inside),
        nodes=tuple(v.name for inner in inside for v in inner.results),
        phase=made.final.name if made.final.name in PHASES else node.phase or "",
        flops=hint(flops(node)),
        read_bytes=hint(bytes_read(node)),
        written_bytes=hint(bytes_written(node)),
        predicted_seconds=estimate.seconds,
        low_seconds=estimate.low,
        high_seconds=estimate.high,
        floor_seconds=found.floor,
        bound=found.bound,
        who="; ".join(estimate.because),
        measured_seconds=None,
        locs=tuple(dict.fromkeys(str(inner.loc) for inner in inside if inner.loc is not None)),
    )


def recomputed_rows(made: Compile, kernels: Sequence[KernelRow]) -> Iterator[RecomputedRow]:
    """Calls that remat runs again, and what a backward graph computes of the forward's besides, as
    PyTorch's partition has it."""
    again, moved = _run_again(made)
    seconds = {row.name: row.predicted_seconds for row in kernels}
    for node in filter(is_call, made.final.nodes):
        if node.name in again:
            of, took = again[node.name], seconds[node.name]
            yield RecomputedRow(node.name, of, node.name, _nbytes(node), took)
        elif made.final.name == "backward" and node.name not in moved:
            inside = node.graph("body").nodes if node.op.kind is Kind.REGION else (node,)
            for inner in inside:
                # What is made of nothing is not kept for the backward in the first place.
                if inner.phase == "forward" and inner.operands and is_call(inner):
                    took = seconds[node.name] if inner is node else 0.0
                    yield RecomputedRow(inner.name, inner.name, node.name, _nbytes(inner), took)


def _run_again(made: Compile) -> tuple[Mapping[str, str], Collection[str]]:
    """Names that remat gave to calls that run again, and those of their first runs; and calls of
    the forward that run in the backward only."""
    if made.part is not None:
        return made.part.again, made.part.moved
    steps = (step for step in made.final.history if step.spec.split("{")[0] == "remat")
    runs = ((old, new) for step in steps for old, names in step.renamed for new in names)
    return {new: old for old, new in runs if new != old}, ()


def _nbytes(node: Node) -> int:
    return hint(bytes_written(node))


# --- memory -------------------------------------------------------------------------------------


def buffer_rows(final: Graph) -> Iterator[BufferRow]:
    """What the schedule allocates, over its calls."""
    before = [0, *accumulate(int(is_call(node)) for node in final.nodes)]
    last = max(before[-1] - 1, 0)
    for found in held(final):
        first, end = before[found.first], before[found.last + 1] - 1
        placed = found.offset is not None
        yield BufferRow(
            found.value.name,
            found.nbytes,
            min(first, last),
            max(min(end, last), min(first, last)),
            found.offset,
            placed,
        )


def bytes_at_calls(graph: Graph) -> list[int]:
    """Bytes that a run holds at each call, beyond its inputs."""
    pairs = zip(graph.nodes, held_bytes(graph), strict=True)
    return [nbytes for node, nbytes in pairs if is_call(node)]


def _memory(made: Compile, kernels: Sequence[KernelRow], buffers: Sequence[BufferRow]) -> MemoryRow:
    options = made.options
    after = tuple(_bytes_after(made))
    ends = (b.offset + b.nbytes for b in buffers if b.offset is not None)
    peak = max(after, default=0)
    return MemoryRow(
        budget_bytes=options.budget if options.memory_budget else None,
        arena_bytes=max(ends, default=0),
        peak_bytes=peak,
        peak_at=_most_crowded([i for i, b in enumerate(after) if b == peak], kernels, buffers),
        before=tuple(_bytes_before(made)),
        after=after,
    )


def _bytes_before(made: Compile) -> list[int]:
    known = None if made.part is None else made.part.live_before()
    return bytes_at_calls(made.source) if known is None else known


def _bytes_after(made: Compile) -> list[int]:
    """What is held at each call of the schedule; in a part of a step by all of the step."""
    if made.part is None:
        return bytes_at_calls(made.final)
    kept = (s.snapshot for s in reversed(made.stages) if s.spec.split("{")[0] != "memory")
    return made.part.live(next((g for g in kept if g is not None), made.source))


def _most_crowded(
    calls: Sequence[int], kernels: Sequence[KernelRow], buffers: Sequence[BufferRow]
) -> str:
    """Of these calls the one at which the most bytes are alive: an arena is there at all."""
    alive = {i: sum(b.nbytes for b in buffers if b.first <= i <= b.last) for i in calls}
    return kernels[max(alive, key=lambda i: (alive[i], -i))].name if alive else ""


# --- fallback="error" ---------------------------------------------------------------------------


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
