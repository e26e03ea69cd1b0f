"""Kernels along long rows. As a script (under TRITON_INTERPRET=1) it runs them interpreted and
saves what came out."""

from __future__ import annotations

import math
import sys
import zlib
from typing import Final

import torch
from torch import Tensor

from rewright.ir import Graph
from rewright.ir.loops import lower
from rewright.ir.parse import parse
from triton_cases import random_tensor, run

ROWS: Final = 3

# One whole block, the first with a mask, and steps (50,257 is GPT-2's vocabulary).
LENGTHS: Final = (20001, 32768, 50257)

# {T} stands for a dtype and rows, {N} for columns.
TEXTS: Final = {
    "softmax": """(%x: {T}, {N}]) {
  %s = aten._softmax.default(%x, -1, false) : {T}, {N}]
  return %s
}""",
    "log_softmax": """(%x: {T}, {N}]) {
  %s = aten._log_softmax.default(%x, -1, false) : {T}, {N}]
  return %s
}""",
    "layer_norm": """(%x: {T}, {N}], %y: {T}, {N}], %w: {D}[{N}], %b: {D}[{N}]) {
  %s = aten.add.Tensor(%x, %y) : {T}, {N}]
  %l, %m, %r = aten.native_layer_norm.default(%s, [{N}], %w, %b, 1e-05)
      : {T}, {N}], {T}, 1], {T}, 1]
  return %s, %l, %m, %r
}""",
    "rms_norm": """(%x: {T}, {N}], %w: f32[{N}]) {
  %f = aten._to_copy.default(%x, dtype=f32) : f32[{R}, {N}]
  %q = aten.pow.Tensor_Scalar(%f, 2) : f32[{R}, {N}]
  %m = aten.mean.dim(%q, [-1], true) : f32[{R}, 1]
  %e = aten.add.Tensor(%m, 1e-06) : f32[{R}, 1]
  %r = aten.rsqrt.default(%e) : f32[{R}, 1]
  %n = aten.mul.Tensor(%f, %r) : f32[{R}, {N}]
  %o = aten.mul.Tensor(%w, %n) : f32[{R}, {N}]
  return %o
}""",
    "softmax_backward": """(%g: {T}, {N}], %x: {T}, {N}]) {
  %y = aten._softmax.default(%x, -1, false) : {T}, {N}]
  %r = aten._softmax_backward_data.default(%g, %y, -1, {D}) : {T}, {N}]
  return %r
}""",
    "log_softmax_backward": """(%g: {T}, {N}], %y: {T}, {N}]) {
  %r = aten._log_softmax_backward_data.default(%g, %y, -1, {D}) : {T}, {N}]
  return %r
}""",
    "rms_norm_backward": """(%g: {T}, {N}], %x: {T}, {N}], %w: {D}[{N}]) {
  %f = aten._to_copy.default(%x, dtype=f32) : f32[{R}, {N}]
  %q = aten.pow.Tensor_Scalar(%f, 2) : f32[{R}, {N}]
  %m = aten.mean.dim(%q, [-1], true) : f32[{R}, 1]
  %e = aten.add.Tensor(%m, 1e-06) : f32[{R}, 1]
  %r = aten.rsqrt.default(%e) : f32[{R}, 1]
  %n = aten.mul.Tensor(%f, %r) : f32[{R}, {N}]
  %h = aten._to_copy.default(%n, dtype={D}) : {T}, {N}]
  %y = aten.mul.Tensor(%g, %h) : {T}, {N}]
  %a = aten.mul.Tensor(%g, %w) : {T}, {N}]
  %b = aten._to_copy.default(%a, dtype=f32) : f32[{R}, {N}]
  %c = aten.mul.Tensor(%b, %r) : f32[{R}, {N}]
  %d = aten.mul.Tensor(%b, %f) : f32[{R}, {N}]
  %t = aten.sum.dim_IntList(%d, [1], true) : f32[{R}, 1]
  %i = aten.mul.Scalar(%t, -0.5) : f32[{R}, 1]
  %j = aten.pow.Tensor_Scalar(%r, 3) : f32[{R}, 1]
  %p = aten.mul.Tensor(%i, %j) : f32[{R}, 1]
  %l = aten.div.Scalar(%p, {N}) : f32[{R}, 1]
  %o = aten.mul.Scalar(%f, 2.0) : f32[{R}, {N}]
  %u = aten.mul.Tensor(%l, %o) : f32[{R}, {N}]
  %v = aten.add.Tensor(%c, %u) : f32[{R}, {N}]
  %z = aten._to_copy.default(%v, dtype={D}) : {T}, {N}]
  return %y, %z
}""",
    "cross_entropy_backward": """(%x: {T}, {N}], %t: i64[{R}, 1], %v: {T}, 1]) {
  %i = aten.arange.default({N}, device=device("cpu"), pin_memory=false) : i64[{N}]
  %e = aten.eq.Tensor(%i, %t) : bool[{R}, {N}]
  %k = aten._to_copy.default(%e, dtype={D}) : {T}, {N}]
  %m = aten.mul.Tensor(%k, %v) : {T}, {N}]
  %y = aten._log_softmax.default(%x, -1, false) : {T}, {N}]
  %r = aten._log_softmax_backward_data.default(%m, %y, -1, {D}) : {T}, {N}]
  return %r
}""",
}
OF_EXPONENTIALS: Final = ("softmax", "log_softmax")
SPECIAL_LENGTHS: Final = (20001, 50257)


def graph_of(name: str, dtype: str, length: int, rows: int = ROWS) -> Graph:
    text = TEXTS[name].replace("{T}", f"{dtype}[{{R}}").replace("{D}", dtype)
    return parse(f"graph g{text.replace('{R}', str(rows)).replace('{N}', str(length))}")


def inputs_of(graph: Graph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(zlib.crc32(str(graph).encode()))
    return [random_tensor(i.value.tensor, {}, generator, False) for i in graph.inputs]


def special_input(length: int) -> Tensor:
    """Rows of -inf alone, with a NaN, with an infinity, with -inf in many places and in all but
    the last place, and a rising row whose largest element is always the next."""
    x = torch.randn(6, length, generator=torch.Generator().manual_seed(1))
    x[0], x[1, 777], x[2, length - 3] = -math.inf, math.nan, math.inf
    x[3, : length // 2], x[3, ::3], x[4, :-1] = -math.inf, -math.inf, -math.inf
    x[5] = torch.arange(length) * 0.01
    return x


def main(file: str) -> None:
    ordinary = {}
    for name in TEXTS:
        for length in LENGTHS:
            graph = graph_of(name, "bf16" if length % 2 else "f32", length)
            ordinary[name, length] = run(lower(graph, "kernel"), (), (), inputs_of(graph))
    special = {}
    for name in OF_EXPONENTIALS:
        for length in SPECIAL_LENGTHS:
            nest = lower(graph_of(name, "f32", length, rows=6), "kernel")
            special[name, length] = run(nest, (), (), [special_input(length)])
    torch.save({"ordinary": ordinary, "special": special}, file)


if __name__ == "__main__":
    main(sys.argv[1])
