"""From a plan to something that runs: the kernels built, the call sequence around them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rewright.calibrate.host import host, isa
from rewright.codegen import Executable, input_sizes, is_fast, kernels_of, main_device
from rewright.codegen.cpp import Library, Toolchain, build, toolchain
from rewright.codegen.executable import Kernel
from rewright.codegen.gpu import GpuKernels, build_kernels, unaligned_pointers
from rewright.codegen.gpu_executable import GpuExecutable, driver_of, launches
from rewright.gpu_plan import gpu_of, number_of
from rewright.ir import Graph, ToolchainError, UnsupportedError
from rewright.ir.target import Target

# What the compiler is told to build for, unless it is the host itself. A CPU of one of these can
# run what is built for those after it.
_MARCH: Final = {"avx512": "x86-64-v4", "avx2": "x86-64-v3", "generic": "x86-64", "neon": "armv8-a"}


@dataclass(frozen=True)
class Recipe:
    """What it takes to build a program, as data that can be stored.

    `graph` is the schedule, `kernels` the kernel of each region by node name, `source` all kernels
    as C++ (empty: there are none), `gpu` those of a GPU. `retain` keeps the arena's memory between
    calls.
    """

    graph: Graph
    kernels: Mapping[str, str]
    source: str
    target: Target
    retain: bool
    gpu: GpuKernels | None = None


@dataclass(frozen=True)
class Built:
    """A program that runs, and the seconds that building it took."""

    executable: Executable
    library: Library | None
    seconds: float


def build_program(recipe: Recipe, *, trace: list[tuple[str, str]] | None = None) -> Built:
    """`trace` receives a record of every step that runs. Raises ToolchainError."""
    started = time.perf_counter()
    if recipe.target.device != "cpu" and recipe.kernels:
        launched = _on_gpu(recipe, recipe.gpu or _kernels_of_gpu(recipe), trace)
        return Built(launched, None, time.perf_counter() - started)
    kernels, library = _kernels(recipe)
    executable = Executable(
        recipe.graph, kernels, recipe.kernels, retain=recipe.retain, trace=trace
    )
    return Built(executable, library, time.perf_counter() - started)


def _on_gpu(recipe: Recipe, kernels: GpuKernels, trace: list[tuple[str, str]] | None) -> Executable:
    device = gpu_of(recipe.graph) or main_device(recipe.graph)
    driver = driver_of(device)
    launched = launches(kernels, tuple(input_sizes(recipe.graph)), driver)
    return GpuExecutable(recipe.graph, launched, recipe.kernels, driver, device, trace=trace)


def _kernels_of_gpu(recipe: Recipe) -> GpuKernels:
    """Of a graph that was planned without looking which there can be."""
    nests, symbols = kernels_of(recipe.graph).nests, tuple(input_sizes(recipe.graph))
    unaligned = unaligned_pointers(recipe.graph, recipe.kernels)
    found = build_kernels(nests, symbols, [number_of(recipe.target.isa)], unaligned)
    for name, why in found.refused.items():
        raise ToolchainError(f"{name} has no kernel: {why}", who="cuda")
    return found


def march_of(target: Target) -> str:
    """The CPU to compile for, in the compiler's words."""
    return "native" if target == host() else _MARCH[target.isa]


def compiler_for(target: Target) -> Toolchain:
    """Raises ToolchainError when there is none that works."""
    with _system_errors():
        return toolchain(march_of(target))


@contextmanager
def _system_errors() -> Iterator[None]:
    """What the system refuses (a full disk, a compiler that is gone by now) leaves ATen, just as a
    missing compiler does."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ToolchainError(f"kernels cannot be built: {reason}", who="cpp") from error


def _kernels(recipe: Recipe) -> tuple[Mapping[str, Kernel], Library | None]:
    """The kernels by name, and the library that holds them."""
    if not recipe.source:
        return {}, None
    names = sorted(set(recipe.kernels.values()))
    fast = any(is_fast(node) for node in recipe.graph.nodes)
    with _system_errors():
        library = build(recipe.source, march=march_of(recipe.target), contract=fast)
    if not _runs_here(recipe.target):
        return dict.fromkeys(names, _refusal(recipe.target)), library
    return {name: library.function(name) for name in names}, library


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
