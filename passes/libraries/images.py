"""Convolutions of images, how they lie, and those that are matrix products of pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import torch

from rewright.ir import Node, TensorType, Type, Value, hint
from rewright.ir.alone import at_hints
from rewright.ir.ask_torch import asked, without_data
from rewright.ir.infer_args import tensor_at
from rewright.ir.types import channels_last_strides, is_channels_last
from rewright.passes.libraries.products import Product

CONVOLUTION: Final = "aten.convolution.default"
# Which arguments of a convolution are images.
IMAGES: Final[Mapping[str, tuple[int, ...]]] = {
    CONVOLUTION: (0,),
    "aten.convolution_backward.default": (0, 1),
}


def images_of(node: Node) -> tuple[TensorType, ...]:
    """What a convolution slides over; nothing where its layout is not ours to choose."""
    places = IMAGES.get(node.op.name, ())
    values = [v for v in (node.args[p] for p in places) if isinstance(v, Value)]
    if not values or node.arg("transposed") or not all(is_image(v.type) for v in values):
        return ()
    if any(v.tensor.dtype == torch.float64 for v in values):
        return ()
    return tuple(v.tensor for v in values)


def is_image(type: Type) -> bool:
    """True for `[N, C, H, W]` on the CPU."""
    if not isinstance(type, TensorType) or len(type.shape) != 4:
        return False
    return 0 not in [hint(s) for s in type.shape] and type.device.type == "cpu"


def laid(node: Node, *, channels_last: bool) -> Node:
    """A convolution at its hints, with its images in one of the two layouts."""
    node = at_hints(node)
    moved = {}
    for place in IMAGES[node.op.name]:
        image = node.args[place]
        assert isinstance(image, Value)
        shape = image.tensor.shape
        strides = channels_last_strides(shape) if channels_last else None
        moved[image] = Value(image.name, dataclasses.replace(image.tensor, strides=strides))
    node = node.replace(moved)
    with without_data():
        returned = asked(node, {})
    results = []
    for value, given in zip(node.results, returned, strict=True):
        type = value.type
        if isinstance(type, TensorType) and isinstance(given, torch.Tensor):
            type = dataclasses.replace(type, strides=tuple(given.stride()))
        results.append(Value(value.name, type))
    return dataclasses.replace(node, results=tuple(results))


def product_of_pixels(node: Node) -> Product | None:
    """A convolution whose filters see one pixel, channels last, as the product that it then is:
    `[pixels, channels] x [channels, filters]`; sizes at their hints."""
    if node.op.name != CONVOLUTION or not images_of(node):
        return None
    image, weight = (tensor_at(node, place) for place in (0, 1))
    sees_one = all(hint(s) == 1 for s in weight.shape[2:])
    steps = (node.arg("stride"), node.arg("padding"), node.arg("groups"))
    if not sees_one or steps != ((1, 1), (0, 0), 1) or image.dtype != torch.float32:
        return None
    if not is_channels_last(image) or not is_channels_last(weight):
        return None
    batch, channels, height, width = map(hint, image.shape)
    biased = node.arg("bias") is not None
    filters = hint(weight.shape[0])
    return Product(batch * height * width, channels, filters, False, True, biased)
