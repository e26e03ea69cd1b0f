"""Tensors that hold one number, over and over."""

from __future__ import annotations

from typing import Final

import torch

from rewright.ir.constant import Constant
from rewright.ir.graph import Node

_FILLS: Final = {"aten.full.default": 1, "aten.scalar_tensor.default": 0}
# Operators whose result may be one number (`number_of`).
NUMBERS: Final = frozenset({"rw.constant", *_FILLS})


def number_of(source: Node) -> bool | int | float | complex | None:
    """The number that every element of the node's result is, after rounding to its dtype."""
    if source.op.name == "rw.constant":
        data = source.kwarg("value")
        known = isinstance(data, Constant) and data.data is not None and data.data.numel() == 1
        return data.tensor.item() if known and isinstance(data, Constant) else None
    place = _FILLS.get(source.op.name)
    value = None if place is None else source.args[place]
    if not isinstance(value, (bool, int, float, complex)):
        return None
    return torch.tensor(value, dtype=source.result.tensor.dtype).item()
