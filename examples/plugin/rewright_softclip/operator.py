"""The operator, for eager mode and autograd; and what one element of its result is, for kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from rewright.ir.expr import Expr, Scalar, call
from rewright.ir.pointwise import Pointwise


@torch.library.custom_op("softclip::softclip", mutates_args=())
def softclip(x: Tensor, limit: float) -> Tensor:
    """`x` where it is small, and never beyond `limit` in either direction."""
    return limit * (x / limit).tanh()


@softclip.register_fake
def _(x: Tensor, limit: float) -> Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.limit = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (clipped,) = ctx.saved_tensors
    return grad * (1 - (clipped / ctx.limit).square()), None


softclip.register_autograd(_backward, setup_context=_setup)


def element(x: Expr, limit: Scalar) -> Scalar:
    return call("mul", call("tanh", call("div", x, limit)), limit)


POINTWISE: Final[Mapping[str, Pointwise]] = {"softclip.softclip.default": Pointwise(element)}
