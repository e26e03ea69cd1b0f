"""What a half of a training step within a budget is part of: its schedule, its memory, its past."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rewright.costmodel import show_bytes
from rewright.ir import Graph, Step, hint, is_call
from rewright.ir.work import bytes_written
from rewright.passes import Decision, Stage
from rewright.passes.remat import Fitted, Halves, TrainingStep
from rewright.step_memory import StepMemory, step_memory


@dataclass(frozen=True)
class Earlier:
    """The graph of a half as it came, and the passes up to its schedule; `seconds` are all that
    they took."""

    source: Graph
    stages: tuple[Stage, ...]
    seconds: float

    @property
    def graph(self) -> Graph:
        """What the last of them left."""
        kept = (s.snapshot for s in reversed(self.stages))
        return next((graph for graph in kept if graph is not None), self.source)

    def then(self, stage: Stage) -> Earlier:
        return Earlier(self.source, (*self.stages, stage), self.seconds + stage.seconds)


@dataclass(frozen=True)
class StepPart:
    """`fitted` is the schedule of the whole step, `memory` what the step allocates; this is its
    `forward`, or not. `again` are names of calls that run again, and of their first runs;
    `moved` are calls of the forward that run in the backward only. A program that was stored has
    lost the step `as_it_came` and what came `earlier`."""

    fitted: Fitted
    memory: StepMemory
    forward: bool
    again: Mapping[str, str]
    moved: frozenset[str]
    as_it_came: TrainingStep | None = None
    earlier: Earlier | None = None

    def stored(self) -> StepPart:
        return dataclasses.replace(self, as_it_came=None, earlier=None)

    def live(self, half: Graph) -> list[int]:
        """The bytes that the step holds at each call of this half."""
        return self._of(self.memory, half)

    def live_before(self) -> list[int] | None:
        """The bytes that it would hold at each call if nothing had been done; None where that is
        no longer known."""
        if self.as_it_came is None:
            return None
        seconds = {node.name: 0.0 for node in self.as_it_came.joined.nodes}
        scheduled = self.as_it_came.scheduled(seconds)
        halves = self.as_it_came.halves(scheduled, scheduled.problem.given_order)
        half = halves.forward if self.forward else halves.backward
        return self._of(step_memory(halves), half)

    def _of(self, memory: StepMemory, half: Graph) -> list[int]:
        held = memory.bytes()
        nodes = held[: memory.split] if self.forward else held[memory.split :]
        return [n for node, n in zip(half.nodes, nodes, strict=True) if is_call(node)]


@dataclass(frozen=True)
class Scheduling:
    """The step before it was scheduled, as it came, what its halves went through, how it was
    scheduled, and the pass that asked for it."""

    step: TrainingStep
    as_it_came: TrainingStep
    earlier: tuple[Earlier, Earlier]
    fitted: Fitted
    spec: str
    seconds: float

    def parts(self, halves: Halves, memory: StepMemory) -> Iterator[tuple[Graph, StepPart]]:
        """The halves with their histories, and what they are part of; the forward first."""
        for forward in (True, False):
            half = self._with_history(halves, forward)
            origins = {n.name: halves.origins[n.name] for n in filter(is_call, half.nodes)}
            again = {name: of for name, of in origins.items() if name != of}
            first = {node.name for node in self.step.forward.nodes}
            moved = frozenset(n for n in origins if not forward and n not in again and n in first)
            earlier = self._earlier(half, forward, tuple(_said(half, again, moved)))
            at_first = self.as_it_came
            yield (
                half,
                StepPart(self.fitted, memory, forward, again, moved, at_first, earlier),
            )

    def _with_history(self, halves: Halves, forward: bool) -> Graph:
        """A half that knows what became of the names that it had before."""
        half = halves.forward if forward else halves.backward
        before = self.step.forward if forward else self.step.backward
        joined = {} if forward else self.step.names
        here = {value.name for value in half.values}
        runs: dict[str, tuple[str, ...]] = {}
        for name, of in halves.origins.items():
            if name in here:
                runs[of] = (*runs.get(of, ()), name)
        renamed = []
        for name in (node.name for node in before.nodes if node.name):
            now = joined.get(name, name)
            became = runs.get(now, (now,) if now in here else ())
            if became != (name,):
                renamed.append((name, became))
        step = Step(self.spec, tuple(renamed), self.seconds)
        return dataclasses.replace(half, history=(*before.history, step))

    def _earlier(self, half: Graph, forward: bool, said: tuple[Decision, ...]) -> Earlier:
        before = self.earlier[0 if forward else 1]
        nodes = len(before.graph.nodes), len(half.nodes)
        return before.then(Stage(self.spec, *nodes, self.seconds, half, said))


def _said(half: Graph, again: Mapping[str, str], moved: frozenset[str]) -> Iterator[Decision]:
    for node in half.nodes:
        size = show_bytes(hint(bytes_written(node)))
        if node.name in again:
            yield _decided(node.name, f"runs %{again[node.name]} again, so that {size} are let go")
        elif node.name in moved:
            yield _decided(node.name, "runs in the backward, where alone it is read")


def _decided(name: str, sentence: str) -> Decision:
    return Decision("remat", name, "decided", sentence)
