"""Reductions and what is made of them: sums, moments, softmax, norms.

Each rule gives the term of one element of one result. A reduction runs over the columns of its
kernel; which elements it adds up in which order depends on nothing but its operand's type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from rewright.ir.dims import Size, divisible, equal, hint, product
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Node, Value
from rewright.ir.loops.affine import ZERO
from rewright.ir.loops.nest import Number, Order, Ref, Term
from rewright.ir.loops.scope import Guards, Rule, Scope, convert, number
from rewright.ir.loops.views import Index
from rewright.ir.pointwise import compute_dtype

# Elements of a vector; see `Order`.
LANES: Final = 16


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
    # A tensor without dimensions is one element, whatever dimension of it is named.
    if dims is None or dims == () or rank == 0:
        return tuple(range(rank))
    assert isinstance(dims, tuple)
    return tuple(sorted({d % rank for d in dims if isinstance(d, int)}))


def reduced_count(node: Node) -> Size:
    """How many elements a reduction node combines into one."""
    shape = node.operands[0].tensor.shape
    return product(shape[d] for d in reduced_dims(node))


def order_of(node: Node) -> Order:
    """The order in which a reduction adds up: a function of its operand's type alone.

    Lanes run along the reduced elements when these are neighbours in memory and fill the lanes,
    else each lane has an element of the result. A reduction to a single element has no other.
    """
    type, dims = node.operands[0].tensor, reduced_dims(node)
    moving = [d for d, size in enumerate(type.shape) if size != 1]
    if all(d in dims for d in moving):
        return Order("lanes")
    # A dimension that is expanded is nowhere in memory.
    steps = {d: hint(type.layout[d]) or math.inf for d in moving}
    run: Size = 1
    for d in sorted(moving, key=lambda d: (steps[d], -d)):
        if d not in dims:
            break
        run = run * type.shape[d]
    # A run that ends inside a vector would leave lanes of one vector in places far apart.
    fits = equal(run, reduced_count(node)) or divisible(run, LANES)
    return Order("lanes") if hint(run) >= LANES and fits else Order("columns")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A reduction node read at one place: `index`, in its operand, runs over the columns."""

    scope: Scope
    node: Node
    index: Index

    @property
    def count(self) -> Size:
        return reduced_count(self.node)

    def element(self, value: Value, dtype: torch.dtype) -> Ref:
        """`value`, shaped as the first operand, at every column."""
        return self.scope.let(convert(self.scope.at(value, self.index), dtype))

    def reduce(self, how: str, term: Ref) -> Ref:
        """`term` combined over the columns; of a single element, that element."""
        return term if self.count == 1 else self.scope.reduce(how, term)


def _sweep(scope: Scope, node: Node, index: Index, guards: Guards) -> Sweep:
    """`index` is of the operand or, without the reduced dimensions, of the result."""
    if guards:
        raise UnsupportedError(f"%{node.name} is a reduction that is read behind a condition")
    shape = node.operands[0].tensor.shape
    dims = reduced_dims(node)
    if len(index) != len(shape):
        rest = iter(index)
        index = tuple(ZERO if d in dims else next(rest) for d in range(len(shape)))
    if order_of(node) != scope.order and reduced_count(node) != 1:
        raise UnsupportedError(f"%{node.name} adds up in another order than its kernel")
    return Sweep(scope, node, scope.sweep(index, shape, dims, node.name))


def _simple(how: str) -> Rule:
    def rule(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
        sweep = _sweep(scope, node, index, guards)
        return sweep.reduce(how, sweep.element(node.operands[0], compute_dtype(value.tensor.dtype)))

    return rule


def _truth(how: str) -> Rule:
    """any and all ask whether numbers differ from zero; of bytes they give bytes."""

    def rule(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
        sweep = _sweep(scope, node, index, guards)
        return sweep.reduce(how, sweep.element(node.operands[0], torch.bool))

    return rule


def _mean(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    sweep = _sweep(scope, node, index, guards)
    element = sweep.element(node.operands[0], compute_dtype(value.tensor.dtype))
    return scope.apply("div", sweep.reduce("sum", element), Number(sweep.count, element.dtype))


def _moments(sweep: Sweep, element: Ref) -> tuple[Ref, Ref]:
    """(mean, sum of squared deviations), in two sweeps: no cancellation."""
    scope, n = sweep.scope, Number(sweep.count, element.dtype)
    mean = scope.apply("div", sweep.reduce("sum", element), n)
    centred = scope.apply("sub", element, mean)
    return mean, sweep.reduce("sum", scope.apply("mul", centred, centred))


def _variance(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """var, std and var_mean with a correction (Bessel's by default)."""
    sweep = _sweep(scope, node, index, guards)
    element = sweep.element(node.operands[0], compute_dtype(value.tensor.dtype))
    mean, squares = _moments(sweep, element)
    if node.op.name == "aten.var_mean.correction" and value == node.results[1]:
        return mean
    variance = scope.apply("div", squares, _freedom(sweep, element.dtype))
    return scope.apply("sqrt", variance) if ".std." in node.op.name else variance


def _freedom(sweep: Sweep, dtype: torch.dtype) -> Term:
    """Degrees of freedom: elements less the correction, at least none."""
    correction = sweep.node.arg("correction")
    less = number(1 if correction is None else correction, dtype)
    if isinstance(sweep.count, int) and isinstance(less.value, float):
        return number(max(sweep.count - less.value, 0.0), dtype)
    freedom = sweep.scope.apply("sub", Number(sweep.count, dtype), less)
    return sweep.scope.apply("maximum", freedom, number(0, dtype))


def _softmax_parts(sweep: Sweep, index: Index, dtype: torch.dtype) -> tuple[Ref, Ref, Ref]:
    """(element at `index`, row maximum, sum of exponentials) in `dtype`."""
    scope, source = sweep.scope, sweep.node.operands[0]
    element = sweep.element(source, dtype)
    top = sweep.reduce("max", element)
    total = sweep.reduce("sum", scope.apply("exp", scope.apply("sub", element, top)))
    return scope.let(convert(scope.at(source, index), dtype)), top, total


def _softmax(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    sweep = _sweep(scope, node, index, guards)
    here, top, total = _softmax_parts(sweep, index, compute_dtype(value.tensor.dtype))
    scale = scope.apply("reciprocal", total)
    return scope.apply("mul", scope.apply("exp", scope.apply("sub", here, top)), scale)


def _log_softmax(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    sweep = _sweep(scope, node, index, guards)
    here, top, total = _softmax_parts(sweep, index, compute_dtype(value.tensor.dtype))
    return scope.apply("sub", scope.apply("sub", here, top), scope.apply("log", total))


def _softmax_backward(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """out * (grad - sum(grad * out)); log-softmax: grad - exp(out) * sum(grad)."""
    dtype = compute_dtype(value.tensor.dtype)
    sweep = _sweep(scope, node, index, guards)
    grad, out = node.operands[0], node.operands[1]
    g, o = sweep.element(grad, dtype), sweep.element(out, dtype)
    here_g = scope.let(convert(scope.at(grad, index), dtype))
    here_o = scope.let(convert(scope.at(out, index), dtype))
    if "_log_" in node.op.name:
        total = sweep.reduce("sum", g)
        return scope.apply("sub", here_g, scope.apply("mul", scope.apply("exp", here_o), total))
    total = sweep.reduce("sum", scope.apply("mul", g, o))
    return scope.apply("mul", here_o, scope.apply("sub", here_g, total))


def _logsumexp(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """log(sum(exp(x - top))) + top, where an infinite maximum counts as zero."""
    sweep = _sweep(scope, node, index, guards)
    element = sweep.element(node.operands[0], compute_dtype(value.tensor.dtype))
    top = sweep.reduce("max", element)
    is_infinite = scope.apply("isinf", top)
    top = scope.apply("select", is_infinite, number(0, top.dtype), top)
    total = sweep.reduce("sum", scope.apply("exp", scope.apply("sub", element, top)))
    return scope.apply("add", scope.apply("log", total), top)


def _vector_norm(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """(sum |x|^p)^(1/p); for p = 0 the number of elements that are not zero, for an infinite p the
    largest or smallest magnitude."""
    order = node.arg("ord")
    if not isinstance(order, (int, float)):
        raise UnsupportedError(f"%{node.name} has an order that is no number")
    sweep = _sweep(scope, node, index, guards)
    dtype = compute_dtype(value.tensor.dtype)
    source = node.operands[0]
    if source.tensor.dtype != value.tensor.dtype:
        raise UnsupportedError(f"%{node.name} also converts its operand")
    size = scope.apply("abs", sweep.element(source, dtype))
    if math.isinf(order):
        return sweep.reduce("max" if order > 0 else "min", size)
    if order == 0:
        counted = scope.let(convert(scope.apply("ne", size, number(0, dtype)), dtype))
        return sweep.reduce("sum", counted)
    if order == 1:
        return sweep.reduce("sum", size)
    if order == 2:
        return scope.apply("sqrt", sweep.reduce("sum", scope.apply("mul", size, size)))
    powers = sweep.reduce("sum", scope.apply("pow", size, number(order, dtype)))
    return scope.apply("pow", powers, number(1 / order, dtype))


def _layer_norm(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """native_layer_norm: (normalized, mean, rstd); Ba et al., Layer Normalization, 2016."""
    source = node.operands[0]
    dtype = compute_dtype(source.tensor.dtype)
    sweep = _sweep(scope, node, index, guards)
    mean, squares = _moments(sweep, sweep.element(source, dtype))
    if value == node.results[1]:
        # ATen leaves the mean of a row without elements at zero.
        return number(0, dtype) if sweep.count == 0 else mean
    rstd = _inverse_root(sweep, squares)
    if value == node.results[2]:
        return rstd
    here = scope.let(convert(scope.at(source, index), dtype))
    normal = scope.apply("mul", scope.apply("sub", here, mean), rstd)
    return _scale_and_shift(scope, node, normal, index, (node.args[2], node.args[3]))


def _rms_norm(scope: Scope, node: Node, value: Value, index: Index, guards: Guards) -> Term:
    """_fused_rms_norm: (normalized, rstd); Zhang and Sennrich, RMSNorm, 2019."""
    source = node.operands[0]
    dtype = compute_dtype(source.tensor.dtype)
    sweep = _sweep(scope, node, index, guards)
    element = sweep.element(source, dtype)
    rstd = _inverse_root(sweep, sweep.reduce("sum", scope.apply("mul", element, element)))
    if value == node.results[1]:
        return rstd
    here = scope.let(convert(scope.at(source, index), dtype))
    return _scale_and_shift(scope, node, scope.apply("mul", here, rstd), index, (node.args[2],))


def _inverse_root(sweep: Sweep, squares: Ref) -> Ref:
    scope, eps = sweep.scope, sweep.node.arg("eps")
    if eps is None:
        eps = torch.finfo(sweep.node.operands[0].tensor.dtype).eps
    mean_square = scope.apply("div", squares, Number(sweep.count, squares.dtype))
    return scope.apply("rsqrt", scope.apply("add", mean_square, number(eps, squares.dtype)))


def _scale_and_shift(
    scope: Scope, node: Node, normal: Ref, index: Index, parameters: Sequence[object]
) -> Ref:
    tail = index[len(index) - len(reduced_dims(node)) :]
    for primitive, parameter in zip(("mul", "add"), parameters, strict=False):
        if isinstance(parameter, Value):
            element = convert(scope.at(parameter, tail), normal.dtype)
            normal = scope.apply(primitive, normal, element)
    return normal


REDUCTIONS: Final[dict[str, Rule]] = {
    "aten.sum.default": _simple("sum"),
    "aten.sum.dim_IntList": _simple("sum"),
    "aten.prod.default": _simple("prod"),
    "aten.prod.dim_int": _simple("prod"),
    "aten.amax.default": _simple("max"),
    "aten.amin.default": _simple("min"),
    "aten.max.default": _simple("max"),
    "aten.min.default": _simple("min"),
    "aten.any.default": _truth("any"),
    "aten.any.dim": _truth("any"),
    "aten.any.dims": _truth("any"),
    "aten.all.default": _truth("all"),
    "aten.all.dim": _truth("all"),
    "aten.all.dims": _truth("all"),
    "aten.mean.default": _mean,
    "aten.mean.dim": _mean,
    "aten.var.correction": _variance,
    "aten.std.correction": _variance,
    "aten.var_mean.correction": _variance,
    "aten.logsumexp.default": _logsumexp,
    "aten.linalg_vector_norm.default": _vector_norm,
    "aten._softmax.default": _softmax,
    "aten._log_softmax.default": _log_softmax,
    "aten._softmax_backward_data.default": _softmax_backward,
    "aten._log_softmax_backward_data.default": _softmax_backward,
    "aten.native_layer_norm.default": _layer_norm,
    "aten._fused_rms_norm.default": _rms_norm,
}
