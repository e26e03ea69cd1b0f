"""Operators that are more than a scalar expression: reductions, norms, softmax, padding, joins.

Each rule gives the term of one element of one result. Everything inside a rule is computed in the
compute type and rounded once, at the node's result, as eager's own kernels do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from rewright.ir.dims import Dim, Size, equal, product
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Node, Value
from rewright.ir.loops.affine import Affine, delinearize
from rewright.ir.loops.nest import Inside, Number, Position, Ref, Term, Within
from rewright.ir.loops.scope import Guards, Scope, convert
from rewright.ir.loops.views import Index, slice_start
from rewright.ir.pointwise import compute_dtype

Rule = Callable[[Scope, Node, Value, Index, Guards], Term]

# --- reductions ---------------------------------------------------------------------------------


def reduced_dims(node: Node) -> tuple[int, ...]:
    """The dimensions of the first operand that a reduction node combines, ascending."""
    rank = node.operands[0].tensor.rank
    kind = node.op.name.split(".")[1]
    if kind in ("_softmax", "_log_softmax"):
        dims: object = node.args[1]
    elif kind in ("_softmax_backward_data", "_log_softmax_backward_data"):
        dims = node.args[2]
    elif kind in ("native_layer_norm", "_fused_rms_norm"):
        normalized = node.args[1]
        assert isinstance(normalized, tuple)
        return tuple(range(rank - len(normalized), rank))
    elif "dim" in node.op.argument_names:
        dims = node.arg("dim")
    else:
        dims = None
    if isinstance(dims, int):
        dims = (dims,)
    if dims is None or dims == ():
        return tuple(range(rank))
    assert isinstance(dims, tuple)
    return tuple(sorted({d % max(rank, 1) for d in dims if isinstance(d, int)}))


def _full_index(scope: Scope, node: Node, index: Index, guards: Guards) -> Index:
    """The index in the operand of a reducing node: its kept dimensions, columns elsewhere."""
    if guards:
        raise UnsupportedError("a reduction is read behind a condition")
    shape = node.operands[0].tensor.shape
    dims = reduced_dims(node)
    if len(index) != len(shape):
        rest = iter(index)
        index = tuple(Affine() if d in dims else next(rest) for d in range(len(shape)))
    return scope.sweep(index, shape, dims)


def _count(node: Node) -> Size:
    shape = node.operands[0].tensor.shape
    return product(shape[d] for d in reduced_dims(node))


def _operand(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """The swept operand in the compute type of the result."""
    element = scope.at(node.operands[0], _full_index(scope, node, index, guards))
    return convert(element, compute_dtype(value.tensor.dtype))


def _simple(how: str) -> Rule:
    def rule(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
        element = _operand(scope, node, value, index, guards)
        return scope.reduce(how, scope.let(element), node.name)

    return rule


def _mean(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    element = scope.let(_operand(scope, node, value, index, guards))
    total = scope.reduce("sum", element, node.name)
    return scope.apply("div", total, Number(_count(node), total.dtype))


def _moments(scope: Scope, element: Ref, count: Size, origin: str) -> tuple[Ref, Ref]:
    """(mean, sum of squared deviations), in two sweeps: no cancellation."""
    n = Number(count, element.dtype)
    mean = scope.apply("div", scope.reduce("sum", element, origin), n)
    centred = scope.apply("sub", element, mean)
    return mean, scope.reduce("sum", scope.apply("mul", centred, centred), origin)


def _variance(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """var, std and var_mean with a correction (Bessel's by default)."""
    element = scope.let(_operand(scope, node, value, index, guards))
    mean, squares = _moments(scope, element, _count(node), node.name)
    if node.op.name == "aten.var_mean.correction" and value == node.results[1]:
        return mean
    correction, count = node.arg("correction"), _count(node)
    if correction is None:
        correction = 1
    if not isinstance(correction, (int, float)) or not isinstance(count, int):
        raise UnsupportedError("a variance over a size known only at run time")
    freedom = max(count - correction, 0)
    variance = scope.apply("div", squares, Number(float(freedom), element.dtype))
    return scope.apply("sqrt", variance) if ".std." in node.op.name else variance


def _softmax_parts(
    scope: Scope, source: Value, full: Index, dtype: torch.dtype, origin: str
) -> tuple[Ref, Ref, Ref]:
    """(element, row maximum, sum of exponentials) in `dtype`."""
    element = scope.let(convert(scope.at(source, full), dtype))
    top = scope.reduce("max", element, origin)
    total = scope.reduce("sum", scope.apply("exp", scope.apply("sub", element, top)), origin)
    return element, top, total


def _softmax(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    dtype = compute_dtype(value.tensor.dtype)
    full = _full_index(scope, node, index, guards)
    _, top, total = _softmax_parts(scope, node.operands[0], full, dtype, node.name)
    here = scope.let(convert(scope.at(node.operands[0], index), dtype))
    scale = scope.apply("reciprocal", total)
    return scope.apply("mul", scope.apply("exp", scope.apply("sub", here, top)), scale)


def _log_softmax(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    dtype = compute_dtype(value.tensor.dtype)
    full = _full_index(scope, node, index, guards)
    _, top, total = _softmax_parts(scope, node.operands[0], full, dtype, node.name)
    here = scope.let(convert(scope.at(node.operands[0], index), dtype))
    return scope.apply("sub", scope.apply("sub", here, top), scope.apply("log", total))


def _softmax_backward(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """out * (grad - sum(grad * out)); log-softmax: grad - exp(out) * sum(grad)."""
    dtype = compute_dtype(value.tensor.dtype)
    full = _full_index(scope, node, index, guards)
    grad, out = node.operands[0], node.operands[1]

    def pair(at: Index) -> tuple[Ref, Ref]:
        return (
            scope.let(convert(scope.at(grad, at), dtype)),
            scope.let(convert(scope.at(out, at), dtype)),
        )

    g, o = pair(full)
    here_g, here_o = pair(index)
    if "_log_" in node.op.name:
        total = scope.reduce("sum", g, node.name)
        return scope.apply("sub", here_g, scope.apply("mul", scope.apply("exp", here_o), total))
    total = scope.reduce("sum", scope.apply("mul", g, o), node.name)
    return scope.apply("mul", here_o, scope.apply("sub", here_g, total))


def _layer_norm(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """native_layer_norm: (normalized, mean, rstd); Ba et al., Layer Normalization, 2016."""
    source = node.operands[0]
    dtype = compute_dtype(source.tensor.dtype)
    full = _full_index(scope, node, index, guards)
    element = scope.let(convert(scope.at(source, full), dtype))
    mean, squares = _moments(scope, element, _count(node), node.name)
    if value == node.results[1]:
        return mean
    rstd = _inverse_root(scope, squares, node)
    if value == node.results[2]:
        return rstd
    here = scope.let(convert(scope.at(source, index), dtype))
    normal = scope.apply("mul", scope.apply("sub", here, mean), rstd)
    return _scale_and_shift(scope, node, normal, index, (node.args[2], node.args[3]))


def _rms_norm(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """_fused_rms_norm: (normalized, rstd); Zhang and Sennrich, RMSNorm, 2019."""
    source = node.operands[0]
    dtype = compute_dtype(source.tensor.dtype)
    full = _full_index(scope, node, index, guards)
    element = scope.let(convert(scope.at(source, full), dtype))
    squares = scope.reduce("sum", scope.apply("mul", element, element), node.name)
    rstd = _inverse_root(scope, squares, node)
    if value == node.results[1]:
        return rstd
    here = scope.let(convert(scope.at(source, index), dtype))
    return _scale_and_shift(scope, node, scope.apply("mul", here, rstd), index, (node.args[2],))


def _inverse_root(scope: Scope, squares: Ref, node: Node) -> Ref:
    eps = node.arg("eps")
    if eps is None:
        eps = torch.finfo(node.operands[0].tensor.dtype).eps
    assert isinstance(eps, float)
    mean_square = scope.apply("div", squares, Number(_count(node), squares.dtype))
    return scope.apply("rsqrt", scope.apply("add", mean_square, Number(eps, squares.dtype)))


def _scale_and_shift(
    scope: Scope, node: Node, normal: Ref, index: Index, parameters: Sequence[object]
) -> Ref:
    tail = index[len(index) - len(reduced_dims(node)) :]
    for primitive, parameter in zip(("mul", "add"), parameters, strict=False):
        if isinstance(parameter, Value):
            element = convert(scope.at(parameter, tail), normal.dtype)
            normal = scope.apply(primitive, normal, element)
    return normal


def _batch_norm(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """Batch norm with given statistics: (x - mean) * rsqrt(var + eps) * weight + bias."""
    if value != node.results[0]:
        raise UnsupportedError("batch norm's empty statistics have no elements")
    source, weight, bias, mean, variance = node.args[:5]
    eps = node.arg("eps")
    dtype = compute_dtype(value.tensor.dtype)

    def channel(parameter: object) -> Term:
        assert isinstance(parameter, Value)
        return convert(scope.at(parameter, (index[1],), guards), dtype)

    assert isinstance(source, Value) and isinstance(eps, float)
    here = convert(scope.at(source, index, guards), dtype)
    rstd = scope.apply("rsqrt", scope.apply("add", channel(variance), Number(eps, dtype)))
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
    _align(scope, index[dim], parts, dim)
    dtype = compute_dtype(value.tensor.dtype)
    joined: Term | None = None
    start: Size = 0
    for part in parts:
        size = part.tensor.shape[dim]
        local = index[dim].shifted(-start)
        here = Within(local, 0, size)
        inner = (*index[:dim], local, *index[dim + 1 :])
        element = convert(scope.at(part, inner, (*guards, here)), dtype)
        is_here = Inside((here,))
        joined = element if joined is None else scope.apply("select", is_here, element, joined)
        start = start + size
    assert joined is not None
    return joined


def _align(scope: Scope, position: Affine, parts: Sequence[Value], dim: int) -> None:
    """Cut the joined axis at the parts when they are equally long: each vector is in one part."""
    sizes = [p.tensor.shape[dim] for p in parts]
    if position.offset != 0 or not all(equal(s, sizes[0]) for s in sizes):
        return
    try:
        delinearize(position, (len(sizes), sizes[0]), scope.sizes)
    except UnsupportedError:
        return


def _window(
    scope: Scope, source: Value, fill: Term, inner: Index, guards: Guards, own: Guards
) -> Term:
    """`source` at `inner` where `own` holds, else `fill`."""
    element = convert(scope.at(source, inner, (*guards, *own)), fill.dtype)
    return scope.apply("select", Inside(own), element, fill)


def _pad(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    pads, fill = node.args[1], node.arg("value")
    source = node.operands[0]
    assert isinstance(pads, tuple)
    inner, own = list(index), []
    for place in range(len(pads) // 2):
        dim = len(index) - 1 - place
        before = pads[2 * place]
        if not isinstance(before, (int, Dim)):
            raise UnsupportedError("a padding that depends on the data")
        inner[dim] = index[dim].shifted(-before)
        own.append(Within(inner[dim], 0, source.tensor.shape[dim]))
    if not isinstance(fill, (bool, int, float)):
        raise UnsupportedError("a padding value that depends on the data")
    number = Number(fill, compute_dtype(value.tensor.dtype))
    return _window(scope, source, number, tuple(inner), guards, tuple(own))


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
        raise UnsupportedError("a strided slice is written")
    start = slice_start(node, node.results[0].tensor.shape[dim])
    local = index[dim].shifted(-start)
    inner = (*index[:dim], local, *index[dim + 1 :])
    own = (Within(local, 0, source.tensor.shape[dim]),)
    return _window(scope, source, other, inner, guards, own)


def _select_backward(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    source = node.operands[0]
    dim = _positive(node.args[2], len(index))
    return _embedded_select(scope, node.args[3], source, dim, _zero(value), index, guards)


def _select_scatter(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    into, source = node.operands[0], node.operands[1]
    dim = _positive(node.args[2], len(index))
    other = convert(scope.at(into, index, guards), compute_dtype(value.tensor.dtype))
    return _embedded_select(scope, node.args[3], source, dim, other, index, guards)


def _embedded_select(
    scope: Scope, place: object, source: Value, dim: int, other: Term, index: Index, guards: Guards
) -> Term:
    if not isinstance(place, int) or place < 0:
        raise UnsupportedError("the place of a select that is written is not known")
    own = (Within(index[dim].shifted(-place), 0, 1),)
    return _window(scope, source, other, index[:dim] + index[dim + 1 :], guards, own)


def _triangle(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """tril keeps column <= row + diagonal, triu column >= row + diagonal."""
    diagonal = node.arg("diagonal")
    assert isinstance(diagonal, int)
    row = scope.let(Position(index[-2].shifted(diagonal), torch.int64))
    column = scope.let(Position(index[-1], torch.int64))
    keeps = scope.apply("le" if ".tril." in node.op.name else "ge", column, row)
    dtype = compute_dtype(value.tensor.dtype)
    element = convert(scope.at(node.operands[0], index, guards), dtype)
    return scope.apply("select", keeps, element, Number(0, dtype))


# --- creation -----------------------------------------------------------------------------------


def _filled(argument: int | None, fill: float) -> Rule:
    def rule(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
        number = node.args[argument] if argument is not None else fill
        if not isinstance(number, (bool, int, float, Dim)):
            raise UnsupportedError("a fill value that is known only at run time")
        return Number(number, compute_dtype(value.tensor.dtype))

    return rule


def _arange(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """start + i * step, in integers when everything is an integer."""
    numbers = [a for a in node.args if isinstance(a, (int, float, Dim))]
    start: Size | float = 0 if len(numbers) == 1 else numbers[0]
    step: Size | float = numbers[2] if len(numbers) == 3 else 1
    dtype = compute_dtype(value.tensor.dtype)
    if isinstance(start, (int, Dim)) and isinstance(step, (int, Dim)):
        place = index[0].scaled(step).shifted(start)
        return convert(scope.let(Position(place, torch.int64)), dtype)
    at = convert(scope.let(Position(index[0], torch.int64)), dtype)
    scaled = scope.apply("mul", at, Number(step, dtype))
    return scope.apply("add", scaled, Number(start, dtype))


def _zero(value: Value) -> Number:
    return Number(0, compute_dtype(value.tensor.dtype))


def _positive(dim: object, rank: int) -> int:
    assert isinstance(dim, int)
    return dim % rank


OPERATORS: Final[dict[str, Rule]] = {
    "aten.sum.default": _simple("sum"),
    "aten.sum.dim_IntList": _simple("sum"),
    "aten.prod.default": _simple("prod"),
    "aten.prod.dim_int": _simple("prod"),
    "aten.amax.default": _simple("max"),
    "aten.amin.default": _simple("min"),
    "aten.max.default": _simple("max"),
    "aten.min.default": _simple("min"),
    "aten.any.default": _simple("any"),
    "aten.any.dim": _simple("any"),
    "aten.any.dims": _simple("any"),
    "aten.all.default": _simple("all"),
    "aten.all.dim": _simple("all"),
    "aten.all.dims": _simple("all"),
    "aten.mean.default": _mean,
    "aten.mean.dim": _mean,
    "aten.var.correction": _variance,
    "aten.std.correction": _variance,
    "aten.var_mean.correction": _variance,
    "aten._softmax.default": _softmax,
    "aten._log_softmax.default": _log_softmax,
    "aten._softmax_backward_data.default": _softmax_backward,
    "aten._log_softmax_backward_data.default": _softmax_backward,
    "aten.native_layer_norm.default": _layer_norm,
    "aten._fused_rms_norm.default": _rms_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "aten.cat.default": _cat,
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
