"""Sizes of symbols: what their bounds settle."""

from __future__ import annotations

import pytest
import torch

from rewright.ir.dims import Dim, Size, Symbol, make
from rewright.ir.types import TensorType


def size(low: int, name: str = "B0") -> Dim:
    return Dim.of(Symbol(name, 4, low, 64))


def test_the_smaller_of_two_is_known_by_bounds() -> None:
    known, unknown = size(1), size(0)
    assert make("min", 64, 64 * known) == 64
    assert make("max", 64, 64 * known) == 64 * known
    assert make("min", known, 65) == known
    assert str(make("min", 64, 64 * unknown)) == "min(64, 64*B0)"
    assert make("min", 2, known) not in (2, known)


@pytest.mark.parametrize("low", [0, 1])
def test_without_elements_all_strides_are_row_major(low: int) -> None:
    """Export writes so of [batch, length, 64], flattened."""
    batch, length = size(low, "B0"), size(low, "B1")
    stride: Size = make("min", 64, 64 * length)
    assert TensorType(torch.float32, (batch * length, 64), (stride, 1)).is_contiguous
    # Where the symbol is no size of the tensor's, it may have elements all the same.
    assert TensorType(torch.float32, (batch, 64), (stride, 1)).is_contiguous == (low == 1)
    assert not TensorType(torch.float32, (batch * length, 64), (2 * stride, 1)).is_contiguous
