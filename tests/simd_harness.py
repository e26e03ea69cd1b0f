"""Every operation of simd.h as a function over arrays, built for one instruction set."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import rewright.codegen.cpp
from rewright.codegen.cpp import toolchain

Array = npt.NDArray[Any]

HEADERS: Final = Path(rewright.codegen.cpp.__file__).parent
LANES: Final = 16

FLOATS: Final = ("f32", "f64")
INTEGERS: Final = ("i32", "i64")
LANE: Final = {  # what lanes hold, by what memory holds
    **dict.fromkeys(("f32", "f16", "bf16", "f8e4m3fn", "f8e5m2"), "f32"),
    **dict.fromkeys(("i8", "u8", "i16", "u16", "i32"), "i32"),
    **dict.fromkeys(("i64", "u32", "u64"), "i64"),
    "f64": "f64",
    "bool": "bool",
}
NUMPY: Final[Mapping[str, npt.DTypeLike]] = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "bf16": np.uint16,
    "f8e4m3fn": np.uint8,
    "f8e5m2": np.uint8,
    "bool": np.bool_,
    "i8": np.int8,
    "i16": np.int16,
    "i32": np.int32,
    "i64": np.int64,
    "u8": np.uint8,
    "u16": np.uint16,
    "u32": np.uint32,
    "u64": np.uint64,
}
TORCH: Final[Mapping[str, torch.dtype]] = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3fn": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
    "bool": torch.bool,
    "i8": torch.int8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
    "u16": torch.uint16,
    "u32": torch.uint32,
    "u64": torch.uint64,
}
SMALL_FLOATS: Final = ("f16", "bf16", "f8e4m3fn", "f8e5m2")

OURS: Final = (
    *("exp", "exp2", "expm1", "sigmoid", "log", "log2", "log10", "log1p"),
    *("tanh", "erf", "erfc", "sin", "cos"),
)
LIBM: Final = (
    *("tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    *("lgamma", "erfinv"),
)
EXACT: Final = (
    *("neg", "abs", "sign", "sqrt", "rsqrt", "reciprocal", "floor", "ceil", "round", "trunc"),
)
EXACT_BINARY: Final = (
    *("add", "sub", "mul", "div", "copysign", "maximum", "minimum", "fmax", "fmin"),
    *("fmod", "remainder", "div_floor", "div_trunc", "nextafter"),
)
CLOSE_BINARY: Final = ("pow", "atan2", "hypot")
WITH_TAIL: Final = (*CLOSE_BINARY, "remainder", "div_floor")
INTEGER: Final = ("neg", "abs", "sign", "bitwise_not")
INTEGER_BINARY: Final = (
    *("add", "sub", "mul", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"),
    *("shift_left", "shift_right", "pow"),
)
DIVISIONS: Final = ("div_trunc", "div_floor", "fmod", "remainder")
CLASSES: Final = ("isnan", "isinf", "isfinite")
COMPARISONS: Final = ("eq", "ne", "lt", "le", "gt", "ge")
LOGICAL: Final = ("logical_and", "logical_or", "logical_xor")
REDUCTIONS: Final = ("hsum", "hprod", "hmax", "hmin")

HARNESS: Final = r"""
#include "simd.h"
#pragma GCC visibility push(default)
using namespace rw;
#define UNARY(id, A, O, expr) extern "C" void id(const A* p, O* to, i64 n) { \
    for (i64 i = 0; i < n; i += W) { auto x = load(p + i); store(to + i, expr); } }
#define BINARY(id, A, O, expr) extern "C" void id(const A* p, const A* q, O* to, i64 n) { \
    for (i64 i = 0; i < n; i += W) { auto x = load(p + i), y = load(q + i); store(to + i, expr); } }
#define UNARY_WITH_TAIL(id, T, expr) extern "C" void id(const T* p, T* to, i64 n) { \
    i64 i = 0; \
    for (; i + W <= n; i += W) { auto x = load(p + i); store(to + i, expr); } \
    int rest = n - i; \
    if (rest) { auto x = load_part(p + i, rest); store_part(to + i, expr, rest); } }
#define BINARY_WITH_TAIL(id, T, expr) \
    extern "C" void id(const T* p, const T* q, T* to, i64 n) { \
    i64 i = 0; \
    for (; i + W <= n; i += W) { auto x = load(p + i), y = load(q + i); store(to + i, expr); } \
    int rest = n - i; \
    if (rest) { \
        auto x = load_part(p + i, rest), y = load_part(q + i, rest); \
        store_part(to + i, expr, rest); } }
#define MEMORY(T, Lane) UNARY(copy_##T, T, T, x) UNARY(load_##T, T, Lane, x) \
    UNARY(store_##T, Lane, T, x) UNARY(rounded_##T, Lane, Lane, round_to<T>(x)) \
    extern "C" void part_##T(const T* p, Lane* lanes, T* to, i64 n) { \
        auto x = load_part(p, n); store(lanes, x); store_part(to, x, n); } \
    extern "C" void gather_##T(const T* p, const i64* at, T* to, i64 n) { \
        store(to, gather(p, load(at), first_bits(n))); } \
    extern "C" void scatter_##T(const T* p, const i64* at, T* to, i64 n) { \
        scatter(to, load(at), load(p), first_bits(n)); } \
    extern "C" void strided_##T(const T* p, const i64* stride, T* to, i64 n) { \
        store_strided(to, load_strided(p, *stride, n), *stride, n); }
#define LANES(T) \
    extern "C" void select_##T(const bool* m, const T* p, const T* q, T* to) { \
        store(to, select(load(m), load(p), load(q))); } \
    extern "C" void iota_##T(const T* p, T* to, i64) { store(to, iota(*p)); } \
    extern "C" void lane_##T(const T* p, T* to, i64 i) { *to = lane(load(p), i); }
#define REDUCTION(name, T) \
    extern "C" void name##_##T(const T* p, T* to, i64) { *to = name(load(p)); }
extern "C" void masks(const bool* p, i64* to, i64 n) {
    mask m = load(p);
    to[0] = hany(m); to[1] = hall(m); to[2] = bits(m); to[3] = bits(first(n)); }
extern "C" void select_bool(const bool* m, const bool* p, const bool* q, bool* to) {
    store(to, select(load(m), load(p), load(q))); }
extern "C" void constants(f32* to) {
    store(to, sigmoid(splat(1.5f))); store(to + 16, tan(splat(1.5f)));
    store(to + 32, fma(splat(3.0f), splat(5.0f), splat(-0.5f))); }
"""


def source() -> str:
    """The harness with one line for every operation and type."""
    lines = [f"MEMORY({t}, {lane})" for t, lane in LANE.items()]
    lines += [f"LANES({t})" for t in (*FLOATS, *INTEGERS)]
    lines += [f"UNARY_WITH_TAIL({f}_f32, f32, {f}(x))" for f in (*OURS, *LIBM)]
    lines += [f"UNARY({f}_f64, f64, f64, {f}(x))" for f in (*OURS, *LIBM)]
    lines += [f"BINARY_WITH_TAIL({f}_f32, f32, {f}(x, y))" for f in WITH_TAIL]
    lines += [f"BINARY({f}_f64, f64, f64, {f}(x, y))" for f in WITH_TAIL]
    lines += [f"BINARY({f}_bool, bool, bool, {f}(x, y))" for f in LOGICAL]
    lines += ["UNARY(logical_not_bool, bool, bool, logical_not(x))"]
    for types, unary, binary in (
        (FLOATS, EXACT, [f for f in EXACT_BINARY if f not in WITH_TAIL]),
        (INTEGERS, INTEGER, [*INTEGER_BINARY, *DIVISIONS]),
    ):
        lines += [f"UNARY({f}_{t}, {t}, {t}, {f}(x))" for t in types for f in unary]
        lines += [f"BINARY({f}_{t}, {t}, {t}, {f}(x, y))" for t in types for f in binary]
        lines += [f"REDUCTION({f}, {t})" for t in types for f in REDUCTIONS]
    lines += [f"UNARY({f}_{t}, {t}, bool, {f}(x))" for t in FLOATS for f in CLASSES]
    for t in (*FLOATS, *INTEGERS, "bool"):
        lines += [f"BINARY({f}_{t}, {t}, bool, {f}(x, y))" for f in COMPARISONS]
        lines += [f"UNARY(cast_{t}_{to}, {t}, {to}, cast<{to}>(x))" for to in LANE]
    return HARNESS + "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Library:
    """The harness, built for one instruction set."""

    march: str
    code: ctypes.CDLL

    def call(self, name: str, *arrays: Array, n: int | None = None) -> None:
        numbers = () if n is None else (ctypes.c_int64(n),)
        getattr(self.code, name)(*(ctypes.c_void_p(a.ctypes.data) for a in arrays), *numbers)

    def over(self, name: str, out: str, *arrays: Array) -> Array:
        """The operation on every element of arrays of any length."""
        n = arrays[0].size
        result = np.zeros(n + LANES, NUMPY[out])
        self.call(name, *(np.pad(a, (0, LANES)) for a in arrays), result, n=n)
        return result[:n]


def has(march: str) -> bool:
    """Does this CPU run code for `march`?"""
    if march == "native":
        return True
    if platform.machine() != "x86_64":
        return False
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return march == "x86-64" or {"avx2", "fma", "f16c", "bmi2"} <= set(cpu.split())


def built(march: str, folder: Path) -> Library:
    """The harness compiled in `folder`."""
    tools = toolchain(march)
    (folder / "simd.cpp").write_text(source())
    arguments = ("-shared", "-Wall", "-Werror", f"-I{HEADERS}", "simd.cpp", "-o", "simd.so")
    subprocess.run([tools.compiler, *tools.flags, *arguments], cwd=folder, check=True)
    return Library(march, ctypes.CDLL(str(folder / "simd.so")))


# --- arrays of a storage type ---------------------------------------------------------------------


def as_torch(a: Array, type: str) -> Tensor:
    return torch.from_numpy(a.copy()).view(TORCH[type])


def as_numpy(t: Tensor, type: str) -> Array:
    if type in ("bf16", "f8e4m3fn", "f8e5m2"):
        t = t.view(torch.uint16 if type == "bf16" else torch.uint8)
    return t.numpy()


def random_bits(type: str, count: int, seed: int = 0) -> Array:
    dtype = np.dtype(NUMPY[type])
    raw = np.random.default_rng(seed).bytes(count * dtype.itemsize)
    return np.frombuffer(raw, np.uint8) & 1 == 1 if type == "bool" else np.frombuffer(raw, dtype)
