"""Formulas of `ir.pointwise` that are longer than a line, in eager's order of operations.

Keyword names are those of ATen's schemas wherever a node may pass the argument by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Final

import torch

from rewright.ir.expr import Call, Expr, Scalar, call

exp, exp2, expm1, sin, tanh, erf = (
    partial(call, name) for name in ("exp", "exp2", "expm1", "sin", "tanh", "erf")
)
log, log1p, sqrt, rsqrt = (partial(call, name) for name in ("log", "log1p", "sqrt", "rsqrt"))
magnitude, eq, isnan, isinf = (partial(call, name) for name in ("abs", "eq", "isnan", "isinf"))
both, either, negated = (partial(call, f"logical_{name}") for name in ("and", "or", "not"))
maximum, minimum, select = (partial(call, name) for name in ("maximum", "minimum", "select"))


def add(x: Expr, y: Scalar, alpha: Scalar = 1) -> Scalar:
    return x + _times(y, alpha)


def subtract(x: Expr, y: Scalar, alpha: Scalar = 1) -> Scalar:
    return x - _times(y, alpha)


def subtract_from(x: Expr, y: Scalar, alpha: Scalar = 1) -> Scalar:
    return call("sub", y, _times(x, alpha))


def _times(x: Scalar, factor: Scalar) -> Scalar:
    return x if factor == 1 else call("mul", x, factor)


def divide(x: Expr, y: Scalar, rounding_mode: str | None = None) -> Scalar:
    return call({None: "div", "floor": "div_floor", "trunc": "div_trunc"}[rounding_mode], x, y)


def divide_like_c(x: Expr, y: Expr, *, dtype: torch.dtype) -> Scalar:
    return x / y if dtype.is_floating_point else call("div_trunc", x, y)


def power(x: Expr, exponent: Scalar) -> Scalar:
    """Eager computes these exponents so, which is not what pow(x, exponent) is everywhere."""
    special: dict[Scalar, Callable[[], Scalar]] = {
        0: lambda: 1,
        1: lambda: x,
        2: lambda: x * x,
        3: lambda: x * x * x,
        0.5: lambda: sqrt(x),
        -0.5: lambda: rsqrt(x),
        -1: lambda: call("reciprocal", x),
        -2: lambda: call("reciprocal", x * x),
    }
    return special[exponent]() if exponent in special else call("pow", x, exponent)


def at_least(x: Scalar, low: Scalar) -> Scalar:
    """NaN and -0.0 pass, as in eager; a NaN bound wins."""
    return math.nan if _is_nan(low) else select(call("lt", x, low), low, x)


def at_most(x: Scalar, high: Scalar) -> Scalar:
    return math.nan if _is_nan(high) else select(call("gt", x, high), high, x)


def _is_nan(x: Scalar) -> bool:
    return isinstance(x, float) and math.isnan(x)


def clamp(x: Scalar, min: Scalar | None = None, max: Scalar | None = None) -> Scalar:
    raised = x if min is None else at_least(x, min)
    return raised if max is None else at_most(raised, max)


def clamp_tensor(x: Scalar, min: Scalar | None = None, max: Scalar | None = None) -> Scalar:
    raised = x if min is None else maximum(x, min)
    return raised if max is None else minimum(raised, max)


def lerp(x: Expr, end: Expr, weight: Scalar) -> Scalar:
    """Counted from the nearer end, so that both ends are exact."""
    gap = end - x
    near_start, near_end = x + weight * gap, end - gap * call("sub", 1, weight)
    if isinstance(weight, (int, float)):
        return near_start if abs(weight) < 0.5 else near_end
    return select(magnitude(weight) < 0.5, near_start, near_end)


def logaddexp(x: Expr, y: Expr) -> Scalar:
    same_infinity = both(isinf(x), eq(x, y))
    return select(same_infinity, x, maximum(x, y) + log1p(exp(-magnitude(x - y))))


def logaddexp2(x: Expr, y: Expr) -> Scalar:
    same_infinity = both(isinf(x), eq(x, y))
    correction = log1p(exp2(-magnitude(x - y))) * (1 / math.log(2))
    return select(same_infinity, x, maximum(x, y) + correction)


def xlogy(x: Scalar, y: Scalar) -> Scalar:
    return _zero_wins(x, y, log)


def xlog1py(x: Scalar, y: Scalar) -> Scalar:
    return _zero_wins(x, y, log1p)


def _zero_wins(x: Scalar, y: Scalar, logarithm: Callable[[Scalar], Call]) -> Scalar:
    """x times the logarithm of y, where a zero x gives zero unless y is NaN."""
    return select(isnan(y), y, select(eq(x, 0), 0, call("mul", x, logarithm(y))))


def entropy(x: Expr) -> Scalar:
    positive = select(x > 0, -x * log(x), select(eq(x, 0), 0, -math.inf))
    return select(isnan(x), x, positive)


def sinc(x: Expr) -> Scalar:
    return select(eq(x, 0), 1, sin(math.pi * x) / (math.pi * x))


def logit(x: Expr, eps: float | None = None) -> Scalar:
    p = x if eps is None else clamp(x, eps, 1 - eps)
    return log(call("div", p, call("sub", 1, p)))


def logit_backward(grad: Expr, x: Expr, eps: float | None = None) -> Scalar:
    low, outside = (0.0, math.nan) if eps is None else (eps, 0.0)
    return select(both(x >= low, x <= 1 - low), grad / (x * (1 - x)), outside)


def nan_to_num(
    x: Expr,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
    *,
    dtype: torch.dtype,
) -> Scalar:
    if not dtype.is_floating_point:
        return x
    limits = torch.finfo(dtype)
    high = limits.max if posinf is None else posinf
    low = limits.min if neginf is None else neginf
    finite = select(eq(x, math.inf), high, select(eq(x, -math.inf), low, x))
    return select(isnan(x), 0.0 if nan is None else nan, finite)


def signbit(x: Expr, *, dtype: torch.dtype) -> Scalar:
    return call("copysign", 1.0, x) < 0 if dtype.is_floating_point else x < 0


def heaviside(x: Expr, at_zero: Expr) -> Scalar:
    return select(eq(x, 0), at_zero, select(x > 0, 1, 0))


def isfinite(x: Expr, *, dtype: torch.dtype) -> Scalar:
    return negated(either(isnan(x), isinf(x))) if dtype.is_floating_point else True


def equals_float(x: Expr, *, value: float, dtype: torch.dtype) -> Scalar:
    return eq(x, value) if dtype.is_floating_point else False


def rounding(name: str, x: Expr, *, dtype: torch.dtype) -> Scalar:
    return call(name, x) if dtype.is_floating_point else x


def round_decimals(x: Expr, *, decimals: int = 0, dtype: torch.dtype) -> Scalar:
    if decimals == 0 or not dtype.is_floating_point:
        return rounding("round", x, dtype=dtype)
    scale = 10.0 ** abs(decimals)
    return call("round", x * scale) / scale if decimals > 0 else call("round", x / scale) * scale


# --- activations and their gradients ------------------------------------------------------------

SQRT_HALF: Final = math.sqrt(0.5)
TANH_SCALE: Final = math.sqrt(2 / math.pi)
TANH_CUBE: Final = 0.044715


def gelu(x: Expr, *, approximate: str = "none") -> Scalar:
    if approximate == "none":
        return x * 0.5 * (1 + erf(x * SQRT_HALF))
    return 0.5 * x * (1 + _gelu_tanh(x))


def _gelu_tanh(x: Expr) -> Call:
    return tanh(TANH_SCALE * (x + TANH_CUBE * (x * x * x)))


def gelu_backward(grad: Expr, x: Expr, *, approximate: str = "none") -> Scalar:
    if approximate == "none":
        cdf = 0.5 * (1 + erf(x * SQRT_HALF))
        density = exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return grad * (cdf + x * density)
    t = _gelu_tanh(x)
    inner = TANH_SCALE * (1 + 3 * TANH_CUBE * (x * x))
    return grad * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner)


def silu_backward(grad: Expr, x: Expr) -> Scalar:
    s = 1 / (1 + exp(-x))
    return grad * s * (1 + x * (1 - s))


def elu(x: Expr, alpha: Scalar = 1, scale: Scalar = 1, input_scale: Scalar = 1) -> Scalar:
    negative = expm1(x * input_scale) * call("mul", alpha, scale)
    return select(x < 0, negative, x * scale)


def elu_backward(
    grad: Expr, alpha: Scalar, scale: Scalar, input_scale: Scalar, is_result: bool, y: Expr
) -> Scalar:
    """`y` is the forward's result, or its input unless `is_result`."""
    height = call("mul", alpha, scale)
    down = grad * input_scale
    negative = down * (y + height) if is_result else down * height * exp(y * input_scale)
    return select(y > 0, grad * scale, negative)


def softplus(x: Expr, beta: Scalar = 1, threshold: Scalar = 20) -> Scalar:
    return select(x * beta > threshold, x, log1p(exp(x * beta)) / beta)


def softplus_backward(grad: Expr, x: Expr, beta: Scalar, threshold: Scalar) -> Scalar:
    z = exp(x * beta)
    return select(x * beta > threshold, grad, grad * z / (z + 1))


def mish_backward(grad: Expr, x: Expr) -> Scalar:
    s = 1 / (1 + exp(-x))
    t = tanh(log1p(exp(x)))
    return grad * (t + x * s * (1 - t * t))


def hardswish_backward(grad: Expr, x: Expr) -> Scalar:
    return select(x <= -3, 0, select(x >= 3, grad, grad * (x / 3 + 0.5)))


def hardsigmoid_backward(grad: Expr, x: Expr) -> Scalar:
    return select(both(x > -3, x < 3), grad * (1 / 6), 0)


def hardtanh_backward(grad: Expr, x: Expr, low: Scalar, high: Scalar) -> Scalar:
    return select(both(x > low, x < high), grad, 0)


def hardshrink(x: Expr, lambd: Scalar = 0.5) -> Scalar:
    return select(both(x >= -lambd, x <= lambd), 0, x)


def softshrink(x: Expr, lambd: Scalar = 0.5) -> Scalar:
    inside = select(isnan(x), x, 0)
    return select(x > lambd, x - lambd, select(x < -lambd, x + lambd, inside))


def shrink_backward(grad: Expr, x: Expr, lambd: Scalar) -> Scalar:
    return select(either(x < -lambd, x > lambd), grad, 0)
