"""Clean-up of dtype casts; every rule here is exact, bit for bit."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Final

import torch

from rewright.ir import Node, TensorType, Value
from rewright.passes.sweep import Producer

CASTS: Final = ("aten._to_copy.default", "prims.convert_element_type.default")


def skip_widening(node: Node, producer: Producer) -> Node | Value | None:
    """cast(cast(x, wide), c) -> cast(x, c), or x itself when c is its type."""
    inner = producer(node.args[0])
    if inner is None or not _is_plain_cast(node) or not _is_plain_cast(inner):
        return None
    x = inner.args[0]
    assert isinstance(x, Value)
    start, wide, end = x.tensor, inner.result.tensor, node.result.tensor
    if not holds(wide.dtype, start.dtype) or start.device != end.device:
        return None
    if end == start:
        return x
    # Out of range, a float becomes an unspecified integer: the way there is then part of the bits.
    if start.dtype.is_floating_point and not end.dtype.is_floating_point:
        return None
    return dataclasses.replace(node, args=(x, *node.args[1:]))


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


def _is_plain_cast(node: Node) -> bool:
    """Changes the dtype and nothing else that a caller could see."""
    if node.op.name not in CASTS or not isinstance(node.args[0], Value):
        return False
    x, result = node.args[0].type, node.result.type
    if not isinstance(x, TensorType) or not isinstance(result, TensorType):
        return False
    plain = node.kwarg("memory_format") is None and not node.kwarg("pin_memory")
    return plain and x.device == result.device
