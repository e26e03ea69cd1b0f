"""A readable list of passes, and running it: verified, timed, with snapshots on request."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from torch._subclasses.fake_tensor import unset_fake_temporarily

from rewright.ir import CheckError, Graph, OptionError, Step
from rewright.passes.base import Env, Pass, from_spec
from rewright.passes.log import Decision
from rewright.passes.specs import Spec, parse_specs


@dataclass(frozen=True)
class Stage:
    """One pass of a run: nodes before and after it, what it said that nobody had said before, and
    the graph after it, when it was asked for."""

    spec: str
    before: int
    after: int
    seconds: float
    snapshot: Graph | None = None
    said: tuple[Decision, ...] = ()


@dataclass(frozen=True)
class PipelineResult:
    graph: Graph
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order. Raises OptionError when one takes another level than it would be given."""

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        for before, after in zip(self.passes, self.passes[1:], strict=False):
            if before.gives != after.takes:
                raise OptionError(
                    f"it takes a graph at the {after.takes} level, but {before.name} before it "
                    f"gives one at the {before.gives} level",
                    who=after.name,
                    help=f"put {after.name} before the passes that leave the {after.takes} level",
                )

    @staticmethod
    def parse(text: str, default: tuple[Pass, ...] = ()) -> Pipeline:
        """Read `canonicalize,cse,fuse{max-ops=8}`; where there are passes by `default`, that word
        stands for them."""
        steps: list[Pass] = []
        for spec in parse_specs(text):
            steps += default if default and spec == Spec("default", ()) else [from_spec(spec)]
        return Pipeline(tuple(steps))

    def __str__(self) -> str:
        return ",".join(str(p) for p in self.passes)

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def at_aten(self) -> Pipeline:
        """The passes before the first that leaves the aten level."""
        return Pipeline(tuple(takewhile(lambda p: p.takes == p.gives == "aten", self.passes)))

    def run(
        self,
        graph: Graph,
        env: Env,
        *,
        check: bool = False,
        snapshots: Container[str] | None = None,
    ) -> PipelineResult:
        """Run every pass. `check` (or `REWRIGHT_CHECK=1`) verifies what goes in and comes out of
        each; `snapshots` names the passes after which to keep the graph."""
        # A caller in the middle of tracing has torch make fake tensors; passes want real ones.
        with unset_fake_temporarily():
            return self._run(
                graph, env, check or os.environ.get("REWRIGHT_CHECK") == "1", snapshots
            )

    def _run(
        self, graph: Graph, env: Env, check: bool, snapshots: Container[str] | None
    ) -> PipelineResult:
        if check and self.passes:
            _verify(graph, self.passes[0].takes)
        stages: list[Stage] = []
        for step in self.passes:
            before, said = graph, len(env.log)
            start = time.perf_counter()
            graph = step.run(before, env)
            seconds = time.perf_counter() - start
            if check:
                _verify_step(before, graph, step)
            graph = _timed(graph, len(before.history), step, seconds)
            snapshot = graph if snapshots is not None and step.name in snapshots else None
            counts = len(before.nodes), len(graph.nodes)
            new = tuple(env.log)[said:]
            stages.append(Stage(str(step), *counts, seconds, snapshot, new))
        return PipelineResult(graph, tuple(stages))


def _verify(graph: Graph, level: str) -> None:
    from rewright.ir.check import check

    check(graph, level)


def _verify_step(before: Graph, after: Graph, step: Pass) -> None:
    """Raises CheckError in the name of the pass that broke the graph."""
    from rewright.ir.check import check_effects

    try:
        _verify(after, step.gives)
        check_effects(before, after)
    except CheckError as error:
        raise CheckError(
            f"left a graph that breaks the {step.gives} level: {error.message}",
            who=str(step),
            excerpt=error.excerpt,
            help=error.help,
        ) from error


def _timed(graph: Graph, steps_before: int, step: Pass, seconds: float) -> Graph:
    """Every pass leaves one step, with its time; one that changed nothing has no names in it."""
    if len(graph.history) == steps_before:
        return graph.with_step(Step(str(step), (), seconds))
    last = dataclasses.replace(graph.history[-1], seconds=seconds)
    return dataclasses.replace(graph, history=(*graph.history[:-1], last))


class _Every:
    """Contains every name: a snapshot after each pass is only a reference."""

    def __contains__(self, name: object) -> bool:
        return True


EVERY_STAGE: Final = _Every()
