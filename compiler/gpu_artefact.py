"""Programs for a GPU, made without one: to be saved, and run where the GPU is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rewright.building import Built
from rewright.codegen import Executable, input_sizes, main_device
from rewright.codegen.gpu import GpuKernel, GpuKernels, Image, described
from rewright.cost_models import cost_model
from rewright.driver import Plan, Program, compile_graph, plan_graph, planned, target_of, targets_of
from rewright.gpu_plan import with_kernels
from rewright.ir import Graph, UnsupportedError
from rewright.options import Options
from rewright.passes import Env
from rewright.trace import write_trace

FORMAT: Final = "rewright-kernels"
VERSION: Final = 2


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
    return planned(graph, options, Env(cost=cost_model(target), target=target))


def _refuse_what_is_for_cpus(options: Options) -> None:
    if options.error_budget is not None:
        raise UnsupportedError(
            "quantized kernels are for CPUs", who="error_budget", help="leave the budget out"
        )
    if options.attention:
        raise UnsupportedError("windows are for CPUs", who="attention", help="leave it out")
    if options.freeze == "yes":
        raise UnsupportedError("weights are packed for CPUs", who="freeze", help="leave it out")


def compile_for_gpu(graph: Graph, options: Options) -> Program:
    """The program of a graph, moved to the GPU where it is on the CPU, to be saved. What has no
    kernel of ours runs as ATen. Raises UnsupportedError for what only CPUs can do."""
    plan = plan_for_target(graph, options)
    archs = [int(re.sub(r"\D", "", target.isa)) for target in targets_of(options)]
    plan = with_kernels(plan, list(dict.fromkeys(archs)))
    of_node = plan.kernels.of_node
    executable = _Elsewhere(plan.graph, dict.fromkeys(of_node.values(), _nothing), of_node)
    program = Program(plan, plan.recipe(retain=True), Built(executable, None, 0.0))
    if options.trace:
        write_trace(program, Path(options.trace))
    return program


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


def write_gpu_kernels(program: Program, kernels: GpuKernels, folder: Path) -> None:
    """Each kernel as source, PTX and cubin, and `kernels.json`: what a launch must know."""
    place = folder / "kernels"
    place.mkdir()
    written = [_write_kernel(kernel, place) for kernel in kernels.built]
    of_node = program.recipe.kernels
    about = {
        "format": FORMAT,
        "version": VERSION,
        "symbols": list(input_sizes(program.graph)),
        "kernels": [
            told | {"nodes": [node for node, name in of_node.items() if name == told["name"]]}
            for told in written
        ],
        "aten": dict(kernels.refused),
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
    return _written(kernel, source, stem)


def _written(kernel: GpuKernel, source: Path, stem: str) -> dict[str, Any]:
    place = source.parent
    return described(kernel) | {
        "language": kernel.language,
        "source": f"{place.name}/{source.name}",
        "images": [_write_image(image, place / stem) for image in kernel.images],
        "before": [_written(k, source, k.name) for k in kernel.before],
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
