"""GPUs' kernels along long rows: Triton's interpreted against float64, and these and those of CUDA
C++ built without spilling."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from interpreted import results_of
from rewright.codegen import cuda
from rewright.codegen.triton import CompiledKernel, TritonKernel, compile_for, emit
from rewright.ir.interpret import interpret
from rewright.ir.loops import lower
from rewright.ir.parse import parse
from triton_cases import relative_error
from triton_rows import (
    LENGTHS,
    OF_EXPONENTIALS,
    SPECIAL_LENGTHS,
    TEXTS,
    graph_of,
    inputs_of,
    special_input,
)

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.cpu


def kernel_of(name: str, dtype: str, length: int) -> TritonKernel:
    return emit(lower(graph_of(name, dtype, length, rows=64), "kernel"), ())


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of("triton_rows.py", tmp_path_factory)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", TEXTS)
def test_long_rows_are_as_good_as_eager(
    name: str, length: int, interpreted: dict[str, Any]
) -> None:
    graph = graph_of(name, "bf16" if length % 2 else "f32", length)
    inputs = inputs_of(graph)
    exact, eager = interpret(graph, inputs, dtype=torch.float64), interpret(graph, inputs)
    found = interpreted["ordinary"][name, length]
    for ours, theirs, reference in zip(found, eager, exact, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        limit = 2 * relative_error(theirs, reference) + 1e-6
        assert relative_error(ours, reference) <= limit


@pytest.mark.parametrize("length", SPECIAL_LENGTHS)
@pytest.mark.parametrize("name", OF_EXPONENTIALS)
def test_what_is_not_finite_makes_of_a_row_what_it_does_in_eager(
    name: str, length: int, interpreted: dict[str, Any]
) -> None:
    x = special_input(length)
    exact = getattr(torch, name)(x.double(), -1)
    (found,) = interpreted["special"][name, length]
    not_finite = [bool(row.isnan().any()) for row in exact]
    assert not_finite == [True, True, True, False, False, False]
    for ours, reference in zip(found, exact, strict=True):
        assert relative_error(ours, reference) <= 2e-6


# --- texts ----------------------------------------------------------------------------------------


def stages_of(source: str) -> int:
    return source.count("for start in range(")


def test_a_softmax_of_many_columns_reads_them_twice() -> None:
    """The largest element and the sum come from one loop."""
    source = kernel_of("softmax", "bf16", 50257).source
    assert stages_of(source) == source.count("tl.load(") == 2
    assert "with_exponential(" in source


def test_the_sum_of_another_node_is_not_that_of_a_softmax() -> None:
    """Its order is its own, whether or not the largest element is found in the same kernel."""
    both = """graph f(%x: f32[8, 50257]) {
  %m = aten.amax.default(%x, [1], true) : f32[8, 1]
  %d = aten.sub.Tensor(%x, %m) : f32[8, 50257]
  %e = aten.exp.default(%d) : f32[8, 50257]
  %s = aten.sum.dim_IntList(%e, [1]) : f32[8]
  return %s
}"""
    source = emit(lower(parse(both), "kernel"), ()).source
    assert stages_of(source) == 2
    assert "with_exponential" not in source


def test_a_sum_is_a_softmaxs_own_whatever_its_loop_holds_besides() -> None:
    """The loop of the sum stays where something else is in it, without the sum."""
    text = """graph f(%x: f32[8, 50257]) {
  %y = aten._softmax.default(%x, -1, false) : f32[8, 50257]
  %m = aten.amax.default(%x, [1], true) : f32[8, 1]
  %d = aten.sub.Tensor(%x, %m) : f32[8, 50257]
  %s = aten.sum.dim_IntList(%d, [1]) : f32[8]
  return %y, %s
}"""
    source = emit(lower(parse(text), "kernel"), ()).source
    assert stages_of(source) == 3
    assert source.count(" = with_exponential(") == source.count(" = sum_of_exponentials(") == 1


# --- compiled -------------------------------------------------------------------------------------


def stack_of(built: CompiledKernel, folder: Path) -> int:
    (stack,) = stacks_of(built.cubin, folder)
    return stack


def stacks_of(cubin: bytes, folder: Path) -> list[int]:
    """For each kernel the bytes of a thread's stack, where ptxas spills registers."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(file)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(stack) for stack in re.findall(r"REG:\d+ STACK:(\d+)", said)]


@pytest.mark.parametrize(
    ("arch", "dtype"), [(80, "bf16"), (90, "bf16"), (100, "bf16"), (90, "f32")]
)
@pytest.mark.parametrize("name", TEXTS)
def test_rows_of_32k_are_whole_and_spill_nothing(
    name: str, arch: int, dtype: str, tmp_path: Path
) -> None:
    kernel = kernel_of(name, dtype, 32768)
    assert dict(kernel.constants)["COLS"] == 32768
    assert stack_of(compile_for(kernel, arch), tmp_path) == 0


@pytest.mark.parametrize("length", [16384, 32767, 50257])
@pytest.mark.parametrize("name", TEXTS)
def test_rows_of_other_lengths_spill_nothing(name: str, length: int, tmp_path: Path) -> None:
    assert stack_of(compile_for(kernel_of(name, "bf16", length), 90), tmp_path) == 0


def test_the_check_of_spills_sees_them(tmp_path: Path) -> None:
    """With the registers of two warps a row of 32k does not fit."""
    kernel = kernel_of("layer_norm", "f32", 32768)
    few = tuple((dict(kernel.options) | {"num_warps": 2}).items())
    built = compile_for(dataclasses.replace(kernel, options=few), 90)
    assert stack_of(built, tmp_path) > 0


@pytest.mark.skipif(not cuda.has_compiler(), reason="needs NVRTC or nvcc")
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_kernels_of_cuda_spill_nothing_along_rows_of_32k(dtype: str, tmp_path: Path) -> None:
    graphs = {name: graph_of(name, dtype, 32768, rows=64) for name in TEXTS}
    kernels = [cuda.emit(lower(graph, name)) for name, graph in graphs.items()]
    assert stacks_of(cuda.compile_for(kernels, 90), tmp_path) == [0] * len(TEXTS)
