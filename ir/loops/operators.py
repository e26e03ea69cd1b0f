"""Operators that are more than a scalar expression: joins, pads, triangles, scatters, creations.

Each rule gives the term of one element of one result. Everything inside a rule is computed in the
compute type and rounded once, at the node's result, as eager's own kernels do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from rewright.ir.dims import Dim, Size, equal
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Node, Value
from rewright.ir.loops.affine import Affine, delinearize
from rewright.ir.loops.nest import Inside, Number, Position, Term, Within
from rewright.ir.loops.reductions import REDUCTIONS
from rewright.ir.loops.scope import Guards, Rule, Scope, convert, number
from rewright.ir.loops.views import Index, select_place, slice_start
from rewright.ir.pointwise import compute_dtype


def _batch_norm(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """Batch norm with given statistics: (x - mean) * rsqrt(var + eps) * weight + bias."""
    if value != node.results[0]:
        raise UnsupportedError("batch norm's empty statistics have no elements")
    source, weight, bias, mean, variance = node.args[:5]
    dtype = compute_dtype(value.tensor.dtype)

    def channel(parameter: object) -> Term:
        assert isinstance(parameter, Value)
        return convert(scope.at(parameter, (index[1],), guards), dtype)

    assert isinstance(source, Value)
    here = convert(scope.at(source, index, guards), dtype)
    eps = number(node.arg("eps"), dtype)
    rstd = scope.apply("rsqrt", scope.apply("add", channel(variance), eps))
    scale = scope.apply("mul", rstd, channel(weight)) if weight is not None else rstd
    normal = scope.apply("mul", scope.apply("sub", here, channel(mean)), scale)
    return scope.apply("add", normal, channel(bias)) if bias is not None else normal


# --- joins, pads, scatters of slices --------------------------------------------------------------


def _cat(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    parts = [p for p in node.operands if p.tensor.rank == value.tensor.rank]
    if not parts:
        raise UnsupportedError("a join of empty tensors")
    dim = node.arg("dim")
    assert isinstance(dim, int)
    dim %= value.tensor.rank
    dtype = compute_dtype(value.tensor.dtype)
    joined: Term | None = None
    for part, local, here in _places(scope, index[dim], parts, dim):
        inner = (*index[:dim], local, *index[dim + 1 :])
        element = convert(scope.at(part, inner, (*guards, here)), dtype)
        is_here = Inside((here,))
        joined = element if joined is None else scope.apply("select", is_here, element, joined)
    assert joined is not None
    return joined


def _places(
    scope: Scope, position: Affine, parts: Sequence[Value], dim: int
) -> Iterator[tuple[Value, Affine, Within]]:
    """Each part with the position in it, and when that is what is read."""
    sizes = [p.tensor.shape[dim] for p in parts]
    aligned = _aligned(scope, position, sizes)
    start: Size = 0
    for place, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        if aligned is not None:
            yield part, aligned[1], Within(aligned[0], place, place + 1)
        else:
            local = position.shifted(-start)
            yield part, local, scope.within(local, 0, size)
        start = start + size


def _aligned(scope: Scope, position: Affine, sizes: Sequence[Size]) -> tuple[Affine, Affine] | None:
    """(number of the part, position in it) when the parts are equally long and axes can be cut
    where they meet; each vector is then in one part."""
    if not all(equal(s, sizes[0]) for s in sizes):
        return None
    try:
        place, local = delinearize(position, (len(sizes), sizes[0]), scope.sizes)
    except UnsupportedError:
        return None
    return place, local


def _window(
    scope: Scope, source: Value, fill: Term, inner: Index, guards: Guards, own: Guards
) -> Term:
    """`source` at `inner` where `own` holds, else `fill`."""
    element = convert(scope.at(source, inner, (*guards, *own)), fill.dtype)
    return scope.apply("select", Inside(own), element, fill)


def _pad(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    pads, fill = node.args[1], number(node.arg("value"), compute_dtype(value.tensor.dtype))
    source = node.operands[0]
    assert isinstance(pads, tuple)
    inner, own = list(index), []
    for place in range(len(pads) // 2):
        dim = len(index) - 1 - place
        before = pads[2 * place]
        if not isinstance(before, (int, Dim)):
            raise UnsupportedError("a padding that depends on the data")
        inner[dim] = index[dim].shifted(-before)
        own.append(scope.within(inner[dim], 0, source.tensor.shape[dim]))
    return _window(scope, source, fill, tuple(inner), guards, tuple(own))


def _stack(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """Each part at its own place of the new dimension."""
    dim = _positive(node.arg("dim"), value.tensor.rank)
    inner = index[:dim] + index[dim + 1 :]
    dtype = compute_dtype(value.tensor.dtype)
    stacked: Term | None = None
    for place, part in enumerate(node.operands):
        here = Within(index[dim], place, place + 1)
        element = convert(scope.at(part, inner, (*guards, here)), dtype)
        is_here = Inside((here,))
        stacked = element if stacked is None else scope.apply("select", is_here, element, stacked)
    assert stacked is not None
    return stacked


def _flip(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    dims, source = node.args[1], node.operands[0]
    assert isinstance(dims, tuple)
    flipped = list(index)
    for dim in {_positive(d, len(index)) for d in dims} if index else ():
        flipped[dim] = index[dim].scaled(-1).shifted(source.tensor.shape[dim] - 1)
    return scope.at(source, tuple(flipped), guards)


def _roll(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """Along each dimension the last `shift` elements come first."""
    shifts, dims, source = node.args[1], node.arg("dims"), node.operands[0]
    assert isinstance(shifts, tuple) and isinstance(dims, tuple)
    if not dims:
        raise UnsupportedError(f"%{node.name} rolls what is flattened first")
    wrapped = [(index, guards)]
    for shift, d in zip(shifts, dims, strict=True):
        dim = _positive(d, len(index))
        size = source.tensor.shape[dim]
        if not isinstance(shift, int) or not isinstance(size, int):
            raise UnsupportedError(f"%{node.name} rolls by what is no number")
        shift = shift % size if size else 0
        wrapped = [r for i, g in wrapped for r in _both_parts(scope, i, g, dim, shift, size)]
    element: Term | None = None
    for inner, own in wrapped:
        here = scope.at(source, inner, own)
        is_here = Inside(own[len(guards) :])
        element = here if element is None else scope.apply("select", is_here, here, element)
    assert element is not None
    return element


def _both_parts(
    scope: Scope, index: Index, guards: Guards, dim: int, shift: int, size: int
) -> Iterator[tuple[Index, Guards]]:
    """Where an element comes from, and when: before the end, or from the start on."""
    if shift == 0:
        yield index, guards
        return
    for start, low, high in ((size - shift, 0, shift), (-shift, shift, size)):
        moved = (*index[:dim], index[dim].shifted(start), *index[dim + 1 :])
        yield moved, (*guards, scope.within(index[dim], low, high))


def _repeat(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    source, times = node.operands[0], node.args[1]
    assert isinstance(times, tuple)
    new = len(index) - source.tensor.rank
    inner = []
    for part, size, count in zip(index[new:], source.tensor.shape, times[new:], strict=True):
        if not isinstance(count, (int, Dim)):
            raise UnsupportedError(f"%{node.name} repeats by what is no size")
        inner.append(part if count == 1 else delinearize(part, (count, size), scope.sizes)[1])
    return scope.at(source, tuple(inner), guards)


def _slice_backward(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """zeros.slice(dim) = grad."""
    source = node.operands[0]
    dim = _positive(node.arg("dim"), len(index))
    return _embedded_slice(scope, node, source, dim, _zero(value), index, guards)


def _slice_scatter(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    into, source = node.operands[0], node.operands[1]
    dim = _positive(node.arg("dim"), len(index))
    dtype = compute_dtype(value.tensor.dtype)
    other = convert(scope.at(into, index, guards), dtype)
    return _embedded_slice(scope, node, source, dim, other, index, guards)


def _embedded_slice(
    scope: Scope, node: Node, source: Value, dim: int, other: Term, index: Index, guards: Guards
) -> Term:
    if node.arg("step") != 1:
        raise UnsupportedError(f"%{node.name} writes a strided slice")
    start = slice_start(node, node.results[0].tensor.shape[dim])
    local = index[dim].shifted(-start)
    inner = (*index[:dim], local, *index[dim + 1 :])
    own = (scope.within(local, 0, source.tensor.shape[dim]),)
    return _window(scope, source, other, inner, guards, own)


def _select_backward(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    source = node.operands[0]
    dim = _positive(node.args[2], len(index))
    place = select_place(node.args[3], value.tensor.shape[dim])
    return _embedded_select(scope, place, source, dim, _zero(value), index, guards)


def _select_scatter(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    into, source = node.operands[0], node.operands[1]
    dim = _positive(node.args[2], len(index))
    place = select_place(node.args[3], value.tensor.shape[dim])
    other = convert(scope.at(into, index, guards), compute_dtype(value.tensor.dtype))
    return _embedded_select(scope, place, source, dim, other, index, guards)


def _embedded_select(
    scope: Scope, place: Size, source: Value, dim: int, other: Term, index: Index, guards: Guards
) -> Term:
    own = (scope.within(index[dim].shifted(-place), 0, 1),)
    return _window(scope, source, other, index[:dim] + index[dim + 1 :], guards, own)


def _triangle(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """tril keeps column <= row + diagonal, triu column >= row + diagonal."""
    diagonal = node.arg("diagonal")
    if not isinstance(diagonal, (int, Dim)):
        raise UnsupportedError("a diagonal that is not a size")
    row = scope.let(Position(index[-2].shifted(diagonal), torch.int64))
    column = scope.let(Position(index[-1], torch.int64))
    keeps = scope.apply("le" if ".tril." in node.op.name else "ge", column, row)
    dtype = compute_dtype(value.tensor.dtype)
    element = convert(scope.at(node.operands[0], index, guards), dtype)
    return scope.apply("select", keeps, element, _zero(value))


# --- creation -----------------------------------------------------------------------------------


def _filled(argument: int | None, fill: float) -> Rule:
    def rule(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
        given = node.args[argument] if argument is not None else fill
        return number(given, compute_dtype(value.tensor.dtype))

    return rule


def _arange(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """start + i * step, in integers when everything is an integer."""
    numbers = [a for a in node.args if isinstance(a, (int, float, Dim))]
    if len(numbers) != len(node.args):
        raise UnsupportedError(f"%{node.name} counts between numbers known only at run time")
    start: Size | float = 0 if len(numbers) == 1 else numbers[0]
    step: Size | float = numbers[2] if len(numbers) == 3 else 1
    dtype = compute_dtype(value.tensor.dtype)
    if isinstance(start, (int, Dim)) and isinstance(step, (int, Dim)):
        place = index[0].scaled(step).shifted(start)
        return convert(scope.let(Position(place, torch.int64)), dtype)
    at = convert(scope.let(Position(index[0], torch.int64)), dtype)
    scaled = scope.apply("mul", at, number(step, dtype))
    return scope.apply("add", scaled, number(start, dtype))


def _zero(value: Value) -> Number:
    return number(0, compute_dtype(value.tensor.dtype))


def _positive(dim: object, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank


OPERATORS: Final[dict[str, Rule]] = {
    **REDUCTIONS,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "aten.cat.default": _cat,
    "aten.stack.default": _stack,
    "aten.flip.default": _flip,
    "aten.roll.default": _roll,
    "aten.repeat.default": _repeat,
    "aten.constant_pad_nd.default": _pad,
    "aten.slice_backward.default": _slice_backward,
    "aten.slice_scatter.default": _slice_scatter,
    "aten.select_backward.default": _select_backward,
    "aten.select_scatter.default": _select_scatter,
    "aten.tril.default": _triangle,
    "aten.triu.default": _triangle,
    "aten.full.default": _filled(1, 0.0),
    "aten.zeros.default": _filled(None, 0.0),
    "aten.ones.default": _filled(None, 1.0),
    "aten.new_full.default": _filled(2, 0.0),
    "aten.new_zeros.default": _filled(None, 0.0),
    "aten.new_ones.default": _filled(None, 1.0),
    "aten.scalar_tensor.default": _filled(0, 0.0),
    "aten.arange.default": _arange,
    "aten.arange.start": _arange,
    "aten.arange.start_step": _arange,
}
