"""Plans for GPUs: the passes that are for them, and only kernels that can be built."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from rewright.codegen import Kernels, gpu, input_sizes
from rewright.ir import Graph, TensorType, UnsupportedError
from rewright.ir.expand import expand
from rewright.ir.target import Target, known_targets
from rewright.passes import (
    EVERY_STAGE,
    ChannelsLast,
    Convolutions,
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

if TYPE_CHECKING:
    from rewright.driver import Plan
    from rewright.options import Options

# What chooses among kernels and layouts of CPUs.
_OF_CPUS: Final = (ChannelsLast, Convolutions, Epilogues, Freeze, Libraries, Quantize)

# The compute capability from which on kernels are built.
OLDEST: Final = (8, 0)


def for_gpu(chosen: Pipeline, graph: Graph, target: Target) -> Pipeline:
    """The passes without what is for CPUs, and without kernels of attention where there is no
    Triton to make them; a graph that is on the CPU is moved before fusion."""
    steps: list[Pass] = []
    for step in chosen:
        if isinstance(step, _OF_CPUS):
            continue
        if isinstance(step, FlashAttention) and not gpu.has_triton():
            continue
        if isinstance(step, Fuse) and target.device not in devices_of(graph):
            steps.append(Move(f"{target.device}:0"))
        steps.append(step)
    return Pipeline(tuple(steps))


def with_kernels(plan: Plan, archs: list[int]) -> Plan:
    """The plan with kernels for these compute capabilities. Regions that have none are taken apart,
    and memory is planned for that. Raises UnsupportedError where the options say that they must
    not."""
    symbols = tuple(input_sizes(plan.graph))
    unaligned = gpu.unaligned_pointers(plan.graph, plan.kernels.of_node)
    kernels = gpu.build_kernels(plan.kernels.nests, symbols, archs, unaligned)
    for name, why in kernels.refused.items():
        if plan.options.fallback == "error":
            raise UnsupportedError(f"{name} has no kernel: {why}", who="fallback")
    return replace(_without(plan, kernels) if kernels.refused else plan, gpu=kernels)


def _without(plan: Plan, kernels: gpu.GpuKernels) -> Plan:
    of_node = plan.kernels.of_node
    graph = expand(plan.fused, lambda n: of_node.get(n.name, "") in kernels.refused)
    specs = [stage.spec for stage in plan.stages.stages]
    fused = next(place for place, spec in enumerate(specs) if spec.startswith("fuse"))
    rest = Pipeline.parse(",".join(specs[fused + 1 :]))
    again = rest.run(graph, plan.env, snapshots=EVERY_STAGE)
    kept = plan.stages.stages[: -len(rest.passes)]
    nests = tuple(n for n in plan.kernels.nests if n.name not in kernels.refused)
    left = {node: name for node, name in of_node.items() if name not in kernels.refused}
    stages = PipelineResult(again.graph, (*kept, *again.stages))
    return replace(plan, stages=stages, kernels=Kernels(nests, left))


# --- the GPU of this process ----------------------------------------------------------------------


def devices_of(graph: Graph) -> list[str]:
    """Kinds of devices that values of a graph are on."""
    types = (v.type for v in graph.values)
    return sorted({t.device.type for t in types if isinstance(t, TensorType)})


def gpu_of(graph: Graph) -> torch.device | None:
    """The one GPU that a graph is on, where torch has it; numbers may lie on the CPU beside it."""
    types = (v.type for v in graph.values if isinstance(v.type, TensorType))
    found = {type.device for type in types} - {torch.device("cpu")}
    (device,) = found if len(found) == 1 else (torch.device("cpu"),)
    return device if device.type == "cuda" and torch.cuda.is_available() else None


def target_here(device: torch.device) -> Target:
    """What is known of a GPU of this process: by its name, else by its architecture, else the
    nearest older one that has a target."""
    major, minor = torch.cuda.get_device_capability(device)
    isa, name = f"sm_{10 * major + minor}", torch.cuda.get_device_name(device).lower()
    known = [t for t in known_targets().values() if t.device == "cuda"]
    for target in known:
        model = target.name.partition(":")[2]
        if target.isa == isa and model in name.replace("-", " ").split():
            return target
    older = (t for t in known if t.name == f"cuda:{t.isa}" and number_of(t.isa) <= number_of(isa))
    nearest = max(older, key=lambda t: number_of(t.isa))
    return nearest if nearest.isa == isa else replace(nearest, name=f"cuda:{isa}", isa=isa)


def why_aten(graph: Graph, options: Options) -> str | None:
    """Why a graph on other devices than the CPU has no kernels, if so."""
    others = [d for d in devices_of(graph) if d != "cpu"]
    if not others:
        return None
    everything = f"on {', '.join(others)} everything is ATen"
    device = gpu_of(graph)
    if device is None:
        return f"kernels run on the CPU, or on the one GPU of a graph; {everything}"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"kernels are for GPUs from sm_80 on; {everything}"
    asked = [n for n in ("memory_budget", "error_budget", "attention") if getattr(options, n)]
    asked += ["freeze"] * (options.freeze == "yes")
    return f"{asked[0]} is for programs on the CPU; {everything}" if asked else None


def number_of(isa: str) -> int:
    """The compute capability, as cubins are built for."""
    return int(isa.removeprefix("sm_"))
