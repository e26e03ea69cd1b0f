"""From a graph to a program: passes, kernels, call sequence, report. Everybody takes this way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewright.calibrate_host import host
from rewright.codegen import Executable, Kernels, kernels_of
from rewright.codegen.executable import Kernel
from rewright.costmodel import Roofline
from rewright.ir import Graph, ToolchainError
from rewright.ir.target import Target
from rewright.options import Options
from rewright.passes import DEFAULT, DecisionLog, Env, Fuse, Pass, Pipeline, PipelineResult
from rewright.report import Report, report_of

if TYPE_CHECKING:
    from rewright.codegen.cpp import Library


@dataclass(frozen=True)
class Program:
    """A compiled graph: call it with a list of arguments (boxed), or look into it."""

    executable: Executable
    source: Graph
    stages: PipelineResult
    kernels: Kernels
    kernel_source: str
    library: Library | None
    log: DecisionLog
    report: Report

    @property
    def graph(self) -> Graph:
        """The kernel-level graph: the schedule that runs."""
        return self.stages.graph


def compile_graph(
    graph: Graph,
    options: Options,
    *,
    retain: bool = True,
    trace: list[tuple[str, str]] | None = None,
) -> Program:
    """Optimize `graph` for the target and build it.

    `retain` keeps the arena's memory between calls. `trace` receives a record of every step that
    runs. Without a C++ compiler everything runs as ATen, with one warning. Raises UnsupportedError
    under `fallback="error"` when an operator has no kernel of ours.
    """
    started = time.perf_counter()
    target = target_of(options)
    env = Env(cost=Roofline(target), target=target)
    toolchain = _toolchain()
    pipeline = pipeline_of(options, kernels=toolchain is None)
    result = pipeline.run(graph, env, snapshots=_EVERY)
    kernels = kernels_of(result.graph)
    passes_done = time.perf_counter()
    built, text, library = _build(kernels, graph)
    report = report_of(graph, result, env, options, target)
    if toolchain is not None:
        report = report.noting(toolchain)
    executable = Executable(result.graph, built, kernels.of_node, retain=retain, trace=trace)
    done = time.perf_counter()
    report = report.timed(passes=passes_done - started, build=done - passes_done)
    return Program(executable, graph, result, kernels, text, library, env.log, report)


def target_of(options: Options) -> Target:
    return host() if options.target == "host" else Target.parse(options.target)


def pipeline_of(options: Options, *, kernels: bool = True) -> Pipeline:
    """The passes that the options ask for; without kernels none makes regions."""
    chosen = Pipeline(DEFAULT) if options.passes == "default" else Pipeline.parse(options.passes)
    if kernels:
        return chosen
    return Pipeline(tuple(_without_regions(p) for p in chosen))


def _without_regions(step: Pass) -> Pass:
    return Fuse(max_ops=0) if isinstance(step, Fuse) else step


class _Every:
    """Contains every name: a snapshot after each pass is only a reference."""

    def __contains__(self, name: object) -> bool:
        return True


_EVERY = _Every()


def _toolchain() -> str | None:
    """Why kernels cannot be built on this machine, or None."""
    from rewright.codegen.cpp import toolchain

    try:
        toolchain()
    except ToolchainError as error:
        warnings.warn(f"rewright: {error.message}; everything runs as ATen", stacklevel=2)
        return error.message
    return None


def _build(kernels: Kernels, graph: Graph) -> tuple[Mapping[str, Kernel], str, Library | None]:
    """The kernels by name, the source they were built from, and the library that holds them."""
    if not kernels.nests:
        return {}, "", None
    from rewright.codegen.cpp import build, emit

    symbols = tuple(s.name for s in graph.symbols if s.hint is not None)
    text = emit(kernels.nests, symbols, graph=graph.name)
    library = build(text)
    return {n.name: library.function(n.name) for n in kernels.nests}, text, library
