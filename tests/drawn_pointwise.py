"""Pointwise operators for drawn graphs, each on values at which it has a good reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch

from drawn_sketch import Held, Sketch, is_floating, is_integral, is_mask
from rewright.ir.graph import Arg, Value
from rewright.ir.types import TensorType

Guard = Callable[[Held], bool]

# Scalars that every dtype holds, and one that none does.
NUMBERS: Final = (2, 0.5, -1.5, 3, -1, 0.1)
INTEGERS: Final = (2, 3, -1, 5)
INTEGRAL_DTYPES: Final = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _anywhere(held: Held) -> bool:
    return True


def _small(held: Held) -> bool:
    """Where exponentials stay small."""
    return held.greatest <= 5 and held.least >= -5


def _positive(held: Held) -> bool:
    """Away from zero, where logarithms and roots are steep."""
    return held.least >= 0.125


def _nonzero(held: Held) -> bool:
    return held.smallest >= 0.125


def _within_one(held: Held) -> bool:
    """Away from the ends of (-1, 1), where inverse sines and the like are steep."""
    return held.greatest <= 0.75 and held.least >= -0.75


_UNARY: Final[Mapping[str, Guard]] = {
    **dict.fromkeys(("neg", "abs", "relu", "sigmoid", "tanh", "sin", "cos", "silu"), _anywhere),
    **dict.fromkeys(("gelu", "erf", "atan", "asinh", "square", "hardswish", "relu6"), _anywhere),
    **dict.fromkeys(("hardsigmoid", "hardtanh", "softplus", "elu", "leaky_relu"), _anywhere),
    **dict.fromkeys(("mish", "selu", "celu", "clone", "logical_not", "nan_to_num"), _anywhere),
    **dict.fromkeys(("floor", "ceil", "round", "trunc", "frac", "sign", "sgn"), _anywhere),
    **dict.fromkeys(("isnan", "isinf", "isfinite", "signbit"), _anywhere),
    **dict.fromkeys(("zeros_like", "ones_like", "hardshrink", "softshrink", "sinc"), _anywhere),
    **dict.fromkeys(("exp", "exp2", "expm1", "sinh", "cosh"), _small),
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt", "log1p"), _positive),
    **dict.fromkeys(("acosh",), lambda held: held.least >= 1.125),
    **dict.fromkeys(("reciprocal",), _nonzero),
    **dict.fromkeys(("asin", "acos", "atanh", "erfinv", "tan"), _within_one),
    **dict.fromkeys(("logit",), lambda held: held.least >= 0.125 and held.greatest <= 0.875),
}
_INTEGER_UNARY: Final = ("neg", "abs", "relu", "sign", "bitwise_not", "square", "logical_not")

# The guard is for the second operand.
_BINARY: Final[Mapping[str, Guard]] = {
    **dict.fromkeys(("add.Tensor", "sub.Tensor", "mul.Tensor"), _anywhere),
    **dict.fromkeys(("maximum.default", "minimum.default"), _anywhere),
    **dict.fromkeys(("fmax.default", "fmin.default", "logaddexp.default"), _anywhere),
    **dict.fromkeys(("copysign.Tensor", "heaviside.default"), _anywhere),
    **dict.fromkeys(("div.Tensor", "atan2.default", "hypot.default"), _nonzero),
    **dict.fromkeys(("fmod.Tensor", "remainder.Tensor", "floor_divide.default"), _nonzero),
    **dict.fromkeys(("xlogy.Tensor",), _positive),
}
_COMPARISONS: Final = ("lt", "le", "gt", "ge", "eq", "ne")
_LOGICAL: Final = ("logical_and", "logical_or", "logical_xor")
_BITWISE: Final = ("bitwise_and", "bitwise_or", "bitwise_xor")
_BACKWARD: Final = ("gelu_backward", "silu_backward", "sigmoid_backward", "tanh_backward")


def unary(sketch: Sketch) -> None:
    value = sketch.any_value()
    if value is None:
        return
    if is_integral(value) and sketch.chance():
        sketch.add(f"aten.{sketch.one_of(*_INTEGER_UNARY)}.default", value)
        return
    held = sketch.held[value]
    name = sketch.one_of(*(n for n, guard in _UNARY.items() if guard(held)))
    extra: dict[str, Arg] = {"approximate": "tanh"} if name == "gelu" and sketch.chance() else {}
    sketch.add(f"aten.{name}.default", value, **extra)


def binary(sketch: Sketch) -> None:
    first = sketch.any_value()
    second = None if first is None else sketch.pick(lambda v: broadcasts(first, v))
    if first is None or second is None:
        return
    held = sketch.held[second]
    name = sketch.one_of(*(n for n, guard in _BINARY.items() if guard(held)))
    if name in ("add.Tensor", "sub.Tensor") and sketch.chance():
        sketch.add(f"aten.{name}", first, second, alpha=2)
    else:
        sketch.add(f"aten.{name}", first, second)


def scalar(sketch: Sketch) -> None:
    """An operator with a Python number."""
    value = sketch.any_value()
    if value is None:
        return
    names = ["add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "rsub.Scalar"]
    whole = is_integral(value) and sketch.chance()
    number = sketch.one_of(*(INTEGERS if whole else NUMBERS))
    if number != 0.1:
        names += ["remainder.Scalar", "fmod.Scalar"]
    sketch.add(f"aten.{sketch.one_of(*names)}", value, number)


def round_and_divide(sketch: Sketch) -> None:
    value = sketch.any_value()
    divisor = None if value is None else sketch.pick(lambda v: broadcasts(value, v))
    if value is None or divisor is None:
        return
    mode = sketch.one_of("floor", "trunc")
    if _nonzero(sketch.held[divisor]) and sketch.chance():
        sketch.add("aten.div.Tensor_mode", value, divisor, rounding_mode=mode)
    else:
        sketch.add("aten.div.Tensor_mode", value, sketch.one_of(*INTEGERS), rounding_mode=mode)


def power(sketch: Sketch) -> None:
    value = sketch.any_value()
    if value is None:
        return
    held = sketch.held[value]
    exponents = (0, 1, 2, 3, *((0.5, -0.5, -1, -2, 1.5) if _positive(held) else ()))
    match sketch.one_of("number", "base", "tensor"):
        case "base" if _small(held):
            sketch.add("aten.pow.Scalar", sketch.one_of(2, 1, 0.5), value)
        case "tensor" if _positive(held):
            other = sketch.pick(lambda v: broadcasts(value, v) and _small(sketch.held[v]))
            if other is not None:
                sketch.add("aten.pow.Tensor_Tensor", value, other)
        case _:
            sketch.add("aten.pow.Tensor_Scalar", value, sketch.one_of(*exponents))


def compare(sketch: Sketch) -> None:
    first = sketch.pick(lambda v: sketch.held[v].exact)
    if first is None:
        return
    name = sketch.one_of(*_COMPARISONS)
    second = sketch.pick(lambda v: broadcasts(first, v) and sketch.held[v].exact)
    if second is None or sketch.chance():
        sketch.add(f"aten.{name}.Scalar", first, sketch.one_of(0, 1, 0.5, -1))
    else:
        sketch.add(f"aten.{name}.Tensor", first, second)


def bits(sketch: Sketch) -> None:
    """Bitwise and logical operators, of integers and masks."""
    first = sketch.pick(lambda v: not is_floating(v))
    if first is None:
        return
    second = sketch.pick(lambda v: not is_floating(v) and broadcasts(first, v))
    match sketch.one_of("logical", "bitwise", "shift"):
        case "logical" if second is not None:
            sketch.add(f"aten.{sketch.one_of(*_LOGICAL)}.default", first, second)
        case "shift" if is_integral(first):
            name = sketch.one_of("bitwise_left_shift", "bitwise_right_shift")
            sketch.add(f"aten.{name}.Tensor_Scalar", first, sketch.number(0, 3))
        case _ if second is not None:
            sketch.add(f"aten.{sketch.one_of(*_BITWISE)}.Tensor", first, second)


def choose(sketch: Sketch) -> None:
    mask = sketch.pick(is_mask)
    first = None if mask is None else sketch.pick(lambda v: broadcasts(mask, v))
    if mask is None or first is None:
        return
    second = sketch.pick(lambda v: broadcasts(first, v) and broadcasts(mask, v))
    if second is None or sketch.chance():
        sketch.add("aten.masked_fill.Scalar", first, mask, sketch.one_of(0, 0.5, -2))
    else:
        sketch.add("aten.where.self", mask, first, second)


def bound(sketch: Sketch) -> None:
    value = sketch.any_value()
    if value is None:
        return
    low, high = sketch.one_of((-1, 1), (0.125, 4), (None, 0.5), (1, None), (2, -1))
    other = sketch.pick(lambda v: broadcasts(value, v))
    match sketch.one_of("numbers", "tensor", "min", "max"):
        case "tensor" if other is not None:
            sketch.add("aten.clamp.Tensor", value, other)
        case "min" if low is not None:
            sketch.add("aten.clamp_min.default", value, low)
        case "max" if high is not None:
            sketch.add("aten.clamp_max.default", value, high)
        case _:
            sketch.add("aten.clamp.default", value, low, high)


def several(sketch: Sketch) -> None:
    """Operators of three tensors, and gradients."""
    first = sketch.floating()
    if first is None:
        return
    fits = [sketch.pick(lambda v: is_floating(v) and broadcasts(first, v)) for _ in range(2)]
    second, third = (v if v is not None else first for v in fits)
    match sketch.one_of("addcmul", "addcdiv", "lerp", "gradient", "threshold"):
        case "addcmul":
            sketch.add("aten.addcmul.default", first, second, third, value=sketch.one_of(1, 0.5))
        case "addcdiv" if _nonzero(sketch.held[third]):
            sketch.add("aten.addcdiv.default", first, second, third)
        case "lerp":
            sketch.add("aten.lerp.Scalar", first, second, sketch.one_of(0.25, 0.75))
        case "threshold":
            sketch.add("aten.threshold_backward.default", first, second, 0.5)
        case _:
            sketch.add(f"aten.{sketch.one_of(*_BACKWARD)}.default", first, second)


def cast(sketch: Sketch) -> None:
    """To another dtype; to an integer only what is finite, as C leaves the rest open."""
    value = sketch.any_value()
    if value is None:
        return
    held = sketch.held[value]
    dtypes = [*sketch.dtypes, torch.bool]
    if not held.special and held.least >= 0:
        dtypes += INTEGRAL_DTYPES
    elif not held.special and held.least > -100:
        dtypes += INTEGRAL_DTYPES[:-1]
    sketch.add("aten._to_copy.default", value, dtype=sketch.one_of(*dtypes))


def broadcasts(one: Value, other: Value) -> bool:
    """Whether two values go together by torch's rules."""
    return joint_shape(one.tensor, other.tensor) is not None


def joint_shape(one: TensorType, other: TensorType) -> tuple[object, ...] | None:
    longer, shorter = sorted((one.shape, other.shape), key=len, reverse=True)
    padded = (1,) * (len(longer) - len(shorter)) + shorter
    pairs = list(zip(longer, padded, strict=True))
    if any(a != b and a != 1 and b != 1 for a, b in pairs):
        return None
    return tuple(b if a == 1 else a for a, b in pairs)


POINTWISE: Final = {
    "unary": unary,
    "binary": binary,
    "scalar": scalar,
    "compare": compare,
    "choose": choose,
    "bits": bits,
    "bound": bound,
    "power": power,
    "divide": round_and_divide,
    "several": several,
    "cast": cast,
}
