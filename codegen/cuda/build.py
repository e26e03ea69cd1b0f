"""Kernels as cubins, built without a GPU: by NVRTC where it is there, else by nvcc."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Final

from rewright.codegen.cuda.kernel import CudaKernel
from rewright.codegen.cuda.nvrtc import Nvrtc, nvrtc
from rewright.ir import ToolchainError
from rewright.ir.cache import default_cache, digest

HEADERS: Final = Path(__file__).parent
HEADER: Final = "kernels.cuh"
# IEEE arithmetic: what eager's own kernels round to, but for their fused multiply-adds.
FLAGS: Final = ("-std=c++17", "-O3", "--fmad=false")
FLAGS_OF_NVRTC: Final = ("-std=c++17", "--fmad=false", "--disable-warnings")


def unit(kernels: Sequence[CudaKernel]) -> str:
    """The kernels as one translation unit."""
    head = f'#include "{HEADER}"\n\nnamespace rw {{\n'
    return "\n".join((head, *(kernel.source for kernel in kernels), "}  // namespace rw\n"))


def nvcc() -> str:
    """Raises ToolchainError when there is none on the path."""
    found = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise ToolchainError("there is neither NVRTC nor nvcc", who="cuda")
    return found


def has_compiler() -> bool:
    """True where CUDA C++ can be built."""
    try:
        return nvrtc() is not None or bool(nvcc())
    except ToolchainError:
        return False


def compile_for(kernels: Sequence[CudaKernel], arch: int) -> bytes:
    """One cubin of all kernels for compute capability `arch` (80, 90, 100).

    Raises ToolchainError with what the compiler says.
    """
    return _stored(unit(kernels), arch, cubin=True)


def ptx_for(kernels: Sequence[CudaKernel], arch: int) -> str:
    """The same as PTX, which drivers build for GPUs of `arch` and later ones."""
    return _stored(unit(kernels), arch, cubin=False).decode().rstrip("\0")


def _stored(source: str, arch: int, *, cubin: bool) -> bytes:
    """From the cache, where kernels lie by all that they are made of."""
    library = nvrtc()
    compiler = _nvcc_version(nvcc()) if library is None else f"nvrtc {library.version}"
    kind = "cubin" if cubin else "ptx"
    parts = (source, (HEADERS / HEADER).read_text(), *FLAGS, compiler, str(arch))
    name = f"{digest(*parts)}.{kind}"
    found = default_cache().read(name)
    if found is None:
        build = _by_nvcc if library is None else partial(_by_nvrtc, library)
        found = build(source, arch, cubin)
        default_cache().write(name, found)
    return found


@cache
def _nvcc_version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


def _by_nvrtc(library: Nvrtc, source: str, arch: int, cubin: bool) -> bytes:
    target = f"--gpu-architecture={'sm' if cubin else 'compute'}_{arch}"
    headers = {HEADER: (HEADERS / HEADER).read_text()}
    return library.compiled(source, headers, (*FLAGS_OF_NVRTC, target), cubin=cubin)


def _by_nvcc(source: str, arch: int, cubin: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file, made = Path(folder) / "kernels.cu", Path(folder) / "made"
        file.write_text(source)
        code = f"sm_{arch}" if cubin else f"compute_{arch}"
        target = f"arch=compute_{arch},code={code}"
        command = [nvcc(), *FLAGS, "-I", str(HEADERS), "-gencode", target]
        done = subprocess.run(
            [*command, "-cubin" if cubin else "-ptx", file.name, "-o", made.name],
            capture_output=True,
            text=True,
            cwd=folder,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise ToolchainError(f"nvcc does not compile for sm_{arch}: {said}", who="cuda")
        return made.read_bytes()
