"""The CUDA emitter: its kernels on the CPU, thread by thread, against float64; built without a
GPU; and read."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rewright.codegen.cuda import CudaKernel, compile_for, emit, unit
from rewright.codegen.cuda.build import HEADERS
from rewright.codegen.cuda.writer import ELEMENTS
from rewright.ir import ToolchainError, UnsupportedError, evaluate
from rewright.ir.loops import Nest, lower
from rewright.ir.parse import parse
from triton_cases import (
    CASES,
    NUMBERS,
    Case,
    check,
    check_primitives,
    operands,
    primitive_nest,
)

TESTS = Path(__file__).parent
has_nvcc = shutil.which("nvcc") is not None
needs_nvcc = pytest.mark.skipif(not has_nvcc, reason="needs nvcc")

MORE = {
    "rows_of_a_block": Case("""(%x: f32[3, 6000], %w: f32[6000]) {
  %a = aten.mul.Tensor(%x, %w) : f32[3, 6000]
  %s = aten._softmax.default(%a, -1, false) : f32[3, 6000]
  return %s
}"""),
    "rows_too_long_to_hold": Case("""(%x: bf16[2, 70000]) {
  %s = aten._softmax.default(%x, -1, false) : bf16[2, 70000]
  return %s
}"""),
    "rows_that_leave_too_much": Case("""(%k: bf16[2, 32768], %v: bf16[2, 32768]) {
  %t = aten._softmax.default(%k, -1, false) : bf16[2, 32768]
  %pack0 = aten._softmax_backward_data.default(%v, %t, -1, bf16) : bf16[2, 32768]
  return %pack0
}"""),
    "packs_of_halves": Case("""(%x: bf16[4, 64], %y: f16[4, 64], %w: f32[64]) {
  %a = aten.mul.Tensor(%x, %w) : f32[4, 64]
  %b = aten.add.Tensor(%a, %y) : f32[4, 64]
  %c = aten._to_copy.default(%b, dtype=bf16) : bf16[4, 64]
  return %c
}"""),
    "whole": Case("""(%x: f32[40, 50]) {
  %s = aten.sum.default(%x) : f32[]
  %m = aten.amax.default(%x, [0, 1]) : f32[]
  return %s, %m
}"""),
}
ALL = {**CASES, **MORE}


def kernel_of(name: str) -> tuple[Nest, CudaKernel]:
    nest = lower(ALL[name].graph(), f"k_{name}")
    return nest, emit(nest, ALL[name].symbols())


def launcher(nest: Nest, kernel: CudaKernel) -> str:
    """A C function that runs the kernel on the CPU."""
    types = [f"const {ELEMENTS[b.type.dtype]}*" for b in nest.inputs]
    types += [f"{ELEMENTS[b.type.dtype]}*" for b in nest.outputs]
    args = [f"static_cast<{type}>(p[{i}])" for i, type in enumerate(types)]
    args += [f"s[{i}]" for i in range(len(kernel.symbols))]
    x, y = kernel.threads
    return (
        "namespace rw {\n"
        f'extern "C" void run_{kernel.name}(void** p, const long* s, long blocks) {{\n'
        f"  shim::launch(blocks, {x}, {y}, [&] {{ {kernel.name}({', '.join(args)}); }});\n}}\n}}\n"
    )


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """All kernels for the CPU, in one library."""
    made = [kernel_of(name) for name in ALL]
    for dtype in NUMBERS:
        nest = primitives_of(dtype)
        made.append((nest, emit(nest)))
    folder = tmp_path_factory.mktemp("cuda")
    source = folder / "kernels.cpp"
    text = [f'#include "cuda_shim.h"\n{unit([k for _, k in made])}']
    source.write_text("\n".join([*text, *(launcher(n, k) for n, k in made)]))
    command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
    command += ['-DRW_ON_CPU="cuda_on_cpu.h"', f"-I{TESTS}", f"-I{HEADERS}", str(source)]
    done = subprocess.run([*command, "-o", str(folder / "k.so")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]
    return ctypes.CDLL(str(folder / "k.so"))


def run(
    library: ctypes.CDLL,
    nest: Nest,
    kernel: CudaKernel,
    inputs: Sequence[Tensor],
    values: Sequence[int],
) -> list[Tensor]:
    sizes = dict(zip(kernel.symbols, values, strict=True))
    outputs = []
    for buffer in nest.outputs:
        type = buffer.type
        shape, strides = ([evaluate(s, sizes) for s in of] for of in (type.shape, type.layout))
        outputs.append(torch.empty_strided(shape, strides, dtype=type.dtype))
    tensors = [*inputs, *outputs]
    pointers = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
    numbers = (ctypes.c_long * max(1, len(values)))(*values)
    blocks = evaluate(kernel.blocks, sizes)
    getattr(library, f"run_{kernel.name}")(pointers, numbers, ctypes.c_long(blocks))
    return outputs


@pytest.mark.cpu
@pytest.mark.parametrize("name", ALL)
def test_kernels_are_as_good_as_eager(name: str, library: ctypes.CDLL) -> None:
    nest, kernel = kernel_of(name)
    for values in ALL[name].sizes:
        check(ALL[name], values, run(library, nest, kernel, ALL[name].inputs(values), values))


def primitives_of(dtype: torch.dtype) -> Nest:
    nest = primitive_nest(dtype)
    return replace(nest, name=f"{nest.name}_{str(dtype).removeprefix('torch.')}")


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_primitives_mean_what_torch_means(dtype: torch.dtype, library: ctypes.CDLL) -> None:
    """The CPU's math library stands for CUDA's here."""
    nest = primitives_of(dtype)
    found = run(library, nest, emit(nest), operands(dtype), ())
    if not dtype.is_floating_point:
        check_primitives(dtype, found, 0)
        return
    limits = torch.finfo(dtype)
    # Below the smallest normal number there are fewer digits.
    check_primitives(dtype, found, 4 * limits.eps, 4 * limits.eps * limits.tiny)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_build_without_a_gpu(arch: int) -> None:
    names = ALL if arch == 90 else ("permute", "layer_norm", "sum_of_first", *MORE)
    kernels = [kernel_of(name)[1] for name in names]
    if arch == 90:
        kernels += [emit(primitives_of(dtype)) for dtype in NUMBERS]
    cubin = compile_for(kernels, arch)
    assert cubin[:4] == b"\x7fELF"
    assert all(kernel.name.encode() in cubin for kernel in kernels)


@needs_nvcc
def test_what_nvcc_refuses_is_said() -> None:
    kernel = CudaKernel(
        "broken", 'extern "C" __global__ void broken() { nonsense; }', (), 1, (1, 1)
    )
    with pytest.raises(ToolchainError, match="nonsense"):
        compile_for([kernel], 90)


# --- text -----------------------------------------------------------------------------------------


def test_neighbours_are_read_and_written_at_once() -> None:
    text = kernel_of("packs_of_halves")[1].source
    assert "load<4>(x + " in text and "Pack<bf16, 4> out0" in text
    unknown = Case("""(%x: f32[B]) where B in [0, inf] hint 8 {
  %a = aten.exp.default(%x) : f32[B]
  return %a
}""")
    kernel = emit(lower(unknown.graph(), "k"), ["B"])
    assert "load<" not in kernel.source and "i64 B" in kernel.source


def test_rows_are_read_once_where_registers_hold_them() -> None:
    held = kernel_of("rows_of_a_block")[1]
    assert held.source.count("load<4>(x") == 1 and "_held[" in held.source
    looped = kernel_of("rows_too_long_to_hold")[1]
    assert "_held[" not in looped.source and looped.source.count("load<8>(x") == 3
    spilling = kernel_of("rows_that_leave_too_much")[1]
    assert "_held[" not in spilling.source and "in_k" in spilling.source
    short = kernel_of("softmax_of_whole_block")[1]
    assert short.threads == (128, 1) and "across<Add, 32>" in short.source


def test_elements_without_a_form_are_refused() -> None:
    graph = parse("""graph g(%x: f8e5m2[8]) {
      %a = aten._to_copy.default(%x, dtype=f32) : f32[8]
      return %a
    }""")
    with pytest.raises(UnsupportedError, match="no elements of"):
        emit(lower(graph, "k"))
