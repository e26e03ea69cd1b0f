"""Kernels as cubins, built by nvcc without a GPU."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rewright.codegen.cuda.kernel import CudaKernel
from rewright.ir import ToolchainError

HEADERS: Final = Path(__file__).parent
# IEEE arithmetic: what eager's own kernels round to, but for their fused multiply-adds.
FLAGS: Final = ("-std=c++17", "-O3", "--fmad=false")


def unit(kernels: Sequence[CudaKernel]) -> str:
    """The kernels as one translation unit."""
    head = '#include "kernels.cuh"\n\nnamespace rw {\n'
    return "\n".join((head, *(kernel.source for kernel in kernels), "}  // namespace rw\n"))


def nvcc() -> str:
    """Raises ToolchainError when there is none on the path."""
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise ToolchainError("there is no nvcc on PATH", who="cuda")
    return found


def compile_for(kernels: Sequence[CudaKernel], arch: int) -> bytes:
    """One cubin of all kernels for compute capability `arch` (80, 90, 100).

    Raises ToolchainError with what the compiler says.
    """
    return _compiled(kernels, arch, "-cubin")


def ptx_for(kernels: Sequence[CudaKernel], arch: int) -> str:
    """The same as PTX, which drivers build for GPUs of `arch` and later ones."""
    return _compiled(kernels, arch, "-ptx").decode()


def _compiled(kernels: Sequence[CudaKernel], arch: int, what: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "kernels.cu", Path(folder) / "made"
        source.write_text(unit(kernels))
        code = f"sm_{arch}" if what == "-cubin" else f"compute_{arch}"
        target = f"arch=compute_{arch},code={code}"
        command = [nvcc(), *FLAGS, "-I", str(HEADERS), "-gencode", target, what]
        done = subprocess.run(
            [*command, source.name, "-o", made.name], capture_output=True, text=True, cwd=folder
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise ToolchainError(f"nvcc does not compile for sm_{arch}: {said}", who="cuda")
        return made.read_bytes()
