"""Ways to run a graph after passes: by the interpreter, or built as it is for users."""

from __future__ import annotations

import dataclasses
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from rewright.bisect.child import Died, in_child, packed, unpacked
from rewright.bisect.judge import Results, run
from rewright.building import build_program
from rewright.codegen import kernels_of
from rewright.driver import Plan
from rewright.ir import Graph
from rewright.ir.interpret import interpret
from rewright.options import Options
from rewright.passes import DecisionLog, Env, Pass, Pipeline, PipelineResult
from rewright.passes.fuel import Fuel

# Names and numbers in a message change as a graph shrinks.
_CHANGING = re.compile(r"%[\w.]+|'[^']*'|\d[\d.e+-]*|\[[^\]]*\]")
_HEAD = 80


@dataclass(frozen=True)
class Crash:
    """What was raised, or how a process died; `place` is the function that raised it."""

    kind: str
    message: str
    place: str

    @property
    def signature(self) -> tuple[str, str, str]:
        """Equal for the same trouble in other graphs."""
        head = _CHANGING.sub("", self.message.partition("\n")[0])[:_HEAD]
        return self.kind, head, self.place

    def __str__(self) -> str:
        said, *more = [line.strip() for line in self.message.splitlines()] or [""]
        if said.endswith(":") and more:
            said = f"{said} {more[0]}"
        if not self.place:
            return said
        return f"raises {self.kind}: {said}" if said else f"raises {self.kind}"


class _ChildRaised(Exception):
    """Something was raised in a process of its own."""

    def __init__(self, crash: Crash) -> None:
        super().__init__(str(crash))
        self.crash = crash


def crash_of(error: BaseException) -> Crash:
    if isinstance(error, _ChildRaised):
        return error.crash
    if isinstance(error, Died):
        return Crash("crash" if error.signal else "hang", str(error), "")
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{PurePath(frames[-1].filename).name}:{frames[-1].name}" if frames else ""
    message = getattr(error, "message", None) or str(error)
    return Crash(type(error).__name__, str(message), place)


@dataclass(frozen=True)
class Setting:
    """What graphs are compiled with. `apart`: programs run in processes of their own."""

    options: Options
    env: Env
    apart: bool = True

    def passed(
        self,
        graph: Graph,
        passes: Sequence[Pass],
        fuel: Fuel | None = None,
        sample: Sequence[Any] | None = None,
    ) -> Graph:
        """The graph after passes, whose decisions nobody reads. Of a part of the graph, `sample`
        takes the place of the samples that errors are measured on."""
        samples = self.env.samples
        if sample is not None:
            samples = tuple(sample for _ in samples)
        env = dataclasses.replace(self.env, log=DecisionLog(), fuel=fuel, samples=samples)
        return Pipeline(tuple(passes)).run(graph, env).graph

    def executed(self, source: Graph, after: Graph, inputs: Sequence[Any]) -> Results:
        """The results of a kernel-level graph, built, as those of the graph that it came from."""
        built = build_program(self.plan(after).recipe(retain=False))
        executable = built.executable
        if self.apart:
            _answer(lambda: run(source, inputs, executable))
        return run(source, inputs, executable)

    def plan(self, graph: Graph) -> Plan:
        """A kernel-level graph, ready to be built."""
        result = PipelineResult(graph, ())
        return Plan(graph, self.options, result, kernels_of(graph), self.env, None, 0.0)


def interpreted(source: Graph, after: Graph, inputs: Sequence[Any]) -> Results:
    """The results of a graph of any level, by the interpreter, in the graph's own types."""
    placed = is_placed(after)
    return run(source, inputs, lambda given: interpret(after, given, arena=placed))


def is_placed(graph: Graph) -> bool:
    """Whether buffers have addresses that hold for every run."""
    return any(node.op.name == "rw.alloc" for node in graph.nodes) and not graph.symbols


def _answer(call: Callable[[], Results]) -> Results:
    """What a call gives in a process of its own. Raises Died, or what was raised there."""

    def tried() -> bytes:
        try:
            return packed(("gave", list(call())))
        except BaseException as error:
            crash = crash_of(error)
            return packed(("raised", [crash.kind, crash.message, crash.place]))

    how, said = unpacked(in_child(tried))
    if how == "raised":
        raise _ChildRaised(Crash(*said))
    return said  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Subject:
    """What a graph is put through, and how it is run then: `built` as a program, else by the
    interpreter."""

    setting: Setting
    passes: tuple[Pass, ...]
    built: bool = False

    @property
    def takes(self) -> str:
        """The level of the graphs that can be put through it."""
        return self.passes[0].takes

    def __call__(self, graph: Graph, inputs: Sequence[Any]) -> Results:
        after = self.setting.passed(graph, self.passes, sample=inputs)
        if self.built:
            return self.setting.executed(graph, after, inputs)
        return interpreted(graph, after, inputs)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))
