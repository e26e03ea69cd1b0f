"""Views for drawn graphs: results that share the storage of what they are taken from."""

from __future__ import annotations

import itertools
import math
from typing import Final

import torch

from drawn_sketch import Sketch
from rewright.ir.dims import Dim, Size, hint


def reorder(sketch: Sketch) -> None:
    value = sketch.any_value(rank=1)
    if value is None:
        return
    rank = value.tensor.rank
    match sketch.one_of("permute", "transpose", "t"):
        case "t" if rank <= 2:
            sketch.add("aten.t.default", value)
        case "transpose":
            sketch.add("aten.transpose.int", value, sketch.axis(value), sketch.axis(value))
        case _:
            order = list(range(rank))
            for place in range(rank - 1):
                other = sketch.number(place, rank - 1)
                order[place], order[other] = order[other], order[place]
            sketch.add("aten.permute.default", value, tuple(order))


def reshape(sketch: Sketch) -> None:
    value = sketch.any_value()
    if value is None:
        return
    shape = sketch.one_of(*_shapes_of(value.tensor.shape))
    sketch.add(f"aten.{sketch.one_of('view', '_unsafe_view', 'reshape')}.default", value, shape)


def _shapes_of(shape: tuple[Size, ...]) -> list[tuple[Size, ...]]:
    """Shapes with as many elements: dimensions joined, cut in two, or one more of size one."""
    rank = len(shape)
    found: list[tuple[Size, ...]] = [(*shape, 1), (1, *shape)]
    for first, end in itertools.combinations(range(rank + 1), 2):
        if end - first > 1:
            joined = math.prod(shape[first:end], start=1)
            found.append((*shape[:first], joined, *shape[end:]))
    for place, size in enumerate(shape):
        if isinstance(size, int):
            parts = [n for n in (2, 3, 4, 8) if size > n and size % n == 0]
            for part, swap in itertools.product(parts, (False, True)):
                pair = (part, size // part) if swap else (size // part, part)
                found.append((*shape[:place], *pair, *shape[place + 1 :]))
    return found


def size_one(sketch: Sketch) -> None:
    value = sketch.any_value()
    if value is None:
        return
    rank = value.tensor.rank
    match sketch.one_of("unsqueeze", "squeeze", "squeeze_all", "squeeze_dims", "alias"):
        case "squeeze" if rank:
            sketch.add("aten.squeeze.dim", value, sketch.axis(value))
        case "squeeze_dims" if rank:
            sketch.add("aten.squeeze.dims", value, (sketch.axis(value),))
        case "squeeze_all" if not any(isinstance(size, Dim) for size in value.tensor.shape):
            sketch.add("aten.squeeze.default", value)
        case "alias":
            sketch.add(f"aten.{sketch.one_of('alias', 'detach')}.default", value)
        case _:
            sketch.add("aten.unsqueeze.default", value, sketch.number(-rank - 1, rank))


def expand(sketch: Sketch) -> None:
    """Every dimension of size one to three, or some new ones before the first."""
    value = sketch.any_value()
    if value is None:
        return
    wide = sketch.one_of(3, 2, 16)
    wider = tuple(wide if size == 1 else size for size in value.tensor.shape)
    new = sketch.one_of((), (2,), (1, 3), (0,))
    sketch.add("aten.expand.default", value, (*new, *wider))


def slice_(sketch: Sketch) -> None:
    value = sketch.any_value(rank=1)
    if value is None:
        return
    dim = sketch.axis(value)
    size = value.tensor.shape[dim]
    start = sketch.number(-3, 3)
    end: Size = sketch.one_of(9223372036854775807, -1, size, 4, -2)
    step = sketch.one_of(1, 1, 2, 3)
    sketch.add("aten.slice.Tensor", value, dim, start, end, step)


def take(sketch: Sketch) -> None:
    """Parts of a value, several at once for some."""
    value = sketch.any_value(rank=1)
    if value is None:
        return
    dim = sketch.axis(value)
    size = value.tensor.shape[dim]
    match sketch.one_of("select", "split", "split_sizes", "unbind"):
        case "split":
            sketch.add("aten.split.Tensor", value, sketch.number(1, 3), dim)
        case "split_sizes" if hint(size) >= 2:
            parts = sketch.one_of((1, size - 1), (size - 1, 1), (0, size), (1, 1, size - 2))
            sketch.add("aten.split_with_sizes.default", value, parts, dim)
        case "unbind" if isinstance(size, int) and size <= 8:
            sketch.add("aten.unbind.int", value, dim)
        case _:
            sketch.add("aten.select.int", value, dim, sketch.number(-2, 2))


def windows(sketch: Sketch) -> None:
    """Overlapping windows, diagonals."""
    value = sketch.any_value(rank=1)
    if value is None:
        return
    if value.tensor.rank >= 2 and sketch.chance():
        first, second = sketch.axis(value), sketch.axis(value)
        sketch.add("aten.diagonal.default", value, sketch.number(-2, 2), first, second)
    else:
        length, step = sketch.number(0, 3), sketch.number(1, 2)
        sketch.add("aten.unfold.default", value, sketch.axis(value), length, step)


def copy(sketch: Sketch) -> None:
    """Copies that keep strides, or make rows contiguous."""
    value = sketch.any_value()
    if value is None:
        return
    format = torch.contiguous_format
    match sketch.one_of("clone", "contiguous", "plain"):
        case "clone":
            sketch.add("aten.clone.default", value, memory_format=format)
        case "contiguous":
            sketch.add("aten.contiguous.default", value)
        case _:
            sketch.add("aten.clone.default", value)


VIEWS: Final = {
    "reorder": reorder,
    "reshape": reshape,
    "size_one": size_one,
    "expand": expand,
    "slice": slice_,
    "take": take,
    "windows": windows,
    "copy": copy,
}
