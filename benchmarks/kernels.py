"""Fused pointwise, softmax and layer-norm functions through `torch.compile`, per backend."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.options import add_choice, parse
from benchmarks.report import fail
from benchmarks.steady import Prepared, WrongAnswer, options, run

SHAPES = {
    "512x3072": (512, 3072),
    "4096x512": (4096, 512),
    "8x12x256x256": (8, 12, 256, 256),
    "1x65536": (1, 65536),
}


def pointwise(x: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """`x, y [..., n], bias [n] -> [..., n]`."""
    return F.gelu(x + bias) * y


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x [..., n], weight and bias [n] -> [..., n]`, normalized over the last dimension."""
    return F.layer_norm(x, weight.shape, weight, bias)


def prepare_pointwise(shape: Sequence[int]) -> Prepared:
    return pointwise, (torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape))


def prepare_softmax(shape: Sequence[int]) -> Prepared:
    return softmax, (torch.randn(shape),)


def prepare_layer_norm(shape: Sequence[int]) -> Prepared:
    return layer_norm, (torch.randn(shape), torch.randn(shape[-1]), torch.randn(shape[-1]))


FUNCTIONS: dict[str, Callable[[Sequence[int]], Prepared]] = {
    "pointwise": prepare_pointwise,
    "softmax": prepare_softmax,
    "layer_norm": prepare_layer_norm,
}


def arguments() -> argparse.Namespace:
    asked = options("kernels", "Time fused kernels, in turn, as a caller sees them.")
    add_choice(asked, "functions", list(FUNCTIONS), default=list(FUNCTIONS))
    add_choice(asked, "shapes", list(SHAPES), default=list(SHAPES))
    return parse(asked)


def main() -> int:
    asked = arguments()
    torch.manual_seed(0)
    cases = {
        f"{function} {shape}": partial(FUNCTIONS[function], SHAPES[shape])
        for function in asked.functions
        for shape in asked.shapes
    }
    try:
        run("kernels", cases, asked)
    except WrongAnswer as wrong:
        return fail(str(wrong))
    return 0


if __name__ == "__main__":
    sys.exit(main())
