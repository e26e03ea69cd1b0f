"""Which dtypes hold all the numbers of which."""

from __future__ import annotations

import math
from functools import cache

import torch


@cache
def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """True when every number of `narrow` is a number of `wide`."""
    if wide == narrow:
        return True
    if wide.is_complex or narrow.is_complex or wide == torch.bool:
        return False
    # Types of float8 differ in -0, infinities and NaN, which `finfo` does not say.
    if wide.is_floating_point and wide.itemsize == 1:
        return False
    if narrow == torch.bool:
        return True
    if not wide.is_floating_point:
        return not narrow.is_floating_point and _holds_integers(wide, narrow)
    if not narrow.is_floating_point:
        bits = torch.iinfo(narrow).bits - (torch.iinfo(narrow).min < 0)
        return bits <= _precision(wide)
    return _holds_floats(wide, narrow)


def _holds_integers(wide: torch.dtype, narrow: torch.dtype) -> bool:
    outer, inner = torch.iinfo(wide), torch.iinfo(narrow)
    return outer.min <= inner.min and outer.max >= inner.max


def _holds_floats(wide: torch.dtype, narrow: torch.dtype) -> bool:
    outer, inner = torch.finfo(wide), torch.finfo(narrow)
    if _precision(wide) < _precision(narrow) or outer.max < inner.max:
        return False
    # The smallest subnormal of `narrow`, which some types write as a power of two below `tiny`.
    return outer.tiny * outer.eps <= inner.tiny * inner.eps


def _precision(dtype: torch.dtype) -> int:
    """Bits of the significand, the implicit one included."""
    return 1 - round(math.log2(torch.finfo(dtype).eps))
