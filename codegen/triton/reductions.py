"""Reductions over the columns of a block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch


@dataclass(frozen=True)
class Reduction:
    """`neutral` is what changes nothing, `of` combines {0} and {1} elementwise, `across` combines
    the columns of the block {0} and keeps the dimension."""

    neutral: float | bool
    of: str
    across: str


def reduction(how: str, dtype: torch.dtype) -> Reduction:
    """How values of compute type `dtype` are combined: sum, prod, max, min, any or all."""
    if dtype is torch.bool:
        return _OF_MASKS[how]
    if not dtype.is_floating_point and how in ("max", "min"):
        limits = torch.iinfo(dtype)
        neutral = limits.min if how == "max" else limits.max
        across = f"tl.{how}({{0}}, 1, keep_dims=True)"
        return Reduction(neutral, f"tl.{how}imum({{0}}, {{1}})", across)
    return _OF_NUMBERS[how]


_SUM: Final = Reduction(0, "{0} + {1}", "tl.sum({0}, 1, keep_dims=True)")
_PRODUCT: Final = Reduction(1, "{0} * {1}", "tl.reduce({0}, 1, product, keep_dims=True)")
_LARGEST: Final = Reduction(
    float("-inf"), "larger({0}, {1})", "tl.reduce({0}, 1, larger, keep_dims=True)"
)
_SMALLEST: Final = Reduction(
    float("inf"), "smaller({0}, {1})", "tl.reduce({0}, 1, smaller, keep_dims=True)"
)
_ANY: Final = Reduction(False, "{0} | {1}", "tl.max(({0}).to(tl.int32), 1, keep_dims=True) != 0")
_ALL: Final = Reduction(True, "{0} & {1}", "tl.min(({0}).to(tl.int32), 1, keep_dims=True) != 0")

_OF_NUMBERS: Final = {"sum": _SUM, "prod": _PRODUCT, "max": _LARGEST, "min": _SMALLEST}
_OF_MASKS: Final = {"any": _ANY, "max": _ANY, "all": _ALL, "min": _ALL, "prod": _ALL}
