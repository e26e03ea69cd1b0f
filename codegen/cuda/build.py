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
    text = unit(kernels)
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        source.write_text(text)
        target = f"arch=compute_{arch},code=sm_{arch}"
        command = [nvcc(), *FLAGS, "-I", str(HEADERS), "-gencode", target, "-cubin"]
        done = subprocess.run(
            [*command, str(source), "-o", str(cubin)], capture_output=True, text=True
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise ToolchainError(f"nvcc does not compile for sm_{arch}: {said}", who="cuda")
        return cubin.read_bytes()
