"""Arguments to try every operator of `ir.pointwise` on, and calls as nodes."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from rewright.ir.graph import Node, Value
from rewright.ir.ops import op
from rewright.ir.types import TensorType


class Slot(Enum):
    """A tensor argument: the special numbers, along an axis of its own."""

    X = 0
    Y = 1
    Z = 2
    MASK = 3


X, Y, Z, MASK = Slot

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def given(*args: Any, **kwargs: Any) -> Arguments:
    return args, kwargs


def with_numbers(*numbers: float) -> list[Arguments]:
    return [given(X, number) for number in numbers]


def number_first(*numbers: float) -> list[Arguments]:
    return [given(number, X) for number in numbers]


PLAIN = (0.1, 3, -2, 0, -0.0, math.inf, math.nan)
SHIFTS = (0, 1, 7, 31, 63, 64, -1)
EXPONENTS = (0, 1, 2, 3, -1, -2, 0.5, -0.5, 1.75, -3, 4, 0.125, math.inf)
BOUNDS = [
    given(X, *bounds)
    for bounds in ((0, 6), (-0.1, None), (None, 0.7), (2, 1), (0.3, math.inf), (math.nan, 1), (-1,))
]

# Overloads whose arguments are not all tensors, or with arguments that choose the formula.
_C = 0
CASES: dict[str, list[Arguments]] = {
    "aten.clone.default": [given(X), given(X, memory_format=torch.contiguous_format)],
    "aten._to_copy.default": [given(X, dtype=d) for d in (None, *FLOATS, torch.bool)],
    "prims.convert_element_type.default": [given(X, d) for d in (*FLOATS, torch.bool)],
    "aten.copy.default": [given(X, Y)],
    "aten.fill.Scalar": with_numbers(2.75, 0),
    "aten.fill.Tensor": [given(X, torch.tensor(2.75)), given(X, torch.tensor(3))],
    "prims.fill.default": with_numbers(2),
    "aten.full_like.default": [given(X, 2.75), given(X, 3, dtype=torch.float16)],
    "prims.full_like.default": [
        given(X, 2, dtype=torch.float32, device=torch.device("cpu"), requires_grad=False)
    ],
    "aten.zeros_like.default": [given(X), given(X, dtype=torch.int8)],
    "aten.ones_like.default": [given(X), given(X, dtype=torch.bool)],
    "aten.where.self": [given(MASK, X, Y), given(MASK, X, torch.tensor(0.1))],
    "aten.where.ScalarOther": [given(MASK, X, 0.1), given(MASK, X, -math.inf)],
    "aten.where.ScalarSelf": [given(MASK, 0.1, X)],
    "aten.where.Scalar": [given(MASK, 1, 2.5), given(MASK, 1, 0)],
    "prims.where.default": [given(MASK, X, Y)],
    "aten.masked_fill.Scalar": [given(X, MASK, v) for v in (0, 0.1, -math.inf)],
    "aten.masked_fill.Tensor": [given(X, MASK, torch.tensor(0.1))],
    # Alphas that half types hold: whether eager rounds others depends on the vector unit.
    "aten.add.Tensor": [given(X, Y), given(X, 0.5), given(X, Y, alpha=0.375), given(X, Y, alpha=2)],
    "aten.add.Scalar": [given(X, 0.1), given(X, 3, 2)],
    "aten.sub.Tensor": [given(X, Y), given(X, 0.5), given(X, Y, alpha=0.375)],
    "aten.sub.Scalar": [given(X, 0.1), given(X, 3, 2)],
    "aten.rsub.Tensor": [given(X, Y), given(X, Y, alpha=0.375)],
    "aten.rsub.Scalar": [given(X, 1), given(X, 0.1), given(X, 3, 2)],
    "aten.mul.Tensor": [given(X, Y), given(X, 0.1), given(X, torch.tensor(0.5))],
    "aten.mul.Scalar": with_numbers(*PLAIN),
    "aten.div.Tensor": [given(X, Y), given(X, 0.1), given(X, 8.0)],
    "aten.div.Scalar": with_numbers(*PLAIN),
    "aten.div.Tensor_mode": [given(X, Y, rounding_mode=m) for m in (None, "floor", "trunc")],
    "aten.div.Scalar_mode": [
        given(X, v, rounding_mode=m) for v in (0.1, 3, -2) for m in (None, "floor", "trunc")
    ],
    "aten.floor_divide.Scalar": with_numbers(0.1, 3, -2),
    "aten.addcmul.default": [given(X, Y, Z), given(X, Y, Z, value=0.3), given(X, Y, Z, value=2)],
    "aten.addcdiv.default": [given(X, Y, Z), given(X, Y, Z, value=0.3)],
    "aten.lerp.Scalar": [given(X, Y, w) for w in (0.3, 0.7, 0, 1, -0.2, 2)],
    "aten.pow.Tensor_Scalar": with_numbers(*EXPONENTS),
    "aten.pow.Scalar": number_first(1, 2, 0.1, 0, -1, 10.0),
    "aten.gelu.default": [given(X), given(X, approximate="tanh")],
    "aten.gelu_backward.default": [given(X, Y), given(X, Y, approximate="tanh")],
    "aten.softplus.default": [given(X), given(X, 2.0, 5.0), given(X, 0.3)],
    "aten.elu.default": [given(X), given(X, 0.3), given(X, 1.7, 1.1, 0.7)],
    "aten.celu.default": [given(X), given(X, 0.3)],
    "aten.leaky_relu.default": [given(X), given(X, 0.3)],
    "aten.threshold_backward.default": [given(X, Y, t) for t in (0, 0.1, -1)],
    "aten.softplus_backward.default": [given(X, Y, 1, 20), given(X, Y, 0.3, 5)],
    "aten.elu_backward.default": [
        given(X, a, s, i, r, Y) for a, s, i in ((1, 1, 1), (1.7, 1.1, 0.7)) for r in (False, True)
    ],
    "aten.leaky_relu_backward.default": [given(X, Y, 0.3, False), given(X, Y, 0.3, True)],
    "aten.hardtanh_backward.default": [given(X, Y, -1, 1), given(X, Y, 0.0, 6.0)],
    "aten.logit.default": [given(X), given(X, 0.1), given(X, 1e-6)],
    "aten.logit_backward.default": [given(X, Y), given(X, Y, 0.1)],
    "aten.xlogy.Scalar_Self": number_first(0, 0.1, math.nan),
    "aten.xlogy.Scalar_Other": with_numbers(0, 0.1, math.nan),
    "aten.special_xlog1py.self_scalar": number_first(0, 0.1, math.nan),
    "aten.special_xlog1py.other_scalar": with_numbers(0, 0.1, math.nan),
    "aten.remainder.Scalar": with_numbers(0.1, 3, -2, 0.5),
    "aten.remainder.Scalar_Tensor": number_first(0.1, 3, -2),
    "aten.fmod.Scalar": with_numbers(0.1, 3, -2, 0.5),
    "aten.copysign.Scalar": with_numbers(0.1, -2, -0.0),
    "aten.clamp.default": BOUNDS,
    "aten.clip.default": BOUNDS,
    "aten.clamp.Tensor": [given(X, Y, Z), given(X, None, Y), given(X, Y)],
    "aten.clip.Tensor": [given(X, Y, Z), given(X, None, Y), given(X, Y)],
    "aten.clamp_min.default": with_numbers(0, 0.1, -0.0, math.nan),
    "aten.clamp_max.default": with_numbers(0, 0.1, -0.0, math.nan),
    "aten.hardtanh.default": [given(X), given(X, 0, 6), given(X, -0.1, 0.3)],
    "aten.threshold.default": [given(X, 0, 0), given(X, 0.1, 20), given(X, -1, 0.3)],
    "aten.hardshrink.default": [given(X), given(X, 0.1), given(X, 0)],
    "aten.softshrink.default": [given(X), given(X, 0.1), given(X, 0)],
    "aten.softshrink_backward.default": [given(X, Y, 0.5), given(X, Y, 0.1)],
    "aten.hardshrink_backward.default": [given(X, Y, 0.5), given(X, Y, 0.1)],
    "aten.native_dropout_backward.default": [given(X, MASK, 1 / 0.9), given(X, MASK, 2.0)],
    "aten.round.decimals": [given(X, decimals=d) for d in (0, 2, -1, 3)],
    "aten.nan_to_num.default": [given(X), given(X, 0.1), given(X, 1.0, 2.0, -3.0)],
    **{f"aten.{n}.Scalar": with_numbers(*PLAIN) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{
        f"aten.{n}.{overload}": with_numbers(*SHIFTS)
        for n, overload in (
            ("bitwise_left_shift", "Tensor_Scalar"),
            ("bitwise_right_shift", "Tensor_Scalar"),
            ("__lshift__", "Scalar"),
            ("__rshift__", "Scalar"),
        )
    },
    "aten.bitwise_left_shift.Scalar_Tensor": number_first(1, -5),
    "aten.bitwise_right_shift.Scalar_Tensor": number_first(100, -5),
    **{
        f"aten.{n}.Scalar": with_numbers(0, 1, 5, -3)
        for n in ("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__")
    },
    **{
        f"aten.{n}.Scalar_Tensor": number_first(0, 1, 5, -3)
        for n in ("bitwise_and", "bitwise_or", "bitwise_xor")
    },
}


def cases_of(name: str) -> list[Arguments]:
    """The listed cases, else one that gives a tensor for every argument of the schema."""
    if name in CASES:
        return CASES[name]
    schema = op(name).schema
    assert schema is not None
    required = [a for a in schema.arguments if not a.has_default_value()]
    assert all(str(a.type) == "Tensor" for a in required), f"{name} has no case"
    return [given(*(slot for slot, _ in zip(Slot, required, strict=False)))]


def node_of(name: str, *args: Any, result: Tensor | torch.dtype, **kwargs: Any) -> Node:
    dtype, shape = (result, ()) if isinstance(result, torch.dtype) else (result.dtype, result.shape)
    value = Value("result", TensorType(dtype, tuple(shape)))
    return Node(op(name), args, tuple(sorted(kwargs.items())), (value,))
