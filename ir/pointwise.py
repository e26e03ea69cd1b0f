"""Elementwise ATen operators: what one element of the result is, as a formula over `ir.expr`.

`POINTWISE` holds a formula for every overload; `scalar_expr` applies it to a node and adds what the
formula leaves open: which values it reads, to which dtype each is converted first, and in which
type it is computed. Rounding the result to the result's dtype is left to whoever lowers the node.

The formulas are eager's own, operation by operation, except that no multiply-add is fused where
eager's compiler does so, and that nothing inside a formula is rounded to a half type. Where eager
differs for other reasons, the table's test says so, one by one.

A mask occurs only as a whole formula, as `select`'s first argument and in `logical_*`, which also
take numbers (`!= 0`). `floor`, `ceil`, `round`, `trunc`, `isnan` and `isinf` occur only in floating
point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Final, cast

import torch

from rewright.ir import formulas as f
from rewright.ir.constant import Constant
from rewright.ir.dims import Dim
from rewright.ir.errors import UnsupportedError
from rewright.ir.expr import Call, Expr, Literal, Number, Operand, Scalar, call
from rewright.ir.graph import Arg, Node, Value
from rewright.ir.plugins import plugins
from rewright.ir.promotion import dtype_of, promoted
from rewright.ir.types import DTYPE_NAMES, TensorType

Formula = Callable[..., Scalar]


@dataclass(frozen=True)
class Pointwise:
    """One row of the table.

    `build` is called with the node's arguments: tensors and run-time numbers as `Operand`s,
    numbered in order of appearance, sizes as `Literal`s, everything else as it is. `computes_in`
    says whose dtype decides the compute type: the "result"'s, or the promoted one of the
    "operands". `rounds_scalars`: eager rounds Python numbers to that dtype before it computes
    (otherwise only to the compute type). `typed`: `build` also takes that dtype, as `dtype`.
    """

    build: Formula
    computes_in: str = "result"
    rounds_scalars: bool = False
    typed: bool = False


@dataclass(frozen=True)
class Element:
    """What one element of a node's result is.

    `operands[i]` is what `Operand(i)` reads, converted (rounded) to `operand_dtypes[i]` and then,
    unless that is bool, widened to `compute`; arguments that the formula doesn't read are not among
    them. `expr` is a mask or a number of type `compute`, to be converted to the result's dtype.
    """

    expr: Expr
    operands: tuple[Value | Constant, ...]
    operand_dtypes: tuple[torch.dtype, ...]
    compute: torch.dtype


# Half types and float8 compute in f32, as eager; small integers in i32, whose low bits are theirs
# and so convert back exactly. Complex numbers and u64 are left to ATen.
_COMPUTE_DTYPES: Final[dict[torch.dtype, torch.dtype]] = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e5m2: torch.float32,
    torch.int64: torch.int64,
    torch.int32: torch.int32,
    torch.int16: torch.int32,
    torch.int8: torch.int32,
    torch.uint32: torch.int64,
    torch.uint16: torch.int32,
    torch.uint8: torch.int32,
    torch.bool: torch.bool,
}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which elements of `dtype` are computed: f64, f32, i64, i32 or bool.

    Raises UnsupportedError for complex numbers and u64.
    """
    if dtype not in _COMPUTE_DTYPES:
        raise UnsupportedError(f"elements of {DTYPE_NAMES.get(dtype, dtype)} have no compute type")
    return _COMPUTE_DTYPES[dtype]


# --- the table ----------------------------------------------------------------------------------


def primitive(name: str) -> Formula:
    return partial(call, name)


# Overloads named as the primitive they are: `aten.<name>.default` and `prims.<name>.default`.
_NAMESAKES: Final = (
    *("abs", "neg", "sign", "sqrt", "rsqrt", "reciprocal", "exp", "exp2", "expm1"),
    *("log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "atan2"),
    *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "lgamma", "hypot"),
    *("maximum", "minimum", "fmax", "fmin"),
)
_ROUNDINGS: Final = ("floor", "ceil", "round", "trunc")
_COMPARISONS: Final = ("eq", "ne", "lt", "le", "gt", "ge")

# Computed in the result's dtype; Python numbers enter as precisely as the compute type allows.
_PLAIN: Final[dict[str, Formula]] = {
    **{f"aten.{name}.default": primitive(name) for name in _NAMESAKES},
    "aten.sigmoid.default": primitive("sigmoid"),
    "aten.erfinv.default": primitive("erfinv"),
    # moving and converting
    "aten.clone.default": lambda x, **_: x,
    "aten.lift_fresh_copy.default": lambda x: x,
    "aten._to_copy.default": lambda x, **_: x,
    "aten.copy.default": lambda x, source, non_blocking=False: source,
    "aten._conj_physical.default": lambda x: x,
    # constants in the shape of an argument
    "aten.fill.Scalar": lambda x, value: value,
    "aten.fill.Tensor": lambda x, value: value,
    "aten.full_like.default": lambda x, value, **_: value,
    "aten.zeros_like.default": lambda x, **_: 0,
    "aten.ones_like.default": lambda x, **_: 1,
    # choosing
    "aten.where.self": f.select,
    "aten.where.ScalarOther": f.select,
    "aten.where.ScalarSelf": f.select,
    "aten.where.Scalar": f.select,
    "aten.masked_fill.Scalar": lambda x, mask, value: f.select(mask, value, x),
    "aten.masked_fill.Tensor": lambda x, mask, value: f.select(mask, value, x),
    # products
    "aten.mul.Tensor": primitive("mul"),
    "aten.mul.Scalar": primitive("mul"),
    "aten.square.default": lambda x: x * x,
    "aten.div.Tensor": f.divide,
    "aten.div.Scalar": f.divide,
    "aten.div.Tensor_mode": f.divide,
    "aten.div.Scalar_mode": f.divide,
    "aten.true_divide.Tensor": f.divide,
    "aten.floor_divide.default": primitive("div_floor"),
    "aten.floor_divide.Scalar": primitive("div_floor"),
    "aten.deg2rad.default": lambda x: x * (math.pi / 180),
    "aten.rad2deg.default": lambda x: x * (180 / math.pi),
    # products added to something
    "aten.addcmul.default": lambda x, y, z, value=1: x + value * y * z,
    "aten.addcdiv.default": lambda x, y, z, value=1: x + value * y / z,
    "aten.lerp.Scalar": f.lerp,
    "aten.lerp.Tensor": f.lerp,
    # signs
    "aten.sgn.default": primitive("sign"),
    "aten.angle.default": lambda x: f.select(f.isnan(x), x, f.select(x < 0, math.pi, 0)),
    # activations
    "aten.relu.default": lambda x: f.at_least(x, 0),
    "aten.relu6.default": lambda x: f.clamp(x, 0, 6),
    "aten.gelu.default": f.gelu,
    "aten.silu.default": lambda x: x / (1 + f.exp(-x)),
    "aten.mish.default": lambda x: x * f.tanh(f.log1p(f.exp(x))),
    "aten.softplus.default": f.softplus,
    "aten.elu.default": f.elu,
    "aten.celu.default": lambda x, alpha=1.0: f.elu(x, alpha, 1, 1 / alpha),
    "aten.selu.default": lambda x: f.elu(x, 1.6732632423543772, 1.0507009873554805),
    "aten.leaky_relu.default": lambda x, slope=0.01: f.select(x > 0, x, x * slope),
    "aten._prelu_kernel.default": lambda x, slope: f.select(x > 0, x, x * slope),
    "aten.threshold.default": lambda x, threshold, value: f.select(x <= threshold, value, x),
    "aten.softshrink.default": f.softshrink,
    "aten.hardswish.default": lambda x: x * f.clamp(x + 3, 0, 6) / 6,
    "aten.hardsigmoid.default": lambda x: f.clamp(x + 3, 0, 6) / 6,
    # gradients of activations
    "aten.gelu_backward.default": f.gelu_backward,
    "aten.silu_backward.default": f.silu_backward,
    "aten.mish_backward.default": f.mish_backward,
    "aten.sigmoid_backward.default": lambda g, y: g * (1 - y) * y,
    "aten.tanh_backward.default": lambda g, y: g * (1 - y * y),
    "aten.softplus_backward.default": f.softplus_backward,
    "aten.elu_backward.default": f.elu_backward,
    "aten.leaky_relu_backward.default": lambda g, x, s, is_result: f.select(x > 0, g, g * s),
    "aten.threshold_backward.default": lambda g, x, t: f.select(x <= t, 0, g),
    "aten.hardswish_backward.default": f.hardswish_backward,
    "aten.hardsigmoid_backward.default": f.hardsigmoid_backward,
    "aten.hardtanh_backward.default": f.hardtanh_backward,
    "aten.logit_backward.default": f.logit_backward,
    "aten.native_dropout_backward.default": lambda g, mask, scale: g * (mask * scale),
    # special functions
    "aten.logaddexp.default": f.logaddexp,
    "aten.logaddexp2.default": f.logaddexp2,
    "aten.logit.default": f.logit,
    "aten.sinc.default": f.sinc,
    "aten.special_entr.default": f.entropy,
    "aten.xlogy.Tensor": f.xlogy,
    "aten.xlogy.Scalar_Self": f.xlogy,
    "aten.xlogy.Scalar_Other": f.xlogy,
    "aten.special_xlog1py.default": f.xlog1py,
    "aten.special_xlog1py.self_scalar": f.xlog1py,
    "aten.special_xlog1py.other_scalar": f.xlog1py,
    # bits
    "aten.bitwise_not.default": primitive("bit_not"),
    "aten.bitwise_and.Tensor": primitive("bit_and"),
    "aten.bitwise_and.Scalar": primitive("bit_and"),
    "aten.bitwise_and.Scalar_Tensor": primitive("bit_and"),
    "aten.bitwise_or.Tensor": primitive("bit_or"),
    "aten.bitwise_or.Scalar": primitive("bit_or"),
    "aten.bitwise_or.Scalar_Tensor": primitive("bit_or"),
    "aten.bitwise_xor.Tensor": primitive("bit_xor"),
    "aten.bitwise_xor.Scalar": primitive("bit_xor"),
    "aten.bitwise_xor.Scalar_Tensor": primitive("bit_xor"),
    "aten.bitwise_left_shift.Tensor": primitive("shift_left"),
    "aten.bitwise_left_shift.Tensor_Scalar": primitive("shift_left"),
    "aten.bitwise_left_shift.Scalar_Tensor": primitive("shift_left"),
    "aten.bitwise_right_shift.Tensor": primitive("shift_right"),
    "aten.bitwise_right_shift.Tensor_Scalar": primitive("shift_right"),
    "aten.bitwise_right_shift.Scalar_Tensor": primitive("shift_right"),
    "aten.__and__.Tensor": primitive("bit_and"),
    "aten.__and__.Scalar": primitive("bit_and"),
    "aten.__or__.Tensor": primitive("bit_or"),
    "aten.__or__.Scalar": primitive("bit_or"),
    "aten.__xor__.Tensor": primitive("bit_xor"),
    "aten.__xor__.Scalar": primitive("bit_xor"),
    "aten.__lshift__.Tensor": primitive("shift_left"),
    "aten.__lshift__.Scalar": primitive("shift_left"),
    "aten.__rshift__.Tensor": primitive("shift_right"),
    "aten.__rshift__.Scalar": primitive("shift_right"),
    # prims
    **{f"prims.{name}.default": primitive(name) for name in _NAMESAKES},
    **{f"prims.{n}.default": primitive(n) for n in ("add", "sub", "mul", "pow")},
    **{f"prims.{n}.default": primitive(n) for n in ("fmod", "remainder", "shift_left")},
    "prims.erf_inv.default": primitive("erfinv"),
    "prims.shift_right_arithmetic.default": primitive("shift_right"),
    "prims.bitwise_not.default": primitive("bit_not"),
    "prims.bitwise_and.default": primitive("bit_and"),
    "prims.bitwise_or.default": primitive("bit_or"),
    "prims.bitwise_xor.default": primitive("bit_xor"),
    "prims.where.default": f.select,
    "prims.convert_element_type.default": lambda x, dtype: x,
    "prims.clone.default": lambda x, **_: x,
    "prims.fill.default": lambda x, value: value,
    "prims.full_like.default": lambda x, value, **_: value,
}

# Computed in the result's dtype, to which eager (on the CPU) first rounds Python numbers.
_ROUNDED: Final[dict[str, Formula]] = {
    # sums
    "aten.add.Tensor": f.add,
    "aten.add.Scalar": f.add,
    "aten.sub.Tensor": f.subtract,
    "aten.sub.Scalar": f.subtract,
    "aten.rsub.Tensor": f.subtract_from,
    "aten.rsub.Scalar": f.subtract_from,
    # powers and remainders
    "aten.pow.Tensor_Tensor": primitive("pow"),
    "aten.pow.Tensor_Scalar": f.power,
    "aten.pow.Scalar": lambda base, exponent: 1 if base == 1 else call("pow", base, exponent),
    "aten.remainder.Tensor": primitive("remainder"),
    "aten.remainder.Scalar": primitive("remainder"),
    "aten.remainder.Scalar_Tensor": primitive("remainder"),
    "aten.fmod.Tensor": primitive("fmod"),
    "aten.fmod.Scalar": primitive("fmod"),
    # bounds
    "aten.clamp.default": f.clamp,
    "aten.clamp.Tensor": f.clamp_tensor,
    "aten.clamp_min.default": f.at_least,
    "aten.clamp_min.Tensor": f.maximum,
    "aten.clamp_max.default": f.at_most,
    "aten.clamp_max.Tensor": f.minimum,
    "aten.clip.default": f.clamp,
    "aten.clip.Tensor": f.clamp_tensor,
    "aten.hardtanh.default": lambda x, low=-1, high=1: f.clamp(x, low, high),
    "aten.hardshrink.default": f.hardshrink,
    "aten.hardshrink_backward.default": f.shrink_backward,
    "aten.softshrink_backward.default": f.shrink_backward,
    # signs
    "aten.copysign.Tensor": primitive("copysign"),
    "aten.copysign.Scalar": primitive("copysign"),
    "aten.heaviside.default": f.heaviside,
}

# As `_PLAIN`, where the formula depends on the dtype.
_TYPED: Final[dict[str, Formula]] = {
    **{f"aten.{name}.default": partial(f.rounding, name) for name in _ROUNDINGS},
    **{f"prims.{name}.default": partial(f.rounding, name) for name in _ROUNDINGS},
    "aten.round.decimals": f.round_decimals,
    "aten.frac.default": lambda x, *, dtype: x - f.rounding("trunc", x, dtype=dtype),
    "aten.nan_to_num.default": f.nan_to_num,
    "prims.div.default": f.divide_like_c,
}

# Computed in the promoted dtype of the operands, to which Python numbers are rounded as well.
_TESTS: Final[dict[str, Formula]] = {
    **{f"aten.{name}.Tensor": primitive(name) for name in _COMPARISONS},
    **{f"aten.{name}.Scalar": primitive(name) for name in _COMPARISONS},
    **{f"prims.{name}.default": primitive(name) for name in _COMPARISONS},
    "aten.logical_and.default": primitive("logical_and"),
    "aten.logical_or.default": primitive("logical_or"),
    "aten.logical_xor.default": primitive("logical_xor"),
    "aten.logical_not.default": primitive("logical_not"),
}

# As `_TESTS`, where the formula depends on the dtype.
_TYPED_TESTS: Final[dict[str, Formula]] = {
    "aten.isnan.default": lambda x, *, dtype: f.isnan(x) if dtype.is_floating_point else False,
    "aten.isinf.default": lambda x, *, dtype: f.isinf(x) if dtype.is_floating_point else False,
    "aten.isfinite.default": f.isfinite,
    "prims.isfinite.default": f.isfinite,
    "aten.isposinf.default": partial(f.equals_float, value=math.inf),
    "aten.isneginf.default": partial(f.equals_float, value=-math.inf),
    "aten.signbit.default": f.signbit,
    "prims.signbit.default": f.signbit,
}

_TORCHS: Final = ("aten.", "prims.", "rw.", "_c10d_functional.")

POINTWISE: Final[dict[str, Pointwise]] = {
    **{name: Pointwise(build) for name, build in _PLAIN.items()},
    **{name: Pointwise(build, rounds_scalars=True) for name, build in _ROUNDED.items()},
    **{name: Pointwise(build, typed=True) for name, build in _TYPED.items()},
    **{name: Pointwise(build, "operands", True) for name, build in _TESTS.items()},
    **{name: Pointwise(build, "operands", True, True) for name, build in _TYPED_TESTS.items()},
}


def is_pointwise(name: str) -> bool:
    """True for what is in the table. Operators of other namespaces than torch's own may be in a
    plugin: a mapping of names, as `mine.softclip.default`, to rows, under `rewright.ops`."""
    if name not in POINTWISE and not name.startswith(_TORCHS):
        for rows in plugins("ops").values():
            POINTWISE.update(rows)
    return name in POINTWISE


# --- applying the table to a node ---------------------------------------------------------------


def scalar_expr(node: Node) -> Element:
    """What one element of the node's only result is.

    Raises UnsupportedError with the sentence of `obstacle`.
    """
    found = _element(node)
    if isinstance(found, str):
        raise UnsupportedError(found)
    return found


def obstacle(node: Node) -> str | None:
    """Why a node has no scalar expression though its operator may be in the table, or None.

    Besides operators not in the table: complex or u64 elements, sparse results, and tensors read
    from another device than the result's (`_to_copy` and `copy` between devices, 0-dim tensors on
    the CPU among CUDA operands).
    """
    found = _element(node)
    return found if isinstance(found, str) else None


def _element(node: Node) -> Element | str:
    entry = POINTWISE.get(node.op.name)
    if entry is None:
        return f"{node.op} is not an elementwise operator"
    # Tensors are numbered in this order.
    arguments = (*node.args, *(argument for _, argument in node.kwargs))
    dtypes = tuple(dtype_of(argument) for argument in arguments)
    refused = _unsupported(node, arguments, dtypes)
    if refused is not None:
        return refused
    in_result = entry.computes_in == "result"
    dtype = node.result.tensor.dtype if in_result else promoted(arguments)
    expr = _build(entry, node, dtype)
    read = sorted({e.index for e in subexpressions(expr) if isinstance(e, Operand)})
    tensors = [a for a in arguments if isinstance(a, (Value, Constant))]
    masks = _masks(expr)
    element = Element(
        cast(Expr, _renumbered(expr, {old: new for new, old in enumerate(read)})),
        tuple(tensors[i] for i in read),
        tuple(torch.bool if i in masks else dtype for i in read),
        compute_dtype(dtype),
    )
    return _elsewhere(node, element.operands) or element


def _unsupported(
    node: Node, arguments: tuple[Arg, ...], dtypes: tuple[torch.dtype | None, ...]
) -> str | None:
    for argument in arguments:
        if isinstance(argument, torch.layout) and argument is not torch.strided:
            return f"{node.op} with {argument} is left to ATen"
    for dtype in (node.result.tensor.dtype, *dtypes):
        if dtype is not None and dtype not in _COMPUTE_DTYPES:
            return f"{node.op} on {DTYPE_NAMES.get(dtype, dtype)} is left to ATen"
    return None


def _elsewhere(node: Node, operands: tuple[Value | Constant, ...]) -> str | None:
    home = node.result.tensor.device
    for operand in operands:
        device = _device_of(operand)
        if device not in (None, home):
            name = f"%{operand.name}" if isinstance(operand, Value) else "a constant"
            return f"{name} is on {device}, the result of {node.op} on {home}"
    return None


def _device_of(operand: Value | Constant) -> torch.device | None:
    if isinstance(operand, Constant):
        return operand.tensor.device
    return operand.type.device if isinstance(operand.type, TensorType) else None


def _build(entry: Pointwise, node: Node, dtype: torch.dtype) -> Expr:
    numbering = count()

    def prepared(argument: Arg) -> object:
        if isinstance(argument, (Value, Constant)):
            return Operand(next(numbering))
        if isinstance(argument, Dim):
            return Literal(argument)
        return _rounded(argument, dtype, entry.rounds_scalars)

    args = [prepared(argument) for argument in node.args]
    kwargs = {name: prepared(argument) for name, argument in node.kwargs}
    if entry.typed:
        kwargs["dtype"] = dtype
    built = entry.build(*args, **kwargs)
    return built if isinstance(built, (Operand, Literal, Call)) else Literal(cast(Number, built))


def _rounded(argument: Arg, dtype: torch.dtype, rounds: bool) -> Arg:
    """A number as eager's kernel for `dtype` sees it: small integers wrap around, and when the
    kernel `rounds`, half types hold the number as well. Anything else as it is."""
    if isinstance(argument, bool) or not isinstance(argument, (int, float)):
        return argument
    exact = not rounds if dtype.is_floating_point else isinstance(argument, float)
    if exact or compute_dtype(dtype) is dtype:
        return argument
    wide = torch.float64 if dtype.is_floating_point else torch.int64
    return torch.tensor(argument, dtype=wide).to(dtype).item()


def subexpressions(expr: Scalar) -> Iterator[Scalar]:
    """The expression and everything below it, outermost first, with repeats."""
    yield expr
    if isinstance(expr, Call):
        for arg in expr.args:
            yield from subexpressions(arg)


def _masks(expr: Expr) -> set[int]:
    """Operands that are read as masks."""
    calls = (e for e in subexpressions(expr) if isinstance(e, Call) and e.name == "select")
    return {c.args[0].index for c in calls if isinstance(c.args[0], Operand)}


def _renumbered(expr: Scalar, index: Mapping[int, int]) -> Scalar:
    if isinstance(expr, Operand):
        return Operand(index[expr.index])
    if isinstance(expr, Call):
        return Call(expr.name, tuple(_renumbered(arg, index) for arg in expr.args))
    return expr
