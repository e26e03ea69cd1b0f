"""From a graph to a program: passes, kernels, call sequence, report. Everybody takes this way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rewright.calibrate_host import host, isa
from rewright.codegen import Executable, Kernels, input_sizes, kernels_of
from rewright.codegen.executable import Kernel
from rewright.costmodel import Roofline
from rewright.ir import Graph, OptionError, TensorType, ToolchainError, UnsupportedError
from rewright.ir.target import Target
from rewright.options import Options
from rewright.passes import DEFAULT, Env, Fuse, Pass, Pipeline, PipelineResult
from rewright.report import Report, refuse_fallback, report_of

if TYPE_CHECKING:
    from rewright.codegen.cpp import Library
    from rewright.passes import DecisionLog

# What the compiler is told to build for, unless it is the host itself. A CPU of one of these can
# run what is built for those after it.
_MARCH: Final = {"avx512": "x86-64-v4", "avx2": "x86-64-v3", "generic": "x86-64", "neon": "armv8-a"}


@dataclass(frozen=True)
class Program:
    """A compiled graph: call its `executable` with a list of arguments (boxed), or look into it.

    `notes` are for the report: what could not be done, and why.
    """

    executable: Executable
    source: Graph
    stages: PipelineResult
    kernels: Kernels
    kernel_source: str
    library: Library | None
    env: Env
    notes: tuple[str, ...] = ()
    pass_seconds: float = 0.0
    build_seconds: float = 0.0

    @property
    def graph(self) -> Graph:
        """The kernel-level graph: the schedule that runs."""
        return self.stages.graph

    @property
    def log(self) -> DecisionLog:
        return self.env.log

    @cached_property
    def report(self) -> Report:
        """Made when it is asked for: estimating every stage takes a while."""
        found = report_of(self.source, self.stages, self.env).noting(*self.notes)
        return found.timed(passes=self.pass_seconds, build=self.build_seconds)


def compile_graph(
    graph: Graph,
    options: Options,
    *,
    retain: bool = True,
    trace: list[tuple[str, str]] | None = None,
) -> Program:
    """Optimize `graph` for the target and build it.

    `retain` keeps the arena's memory between calls. `trace` receives a record of every step that
    runs. Where kernels cannot be built everything runs as ATen, with one warning; under
    `fallback="error"` that is an error, as is an operator that has no kernel of ours.
    """
    target = _target_for(graph, options)
    try:
        program = _compile(graph, options, target, _device_note(graph), retain, trace)
    except ToolchainError as error:
        if options.fallback == "error":
            raise
        note = f"{error.message}; everything runs as ATen"
        _warn_once(note)
        program = _compile(graph, options, target, note, retain, trace)
    if options.trace:
        from rewright.trace import write_trace

        write_trace(program, Path(options.trace))
    return program


def _compile(
    graph: Graph,
    options: Options,
    target: Target,
    without_kernels: str | None,
    retain: bool,
    trace: list[tuple[str, str]] | None,
) -> Program:
    """`without_kernels` says why there shall be none."""
    started = time.perf_counter()
    if without_kernels is None:
        _require_compiler(target)
    env = Env(cost=Roofline(target), target=target)
    pipeline = pipeline_of(options, kernels=without_kernels is None)
    result = pipeline.run(graph, env, snapshots=_EVERY)
    if options.fallback == "error":
        refuse_fallback(graph, result.graph)
    kernels = kernels_of(result.graph)
    passes_done = time.perf_counter()
    built, text, library = _build(kernels, result.graph, target)
    executable = Executable(result.graph, built, kernels.of_node, retain=retain, trace=trace)
    return Program(
        executable,
        graph,
        result,
        kernels,
        text,
        library,
        env,
        notes=() if without_kernels is None else (without_kernels,),
        pass_seconds=passes_done - started,
        build_seconds=time.perf_counter() - passes_done,
    )


# --- the target ---------------------------------------------------------------------------------


def target_of(options: Options) -> Target:
    return host() if options.target == "host" else Target.parse(options.target)


def _target_for(graph: Graph, options: Options) -> Target:
    """Raises UnsupportedError when the graph lies on another kind of device."""
    target = target_of(options)
    devices = _devices(graph)
    if options.target != "host" and devices and target.device not in devices:
        raise UnsupportedError(
            f"{target.name} is a {target.device} device, and graph {graph.name} is on "
            f"{', '.join(devices)}",
            who="target",
            help="name a target of that kind, or move the model and its inputs",
        )
    return target


def _device_note(graph: Graph) -> str | None:
    """Why the graph gets no kernels of ours, if it lies on a device that we only run ATen on."""
    others = [d for d in _devices(graph) if d != "cpu"]
    return f"kernels run on the CPU; on {', '.join(others)} everything is ATen" if others else None


def _devices(graph: Graph) -> list[str]:
    types = (v.type for v in graph.values)
    return sorted({t.device.type for t in types if isinstance(t, TensorType)})


# --- passes -------------------------------------------------------------------------------------


def pipeline_of(options: Options, *, kernels: bool = True) -> Pipeline:
    """The passes that the options ask for; without kernels none makes regions.

    Raises OptionError when they do not lead from ATen to a schedule.
    """
    chosen = Pipeline(DEFAULT) if options.passes == "default" else Pipeline.parse(options.passes)
    levels = [chosen.passes[0].takes, chosen.passes[-1].gives] if chosen.passes else []
    if levels != ["aten", "kernel"]:
        raise OptionError(
            f"'{options.passes}' does not lead from the aten level to the kernel level",
            who="passes",
            help="end it with fuse,memory; fuse{max-ops=0} makes no kernels",
        )
    if kernels:
        return chosen
    return Pipeline(tuple(_without_regions(p) for p in chosen))


def _without_regions(step: Pass) -> Pass:
    return Fuse(max_ops=0) if isinstance(step, Fuse) else step


class _Every:
    """Contains every name: a snapshot after each pass is only a reference."""

    def __contains__(self, name: object) -> bool:
        return True


_EVERY: Final = _Every()


# --- kernels ------------------------------------------------------------------------------------


def _require_compiler(target: Target) -> None:
    """Raises ToolchainError before any work is done for kernels that cannot be built."""
    from rewright.codegen.cpp import toolchain

    toolchain(_march(target))


def _march(target: Target) -> str:
    return "native" if target == host() else _MARCH[target.isa]


@cache
def _warn_once(note: str) -> None:
    warnings.warn(f"rewright: {note}", stacklevel=2)


def _build(
    kernels: Kernels, graph: Graph, target: Target
) -> tuple[Mapping[str, Kernel], str, Library | None]:
    """The kernels by name, the source they were built from, and the library that holds them."""
    if not kernels.nests:
        return {}, "", None
    from rewright.codegen.cpp import build, emit

    text = emit(kernels.nests, tuple(input_sizes(graph)), graph=graph.name)
    library = build(text, march=_march(target))
    if not _runs_here(target):
        return {n.name: _refusal(target) for n in kernels.nests}, text, library
    return {n.name: library.function(n.name) for n in kernels.nests}, text, library


def _runs_here(target: Target) -> bool:
    known = list(_MARCH)
    return target == host() or known.index(target.isa) >= known.index(isa())


def _refusal(target: Target) -> Kernel:
    """Stands for a kernel whose instructions this CPU does not have."""

    def refuse(pointers: object, sizes: object) -> None:
        raise UnsupportedError(
            f"the kernels are built for {target.isa}, and this CPU runs {isa()}", who="target"
        )

    return refuse
