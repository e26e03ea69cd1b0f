"""oneDNN's products and convolutions, with what is done to their results at once.

ATen offers them as `mkldnn._linear_pointwise` and `mkldnn._convolution_pointwise`; their `attr` and
what follows it name an elementwise function. They exist for a few types of numbers and on CPUs
only; the references here compute the same by other operators, in any precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

LINEAR: Final = "mkldnn._linear_pointwise.default"
LINEAR_BINARY: Final = "mkldnn._linear_pointwise.binary"
CONVOLUTION: Final = "mkldnn._convolution_pointwise.default"
CONVOLUTION_BINARY: Final = "mkldnn._convolution_pointwise.binary"

# The arguments that end a call after whose result nothing follows: function, numbers, variant.
PLAIN: Final = ("none", (), "")

# What brings weights into the layouts that these like best.
TO_MKLDNN: Final = "aten.to_mkldnn.default"
PACK_CONVOLUTION: Final = "aten.mkldnn_reorder_conv2d_weight.default"
PACK_LINEAR: Final = "mkldnn._reorder_linear_weight.default"


@cache
def is_available() -> bool:
    """False in builds of torch without oneDNN, as for some other architectures."""
    mkldnn = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and hasattr(mkldnn, "_linear_pointwise")


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """True for the types whose products oneDNN computes, with instructions of this CPU's."""
    if not is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


_UNARY: Final[Mapping[str, Callable[..., Tensor]]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "swish": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
}
_BINARY: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
}


def _unary(x: Tensor, name: str | None, scalars: Sequence[Any], algorithm: str | None) -> Tensor:
    if name in (None, "none"):
        return x
    if name == "gelu":
        return F.gelu(x, approximate=algorithm or "none")
    return _UNARY[name](x, *scalars)


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    attr: str,
    scalars: Sequence[Any],
    algorithm: str | None,
) -> Tensor:
    return _unary(F.linear(x, weight, bias), attr, scalars, algorithm)


def _linear_binary(
    x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, attr: str
) -> Tensor:
    return _BINARY[attr](F.linear(x, weight, bias), other)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    padding, stride, dilation, groups, *function = rest
    return _unary(F.conv2d(x, weight, bias, stride, padding, dilation, groups), *function)


def _convolution_binary(
    x: Tensor, other: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> Tensor:
    *how, name, alpha, function, scalars, algorithm = rest
    assert alpha is None
    plain = _convolution(x, weight, bias, *how, *PLAIN)
    return _unary(_BINARY[name](plain, other), function, scalars, algorithm)


def _packed(weight: Tensor, *_: object) -> Tensor:
    return weight


REFERENCES: Final[Mapping[str, Callable[..., Tensor]]] = {
    LINEAR: _linear,
    LINEAR_BINARY: _linear_binary,
    CONVOLUTION: _convolution,
    CONVOLUTION_BINARY: _convolution_binary,
    **dict.fromkeys((TO_MKLDNN, PACK_CONVOLUTION, PACK_LINEAR), _packed),
}
