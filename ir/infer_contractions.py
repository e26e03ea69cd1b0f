"""What matrix products, convolutions and attention give."""

from __future__ import annotations

from functools import partial
from typing import Final

import torch

from rewright.ir.dims import Size, equal
from rewright.ir.errors import CheckError, UnsupportedError
from rewright.ir.graph import Node
from rewright.ir.infer import Rule
from rewright.ir.infer_args import fresh, sizes_at, strided, tensor_at
from rewright.ir.onednn import (
    CONVOLUTION,
    CONVOLUTION_BINARY,
    LINEAR,
    LINEAR_BINARY,
    PACK_CONVOLUTION,
    PACK_LINEAR,
    TO_MKLDNN,
)
from rewright.ir.types import TensorType, Type, channels_last_strides, is_channels_last


def _product(node: Node, left: int, *, batched: bool) -> tuple[Type, ...]:
    a, b = tensor_at(node, left), tensor_at(node, left + 1)
    rank = 3 if batched else 2
    fits = (
        a.rank == b.rank == rank
        and a.dtype == b.dtype
        and equal(a.shape[-1], b.shape[-2])
        and all(equal(m, n) for m, n in zip(a.shape[:-2], b.shape[:-2], strict=True))
    )
    if not fits:
        raise CheckError(f"{node.op} does not multiply {a.shape} and {b.shape}")
    return fresh(a, (*a.shape[:-1], b.shape[-1]))


def _linear(node: Node, weight_at: int = 1) -> tuple[Type, ...]:
    x, weight = tensor_at(node, 0), tensor_at(node, weight_at)
    if weight.rank != 2 or x.rank == 0 or not equal(x.shape[-1], weight.shape[-1]):
        raise CheckError(f"linear does not multiply {x.shape} and {weight.shape}")
    return fresh(x, (*x.shape[:-1], weight.shape[0]))


def _convolution(node: Node) -> tuple[Type, ...]:
    x, weight = tensor_at(node, 0), tensor_at(node, 1)
    if node.arg("transposed"):
        raise UnsupportedError("transposed convolutions", who="infer")
    shape = _convolved(node, x, weight)
    if x.is_contiguous and weight.is_contiguous:
        return fresh(x, shape)
    if is_channels_last(x):
        return strided(x, shape, channels_last_strides(shape))
    raise UnsupportedError("convolutions in other layouts", who="infer")


def _onednn_convolution(node: Node, weight: int) -> tuple[Type, ...]:
    """What has the channels of a pixel next to each other keeps them so."""
    x = tensor_at(node, 0)
    if not is_channels_last(x):
        raise UnsupportedError("oneDNN's convolutions in other layouts", who="infer")
    shape = _convolved(node, x, tensor_at(node, weight))
    return strided(x, shape, channels_last_strides(shape))


def _convolved(node: Node, x: TensorType, weight: TensorType) -> tuple[Size, ...]:
    groups = node.arg("groups")
    assert isinstance(groups, int)
    if x.rank != weight.rank or not equal(x.shape[1], weight.shape[1] * groups):
        raise CheckError(f"{node.op} does not take {x.shape} with {weight.shape}")
    listed = (sizes_at(node, name) for name in ("stride", "padding", "dilation"))
    sizes = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, pad, dilation in zip(
            x.shape[2:], weight.shape[2:], *listed, strict=True
        )
    ]
    if any(isinstance(size, int) and size <= 0 for size in sizes):
        raise CheckError("the kernel is larger than what it slides over")
    return (x.shape[0], weight.shape[0], *sizes)


def _flash_attention(node: Node) -> tuple[Type, ...]:
    """The result lies as [batch, rows, heads, features]; sums of halves are f32."""
    query, value = tensor_at(node, 0), tensor_at(node, 2)
    batch, heads, rows, width = (*query.shape[:3], value.shape[-1])
    strides = (rows * heads * width, width, heads * width, 1)
    wide = torch.promote_types(query.dtype, torch.float32)
    sums = TensorType(wide, (batch, heads, rows), (rows * heads, 1, heads), query.device)
    return (*strided(query, (batch, heads, rows, width), strides), sums)


def _flash_attention_backward(node: Node) -> tuple[Type, ...]:
    """Gradients lie as [batch, rows, heads, features]."""
    found: list[Type] = []
    for place in (1, 2, 3):
        x = tensor_at(node, place)
        _, heads, rows, width = x.shape
        found += strided(x, x.shape, (rows * heads * width, width, heads * width, 1))
    return tuple(found)


def _packed(node: Node) -> tuple[Type, ...]:
    """Of a library's own layout only the sizes are told."""
    return fresh(tensor_at(node, 0), tensor_at(node, 0).shape)


CONTRACTIONS: Final[dict[str, Rule]] = {
    **dict.fromkeys((TO_MKLDNN, PACK_CONVOLUTION, PACK_LINEAR), _packed),
    "aten.mm.default": partial(_product, left=0, batched=False),
    "aten.bmm.default": partial(_product, left=0, batched=True),
    "aten.addmm.default": partial(_product, left=1, batched=False),
    "aten.baddbmm.default": partial(_product, left=1, batched=True),
    "aten.linear.default": _linear,
    "aten.convolution.default": _convolution,
    LINEAR: _linear,
    LINEAR_BINARY: partial(_linear, weight_at=2),
    CONVOLUTION: partial(_onednn_convolution, weight=1),
    CONVOLUTION_BINARY: partial(_onednn_convolution, weight=2),
    "aten._scaled_dot_product_flash_attention_for_cpu.default": _flash_attention,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": _flash_attention_backward,
}
