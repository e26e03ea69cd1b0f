"""quantized.h on every instruction set that this CPU has, against exact integers and float64."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quantized_kernels import (
    DOT_OF_BYTES,
    NO_TILES,
    PAIRS,
    TILES,
    TYPES,
    Kernels,
    Linear,
    exact_int8,
    quantized,
    reference,
    source,
)
from rewright.codegen.cpp import toolchain
from simd_harness import HEADERS, has

pytestmark = pytest.mark.cpu

BUILDS = {
    "native": Kernels("native"),
    "v3": Kernels("x86-64-v3"),
    "native without tiles": Kernels("native", NO_TILES),
    "v3 with dpbusd": Kernels("x86-64-v3", DOT_OF_BYTES),
    "v3 with tiles": Kernels("x86-64-v3", TILES),
    "portable": Kernels("x86-64"),
}
ROWS = (1, 2, 3, 7, 16, 33, 200)
SHAPES = ((1, 1), (16, 64), (31, 37), (50, 519), (40, 2070))  # columns, depth
GROUPS = ((16, 64, 32), (31, 192, 64), (50, 768, 128), (9, 96, 96))  # with what a group has
EPSILON = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
BIASED = pytest.mark.parametrize("biased", [False, True], ids=["no bias", "bias"])
MIXED = pytest.mark.parametrize(("x", "y"), PAIRS, ids="-".join)


@pytest.fixture(params=BUILDS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    found = BUILDS[request.param]
    if not has(found.march):
        pytest.skip(f"this CPU does not run {found.march}")
    return found


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def rows_of(rows: int, depth: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows that lie further apart than they are long, of different sizes."""
    x = torch.randn(rows, depth + 3) * torch.logspace(-2, 2, rows).unsqueeze(1)
    return x.to(dtype)[:, :depth]


def layer_of(columns: int, depth: int, biased: bool = True) -> Linear:
    weight = torch.randint(-127, 128, (columns, depth), dtype=torch.int8)
    return Linear(weight, torch.rand(columns) / 100, torch.randn(columns) if biased else None)


def grouped(columns: int, depth: int, group: int, biased: bool = True) -> Linear:
    weight = torch.randint(-7, 8, (columns, depth), dtype=torch.int8)
    scales = torch.rand(columns, depth // group) / 10
    return Linear(weight, scales, torch.randn(columns) if biased else None)


def check_close(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Within the rounding of f32 sums and of the result."""
    wanted, size = reference(x, weight, bias)
    bound = 2.0**-20 * size + 2 * EPSILON[found.dtype] * wanted.abs() + 1e-7
    assert ((found.double() - wanted).abs() <= bound).all()


def check_int4(found: Tensor, x: Tensor, layer: Linear) -> None:
    q, unit = quantized(x)
    check_close(found, q.double() * unit.double(), layer.floats(), layer.bias)


# --- values ---------------------------------------------------------------------------------------


@BIASED
@pytest.mark.parametrize("rows", ROWS)
def test_int8_is_exact(kernels: Kernels, rows: int, biased: bool) -> None:
    for columns, depth in SHAPES:
        x, layer = rows_of(rows, depth), layer_of(columns, depth, biased)
        found = kernels.int8(x, layer, torch.float32)
        assert torch.equal(found, exact_int8(x, layer, torch.float32)), (columns, depth)


@BIASED
@pytest.mark.parametrize("rows", ROWS)
def test_int8_weights_alone(kernels: Kernels, rows: int, biased: bool) -> None:
    for columns, depth in SHAPES:
        x, layer = rows_of(rows, depth), layer_of(columns, depth, biased)
        found = kernels.weight(x, layer, torch.float32)
        check_close(found, x, layer.weight.double() * layer.scales.unsqueeze(1), layer.bias)


@BIASED
@pytest.mark.parametrize("rows", ROWS)
def test_int4_in_groups(kernels: Kernels, rows: int, biased: bool) -> None:
    for columns, depth, group in GROUPS:
        x, layer = rows_of(rows, depth), grouped(columns, depth, group, biased)
        check_int4(kernels.int4(x, layer, torch.float32), x, layer)


@MIXED
def test_every_type(x: str, y: str) -> None:
    kernels, rows, out = BUILDS["native"], rows_of(19, 192, TYPES[x]), TYPES[y]
    layer, in_groups = layer_of(37, 192), grouped(37, 192, 64)
    found = kernels.int8(rows, layer, out)
    assert torch.equal(found, exact_int8(rows, layer, out))
    found = kernels.weight(rows, layer, out)
    check_close(found, rows, layer.weight.double() * layer.scales.unsqueeze(1), layer.bias)
    check_int4(kernels.int4(rows, in_groups, out), rows, in_groups)


def test_zero_points(kernels: Kernels) -> None:
    weight = torch.randint(-8, 8, (50, 192), dtype=torch.int8)
    layer = Linear(weight, torch.rand(50, 3), torch.randn(50), 8 * torch.rand(50, 3) - 4)
    x = rows_of(7, 192)
    check_int4(kernels.int4(x, layer, torch.float32), x, layer)


# --- extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [-127, 127])
@pytest.mark.parametrize("rows", [1, 2, 13])
def test_no_sum_saturates(kernels: Kernels, rows: int, weight: int) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(2).repeat(1030)
    for x in (torch.ones(rows, 4120), -torch.ones(rows, 4120), signs.expand(rows, -1)):
        layer = Linear(torch.full((33, 4120), weight, dtype=torch.int8), torch.ones(33))
        sums = (127 * x.double()) @ layer.weight.double().t()
        wanted = sums.float() * (torch.ones(()) / 127)
        assert torch.equal(kernels.int8(x, layer, torch.float32), wanted)
        assert torch.equal(kernels.weight(x, layer, torch.float32).double() * 127, sums)


@pytest.mark.parametrize("weight", [-8, 7])
@pytest.mark.parametrize("rows", [1, 2, 13])
def test_no_sum_of_nibbles_saturates(kernels: Kernels, rows: int, weight: int) -> None:
    for group in (32, 256):
        for x in (torch.ones(rows, 1024), -torch.ones(rows, 1024)):
            weights = torch.full((33, 1024), weight, dtype=torch.int8)
            layer = Linear(weights, torch.ones(33, 1024 // group))
            wanted = (127 * x) @ layer.weight.float().t() * (torch.ones(()) / 127)
            assert torch.equal(kernels.int4(x, layer, torch.float32), wanted)


def test_special_rows(kernels: Kernels) -> None:
    """Zeros give the bias, NaN makes its row NaN, infinities are finite nowhere."""
    x = rows_of(9, 128)
    x[1], x[3, 5], x[4, 127], x[6, 7], x[7] = 0, torch.nan, torch.nan, -torch.inf, 1e-42
    for call, layer in ((kernels.int8, layer_of(33, 128)), (kernels.int4, grouped(33, 128, 32))):
        found = call(x, layer, torch.float32)
        assert layer.bias is not None
        assert torch.equal(found[1], layer.bias)
        assert found[[3, 4]].isnan().all()
        assert not found[6].isfinite().any()
        torch.testing.assert_close(found[7], layer.bias)
        assert found[[0, 2, 5, 8]].isfinite().all()


def test_halves_round_to_even(kernels: Kernels) -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])
    layer = Linear(torch.eye(7, dtype=torch.int8), torch.ones(7))
    found = kernels.int8(x, layer, torch.float32)
    assert found.tolist() == [[127.0, 0.0, 2.0, 2.0, 0.0, -2.0, -2.0]]


def test_nothing_to_do(kernels: Kernels) -> None:
    layer = layer_of(20, 8)
    for call in (kernels.int8, kernels.weight):
        assert call(torch.empty(0, 8), layer, torch.float32).shape == (0, 20)
        bias = call(torch.empty(5, 0), layer_of(20, 0), torch.float32)
        assert (bias[1:] == bias[0]).all() and bias.isfinite().all()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_change_no_bit(kernels: Kernels, threads: int) -> None:
    x, layer, in_groups = rows_of(130, 512), layer_of(600, 512), grouped(600, 512, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(
            kernels.int8(x, layer, torch.float32), exact_int8(x, layer, torch.float32)
        )
        one = kernels.int4(x, in_groups, torch.float32)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, kernels.int4(x, in_groups, torch.float32))


# --- other machines -------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.parametrize(
    ("march", "instruction"),
    [
        ("x86-64", "pmullw"),
        ("haswell", "vpmaddwd"),
        ("skylake-avx512", "vpmaddwd"),
        ("cascadelake", "vpdpbusd"),
        ("sapphirerapids", "vpdpbusd"),
        ("sapphirerapids", "tdpbssd"),
        ("alderlake", "vpdpbusd"),
    ],
)
def test_instruction_sets_compile(march: str, instruction: str, tmp_path: Path) -> None:
    tools = toolchain(march)
    if "clang" in Path(tools.compiler).name:
        pytest.skip("clang takes the portable path")
    (tmp_path / "kernels.cpp").write_text(source((("f32", "f32"),)))
    arguments = ("-S", "-Wall", "-Werror", f"-I{HEADERS}", "kernels.cpp", "-o", "kernels.s")
    subprocess.run([tools.compiler, *tools.flags, *arguments], cwd=tmp_path, check=True)
    assert instruction in (tmp_path / "kernels.s").read_text()
