"""The kernels of quantized.h as functions over tensors, and what they should give."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from rewright.codegen.cpp import Library, build

PANEL: Final = 16
TYPES: Final = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
MIXED: Final = (("bf16", "f32"), ("f32", "f16"))
PAIRS: Final = (*((t, t) for t in TYPES), *MIXED)

# For a CPU that lacks it: the instruction that adds up products of unsigned and signed bytes.
DOT_OF_BYTES: Final = """\
#if defined __AVX2__ && defined __FMA__ && !defined __AVX512F__ && !defined __AVXVNNI__
#include "simd_isa.h"
#define __AVXVNNI__ 1
#define __builtin_ia32_vpdpbusd_v8si emulated
static rw::I emulated(rw::I sum, rw::I a, rw::I b) {
  for (int i = 0; i < 8; ++i)
    for (int j = 0; j < 32; j += 8) sum[i] += (a[i] >> j & 255) * ((b[i] >> j & 255 ^ 128) - 128);
  return sum;
}
#endif
"""
# Tiles for any CPU, which hold rubbish until they are given something.
TILES: Final = """\
#include "simd.h"
#define RW_TILES 1
namespace rw {
namespace quantized {
union Tile {
  i8 bytes[16][64];
  i32 sums[16][16];
};
static thread_local Tile tiles[8];
inline bool has_tiles() { return true; }
struct Tiles {
  Tiles() { __builtin_memset(tiles, 85, sizeof tiles); }
  ~Tiles() { __builtin_memset(tiles, 85, sizeof tiles); }
};
template <int T> void zero_tile() { __builtin_memset(&tiles[T], 0, sizeof(Tile)); }
template <int T> void load_tile(const void* from, i64 step) {
  for (int r = 0; r < 16; ++r)
    __builtin_memcpy(tiles[T].bytes[r], (const char*)from + r * step, 64);
}
template <int T> void store_tile(void* to, i64 step) {
  for (int r = 0; r < 16; ++r) __builtin_memcpy((char*)to + r * step, tiles[T].bytes[r], 64);
}
template <int S, int A, int B> void dot_tiles() {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n)
      for (int k = 0; k < 64; ++k)
        tiles[S].sums[m][n] += tiles[A].bytes[m][k] * tiles[B].bytes[k / 4][4 * n + k % 4];
}
}  // namespace quantized
}  // namespace rw
"""
NO_TILES: Final = "#undef __AMX_INT8__\n"
KERNELS: Final = """\
KERNEL void int8_{x}_{y}(void* const* p, const i64* n) {{
  linear_int8(n[0], n[1], n[2], (const {x}*)p[0], n[3], (const i8*)p[1], (const f32*)p[2],
              (const i32*)p[3], (const f32*)p[4], ({y}*)p[5], n[4]);
}}

KERNEL void weight_{x}_{y}(void* const* p, const i64* n) {{
  linear_int8_weight(n[0], n[1], n[2], (const {x}*)p[0], n[3], (const i8*)p[1],
                     (const f32*)p[2], (const f32*)p[3], ({y}*)p[4], n[4]);
}}

KERNEL void int4_{x}_{y}(void* const* p, const i64* n) {{
  linear_int4(n[0], n[1], n[2], n[5], (const {x}*)p[0], n[3], (const u8*)p[1],
              (const f32*)p[2], (const f32*)p[3], (const f32*)p[4], ({y}*)p[5], n[4]);
}}
"""


def source(pairs: tuple[tuple[str, str], ...] = PAIRS) -> str:
    """A unit with the three kernels for types of x and y, as `emit` would put it."""
    kernels = "\n".join(KERNELS.format(x=x, y=y) for x, y in pairs)
    return f'#include "quantized.h"\n\nusing namespace rw;\n\n{kernels}'


# --- weights --------------------------------------------------------------------------------------


def packed(w: Tensor) -> Tensor:
    """int8 weights [n, k] as [n / 16, k / 4, 16, 4], padded with zeros."""
    n, k = w.shape
    quads = pad(w, (0, -k % 4, 0, -n % PANEL)).view(-(-n // PANEL), PANEL, -(-k // 4), 4)
    return quads.permute(0, 2, 1, 3).contiguous()


def packed_nibbles(w: Tensor) -> Tensor:
    """int4 weights [n, k] as bytes [n / 16, k / 8, 16, 4]: k to k + 3 low, k + 4 to k + 7 high."""
    n, k = w.shape
    halves = pad(w, (0, 0, 0, -n % PANEL)).add(8).to(torch.uint8)
    halves = halves.view(-(-n // PANEL), PANEL, k // 8, 2, 4).permute(3, 0, 2, 1, 4)
    return (halves[0] | halves[1] << 4).contiguous()


def packed_groups(scales: Tensor) -> Tensor:
    """[n, groups] as [n / 16, groups, 16], padded with zeros."""
    n, groups = scales.shape
    return pad(scales, (0, 0, 0, -n % PANEL)).view(-1, PANEL, groups).permute(0, 2, 1).contiguous()


@dataclass(frozen=True)
class Linear:
    """A layer: `weight` are integers [n, k], `scales` [n] or [n, groups], and so `zeros`."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None = None
    zeros: Tensor | None = None

    @property
    def group(self) -> int:
        return self.weight.shape[1] // self.scales.shape[-1]

    def floats(self) -> Tensor:
        """The weights of groups, in f64."""
        by_group = self.weight.double().unflatten(1, (-1, self.group))
        if self.zeros is not None:
            by_group = by_group - self.zeros.double().unsqueeze(2)
        weights: Tensor = by_group * self.scales.double().unsqueeze(2)
        return weights.flatten(1)


# --- what should come out -------------------------------------------------------------------------


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x as integers (int64), and their units [m, 1]."""
    x = x.float()
    most = x.abs().amax(1, keepdim=True)
    full = torch.full((), 127.0)  # 127 / most would be most.reciprocal() * 127
    per = torch.where(most > 0, full / most, torch.zeros(()))
    q = (x * per).round().clamp(-127, 127)
    return torch.where(q.isnan(), -127, q).long(), most / 127


def exact_int8(x: Tensor, layer: Linear, out: torch.dtype) -> Tensor:
    """What linear_int8 gives, to the last bit."""
    q, unit = quantized(x)
    y = (q @ layer.weight.long().t()).float() * (unit * layer.scales)
    return (y + (0 if layer.bias is None else layer.bias)).to(out)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The layer in f64, and of what size its terms are."""
    x, weight = x.double(), weight.double()
    y, size = x @ weight.t(), x.abs() @ weight.abs().t()
    if bias is None:
        return y, size
    return y + bias.double(), size + bias.double().abs()


# --- calls ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernels:
    """The kernels, built for one instruction set, after a prelude that emulates some of it or
    takes some away."""

    march: str
    prelude: str = ""

    def int8(self, x: Tensor, layer: Linear, out: torch.dtype) -> Tensor:
        sums = layer.weight.sum(1, dtype=torch.int32)
        weights = (packed(layer.weight), layer.scales, sums, layer.bias)
        return self._call("int8", x, weights, layer, out)

    def weight(self, x: Tensor, layer: Linear, out: torch.dtype) -> Tensor:
        weights = (packed(layer.weight), layer.scales, layer.bias)
        return self._call("weight", x, weights, layer, out)

    def int4(self, x: Tensor, layer: Linear, out: torch.dtype) -> Tensor:
        zeros = None if layer.zeros is None else packed_groups(layer.zeros)
        scales = packed_groups(layer.scales)
        weights = (packed_nibbles(layer.weight), scales, zeros, layer.bias)
        return self._call("int4", x, weights, layer, out)

    def _call(
        self,
        kernel: str,
        x: Tensor,
        weights: tuple[Tensor | None, ...],
        layer: Linear,
        out: torch.dtype,
    ) -> Tensor:
        """y, which lies in wider rows. Checks that nothing else is written."""
        (rows, depth), columns = x.shape, layer.weight.shape[0]
        memory = torch.full((rows + 2, columns + 5), 77.0, dtype=out)
        y = memory[1:-1, 2 : 2 + columns]
        pointers = [None if t is None else t.data_ptr() for t in (x, *weights, y)]
        table = (ctypes.c_void_p * len(pointers))(*pointers)
        sizes = (rows, columns, depth, x.stride(0), memory.stride(0), layer.group)
        names = {dtype: name for name, dtype in TYPES.items()}
        function = library(self.march, self.prelude).function(
            f"{kernel}_{names[x.dtype]}_{names[out]}"
        )
        function(table, (ctypes.c_int64 * len(sizes))(*sizes))
        result = y.clone()
        y.fill_(77.0)
        assert (memory == 77.0).all(), "a kernel wrote outside"
        return result


@cache
def library(march: str, prelude: str) -> Library:
    if prelude:
        return build(f"{prelude}\n{source((('f32', 'f32'),))}", march=march)
    return build(source(), march=march)
