"""Attention in Triton: interpreted against float64, tiles that it leaves out, compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attention_kernels import MASKS, Shape, distance, nest_of, numbers
from interpreted import results_of
from rewright.codegen.triton import compile_for, emit
from rewright.ir import UnsupportedError
from rewright.ir.loops import AttentionNest, lower_attention
from triton_attention import CASES

pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.cpu


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of("triton_attention.py", tmp_path_factory)


def check(name: str, found: Tensor) -> None:
    """No further from float64 than twice as far as eager is."""
    tried = CASES[name]
    rows = (slice(None), slice(None), tried.rows)
    wanted, eager = tried.case.eager(torch.float64)[rows], tried.case.eager()[rows]
    assert distance(found[rows], wanted) <= 2 * distance(eager, wanted) + 1e-6


@pytest.mark.parametrize("name", CASES)
def test_no_further_from_float64_than_eager(name: str, interpreted: dict[str, Any]) -> None:
    """Where keys that no row sees are NaN, they are not read."""
    check(name, interpreted[name])


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_no_further_from_float64_on_a_gpu(name: str) -> None:
    check(name, CASES[name].run("cuda").cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sinks", "documents"])
def test_two_calls_give_the_same_bits(name: str) -> None:
    tried = CASES[f"leaves out: {name}"]
    assert torch.equal(*(tried.run("cuda").nan_to_num(0) for _ in range(2)))


# --- compiled -------------------------------------------------------------------------------------


def nest(name: str, dtype: torch.dtype, width: int = 128) -> AttentionNest:
    shape = Shape(1, 2, 4096, 4096, width, width)
    with torch.device("meta"):
        given = (*numbers(shape, dtype), *MASKS[name].read(shape, dtype))
    return nest_of(MASKS[name].score, [torch.empty_like(x, device="cpu") for x in given])


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", ["causal", "sinks", "documents"])
def test_kernels_compile_without_a_gpu(arch: int, name: str) -> None:
    built = compile_for(emit(nest(name, torch.bfloat16), ()), arch)
    assert built.cubin.startswith(b"\x7fELF") and f".target sm_{arch}" in built.ptx
    products = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
    assert products[arch] in built.ptx  # tensor cores multiply
    assert "cp.async" in built.ptx  # and tiles are read ahead
    assert "st.local" not in built.ptx


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_products_of_f32_are_of_f32(arch: int) -> None:
    built = compile_for(emit(nest("capped", torch.float32, 64), ()), arch)
    assert "mma" not in built.ptx and "tf32" not in built.ptx


@pytest.mark.parametrize("arch", [86, 89])
def test_fewer_tiles_are_in_flight_where_memory_is_short(arch: int) -> None:
    kernel = emit(nest("additive", torch.bfloat16, 256), ())
    assert compile_for(kernel, arch).shared <= 99 << 10


@pytest.mark.parametrize("name", ["causal", "documents"])
def test_kernels_for_any_size_compile(name: str) -> None:
    """For indices of 32 bits, and of 64 where they may be needed."""
    graph = CASES[f"any size: {name}"].graph()
    symbols = [s.name for s in graph.symbols]
    kernel = emit(lower_attention(graph, "attention"), symbols)
    assert kernel.extents
    for size in (None, 2**26):
        sizes = None if size is None else dict.fromkeys(symbols, size)
        assert compile_for(kernel, 90, sizes).cubin.startswith(b"\x7fELF")


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_few_queries_are_answered_by_many_programs(arch: int) -> None:
    """Each for a part of the keys, until there are enough of them; heads alone may be that."""
    kernel = emit(of_few(heads=8, length=8192), ())
    (parts,) = kernel.before
    assert (parts.programs, kernel.programs) == (256, 8)
    assert compile_for(kernel, arch).cubin.startswith(b"\x7fELF")
    built = compile_for(parts, arch)
    assert "mma" in built.ptx and "cp.async" in built.ptx and "st.local" not in built.ptx
    assert not emit(of_few(heads=256, length=8192), ()).before
    assert not emit(of_few(heads=8, length=256), ()).before


def of_few(heads: int, length: int) -> AttentionNest:
    shape = Shape(1, heads, 1, length, 128, 128)
    given = (torch.empty(1, heads, n, 128, dtype=torch.bfloat16) for n in (1, length, length))
    return nest_of(MASKS["padding"].score, (*given, *MASKS["padding"].read(shape, torch.bfloat16)))


def test_a_mask_is_left_out_where_it_is_known_to_hold() -> None:
    """One loop of tiles evaluates it, and one does not."""
    source = emit(nest("sinks", torch.bfloat16), ()).source
    loops = source.split("for start in ")[1:]
    assert ["# bitwise_and" in loop for loop in loops] == [False, True]


def test_without_a_mask_there_are_no_intervals() -> None:
    kernel = emit(nest("capped", torch.bfloat16), ())
    assert "range_" not in kernel.source and kernel.source.count("for start in range(") == 1


def test_other_elements_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Triton multiplies f16, bf16 or f32, and here are"):
        emit(nest("none", torch.float64), ())
    with pytest.raises(UnsupportedError, match="wider than 256"):
        emit(nest("none", torch.float32, 300), ())
