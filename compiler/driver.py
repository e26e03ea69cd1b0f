"""From a graph to a program: passes, kernels, call sequence, report. Everybody takes this way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rewright.building import Built, Recipe, build_program, compiler_for
from rewright.calibrate.host import host, isa
from rewright.codegen import Executable, Kernels, input_sizes, kernels_of, write_calls
from rewright.codegen.gpu import GpuKernels, missing_compiler
from rewright.comparing import Errors, errors
from rewright.cost_models import cost_model, is_measured, model_file
from rewright.costmodel import Tools
from rewright.gpu_plan import (
    devices_of,
    for_gpu,
    gpu_of,
    number_of,
    target_here,
    why_aten,
    with_kernels,
)
from rewright.ir import (
    Graph,
    OptionError,
    ToolchainError,
    UnsupportedError,
    symbols_of,
)
from rewright.ir.expand import expand
from rewright.ir.graph import sizes_of
from rewright.ir.target import Target
from rewright.options import Options
from rewright.passes import (
    DEFAULT,
    EVERY_STAGE,
    Bytes,
    ChannelsLast,
    Convolutions,
    Env,
    Epilogues,
    FlashAttention,
    Freeze,
    Fuse,
    Libraries,
    MergeProducts,
    Pass,
    Pipeline,
    PipelineResult,
    PlanMemory,
    Quantize,
    Remat,
    Rules,
)
from rewright.passes.remat import LEAST, MOST_READ, SMALL, Fitted
from rewright.report import Report
from rewright.reporting import Compile, of_part, refuse_fallback, report_of
from rewright.step_part import StepPart

if TYPE_CHECKING:
    from rewright.calibrate.profile import Profile
    from rewright.codegen.cpp import Library
    from rewright.explaining import Explanation
    from rewright.passes import DecisionLog


@dataclass(frozen=True)
class Plan:
    """A graph after all passes, with the loop nests of its kernels; nothing is built yet.

    `note` says why there are no kernels, when there are none; `gpu` has those for GPUs, which are
    built to see which there can be.
    """

    source: Graph
    options: Options
    stages: PipelineResult
    kernels: Kernels
    env: Env
    note: str | None
    pass_seconds: float
    gpu: GpuKernels | None = None

    @property
    def graph(self) -> Graph:
        """The kernel-level graph: the schedule that runs."""
        return self.stages.graph

    @property
    def fused(self) -> Graph:
        """The graph after fusion: its calls, before their memory is planned."""
        kept = ((s.spec, s.snapshot) for s in reversed(self.stages.stages))
        found = (graph for spec, graph in kept if spec.startswith("fuse") and graph is not None)
        return next(found, self.graph)

    @property
    def log(self) -> DecisionLog:
        return self.env.log

    @cached_property
    def kernel_source(self) -> str:
        """The kernels as C++; empty when there are none, and for GPUs, whose kernels lie in
        artefacts."""
        from rewright.codegen.cpp import emit

        symbols = tuple(input_sizes(self.graph))
        nests = self.kernels.nests if self.env.target.device == "cpu" else ()
        return emit(nests, symbols, graph=self.graph.name) if nests else ""

    def recipe(self, *, retain: bool) -> Recipe:
        """What it takes to build this."""
        target = self.env.target
        source, of_node = self.kernel_source, self.kernels.of_node
        return Recipe(self.graph, of_node, source, target, retain, self.gpu)

    @property
    def calls(self) -> str:
        """The call sequence as Python."""
        return write_calls(self.graph, self.kernels.of_node).source

    @property
    def notes(self) -> tuple[str, ...]:
        """What runs as ATen although it should not, and why."""
        refused = {} if self.gpu is None else self.gpu.refused
        notes = () if self.note is None else (self.note,)
        return (*notes, *(f"{name} runs as ATen: {why}" for name, why in refused.items()))

    @property
    def compile(self) -> Compile:
        """What its report is made of."""
        return Compile(
            self.source,
            self.stages.stages,
            self.env,
            self.options,
            self.kernels.of_node,
            self.pass_seconds,
            tuple(self.log),
            self.notes,
        )

    @cached_property
    def report(self) -> Report:
        """Made when it is asked for: estimating every stage takes a while."""
        return report_of(self.compile)


@dataclass(frozen=True)
class Program:
    """A plan, built: call its `executable` with a list of arguments (boxed), or look into it.

    `part` says which part of a training step it is, when that keeps a budget; `profile` what its
    calls take, when they were timed."""

    plan: Plan
    recipe: Recipe
    built: Built
    part: StepPart | None = None
    profile: Profile | None = None

    @property
    def fitted(self) -> Fitted | None:
        """The schedule of the whole training step, when it keeps a budget."""
        return None if self.part is None else self.part.fitted

    @property
    def executable(self) -> Executable:
        return self.built.executable

    @property
    def library(self) -> Library | None:
        """Where the kernels are; None when there are none."""
        return self.built.library

    @property
    def source(self) -> Graph:
        return self.plan.source

    @property
    def graph(self) -> Graph:
        """The kernel-level graph: the schedule that runs."""
        return self.plan.graph

    @property
    def compile(self) -> Compile:
        """What its report is made of: of a part of a step, all that it went through."""
        return self.plan.compile if self.part is None else of_part(self.plan.compile, self.part)

    @cached_property
    def report(self) -> Report:
        found = self.plan.report if self.part is None else report_of(self.compile)
        found = found.built(self.built.seconds)
        if self.profile is None:
            return found
        return found.measured(self.profile.whole, self.profile.steps)

    def why(self, subject: str | None = None) -> Explanation:
        """What was decided about a value, a kernel or a pass, or about all, and what it costs;
        `str()` of it is what `rewright why` prints. Raises CheckError for an unknown name."""
        from rewright.explaining import explain
        from rewright.record import record_of

        return explain(record_of(self), subject)

    def errors(self, inputs: Sequence[Any] | None = None) -> Errors:
        """How far this and eager are from float64, on `inputs` of the graph or on random ones."""
        from rewright.sources import random_inputs

        given = random_inputs(self.source) if inputs is None else inputs
        return errors(self.source, self.executable, given)


def compile_graph(
    graph: Graph,
    options: Options,
    *,
    retain: bool = True,
    passes: str = "",
    part: StepPart | None = None,
    samples: tuple[Sequence[Any], ...] = (),
    trace: list[tuple[str, str]] | None = None,
) -> Program:
    """Optimize `graph` for the target and build it.

    `retain` keeps the arena's memory between calls. `passes` are those that a graph still needs
    which has been through others, instead of all; `part` says what it is part of; an error
    budget is measured on `samples`, each all inputs of the graph. `trace` receives a record of
    every step that runs. Where kernels cannot be built everything runs as ATen, with one warning;
    under `fallback="error"` that is an error, as is an operator that has no kernel of ours.
    """
    plan = plan_graph(graph, options, passes, samples)
    if plan.note is None and plan.env.target.device != "cpu":
        plan = with_kernels(plan, [number_of(plan.env.target.isa)])
    recipe = plan.recipe(retain=retain)
    try:
        built = build_program(recipe, trace=trace)
    except ToolchainError as error:
        note = _without_kernels(error, options)
        plan = planned(expand(graph), options, environment(graph, options)[0], note, passes)
        recipe = plan.recipe(retain=retain)
        built = build_program(recipe, trace=trace)
    if part is not None:
        plan.log.decide("remat", graph.name, str(part.fitted))
    program = Program(plan, recipe, built, part)
    if options.trace:
        from rewright.trace import write_trace

        write_trace(program, Path(options.trace))
    return program


def plan_graph(
    graph: Graph, options: Options, passes: str = "", samples: tuple[Sequence[Any], ...] = ()
) -> Plan:
    """All of `compile_graph` but building the kernels, which takes most of its time."""
    _check_sizes(graph)
    env, note = environment(graph, options, samples)
    return planned(graph, options, env, note, passes)


def environment(
    graph: Graph, options: Options, samples: tuple[Sequence[Any], ...] = ()
) -> tuple[Env, str | None]:
    """What passes over `graph` may use, and why it gets no kernels, if so."""
    target = target_for(graph, options)
    env = Env(
        cost=cost_model(target),
        target=target,
        tools=tools_of(options, target),
        error=options.error_budget,
        samples=samples,
    )
    return env, why_aten(graph, options) or _compiler_note(target, options)


def _check_sizes(graph: Graph) -> None:
    """Raises UnsupportedError for a size that a call does not tell."""
    known = input_sizes(graph)
    shown = symbols_of(s for i in graph.inputs for s in sizes_of(i.value.type))
    hidden = next((s.name for s in shown if s.name not in known), None)
    if hidden is not None:
        raise UnsupportedError(
            f"nothing says what {hidden} is: no input of graph {graph.name} has that size, or one "
            "that it alone decides",
            help=f"add an input with a dimension of that size, or the number itself: int({hidden})",
        )


def planned(
    graph: Graph, options: Options, env: Env, note: str | None = None, passes: str = ""
) -> Plan:
    """The plan that passes make in `env`, without kernels when there is a `note` that says why."""
    started = time.perf_counter()
    chosen = Pipeline.parse(passes) if passes else pipeline_of(options, kernels=note is None)
    if env.target.device != "cpu" and not passes:
        chosen = for_gpu(chosen, graph, env.target)
    result = chosen.run(graph, env, snapshots=EVERY_STAGE)
    if options.fallback == "error":
        refuse_fallback(graph, result.graph)
    kernels = kernels_of(result.graph)
    return Plan(graph, options, result, kernels, env, note, time.perf_counter() - started)


def tools_of(options: Options, target: Target) -> Tools | None:
    """What measures, when the target is this machine."""
    if not is_measured(target):
        return None
    from rewright.calibrate.tools import BenchTools

    return BenchTools(target, model_file(target), float(options.measure))


# --- the target ---------------------------------------------------------------------------------


def target_of(options: Options) -> Target:
    """What is compiled for. Ranks of a distributed program must decide alike, so they count on
    what is known of their kind of CPU and not on what each has measured."""
    if options.target != "host":
        return targets_of(options)[0]
    return Target.parse(f"cpu:{isa()}") if _has_other_ranks() else host()


def targets_of(options: Options) -> tuple[Target, ...]:
    """Several GPUs, when the option lists them: plans are for the first, kernels for each. Raises
    OptionError."""
    found = tuple(map(Target.parse, options.target.split(",")))
    for target in found if len(found) > 1 else ():
        if target.device != "cuda":
            raise OptionError(
                f"several targets are GPUs, and {target.name} is none",
                who="target",
                help="write one target into a folder of its own",
            )
    return found


def _has_other_ranks() -> bool:
    distributed = torch.distributed
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def target_for(graph: Graph, options: Options) -> Target:
    """Raises UnsupportedError when the graph lies on another kind of device."""
    target, devices = target_of(options), devices_of(graph)
    device = gpu_of(graph)
    if options.target == "host" and device is not None and why_aten(graph, options) is None:
        return target_here(device)
    if options.target != "host" and devices and target.device not in devices:
        raise UnsupportedError(
            f"{target.name} is a {target.device} device, and graph {graph.name} is on "
            f"{', '.join(devices)}",
            who="target",
            help="name a target of that kind, or move the model and its inputs",
        )
    return target


# --- why there may be no kernels ----------------------------------------------------------------


def _compiler_note(target: Target, options: Options) -> str | None:
    try:
        if target.device == "cpu":
            compiler_for(target)
        elif (missing := missing_compiler()) is not None:
            raise ToolchainError(missing, who="cuda")
    except ToolchainError as error:
        return _without_kernels(error, options)
    return None


def _without_kernels(error: ToolchainError, options: Options) -> str:
    """A note, after one warning; raises the error when ATen is not allowed to take over."""
    if options.fallback == "error":
        raise error
    note = f"{error.message}; everything runs as ATen"
    _warn_once(note)
    return note


@cache
def _warn_once(note: str) -> None:
    warnings.warn(f"rewright: {note}", stacklevel=2)


# --- passes -------------------------------------------------------------------------------------


def pipeline_of(options: Options, *, kernels: bool = True) -> Pipeline:
    """The passes that the options ask for; without kernels none makes regions.

    Raises OptionError when they do not lead from ATen to a schedule.
    """
    chosen = Pipeline.parse(options.passes, DEFAULT)
    levels = [chosen.passes[0].takes, chosen.passes[-1].gives] if chosen.passes else []
    if levels != ["aten", "kernel"]:
        raise OptionError(
            f"'{options.passes}' does not lead from the aten level to the kernel level",
            who="passes",
            help="end it with fuse,memory; fuse{max-ops=0} makes no kernels",
        )
    if options.memory_budget:
        chosen = Pipeline(tuple(_within_budget(chosen, Bytes(options.budget or LEAST))))
    if options.error_budget is not None:
        chosen = Pipeline(tuple(_with_quantized(chosen, options.objective)))
    if options.attention:
        if options.error_budget is not None:
            raise OptionError(
                "an error budget does not count what windows that are asked for by name change",
                who="attention",
                help="leave it out: with an error budget heads are narrowed as far as that goes",
            )
        chosen = Pipeline(tuple(_with_window(chosen, options.attention)))
    if options.freeze == "yes":
        chosen = Pipeline(tuple(_with_frozen(chosen)))
    if options.rules:
        chosen = Pipeline(tuple(_with_rules(p, options.rules) for p in chosen))
    if options.numerics != "eager":
        chosen = Pipeline(tuple(_with_numerics(p, options.numerics) for p in chosen))
    if kernels:
        return chosen
    return Pipeline(tuple(_without_regions(chosen)))


def _with_rules(step: Pass, rules: tuple[str, ...]) -> Pass:
    if not isinstance(step, Rules):
        return step
    return replace(step, sets=tuple(dict.fromkeys((*step.sets, *rules))))


def _within_budget(passes: Iterable[Pass], budget: Bytes) -> Iterator[Pass]:
    """Remat, once, before memory is planned, which then gives large tensors their own; and kernels
    that do not wait for too many of them at once."""
    asked = Remat(budget)
    for step in passes:
        if isinstance(step, Remat):
            asked = replace(step, budget=budget)
            continue
        if isinstance(step, Fuse):
            step = replace(step, max_reads=step.max_reads or MOST_READ)
        if isinstance(step, PlanMemory):
            yield asked
            step = replace(step, most=SMALL)
        yield step


def _with_frozen(passes: Iterable[Pass]) -> Iterator[Pass]:
    """Weights are frozen before anything else is done about the calls that read them."""
    for step in passes:
        if isinstance(step, ChannelsLast):
            step = replace(step, packed=True)
        if isinstance(step, Libraries):
            yield MergeProducts()
            yield Freeze()
        yield step
        if isinstance(step, Epilogues):
            yield Convolutions()


def _with_quantized(passes: Iterable[Pass], objective: str) -> Iterator[Pass]:
    """Quantization, unless it is asked for already, before others choose who runs products."""
    passes = list(passes)
    asked = any(isinstance(step, Quantize) for step in passes)
    for step in passes:
        if isinstance(step, FlashAttention) and not asked:
            yield Quantize(objective)
        yield step


def _with_window(passes: Iterable[Pass], window: str) -> Iterator[Pass]:
    """Attention is narrowed before a kernel is chosen for it."""
    for step in passes:
        if isinstance(step, FlashAttention):
            yield from Pipeline.parse(window)
        yield step


def _without_regions(passes: Iterable[Pass]) -> Iterator[Pass]:
    """Without what only kernels of ours can run."""
    for step in passes:
        if not isinstance(step, (Convolutions, FlashAttention, Quantize)):
            yield Fuse(max_ops=0) if isinstance(step, Fuse) else step


def _with_numerics(step: Pass, numerics: str) -> Pass:
    return replace(step, numerics=numerics) if isinstance(step, Fuse) else step
