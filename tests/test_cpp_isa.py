"""The same kernels for different instruction sets."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cpp_kernels import compiled, numbers, run_kernel, same_bits, traced

pytestmark = pytest.mark.cpu


def _needs_avx2() -> None:
    if platform.machine() != "x86_64" or "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs an x86-64 CPU with AVX2")


def test_kernels_that_call_nothing_have_an_aligned_stack() -> None:
    """gcc before 14.3 did not align it for the last, partial step of this copy (PR 109780), which
    then crashed."""
    _needs_avx2()
    x = numbers(2, 49, 192)
    cases = [traced(f"heads_{i}", _heads, x) for i in range(2)]
    for kernel in compiled(cases, march="x86-64-v3"):
        assert same_bits(run_kernel(kernel), [_heads(x).flatten()])


def _heads(x: Tensor) -> Tensor:
    return x.view(2, 49, 8, 24).permute(0, 2, 1, 3).contiguous()


def test_vector_width_changes_no_bit() -> None:
    """Nothing but primitives built on fused multiply-adds may differ between instruction sets."""
    _needs_avx2()
    cases = [
        traced("norm", lambda x, w: F.layer_norm(x, (333,), w), numbers(20, 333), numbers(333)),
        traced("mean", lambda x: x - x.mean(0), numbers(333, 20)),
        traced("half", lambda x, y: x * y + 1, *(numbers(7, 50, dtype=torch.bfloat16),) * 2),
        traced("max", lambda x: x.amax((0, 2)) / 3, numbers(6, 7, 50, dtype=torch.float64)),
    ]
    wide, narrow = (compiled(cases, march=m) for m in ("native", "x86-64-v3"))
    for one, other in zip(wide, narrow, strict=True):
        assert same_bits(run_kernel(one), run_kernel(other)), one.case.name
