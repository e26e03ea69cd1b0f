"""What works on this machine, and what to do about what does not."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rewright.ir import RewrightError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `optional`: Rewright works without it."""

    what: str
    works: bool
    detail: str
    advice: str = ""
    optional: bool = False

    def __str__(self) -> str:
        mark = "ok  " if self.works else ("-   " if self.optional else "FAIL")
        advice = f"\n       {self.advice}" if self.advice and not self.works else ""
        return f"{mark} {self.what:<14} {self.detail}{advice}"


def examine() -> tuple[Finding, ...]:
    """Look at everything; each look stands alone, so that one failure hides nothing."""
    looks: tuple[Callable[[], Finding], ...] = (
        _versions,
        _compiler,
        _vectors,
        _openmp,
        _kernel,
        _cache,
        _host,
        _mlir,
        _triton,
        _cuda_compiler,
        _gpu,
    )
    return tuple(look() for look in looks)


def _versions() -> Finding:
    import rewright

    detail = (
        f"rewright {rewright.__version__}, torch {torch.__version__}, "
        f"python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    return Finding("versions", True, detail)


def _compiler() -> Finding:
    from rewright.codegen.cpp import toolchain

    try:
        compiler = toolchain()
    except RewrightError as error:
        advice = "install g++ or clang++, or set CXX; until then everything runs as ATen"
        return Finding("C++ compiler", False, error.message, advice, optional=True)
    return Finding("C++ compiler", True, f"{compiler.compiler}, {_version_of(compiler.compiler)}")


def _version_of(program: str) -> str:
    """The line of `--version` that has the number."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"which does not run: {error}"
    lines = [line for line in said.stdout.splitlines() if any(c.isdigit() for c in line)]
    named = (line for line in lines if "release" in line)
    return next(named, lines[0] if lines else "of a version that it does not tell")


def _vectors() -> Finding:
    from rewright.calibrate.host import isa

    found = isa()
    advice = "kernels use the instructions that every CPU of this kind has, and are slower for it"
    return Finding("vector ISA", found != "generic", found, advice, optional=True)


def _openmp() -> Finding:
    from rewright.codegen.cpp import openmp_runtime

    library, threads = openmp_runtime(), f"{torch.get_num_threads()} threads"
    if library is None:
        advice = "kernels use the compiler's own: two pools of threads may share the cores"
        return Finding("OpenMP", False, f"torch brings none; {threads}", advice, optional=True)
    return Finding("OpenMP", True, f"torch's {library.name}, {threads}")


def _kernel() -> Finding:
    """Build and run one kernel of ours."""
    from rewright.driver import compile_graph
    from rewright.ir.parse import parse
    from rewright.options import Options

    graph = parse(
        "graph doctor(%x: f32[100]) {\n  %y = aten.exp.default(%x) : f32[100]\n  return %y\n}\n"
    )
    x = torch.linspace(-1, 1, 100)
    try:
        (y,) = compile_graph(graph, Options(fallback="error")).executable([x])
    except RewrightError as error:
        works_without = not _compiler().works
        return Finding("kernels", False, error.message, "see above", optional=works_without)
    right = bool(torch.allclose(y, x.exp()))
    return Finding("kernels", right, "a kernel was built and ran" if right else "wrong numbers")


def _cache() -> Finding:
    from rewright.ir.cache import cache_root

    root = cache_root()
    standing = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(standing).free / (1 << 30)
    writable = os.access(standing, os.W_OK)
    advice = "set REWRIGHT_CACHE_DIR to a folder that can be written"
    return Finding("cache folder", writable, f"{root} ({free:.0f} GiB free)", advice)


def _host() -> Finding:
    from rewright.calibrate.host import host

    target = host()
    peak = target.peak(torch.float32) / 1e9
    detail = f"{target.name}, {target.cores} cores, {peak:.0f} GFLOP/s f32, "
    return Finding("this CPU", True, detail + f"{target.bandwidth / 1e9:.0f} GB/s")


def _mlir() -> Finding:
    if importlib.util.find_spec("torch_mlir") is None:
        advice = "pip install torch-mlir; only needed for .mlir files"
        return Finding("MLIR", False, "torch-mlir is not installed", advice, optional=True)
    from importlib.metadata import version

    return Finding("MLIR", True, f"torch-mlir {version('torch-mlir')}")


def _triton() -> Finding:
    if importlib.util.find_spec("triton") is None:
        advice = "pip install 'rewright[cuda]'"
        return Finding("Triton", False, "not installed", advice, optional=True)
    from importlib.metadata import version

    return Finding("Triton", True, version("triton"))


def _cuda_compiler() -> Finding:
    nvcc = shutil.which("nvcc")
    detail = "not found" if nvcc is None else f"{nvcc}, {_version_of(nvcc)}"
    return Finding("nvcc", nvcc is not None, detail, "only needed for CUDA C++", optional=True)


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        detail = "none: GPU kernels are compiled and interpreted, not run"
        return Finding("GPU", False, detail, optional=True)
    return Finding("GPU", True, torch.cuda.get_device_name())
