"""The Triton emitter: its kernels interpreted against float64, compiled without a GPU, and read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from interpreted import results_of
from rewright.codegen.triton import CompiledKernel, TritonKernel, compile_for, emit
from rewright.ir import UnsupportedError
from rewright.ir.interpret import interpret
from rewright.ir.loops import lower
from rewright.ir.parse import parse
from triton_cases import (
    CASES,
    NUMBERS,
    check,
    check_primitives,
    primitive_nest,
    run_case,
    run_primitives,
)

pytest.importorskip("triton", reason="needs triton")

# Every case is built for sm_90, these for the others too.
FOR_ALL = ("permute", "dynamic_transpose", "cat", "layer_norm", "sum_of_first")
BUILDS = [(90, name) for name in CASES] + [(arch, n) for arch in (80, 100) for n in FOR_ALL]

ELEMENTWISE = """graph f(%x: {0}[B, 256], %y: {0}[B, 256]) where B in [0, inf] hint 8 {{
  %a = aten.mul.Tensor(%x, %y) : {0}[B, 256]
  %b = aten.add.Tensor(%a, %x) : {0}[B, 256]
  return %b
}}"""


def kernel_of(text: str) -> TritonKernel:
    graph = parse(text)
    return emit(lower(graph, "kernel"), [s.name for s in graph.symbols])


# --- numbers --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of("triton_cases.py", tmp_path_factory)


def check_case(name: str, outputs: list[list[Tensor]]) -> None:
    case = CASES[name]
    assert len(outputs) == len(case.sizes)
    for values, found in zip(case.sizes, outputs, strict=True):
        check(case, values, found)


@pytest.mark.cpu
@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_are_as_good_as_eager(name: str, interpreted: dict[str, Any]) -> None:
    check_case(name, interpreted["cases"][name])


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_primitives_mean_what_torch_means(dtype: torch.dtype, interpreted: dict[str, Any]) -> None:
    exact = 0 if not dtype.is_floating_point else 4 * torch.finfo(dtype).eps
    check_primitives(dtype, interpreted["primitives"][dtype], exact)


@pytest.mark.cpu
def test_half_results_are_rounded_at_their_node(interpreted: dict[str, Any]) -> None:
    """`slice` and `softmax` begin with a rounded result that the next node reads."""
    for name in ("slice", "softmax"):
        case = CASES[name]
        (found,) = interpreted["cases"][name]
        eager = interpret(case.graph(), case.inputs(()))
        difference = (found[0].double() - eager[0].double()).abs().max()
        assert difference <= torch.finfo(torch.bfloat16).eps * eager[0].double().abs().max() / 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_kernels_on_a_gpu_are_as_good_as_eager(name: str) -> None:
    check_case(name, [[t.cpu() for t in outputs] for outputs in run_case(name, "cuda")])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_primitives_on_a_gpu_mean_what_torch_means(dtype: torch.dtype) -> None:
    tolerance = 0 if not dtype.is_floating_point else 16 * torch.finfo(dtype).eps
    check_primitives(dtype, [t.cpu() for t in run_primitives(dtype, "cuda")], tolerance)


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.cpu
def test_emitting_needs_no_triton_and_no_luck(interpreted: dict[str, Any]) -> None:
    """The text is the same in another process, which had not imported triton."""
    assert interpreted["emits_without_triton"]
    here = {name: emit(case.nest(), case.symbols()).source for name, case in CASES.items()}
    assert here == interpreted["sources"]


def test_elements_that_triton_rounds_otherwise_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="%x: elements of f8e4m3fn have no Triton form"):
        kernel_of("""graph f(%x: f8e4m3fn[8]) {
  %y = aten._to_copy.default(%x, dtype=f32) : f32[8]
  return %y
}""")


def test_blocks_follow_the_reduction_and_not_what_is_fused_to_it() -> None:
    alone = kernel_of("""graph f(%x: f32[40, 3000]) {
  %s = aten.sum.dim_IntList(%x, [1]) : f32[40]
  return %s
}""")
    fused = kernel_of("""graph f(%x: bf16[40, 3000], %y: f32[3000]) {
  %m = aten.mul.Tensor(%x, %y) : f32[40, 3000]
  %e = aten.exp.default(%m) : f32[40, 3000]
  %s = aten.sum.dim_IntList(%e, [1]) : f32[40]
  %r = aten.rsqrt.default(%s) : f32[40]
  return %r, %e
}""")
    assert (alone.constants, alone.options) == (fused.constants, fused.options)


def test_indices_have_64_bits_where_32_may_not_do() -> None:
    text = """graph f(%x: u8[{0}]) {1}{{
  %y = aten.bitwise_not.default(%x) : u8[{0}]
  return %y
}}"""
    near, far = kernel_of(text.format(2**31 - 2**20, "")), kernel_of(text.format(2**31, ""))
    assert "int64" not in near.source
    assert "tl.program_id(0).to(tl.int64)" in far.source
    bounded = kernel_of(text.format("B, 64", "where B in [0, 1000] hint 3 "))
    assert "int64" not in bounded.source
    open_ended = kernel_of(text.format("B, 64", "where B in [0, inf] hint 3 "))
    assert "INDEX=tl.int64 if 64*B > 2146435072 else tl.int32" in open_ended.source


# --- compiled -------------------------------------------------------------------------------------


@pytest.mark.cpu
@pytest.mark.parametrize(("arch", "name"), BUILDS, ids=lambda x: str(x))
def test_kernels_compile_without_a_gpu(arch: int, name: str) -> None:
    case = CASES[name]
    built = compile_for(emit(case.nest(), case.symbols()), arch)
    assert built.cubin.startswith(b"\x7fELF")
    assert f".target sm_{arch}" in built.ptx
    assert f".entry {built.name}(" in built.ptx


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_every_primitive_compiles(dtype: torch.dtype) -> None:
    nest = primitive_nest(dtype, count=32)
    built = compile_for(emit(nest, ()), 90)
    assert built.ptx.count("st.global") == len(nest.outputs)


def elementwise(dtype: str, **changed: int) -> CompiledKernel:
    kernel = kernel_of(ELEMENTWISE.format(dtype))
    options = tuple((dict(kernel.options) | changed).items())
    return compile_for(dataclasses.replace(kernel, options=options), 90)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_contiguous_elements_are_loaded_128_bits_at_once(dtype: str) -> None:
    ptx = elementwise(dtype).ptx
    loads = [line for line in ptx.splitlines() if "ld.global" in line]
    assert loads
    assert all(".v4.b32" in line or ".v2.b64" in line for line in loads)


@pytest.mark.cpu
def test_transposed_elements_are_loaded_and_stored_along_memory() -> None:
    ptx = compile_for(
        kernel_of("""graph f(%x: f32[512, 256]) {
  %t = aten.t.default(%x) : f32[256, 512]
  %a = aten.neg.default(%t) : f32[256, 512]
  return %a
}"""),
        90,
    ).ptx
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx


@pytest.mark.cpu
def test_products_and_sums_stay_apart() -> None:
    assert "fma.rn.f32" in elementwise("f32", enable_fp_fusion=True).ptx
    assert "fma" not in elementwise("f32").ptx


@pytest.mark.cpu
def test_compiled_half_results_are_rounded_at_their_node() -> None:
    once = """graph f(%x: bf16[4096]) {
  %a = aten.sigmoid.default(%x) : bf16[4096]
  return %a
}"""
    twice = once.replace("  return %a", "  %b = aten.sigmoid.default(%a) : bf16[4096]\n  return %b")
    texts = [compile_for(kernel_of(text), 90).ptx for text in (once, twice)]
    rounded = [t.count("cvt.rn.bf16.f32") + 2 * t.count("cvt.rn.bf16x2.f32") for t in texts]
    assert rounded == [8, 16]  # eight elements a thread


@pytest.mark.cpu
def test_sizes_given_are_specialized_for() -> None:
    kernel = kernel_of("""graph f(%x: f32[B, S], %y: f32[S]) where B in [0, inf], S in [0, inf] {
  %a = aten.mul.Tensor(%x, %y) : f32[B, S]
  return %a
}""")
    assert "ld.global.v4.b32" not in compile_for(kernel, 90).ptx
    built = compile_for(kernel, 90, {"B": 5, "S": 48})
    assert "ld.global.v4.b32" in built.ptx
    assert [p for p in kernel.parameters if p.size is not None and p.name in built.divisible]
    assert ".param .u64" in compile_for(kernel, 90, {"B": 2**27, "S": 48}).ptx


@pytest.mark.cpu
def test_pointers_that_may_lie_anywhere_are_read_element_by_element() -> None:
    kernel = kernel_of(ELEMENTWISE.format("f32"))
    built = compile_for(kernel, 90, unaligned=("x_ptr",))
    assert built.divisible == ("y_ptr", "b_ptr", "size0")
    loads = [line for line in built.ptx.splitlines() if "ld.global" in line]
    assert (sum(".v4.b32" in line for line in loads), len(loads)) == (2, 2 + 8)
