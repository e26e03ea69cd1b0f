"""Which pass costs time? What a pass leaves is compiled without the passes after it, but for those
that make kernels, and timed beside what it was given; or the cost model is asked.

Time is not lost once for all, as digits are, so no stage is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Any, Final, Protocol

from rewright.bisect.broken import Broken, Data, Fault, HeldData
from rewright.bisect.finding import Finding, Healthy, place_of, spelled
from rewright.bisect.kernels import before_memory, distinct_regions, kernel_name
from rewright.bisect.replay import Replay, Say
from rewright.bisect.running import Setting, Subject
from rewright.bisect.smallest import smallest, start
from rewright.bisect.within import change, values_of
from rewright.building import build_program
from rewright.comparing import time_interleaved
from rewright.costmodel import expected_seconds, graph_estimate
from rewright.ir import Graph, Node, Value
from rewright.ir.expand import body_of
from rewright.passes import Fuse, Pass, PlanMemory
from rewright.tables import seconds_text

# How many times as long something takes that is called slow, as the cost model says and as
# measured, where noise is some percent.
PREDICTED: Final = 1.05
MEASURED: Final = 1.2
ROUNDS: Final = 20

Passes = tuple[Pass, ...]


class Clock(Protocol):
    """Tells seconds of a run of each graph, all of the kernel level, each on its inputs."""

    @property
    def word(self) -> str: ...

    @property
    def least(self) -> float: ...

    def __call__(self, graphs: Sequence[Graph], inputs: Sequence[Sequence[Any]]) -> list[float]: ...


@dataclass(frozen=True)
class Predicted:
    """The cost model's."""

    setting: Setting
    word: str = "predicted"
    least: float = PREDICTED

    def __call__(self, graphs: Sequence[Graph], inputs: Sequence[Sequence[Any]]) -> list[float]:
        return [graph_estimate(self.setting.env.cost, graph).seconds for graph in graphs]


@dataclass(frozen=True)
class Measured:
    """Medians of rounds in which the graphs take turns."""

    setting: Setting
    word: str = "measured"
    least: float = MEASURED

    def __call__(self, graphs: Sequence[Graph], inputs: Sequence[Sequence[Any]]) -> list[float]:
        calls = {
            str(place): self._call(graph, given)
            for place, (graph, given) in enumerate(zip(graphs, inputs, strict=True))
        }
        return list(time_interleaved(calls, ROUNDS).values())

    def _call(self, graph: Graph, inputs: Sequence[Any]) -> Callable[[], object]:
        executable = build_program(self.setting.plan(graph).recipe(retain=True)).executable
        return lambda: executable(list(inputs))


def slowdown(
    graph: Graph, before: Passes, after: Passes, clock: Clock, setting: Setting, data: Sequence[Any]
) -> Fault:
    """How much longer a graph takes after some passes than after others."""
    graphs = [setting.passed(graph, passes) for passes in (before, after)]
    seconds = clock(graphs, [data, data])
    return lost(seconds[0], seconds[1], clock.word)


def lost(before: float, after: float, how: str) -> Fault:
    ratio = after / before if before else float("inf")
    what = f"takes {seconds_text(after)} where it took {seconds_text(before)}"
    return Fault("slow", f"{what} ({ratio:.2f} times, {how})", ratio)


def compared(steps: Passes, rest: Passes) -> tuple[Passes, Passes]:
    """Pipelines that show what steps cost: without and with them. `rest` leads on to a schedule;
    of steps that go there themselves it is asked what their kernels cost."""
    if steps[-1].gives == "kernel":
        return tuple(Fuse(max_ops=0) if isinstance(s, Fuse) else s for s in steps), steps
    level = steps[0].takes
    onwards = [p for p in rest if p.takes != p.gives]
    first = next((i for i, p in enumerate(onwards) if p.takes == level), len(onwards))
    last = next((i for i, p in enumerate(onwards) if p.takes == steps[-1].gives), len(onwards))
    return tuple(onwards[first:]), (*steps, *onwards[last:])


REST: Final = (Fuse(), PlanMemory())


def loss(
    graph: Graph, steps: Passes, clock: Clock, setting: Setting, data: Sequence[Any]
) -> Fault | None:
    """What is lost by steps; None when that is not more than noise."""
    before, after = compared(steps, REST)
    fault = slowdown(graph, before, after, clock, setting, data)
    return fault if fault.size > clock.least else None


@dataclass(frozen=True)
class Slower:
    """A graph takes more than `least` times as long for the subject's passes."""

    subject: Subject
    data: Data
    clock: Clock
    rest: Passes
    least: float

    def __call__(self, graph: Graph) -> Fault | None:
        before, after = compared(self.subject.passes, self.rest)
        setting = self.subject.setting
        try:
            fault = slowdown(graph, before, after, self.clock, setting, self.data(graph))
        except Exception:
            return None
        return fault if fault.size > self.least else None

    def like(self, fault: Fault) -> Slower:
        """Half of the loss will do."""
        return replace(self, least=max(self.least, (1 + fault.size) / 2))


def slowest_pass(
    replay: Replay, inputs: Sequence[Any], seconds: float, say: Say, *, measured: bool
) -> Finding | Healthy:
    """The pass after which a run takes most longer; without one, the kernel that is slower than
    ATen."""
    clock: Clock = Measured(replay.setting) if measured else Predicted(replay.setting)
    say("completing the graph after each pass")
    ends = _ends(replay)
    distinct = list({id(end): end for end in ends}.values())
    taken = clock(distinct, [inputs] * len(distinct))
    known = {id(end): time for end, time in zip(distinct, taken, strict=True)}
    times = [known[id(end)] for end in ends]
    losses = [
        (after - before, place)
        for place, (before, after) in enumerate(pairwise(times), 1)
        if after > clock.least * before and _again(clock, ends[place - 1 : place + 1], inputs)
    ]
    search = _Slow(replay, inputs, clock, seconds, say)
    if losses:
        return search.in_pass(max(losses)[1], times)
    found = search.in_kernels() if measured else None
    return found or Healthy(tuple(_told(replay, times)), f"no pass costs time, as {clock.word}")


def _again(clock: Clock, graphs: Sequence[Graph], inputs: Sequence[Any]) -> bool:
    """Whether the second of two graphs is slower once more."""
    before, after = clock(graphs, [inputs, inputs])
    return after > clock.least * before


def _ends(replay: Replay) -> list[Graph]:
    """The graph as it came and that after each pass, when no pass follows but those that make a
    schedule; one object where a pass changed nothing."""
    ends: list[Graph] = []
    for place, graph in enumerate(replay.graphs):
        rest = [step for step in replay.passes[place:] if step.takes != step.gives]
        end = replay.setting.passed(graph, rest)
        ends.append(ends[-1] if ends and ends[-1] == end else end)
    return ends


def _told(replay: Replay, times: Sequence[float]) -> list[str]:
    """How long a run takes after each pass, those after which it takes as long in one line."""
    names = ("import", *(step.name for step in replay.passes))
    alike = groupby(zip(names, times, strict=True), lambda pair: seconds_text(pair[1]))
    return [f"{time} after {', '.join(name for name, _ in group)}" for time, group in alike]


@dataclass(frozen=True)
class _Slow:
    replay: Replay
    inputs: Sequence[Any]
    clock: Clock
    seconds: float
    say: Say

    def judge(self, subject: Subject, data: Data) -> Broken:
        return Slower(subject, data, self.clock, self.replay.passes, self.clock.least)

    def in_pass(self, place: int, times: Sequence[float]) -> Finding:
        step, setting = self.replay.passes[place - 1], self.replay.setting
        self.say(f"looking into {step}")
        fault = lost(times[place - 1], times[place], self.clock.word)
        rest = [p for p in self.replay.passes[place:] if p.takes != p.gives]

        def is_slow(graph: Graph) -> bool:
            end = setting.passed(graph, rest)
            return self.clock([end], [self.inputs])[0] > self.clock.least * times[place - 1]

        found = change(self.replay, place, is_slow)
        before, after = compared((step,), self.replay.passes)
        around = _dearest(
            setting, setting.passed(found.before, before), setting.passed(found.before, after)
        )
        if found.rewrite is not None:
            around = [(found.rewrite.node,), *around]
        values = lambda: values_of(found.before, self.inputs)  # noqa: E731
        begun = start(found.before, Subject(setting, (step,)), self.judge, around, values)
        case = None if begun is None else smallest(begun, self.judge, self.seconds)
        made = {v.name: n for n in found.before.nodes for v in n.results}
        name = next((name for names in around for name in names if name in made), "")
        what = spelled(made[name]) if name else ""
        return Finding(fault, place_of(step), found.rewrite, name, what, "", case)

    def in_kernels(self) -> Finding | None:
        """The kernel that loses most against ATen's operators, if any does."""
        fused = before_memory(self.replay)
        values = values_of(fused, self.inputs)
        self.say("timing kernels beside ATen")
        found = (self._kernel(region, values) for region in distinct_regions(fused))
        return max((f for f in found if f is not None), key=lambda f: f.fault.size, default=None)

    def _kernel(self, region: Node, values: Mapping[str, Any]) -> Finding | None:
        if region.op.name != "rw.fused":
            return None
        body = dataclasses.replace(body_of(region), name="small")
        given = [values[v.name] for v in region.args if isinstance(v, Value)]
        held = HeldData(values_of(body, given))
        subject = Subject(self.replay.setting, REST, built=True)
        fault = self.judge(subject, held)(body)
        if fault is None:
            return None
        begun = start(body, subject, self.judge, (), lambda: held.values)
        case = None if begun is None else smallest(begun, self.judge, self.seconds)
        place = f"kernel {kernel_name(self.replay, region)}"
        if case is None:
            return Finding(fault, place, None, region.name)
        node = case.graph.nodes[-1]
        return Finding(fault, place, None, node.name, spelled(node), "", case)


def _dearest(setting: Setting, before: Graph, after: Graph) -> list[tuple[str, ...]]:
    """The calls that are new in a schedule, those that take longest first: the names of what they
    make, inside too, and read."""
    cost = setting.env.cost
    old = {node.results for node, _ in expected_seconds(cost, before)}
    calls = expected_seconds(cost, after)
    new = [(seconds, node) for node, seconds in calls if node.results not in old]
    dearest = sorted(new or [(s, n) for n, s in calls], key=lambda pair: -pair[0])
    return [tuple(dict.fromkeys(_names(node))) for _, node in dearest]


def _names(node: Node) -> list[str]:
    inside = [v.name for _, body in node.graphs for n in body.nodes for v in n.results]
    return [*(v.name for v in node.results), *inside, *(v.name for v in node.operands)]
