"""Reductions, normalizations, scans and matrix products, for drawn graphs."""

from __future__ import annotations

from typing import Final

import torch

from drawn_sketch import Sketch, is_floating
from rewright.ir.graph import Arg, Value
from rewright.ir.types import TensorType

_SUMS: Final = ("sum.dim_IntList", "mean.dim", "amax.default", "amin.default", "logsumexp.default")
_WHOLE: Final = ("sum", "mean", "max", "min", "any", "all", "prod")
_TRUTHS: Final = ("any.dim", "all.dim", "any.dims", "all.dims")

# Rows whose elements lie so close together have no norm to speak of: what is left after the mean
# is subtracted is rounding, and a norm makes it large.
_LEAST_VARIANCE: Final = 1 / 16


def reduce(sketch: Sketch) -> None:
    value = sketch.any_value(rank=1)
    if value is None:
        return
    dims, keep = _dims(sketch, value), sketch.chance()
    name = sketch.one_of(*_SUMS)
    extra: dict[str, Arg] = {}
    if name in ("sum.dim_IntList", "mean.dim") and sketch.chance():
        extra = {"dtype": sketch.one_of(*sketch.dtypes)}
    sketch.add(f"aten.{name}", value, dims, keep, **extra)


def reduce_all(sketch: Sketch) -> None:
    value, name = sketch.any_value(), sketch.one_of(*_WHOLE)
    if value is not None and not (name == "prod" and sketch.held[value].swells):
        sketch.add(f"aten.{name}.default", value)


def truth(sketch: Sketch) -> None:
    value = sketch.pick(lambda v: v.tensor.rank >= 1 and sketch.held[v].exact)
    if value is None:
        return
    name, keep = sketch.one_of(*_TRUTHS), sketch.chance()
    dims = _dims(sketch, value) if name.endswith("dims") else sketch.axis(value)
    sketch.add(f"aten.{name}", value, dims, keep)


def product(sketch: Sketch) -> None:
    value = sketch.any_value(rank=1)
    if value is not None and not sketch.held[value].swells:
        sketch.add("aten.prod.dim_int", value, sketch.axis(value), sketch.chance())


def place_of_largest(sketch: Sketch) -> None:
    """Also of values that occur several times: the first counts."""
    value = sketch.pick(lambda v: v.tensor.rank >= 1 and sketch.held[v].exact)
    if value is None:
        return
    dim, keep = sketch.axis(value), sketch.chance()
    match sketch.one_of("argmax", "argmin", "max", "min"):
        case "max" | "min" as name:
            sketch.add(f"aten.{name}.dim", value, dim, keep)
        case name:
            sketch.add(f"aten.{name}.default", value, dim, keep)


def variance(sketch: Sketch) -> None:
    value = sketch.floating(rank=1)
    if value is None:
        return
    dims, keep = _dims(sketch, value), sketch.chance()
    if not _varies(sketch, value, dims):
        return
    name = sketch.one_of("var", "std", "var_mean")
    correction = sketch.one_of(1, 0, 2, 0.5)
    sketch.add(f"aten.{name}.correction", value, dims, correction=correction, keepdim=keep)


def norm(sketch: Sketch) -> None:
    """Vector norms, away from zero, where the root of a sum of squares is steep."""
    value = sketch.floating(rank=1)
    if value is None:
        return
    dims, keep = _dims(sketch, value), sketch.chance()
    order = sketch.one_of(2, 1, float("inf"), 0.5)
    if all(_is_away_from_zero(t, dims) for t in sketch.held[value].wide):
        sketch.add("aten.linalg_vector_norm.default", value, order, dims, keep)


def _is_away_from_zero(t: torch.Tensor, dims: tuple[int, ...]) -> bool:
    return t.numel() > 0 and float(t.abs().sum(dims).min()) >= 0.25


def softmax(sketch: Sketch) -> None:
    value = sketch.floating(rank=1)
    if value is None:
        return
    dim = sketch.axis(value)
    name = sketch.one_of("_softmax", "_log_softmax")
    made = sketch.add(f"aten.{name}.default", value, dim, False)
    if made and sketch.chance():
        gradient = sketch.pick(lambda v: v.tensor == value.tensor)
        dtype = value.tensor.dtype
        if gradient is not None:
            back = f"aten.{name}_backward_data.default"
            sketch.add(back, gradient, made[0], dim, dtype)


def normalize(sketch: Sketch) -> None:
    value = sketch.floating(rank=1)
    if value is None:
        return
    count = sketch.number(1, min(2, value.tensor.rank))
    shape = value.tensor.shape[value.tensor.rank - count :]
    if not _varies(sketch, value, tuple(range(-count, 0))):
        return
    weight, bias = (_parameter(sketch, value.tensor.dtype, shape) for _ in range(2))
    if sketch.chance():
        sketch.add("aten.native_layer_norm.default", value, shape, weight, bias, 1e-5)
    else:
        sketch.add("aten._fused_rms_norm.default", value, shape, weight, 1e-5)


def _parameter(sketch: Sketch, dtype: torch.dtype, shape: tuple[object, ...]) -> Value | None:
    return sketch.pick(lambda v: v.tensor.dtype == dtype and v.tensor.shape == shape)


def scan(sketch: Sketch) -> None:
    value = sketch.any_value(rank=1)
    if value is not None:
        sketch.add("aten.cumsum.default", value, sketch.axis(value))


def _varies(sketch: Sketch, value: Value, dims: tuple[int, ...]) -> bool:
    """Whether every row differs enough within itself, wherever the graph runs."""
    held = sketch.held[value]
    if held.special:
        return False
    rows = [t.var(dims, correction=0) for t in held.wide if t.numel()]
    return all(float(row.min()) >= _LEAST_VARIANCE for row in rows)


def _dims(sketch: Sketch, value: Value) -> tuple[int, ...]:
    """One dimension, several, or all."""
    rank = value.tensor.rank
    first = sketch.axis(value)
    more = [d for d in range(rank) if d != first % rank and sketch.chance()]
    return (first, *more)


# --- products -----------------------------------------------------------------------------------


def matmul(sketch: Sketch) -> None:
    one = sketch.pick(lambda v: is_floating(v) and v.tensor.rank == 2)
    if one is None:
        one = _operand(sketch, sketch.one_of(*sketch.dtypes), (None, None))
    dtype, (rows, inner) = one.tensor.dtype, one.tensor.shape
    other = _operand(sketch, dtype, (inner, None))
    columns = other.tensor.shape[1]
    match sketch.one_of("mm", "addmm", "linear", "mv"):
        case "mm":
            sketch.add("aten.mm.default", one, other)
        case "addmm":
            bias = _operand(sketch, dtype, sketch.one_of((columns,), (rows, columns)))
            beta, alpha = sketch.one_of((1, 1), (0.5, 2))
            factors: dict[str, Arg] = {} if beta == 1 else {"alpha": alpha, "beta": beta}
            sketch.add("aten.addmm.default", bias, one, other, **factors)
        case "linear":
            weight = _operand(sketch, dtype, (None, inner))
            sketch.add("aten.linear.default", one, weight)
        case _:
            sketch.add("aten.mv.default", one, _operand(sketch, dtype, (inner,)))


def batched_matmul(sketch: Sketch) -> None:
    one = sketch.pick(lambda v: is_floating(v) and v.tensor.rank == 3)
    if one is None:
        return
    dtype, (batch, rows, inner) = one.tensor.dtype, one.tensor.shape
    other = _operand(sketch, dtype, (batch, inner, None))
    if sketch.chance():
        sketch.add("aten.bmm.default", one, other)
    else:
        bias = _operand(sketch, dtype, (batch, rows, other.tensor.shape[2]))
        sketch.add("aten.baddbmm.default", bias, one, other)


def _operand(sketch: Sketch, dtype: torch.dtype, shape: tuple[object, ...]) -> Value:
    """Some value of that shape (None: any size), or a new parameter."""

    def fits(value: Value) -> bool:
        sizes = value.tensor.shape
        if value.tensor.dtype != dtype or len(sizes) != len(shape):
            return False
        return all(wanted in (None, size) for wanted, size in zip(shape, sizes, strict=True))

    found = sketch.pick(fits)
    if found is not None:
        return found
    sizes = tuple(sketch.one_of(1, 4, 7) if size is None else size for size in shape)
    return sketch.input("x", TensorType(dtype, sizes))  # type: ignore[arg-type]


REDUCTIONS: Final = {
    "reduce": reduce,
    "reduce_all": reduce_all,
    "truth": truth,
    "product": product,
    "largest": place_of_largest,
    "variance": variance,
    "norm": norm,
    "softmax": softmax,
    "normalize": normalize,
    "scan": scan,
    "matmul": matmul,
    "batched_matmul": batched_matmul,
}
