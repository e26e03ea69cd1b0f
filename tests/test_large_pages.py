"""Memory that is large lies on large pages, where Linux has them to give."""

from __future__ import annotations

import mmap
import re

import pytest
import torch
from torch import Tensor, nn

import rewright
from rewright.codegen import runtime


def test_large_results_are_allocated_by_us_on_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def advise(start: int, length: int, how: int) -> None:
        asked.append(length)

    monkeypatch.setattr(runtime, "_madvise", lambda: advise)
    rows = runtime.KEPT_BYTES // 4 // 64 + 64
    x, w = torch.randn(rows, 32), torch.randn(32, 64)
    program = rewright.optimize(Product(), (x, w))
    assert re.search(r"mm_out\(x, w, out=", program.program.executable.calls.source)
    torch.testing.assert_close(program(x, w), x @ w)
    (length,) = asked
    assert 0 <= rows * 64 * 4 - length < 2 * mmap.PAGESIZE
    small = rewright.optimize(Product(), (x[:64], w))
    small(x[:64], w)
    assert len(asked) == 1


class Product(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return x @ w
