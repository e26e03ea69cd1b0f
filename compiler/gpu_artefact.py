"""Programs for a GPU, made without one: to be saved, and run where the GPU is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rewright.building import Built, Recipe
from rewright.codegen import Executable, Kernels, gpu, input_sizes, main_device
from rewright.codegen.gpu import (
    Argument,
    GpuKernel,
    GpuKernels,
    Image,
    build_kernels,
    unaligned_pointers,
)
from rewright.cost_models import cost_model
from rewright.driver import (
    EVERY_STAGE,
    Plan,
    Program,
    compile_graph,
    pipeline_of,
    plan_graph,
    planned,
    target_of,
    targets_of,
)
from rewright.ir import Graph, TensorType, UnsupportedError
from rewright.ir.expand import expand
from rewright.options import Options
from rewright.passes import (
    ChannelsLast,
    Env,
    Epilogues,
    FlashAttention,
    Freeze,
    Fuse,
    Libraries,
    Move,
    Pass,
    Pipeline,
    PipelineResult,
    Quantize,
)
from rewright.report import Report
from rewright.trace import write_trace

FORMAT: Final = "rewright-kernels"
VERSION: Final = 1

# What chooses among kernels and layouts of CPUs.
_OF_CPUS: Final = (ChannelsLast, Epilogues, Freeze, Libraries, Quantize)


@dataclass(frozen=True)
class GpuProgram(Program):
    """A program whose kernels are for another device than those of this process: save it."""

    kernels: GpuKernels = field(default_factory=lambda: GpuKernels((), {}))

    @property
    def report(self) -> Report:
        return super().report.noting(
            *(f"{name} runs as ATen: {why}" for name, why in self.kernels.refused.items())
        )


def compile_for_target(
    graph: Graph, options: Options, samples: tuple[Sequence[Any], ...] = ()
) -> Program:
    """`compile_graph`; for a GPU that is asked for by name, a program to be saved."""
    if target_of(options).device == "cpu":
        return compile_graph(graph, options, samples=samples)
    return compile_for_gpu(graph, options)


def plan_for_target(
    graph: Graph, options: Options, samples: tuple[Sequence[Any], ...] = ()
) -> Plan:
    """`plan_graph`; for a GPU that is asked for by name, a plan with kernels that it may run."""
    if target_of(options).device == "cpu":
        return plan_graph(graph, options, samples=samples)
    _refuse_what_is_for_cpus(options)
    target = target_of(options)
    env = Env(cost=cost_model(target), target=target)
    return planned(graph, options, env, passes=str(pipeline_for(graph, options)))


def _refuse_what_is_for_cpus(options: Options) -> None:
    if options.error_budget is not None:
        raise UnsupportedError(
            "quantized kernels are for CPUs", who="error_budget", help="leave the budget out"
        )
    if options.attention:
        raise UnsupportedError("windows are for CPUs", who="attention", help="leave it out")
    if options.freeze == "yes":
        raise UnsupportedError("weights are packed for CPUs", who="freeze", help="leave it out")


def compile_for_gpu(graph: Graph, options: Options) -> GpuProgram:
    """The program of a graph, moved to the GPU where it is on the CPU. What has no kernel of ours
    runs as ATen. Raises UnsupportedError for what only CPUs can do."""
    plan = plan_for_target(graph, options)
    archs = [int(re.sub(r"\D", "", target.isa)) for target in targets_of(options)]
    symbols = tuple(input_sizes(plan.graph))
    unaligned = unaligned_pointers(plan.graph, plan.kernels.of_node)
    kernels = build_kernels(plan.kernels.nests, symbols, list(dict.fromkeys(archs)), unaligned)
    for name, why in kernels.refused.items():
        if options.fallback == "error":
            raise UnsupportedError(f"{name} has no kernel: {why}", who="fallback")
    if kernels.refused:
        plan = _without(plan, kernels, pipeline_for(graph, options))
    program = _program(plan, kernels)
    if options.trace:
        write_trace(program, Path(options.trace))
    return program


def pipeline_for(graph: Graph, options: Options) -> Pipeline:
    """What the options ask for, without what is for CPUs, and without kernels of attention where
    there is no Triton to make them; the graph is moved before fusion."""
    target = target_of(options)
    devices = {v.type.device.type for v in graph.values if isinstance(v.type, TensorType)}
    steps: list[Pass] = []
    for step in pipeline_of(options):
        if isinstance(step, _OF_CPUS) or (
            isinstance(step, FlashAttention) and not gpu.has_triton()
        ):
            continue
        if isinstance(step, Fuse) and target.device not in devices:
            steps.append(Move(f"{target.device}:0"))
        steps.append(step)
    return Pipeline(tuple(steps))


def _without(plan: Plan, kernels: GpuKernels, pipeline: Pipeline) -> Plan:
    """The plan with regions that have no kernel taken apart, and memory planned for that."""
    of_node = plan.kernels.of_node
    graph = expand(plan.fused, lambda n: of_node.get(n.name, "") in kernels.refused)
    names = [step.name for step in pipeline]
    rest = Pipeline(pipeline.passes[names.index("fuse") + 1 :])
    again = rest.run(graph, plan.env, snapshots=EVERY_STAGE)
    kept = plan.stages.stages[: -len(rest.passes)]
    nests = tuple(n for n in plan.kernels.nests if n.name not in kernels.refused)
    left = {node: name for node, name in of_node.items() if name not in kernels.refused}
    stages = PipelineResult(again.graph, (*kept, *again.stages))
    return replace(plan, stages=stages, kernels=Kernels(nests, left))


def _program(plan: Plan, kernels: GpuKernels) -> GpuProgram:
    of_node, target = plan.kernels.of_node, plan.env.target
    executable = _Elsewhere(plan.graph, dict.fromkeys(of_node.values(), _nothing), of_node)
    recipe = Recipe(plan.graph, of_node, "", target, True)
    return GpuProgram(plan, recipe, Built(executable, None, 0.0), kernels=kernels)


class _Elsewhere(Executable):
    """A call sequence that does not run in this process."""

    def __call__(self, args: list[Any]) -> list[Any]:
        raise UnsupportedError(
            f"the program was compiled for a GPU ({main_device(self.graph)}), to be saved",
            who="target",
            help="save it, and load the artefact where the GPU is",
        )


def _nothing(pointers: object, sizes: object) -> None:
    """Stands for kernels of another device."""


# --- files --------------------------------------------------------------------------------------


def write_gpu_kernels(program: GpuProgram, folder: Path) -> None:
    """Each kernel as source, PTX and cubin, and `kernels.json`: what a launch must know."""
    place = folder / "kernels"
    place.mkdir()
    written = [_write_kernel(kernel, place) for kernel in program.kernels.built]
    of_node = program.recipe.kernels
    about = {
        "format": FORMAT,
        "version": VERSION,
        "symbols": list(input_sizes(program.graph)),
        "kernels": [
            told | {"nodes": [node for node, name in of_node.items() if name == told["name"]]}
            for told in written
        ],
        "aten": dict(program.kernels.refused),
    }
    (folder / "kernels.json").write_text(json.dumps(about, indent=1) + "\n")


def _write_kernel(kernel: GpuKernel, place: Path) -> dict[str, Any]:
    """CUDA C++ kernels are one unit with a name of its own; those of Triton are a module each."""
    stem, suffix = (kernel.name, "py") if kernel.language == "triton" else ("kernels", "cu")
    source = place / f"{stem}.{suffix}"
    source.write_text(_source(kernel))
    if kernel.language == "cuda":
        from rewright.codegen.cuda.build import HEADERS

        (place / "kernels.cuh").write_bytes((HEADERS / "kernels.cuh").read_bytes())
    return {
        "name": kernel.name,
        "language": kernel.language,
        "source": f"{place.name}/{source.name}",
        "entry": kernel.entry,
        "images": [_write_image(image, place / stem) for image in kernel.images],
        "blocks": str(kernel.blocks),
        "threads": list(kernel.threads),
        "narrow": [str(size) for size in kernel.narrow],
        "arguments": [_told(argument) for argument in kernel.arguments],
    }


def _write_image(image: Image, stem: Path) -> dict[str, Any]:
    cubin, ptx = (stem.with_name(f"{stem.name}.sm_{image.arch}.{s}") for s in ("cubin", "ptx"))
    cubin.write_bytes(image.cubin)
    ptx.write_text(image.ptx)
    target = re.search(r"^\.target (\w+)", image.ptx, re.MULTILINE)
    return {
        "arch": image.arch,
        "cubin": f"{stem.parent.name}/{cubin.name}",
        "ptx": f"{stem.parent.name}/{ptx.name}",
        "ptx_target": target[1] if target else "",
        "shared": image.shared,
    }


def _source(kernel: GpuKernel) -> str:
    if kernel.language == "triton":
        return kernel.source
    from rewright.codegen.cuda.build import FLAGS

    code = f"-gencode arch=compute_{kernel.images[0].arch},code=sm_{kernel.images[0].arch}"
    return f"// nvcc {' '.join(FLAGS)} {code} -cubin kernels.cu\n{kernel.source}"


def _told(argument: Argument) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": argument.kind, "name": argument.name}
    if argument.kind == "pointer":
        return found | {"aligned": argument.aligned}
    return found | ({"type": argument.type, "value": argument.value} if argument.type else {})
