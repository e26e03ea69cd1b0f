"""Gradients of attention in Triton: interpreted against float64, tiles left out, compiled."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_gradients import Gradients
from attention_kernels import MASKS, Shape, distance, kept
from interpreted import results_of
from rewright.codegen.triton import CompiledKernel, TritonKernel, compile_for, emit
from rewright.ir import UnsupportedError
from rewright.ir.loops import AttentionBackwardNest
from triton_attention import LOWEST, early
from triton_attention_backward import CASES, FORWARDS, WITHOUT_KEYS

triton = pytest.importorskip("triton", reason="needs triton")
pytestmark = pytest.mark.cpu


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results_of("triton_attention_backward.py", tmp_path_factory)


def check(name: str, found: list[Tensor]) -> None:
    """No further from float64 than twice as far as eager is."""
    tried = CASES[name]
    part = (slice(None), slice(None), tried.looked_at)
    case = tried.case
    if name == WITHOUT_KEYS:
        assert all(x.isfinite().all() for x in found) and (found[0][:, :, 150:] == 0).all()
        # Eager's are not numbers there: with the least number in the place of -inf they are, and
        # do not count where the gradient is 0.
        *inputs, grad = case.inputs
        hidden = grad.masked_fill(torch.arange(300)[:, None] >= 150, 0)
        case = Gradients("live", kept(early, LOWEST), (*inputs, hidden))
    exact, eager = case.eager(torch.float64), case.eager()
    for x, one, wanted in zip(found, eager, exact, strict=True):
        limit = 2 * distance(one[part], wanted[part]) + 1e-6
        assert distance(x[part], wanted[part]) <= limit


@pytest.mark.parametrize("name", CASES)
def test_no_further_from_float64_than_eager(name: str, interpreted: dict[str, Any]) -> None:
    """Where rows and keys of another document are NaN, they are not read."""
    check(name, interpreted[name])


@pytest.mark.parametrize("name", FORWARDS)
def test_the_forward_says_what_its_sums_are(name: str, interpreted: dict[str, Any]) -> None:
    """Their logarithms, which are 0 where there is nothing to sum up."""
    case = CASES[name].case
    limit = 1e-5 if case.inputs[0].dtype == torch.float32 else 1e-2
    for found, wanted in zip(interpreted[f"forward: {name}"], case.forward(), strict=True):
        assert distance(found, wanted) <= limit


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_no_further_from_float64_on_a_gpu(name: str) -> None:
    check(name, [x.cpu() for x in CASES[name].run("cuda")])


@pytest.mark.gpu
def test_two_calls_give_the_same_bits() -> None:
    """Nothing is added up in memory."""
    one, other = (CASES["plus, least"].run("cuda") for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


# --- compiled -------------------------------------------------------------------------------------


class Sized(Gradients):
    """Too large to be computed."""

    def forward(self) -> tuple[Tensor, Tensor]:
        query, _, value = self.inputs[:3]
        rows = query.shape[:3]
        dtype = torch.promote_types(query.dtype, torch.float32)
        results = torch.empty(*rows, value.shape[-1], dtype=query.dtype)
        return results, torch.empty(rows, dtype=dtype)


def nest(
    name: str, dtype: torch.dtype, width: int = 128, length: int = 4096
) -> AttentionBackwardNest:
    """Two heads of queries, which share one of keys."""
    shape = Shape(1, 2, length, length, width, width)
    query, key = (torch.empty(1, heads, length, width, dtype=dtype) for heads in (2, 1))
    given = (query, key, key.clone(), *MASKS[name].read(shape, dtype), query.clone())
    return Sized(name, MASKS[name].score, given).nest("gradient")


def kernels(name: str, dtype: torch.dtype, width: int = 128) -> tuple[TritonKernel, TritonKernel]:
    """Of the gradient of queries, and of those of keys and values."""
    kernel = emit(nest(name, dtype, width), ())
    (before,) = kernel.before
    return before, kernel


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", ["none", "causal", "documents"])
def test_kernels_compile_without_a_gpu(arch: int, name: str) -> None:
    products = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
    for kernel in kernels(name, torch.bfloat16):
        built = compile_for(kernel, arch)
        assert built.cubin.startswith(b"\x7fELF") and f".target sm_{arch}" in built.ptx
        assert products[arch] in built.ptx  # tensor cores multiply
        assert "cp.async" in built.ptx  # and tiles are read ahead
        assert not re.search(r"\b(atom|red)\.(relaxed\.|gpu\.)*global", built.ptx)


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("name", ["causal", "documents"])
def test_loops_that_multiply_keep_everything_in_registers(
    name: str, width: int, tmp_path: Path
) -> None:
    """Of what is spilled on sm_90, which is little, none is between products."""
    for kernel in kernels(name, torch.bfloat16, width):
        loops = multiplying_loops(compile_for(kernel, 90), tmp_path)
        assert len(loops) >= 2 and not any(spills for _, spills in loops)


def multiplying_loops(built: CompiledKernel, folder: Path) -> list[tuple[int, int]]:
    """Products, and accesses to local memory, of the innermost loops with products."""
    file = folder / f"{built.name}.cubin"
    file.write_bytes(built.cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listed = subprocess.run([tool, "-sass", file], check=True, capture_output=True, text=True)
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)(.*?);", listed.stdout)
    code = [(int(at, 16), name, rest) for at, name, rest in found]
    ends = [(at, re.search(r"0x([0-9a-f]+)", rest)) for at, n, rest in code if n.startswith("BRA")]
    loops = [(int(to[1], 16), at) for at, to in ends if to is not None and int(to[1], 16) < at]
    products = [at for at, name, _ in code if name.startswith("HGMMA")]
    spills = [at for at, name, _ in code if name.startswith(("LDL", "STL"))]
    counted = [(loop, _within(products, loop), _within(spills, loop)) for loop in loops]
    return [
        (count, spilt)
        for loop, count, spilt in counted
        if count and not any(n and o != loop and _holds(loop, o) for o, n, _ in counted)
    ]


def _within(places: list[int], loop: tuple[int, int]) -> int:
    return sum(loop[0] <= place <= loop[1] for place in places)


def _holds(loop: tuple[int, int], other: tuple[int, int]) -> bool:
    return loop[0] <= other[0] and other[1] <= loop[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_wide_heads_fit_in_shared_memory(dtype: torch.dtype) -> None:
    for kernel in kernels("causal", dtype, 256):
        assert compile_for(kernel, 80).shared <= 163 << 10


def test_products_of_f32_are_of_f32() -> None:
    for kernel in kernels("capped", torch.float32, 64):
        built = compile_for(kernel, 90)
        assert "mma" not in built.ptx and "tf32" not in built.ptx


def test_a_mask_is_left_out_where_it_is_known_to_hold() -> None:
    """Of the loops of each kernel one evaluates it, and so does that of lost sums."""
    source = emit(nest("sinks", torch.bfloat16), ()).source
    bodies = [text.split("for start in ")[1:] for text in source.split("@triton.jit")[-2:]]
    assert [["# bitwise_and" in loop for loop in loops] for loops in bodies] == [
        [True, False, True],
        [False, True],
    ]


def test_without_a_mask_nothing_is_looked_for() -> None:
    kernel = emit(nest("capped", torch.bfloat16), ())
    assert "range_" not in kernel.source and "lost" not in kernel.source
    assert [p.name for p in kernel.parameters if p.scratch is not None] == ["delta_ptr"]


def test_other_elements_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Triton multiplies f16, bf16 or f32, and here are"):
        emit(nest("none", torch.float64, length=64), ())
    with pytest.raises(UnsupportedError, match="wider than 256"):
        emit(nest("none", torch.float32, 300, length=64), ())
