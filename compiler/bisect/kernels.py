"""Every stage is right and the program is not: which kernel, and which node in it?

A kernel runs by itself, on what its operands held in a run of the model, beside the graph that says
what it computes; then each node of a wrong kernel in a kernel of its own. All of them are built in
one go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewright.bisect.broken import Breaks, Broken, Data, Fault, HeldData, wrong
from rewright.bisect.finding import Case, Finding, spelled
from rewright.bisect.judge import Reference
from rewright.bisect.replay import Replay, Say
from rewright.bisect.running import Setting, Subject
from rewright.bisect.smallest import smallest, start
from rewright.bisect.within import values_of
from rewright.codegen import kernels_of
from rewright.ir import (
    Arg,
    Graph,
    Input,
    Kind,
    Node,
    RewrightError,
    UnsupportedError,
    Value,
    op,
)
from rewright.ir.expand import body_of
from rewright.passes import Fuse, Pass

Values = Mapping[str, Any]


def guilty_kernel(
    replay: Replay, inputs: Sequence[Any], fault: Fault, seconds: float, say: Say
) -> Finding:
    """What is to blame for a program that is broken where its graph is not."""
    fused = before_memory(replay)
    values = values_of(fused, inputs)
    bench, distinct = _Bench(replay, fault), distinct_regions(fused)
    say(f"running {len(distinct)} kernels alone")
    # On other operands a kernel may be wrong that is right on those it has first.
    others = [r for r in fused.nodes if r.op.kind is Kind.REGION and r not in distinct]
    for regions in filter(None, (distinct, others)):
        for region in regions if fault.kind == "crash" else bench.wrong(regions, values):
            found = bench.finding(region, values, seconds, say)
            if found is not None:
                return found
    return _call_sequence(replay, inputs, fault, seconds)


def before_memory(replay: Replay) -> Graph:
    """The graph that the pass was given which left the fused level."""
    made = zip(replay.graphs, replay.passes, strict=False)
    return next(graph for graph, step in made if step.gives == "kernel")


def distinct_regions(fused: Graph) -> list[Node]:
    """The first region of each kernel; all of them when kernels cannot even be told apart."""
    regions = [node for node in fused.nodes if node.op.kind is Kind.REGION]
    try:
        of_node = kernels_of(fused).of_node
    except RewrightError:
        return regions
    return list({of_node[node.name]: node for node in reversed(regions)}.values())[::-1]


@dataclass(frozen=True)
class _Bench:
    """Where kernels run alone, to see whether they have the fault of the whole program."""

    replay: Replay
    fault: Fault

    @property
    def setting(self) -> Setting:
        return self.replay.setting

    @property
    def memory(self) -> Pass:
        return next(p for p in self.replay.passes if p.gives == "kernel")

    @property
    def fuse(self) -> Pass:
        return next((p for p in self.replay.passes if isinstance(p, Fuse)), Fuse())

    def judge(self, subject: Subject, data: Data) -> Broken:
        return Breaks(subject, data, self.fault)

    def wrong(self, nodes: Sequence[Node], values: Values) -> list[Node]:
        """Those whose results are wrong, when each runs as a call of its own."""
        apart, data = _apart(nodes, values)
        planned = self.setting.passed(apart, (self.memory,))
        results = iter(self.setting.executed(apart, planned, data(apart)))
        return [node for node in nodes if _is_wrong(node, values, results)]

    def finding(self, region: Node, values: Values, seconds: float, say: Say) -> Finding | None:
        """What is wrong with the kernel of a region; None when nothing is, by itself."""
        alone = _alone(region)
        subject = Subject(self.setting, (self.memory,), built=True)
        held = HeldData(values)
        fault = self.judge(subject, held)(alone)
        if fault is None:
            return None
        say(f"making the kernel of %{region.name} small")
        inner = self._inner(region, values)
        case = self._smallest(region, inner, seconds) or Case(
            alone, subject, held, self.judge(subject, held), fault
        )
        node = case.graph.nodes[-1]
        what = "" if node.op.kind is Kind.REGION else spelled(node)
        place = f"kernel {kernel_name(self.replay, region)}"
        return Finding(self.fault, place, None, node.name, what, "", case)

    def _inner(self, region: Node, values: Values) -> Values:
        """What every value of the region's body holds."""
        given = [values[v.name] for v in region.args if isinstance(v, Value)]
        return values_of(body_of(region), given)

    def _smallest(self, region: Node, inner: Values, seconds: float) -> Case | None:
        """A small graph that is broken as the kernel is: of ATen operators if what fuses them
        makes a kernel that is broken too, else a region."""
        if region.op.name != "rw.fused":
            return None
        body = dataclasses.replace(body_of(region), name="small")
        around = [(node.name,) for node in self._wrong_alone(body, inner)]
        subject = Subject(self.setting, (self.fuse, self.memory), built=True)
        found = start(body, subject, self.judge, around, lambda: inner)
        if found is not None:
            return smallest(found, self.judge, seconds)
        subject = Subject(self.setting, (self.memory,), built=True)
        found = start(body, subject, self._judge_region, around, lambda: inner)
        if found is None:
            return None
        case = smallest(found, self._judge_region, seconds)
        assert isinstance(case.broken, _InOneRegion)
        return dataclasses.replace(case, graph=in_one_region(case.graph), broken=case.broken.broken)

    def _judge_region(self, subject: Subject, data: Data) -> Broken:
        return _InOneRegion(self.judge(subject, data))

    def _wrong_alone(self, body: Graph, inner: Values) -> list[Node]:
        """Nodes of a body whose own kernels are wrong."""
        if self.fault.crash is not None:
            return []
        own = [r for node in body.nodes if (r := _region(body.name, (node,))) is not None]
        return self.wrong(own, inner)


@dataclass(frozen=True)
class _InOneRegion:
    """What `broken` says of a graph as a region, whatever a pass would make of it."""

    broken: Broken

    def __call__(self, graph: Graph) -> Fault | None:
        try:
            return self.broken(in_one_region(graph))
        except RewrightError:
            return None

    def like(self, fault: Fault) -> _InOneRegion:
        return _InOneRegion(self.broken.like(fault))


def in_one_region(graph: Graph) -> Graph:
    """The same function as a region. Raises UnsupportedError when it has no kernel."""
    region = _region(graph.name, graph.nodes, graph.outputs)
    if region is None:
        raise UnsupportedError("there is no kernel for all of it")
    return dataclasses.replace(_alone(region), name=graph.name)


def kernel_name(replay: Replay, region: Node) -> str:
    """The name of the kernel of a region, as the program's source has it."""
    try:
        return kernels_of(replay.final).of_node[region.name]
    except RewrightError:
        return f"of %{region.name}"


def _is_wrong(node: Node, values: Values, results: Iterator[Any]) -> bool:
    found = [next(results) for _ in node.results]
    alone = _alone(node)
    reference = Reference.of(alone, HeldData(values)(alone))
    return wrong(reference.verdict(found)) is not None


def _alone(node: Node) -> Graph:
    """A fused-level graph of one node, names kept."""
    inputs = tuple(Input(v) for v in dict.fromkeys(node.operands))
    return Graph("alone", inputs, (node,), node.results)


def _apart(nodes: Sequence[Node], values: Values) -> tuple[Graph, HeldData]:
    """A graph of nodes that have nothing to do with each other, and its inputs."""
    given: dict[Value, Any] = {}
    made: list[Node] = []
    for place, node in enumerate(nodes):
        own = {v: Value(f"{v.name}.{place}", v.type) for v in (*node.operands, *node.results)}
        given |= {own[v]: values[v.name] for v in node.operands}
        results = tuple(own[v] for v in node.results)
        made.append(dataclasses.replace(node.replace(own), results=results))
    outputs = tuple(v for node in made for v in node.results)
    graph = Graph("apart", tuple(map(Input, given)), tuple(made), outputs)
    return graph, HeldData({v.name: held for v, held in given.items()})


def _region(name: str, nodes: Sequence[Node], outputs: Sequence[Arg] = ()) -> Node | None:
    """A region of some nodes; None when there is no kernel for it."""
    made = {v for node in nodes for v in node.results}
    operands = tuple(dict.fromkeys(v for n in nodes for v in n.operands if v not in made))
    results = tuple(v for v in outputs or nodes[-1].results if isinstance(v, Value))
    body = Graph("body", tuple(Input(v) for v in operands), tuple(nodes), results)
    region = Node(op("rw.fused"), operands, (), results, (("body", body),))
    try:
        kernels_of(_alone(region))
    except RewrightError:
        return None
    return region


def _call_sequence(replay: Replay, inputs: Sequence[Any], fault: Fault, seconds: float) -> Finding:
    """Every kernel is right: what is wrong is between them."""
    bench, source = _Bench(replay, fault), replay.source
    for passes in ((Fuse(max_ops=0), bench.memory), replay.passes):
        subject = Subject(replay.setting, passes, built=True)
        found = start(source, subject, bench.judge, (), lambda: values_of(source, inputs))
        if found is not None:
            case = smallest(found, bench.judge, seconds)
            node = case.graph.nodes[-1]
            return Finding(fault, "the call sequence", None, node.name, spelled(node), "", case)
    return Finding(fault, "the call sequence")
