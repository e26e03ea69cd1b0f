"""The types of what an operator returns, found by running it at several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from rewright.ir.dims import Dim, Size, Symbol, evaluate
from rewright.ir.graph import Arg, Value, map_leaves
from rewright.ir.ops import op
from rewright.ir.types import TensorType

SYMBOLS: Final = (Symbol("B0", 5, 2, 64), Symbol("B1", 11, 2, None))

# Sizes are linear in each symbol, so four points give one exactly and two more check that.
FITTED: Final = ((5, 11), (7, 11), (5, 13), (7, 13))
CHECKED: Final = ((3, 17), (64, 2))


def result_types(
    name: str, args: tuple[Arg, ...], kwargs: tuple[tuple[str, Arg], ...]
) -> list[TensorType] | None:
    """The types of what a call returns, from running it at several sizes.

    None when torch refuses it, or when a size of the result is not linear in each symbol.
    """
    target = op(name).target
    assert target is not None
    runs: list[list[torch.Tensor]] = []
    for point in (*FITTED, *CHECKED):
        at = dict(zip(("B0", "B1"), point, strict=True))
        made = [map_leaves(a, lambda leaf, at=at: _at(leaf, at)) for a in args]  # type: ignore[misc]
        words = {k: map_leaves(a, lambda leaf, at=at: _at(leaf, at)) for k, a in kwargs}  # type: ignore[misc]
        try:
            found = target(*made, **words)
        except (RuntimeError, IndexError, ValueError):
            return None
        runs.append(list(found) if isinstance(found, tuple | list) else [found])
    return fitted(runs)


def fitted(runs: Sequence[Sequence[torch.Tensor]]) -> list[TensorType] | None:
    """The types of results that were computed at each of `FITTED` and `CHECKED`."""
    if len({len(results) for results in runs}) != 1:
        return None
    types = [_type(tensors) for tensors in zip(*runs, strict=True)]
    known = [t for t in types if t is not None]
    return known if len(known) == len(types) else None


def _at(leaf: Arg, symbols: Mapping[str, int]) -> object:
    if isinstance(leaf, Dim):
        return evaluate(leaf, symbols)
    if not isinstance(leaf, Value):
        return leaf
    shape = [evaluate(size, symbols) for size in leaf.tensor.shape]
    strides = [evaluate(size, symbols) for size in leaf.tensor.layout]
    return torch.empty_strided(shape, strides, dtype=leaf.tensor.dtype)


def _type(tensors: Sequence[torch.Tensor]) -> TensorType | None:
    if len({t.ndim for t in tensors}) != 1:
        return None
    shape = [_fit(numbers) for numbers in zip(*(t.shape for t in tensors), strict=True)]
    strides = [_fit(numbers) for numbers in zip(*(t.stride() for t in tensors), strict=True)]
    known = tuple(s for s in shape if s is not None), tuple(s for s in strides if s is not None)
    if len(known[0]) + len(known[1]) < len(shape) + len(strides):
        return None
    return TensorType(tensors[0].dtype, *known)


def _fit(numbers: Sequence[int]) -> Size | None:
    """The size that takes these values at the points above."""
    if len(set(numbers)) == 1:
        return numbers[0]
    (x0, y0), (x1, y1) = FITTED[0], FITTED[3]
    at = dict(zip(FITTED, numbers, strict=False))
    width, height = x1 - x0, y1 - y0
    cross = at[x1, y1] - at[x1, y0] - at[x0, y1] + at[x0, y0]
    xy = cross // (width * height)
    x = (at[x1, y0] - at[x0, y0]) // width - xy * y0
    y = (at[x0, y1] - at[x0, y0]) // height - xy * x0
    b0, b1 = (Dim.of(symbol) for symbol in SYMBOLS)
    size = b0 * b1 * xy + b0 * x + b1 * y
    size = size + (at[x0, y0] - evaluate(size, {"B0": x0, "B1": y0}))
    points = zip((*FITTED, *CHECKED), numbers, strict=True)
    exact = all(evaluate(size, {"B0": a, "B1": b}) == n for (a, b), n in points)
    return size if exact else None
