"""simd.h on every instruction set this CPU has: error bounds, exact results, memory, lanes."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import rewright.codegen.cpp
from rewright.codegen.cpp import toolchain

pytestmark = pytest.mark.cpu

Array = npt.NDArray[Any]

HEADERS: Final = Path(rewright.codegen.cpp.__file__).parent
LANES: Final = 16
INF, NAN = float("inf"), float("nan")

# --- the harness: each operation as a function over arrays ---------------------------------------

FLOATS: Final = ("f32", "f64")
INTEGERS: Final = ("i32", "i64")
LANE: Final = {  # what lanes hold, by what memory holds
    **dict.fromkeys(("f32", "f16", "bf16", "f8e4m3fn", "f8e5m2"), "f32"),
    **dict.fromkeys(("i8", "u8", "i16", "u16", "i32"), "i32"),
    **dict.fromkeys(("i64", "u32", "u64"), "i64"),
    **{"f64": "f64", "bool": "bool"},
}
NUMPY: Final[Mapping[str, npt.DTypeLike]] = {
    **{"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": np.uint16},
    **{"f8e4m3fn": np.uint8, "f8e5m2": np.uint8, "bool": np.bool_},
    **{"i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64},
    **{"u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64},
}
TORCH: Final = {
    **{"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16},
    **{"f8e4m3fn": torch.float8_e4m3fn, "f8e5m2": torch.float8_e5m2, "bool": torch.bool},
    **{"i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64},
    **{"u8": torch.uint8, "u16": torch.uint16, "u32": torch.uint32, "u64": torch.uint64},
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
INTEGER: Final = ("neg", "abs", "sign", "bitwise_not")
INTEGER_BINARY: Final = (
    *("add", "sub", "mul", "maximum", "minimum", "bitwise_and", "bitwise_or", "bitwise_xor"),
    *("shift_left", "shift_right", "pow"),
)
DIVISIONS: Final = ("div_trunc", "div_floor", "fmod", "remainder")
COMPARISONS: Final = ("eq", "ne", "lt", "le", "gt", "ge")
LOGICAL: Final = ("logical_and", "logical_or", "logical_xor")
REDUCTIONS: Final = ("hsum", "hprod", "hmax", "hmin")

HARNESS: Final = r"""
#include "simd.h"
#pragma GCC visibility push(default)
using namespace rw;
#define UNARY(id, A, O, expr) extern "C" void id(const A* p, O* to, i64 n) { \
    i64 i = 0; \
    for (; i + W <= n; i += W) { auto x = load(p + i); store(to + i, expr); } \
    int rest = n - i; \
    if (rest) { auto x = load_part(p + i, rest); store_part(to + i, expr, rest); } }
#define BINARY(id, A, O, expr) extern "C" void id(const A* p, const A* q, O* to, i64 n) { \
    i64 i = 0; \
    for (; i + W <= n; i += W) { auto x = load(p + i), y = load(q + i); store(to + i, expr); } \
    int rest = n - i; \
    if (rest) { \
        auto x = load_part(p + i, rest), y = load_part(q + i, rest); \
        store_part(to + i, expr, rest); } }
#define MEMORY(T, Lane) UNARY(copy_##T, T, T, x) UNARY(load_##T, T, Lane, x) \
    UNARY(store_##T, Lane, T, x) UNARY(round_##T, Lane, Lane, round_to<T>(x)) \
    extern "C" void part_##T(const T* p, Lane* lanes, T* to, i64 n) { \
        store(lanes, load_part(p, n)); store_part(to, load_part(p, n), n); } \
    extern "C" void gather_##T(const T* p, const i64* at, T* to, i64 n) { \
        store(to, n < W ? gather(p, load(at), first_bits(n)) : gather(p, load(at))); } \
    extern "C" void scatter_##T(const T* p, const i64* at, T* to, i64 n) { \
        n < W ? scatter(to, load(at), load(p), first_bits(n)) : scatter(to, load(at), load(p)); } \
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
    for t in FLOATS:
        lines += [f"UNARY({f}_{t}, {t}, {t}, {f}(x))" for f in (*OURS, *LIBM, *EXACT)]
        lines += [f"UNARY({f}_{t}, {t}, bool, {f}(x))" for f in ("isnan", "isinf", "isfinite")]
        binary = (*EXACT_BINARY, *CLOSE_BINARY)
        lines += [f"BINARY({f}_{t}, {t}, {t}, {f}(x, y))" for f in binary]
    for t in INTEGERS:
        lines += [f"UNARY({f}_{t}, {t}, {t}, {f}(x))" for f in INTEGER]
        binary = (*INTEGER_BINARY, *DIVISIONS)
        lines += [f"BINARY({f}_{t}, {t}, {t}, {f}(x, y))" for f in binary]
    for t in (*FLOATS, *INTEGERS, "bool"):
        lines += [f"BINARY({f}_{t}, {t}, bool, {f}(x, y))" for f in COMPARISONS]
        lines += [f"UNARY(cast_{t}_{to}, {t}, {to}, cast<{to}>(x))" for to in LANE]
    for t in (*FLOATS, *INTEGERS):
        lines += [f"REDUCTION({f}, {t})" for f in REDUCTIONS]
    lines += [f"BINARY({f}_bool, bool, bool, {f}(x, y))" for f in LOGICAL]
    lines += ["UNARY(logical_not_bool, bool, bool, logical_not(x))"]
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
        result = np.empty(arrays[0].shape, NUMPY[out])
        self.call(name, *(np.ascontiguousarray(a) for a in arrays), result, n=result.size)
        return result


BUILT: Final[dict[str, Library]] = {}


def has(march: str) -> bool:
    """Does this CPU run code for `march`?"""
    if march == "native":
        return True
    if platform.machine() != "x86_64":
        return False
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return march == "x86-64" or {"avx2", "fma", "f16c", "bmi2"} <= set(cpu.split())


@pytest.fixture(params=["native", "x86-64-v3", "x86-64"])
def simd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    march: str = request.param
    if not has(march):
        pytest.skip(f"this CPU does not run {march}")
    if march not in BUILT:
        folder, tools = tmp_path_factory.mktemp("simd"), toolchain(march)
        (folder / "simd.cpp").write_text(source())
        arguments = ("-shared", "-Wall", "-Werror", f"-I{HEADERS}", "simd.cpp", "-o", "simd.so")
        subprocess.run([tools.compiler, *tools.flags, *arguments], cwd=folder, check=True)
        BUILT[march] = Library(march, ctypes.CDLL(str(folder / "simd.so")))
    return BUILT[march]


# --- references ----------------------------------------------------------------------------------


def bounds() -> dict[str, tuple[float, float]]:
    """The table in simd_math.h: ulp with fma, ulp without."""
    rows = re.findall(r"^//   (\w+) +([\d.]+) +([\d.]+)$", text("simd_math.h"), re.MULTILINE)
    return {name: (float(fma), float(other)) for name, fma, other in rows}


def text(header: str) -> str:
    return (HEADERS / header).read_text()


def ulps(got: Array, want: Array) -> Array:
    """Distance of floats from their exact values, in units of the last place of these."""
    with np.errstate(over="ignore", invalid="ignore"):
        same = (got == want.astype(np.float32)) | (np.isnan(got) & np.isnan(want))
        exponent = np.frexp(np.abs(want))[1].astype(np.int64)
        unit = np.ldexp(1.0, np.maximum(exponent, -125) - 24)
        error = np.abs(got.astype(np.float64) - want) / unit
    return np.where(same, 0.0, np.where(np.isfinite(error), error, INF))


def bits_of(a: Array) -> Array:
    """For comparing bit by bit; all NaN alike."""
    if a.dtype.kind != "f":
        return a
    whole = a.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[a.dtype.itemsize])
    return np.where(np.isnan(a), np.uint64(0x7FF), whole)


def check_same(got: Array, want: Array, *inputs: Array) -> None:
    wrong = np.flatnonzero(bits_of(got) != bits_of(want))
    shown = [(*(a[i] for a in inputs), got[i], want[i]) for i in wrong[:5]]
    assert wrong.size == 0, f"{wrong.size} differ; inputs, got, want: {shown}"


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


SPECIAL: Final = (
    *(0.0, -0.0, INF, -INF, NAN, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0, -3.0, 8.0, 1e-45),
    *(-1e-45, 1.1754944e-38, -1e-39, 3.4028235e38, -3.4028235e38, 0.99999994, 1.0000001),
    *(16777216.0, -16777215.0, 8388607.5, -4194303.5, 1e10, -2147483648.0, 1e-10, 0.1, 100.0),
)
EDGES: Final = (
    *(88.72283, 88.72284, -87.33655, -103.97207, -103.97209, 127.99999, 128.0, -126.0, -149.0),
    *(-150.0, 131072.0, 131072.01, -131072.02, 1e6, 1e20, 9.0, 9.1, 3.9, 10.05, 10.06, -17.4),
)


def points() -> Array:
    """More than 2^18 floats: all sizes, the middle and the neighbourhood of 1 densely, the edges."""
    random = np.random.default_rng(1)
    parts = (
        random_bits("f32", 1 << 17),
        random.uniform(-110, 110, 1 << 16),
        random.normal(0, 2, 1 << 16),
        1 + random.normal(0, 0.1, 1 << 14),
        np.array([*SPECIAL, *EDGES]),
    )
    return np.concatenate([p.astype(np.float32) for p in parts])


def grid(type: str, count: int = 4000) -> tuple[Array, Array]:
    """Pairs of numbers: every special one with every other, and random ones."""
    special = np.array(SPECIAL, dtype=NUMPY[type])
    random = np.random.default_rng(2)
    a = np.concatenate([np.repeat(special, special.size), random.normal(0, 5, count)])
    b = np.concatenate([np.tile(special, special.size), random.normal(0, 5, count)])
    return a.astype(NUMPY[type]), b.astype(NUMPY[type])


# --- headers -------------------------------------------------------------------------------------


def test_headers_include_nothing_but_each_other() -> None:
    names = ("simd.h", "simd_isa.h", "simd_math.h")
    included = [re.findall(r"#include +(\S+)", text(name)) for name in names]
    assert included == [['"simd_isa.h"', '"simd_math.h"'], [], []]


def test_the_table_of_errors_names_our_functions() -> None:
    assert set(bounds()) == {*OURS, "pow"}


# --- functions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_error_of_our_functions(simd: Library, name: str) -> None:
    x = points()
    assert x.size > 200_000
    want = getattr(torch, name)(torch.from_numpy(x).double()).numpy()
    got = simd.over(f"{name}_f32", "f32", x)
    error = ulps(got, want)
    worst = int(error.argmax())
    limit = bounds()[name][simd.march == "x86-64"]
    assert error[worst] <= limit, f"{error[worst]} ulp at {x[worst]!r}: {got[worst]!r}"
    zero = np.flatnonzero((got == 0) & ~np.isnan(want))
    check_same(np.signbit(got[zero]), np.signbit(want[zero]), x[zero])


def test_error_of_pow(simd: Library) -> None:
    a, b = grid("f32", 1 << 18)
    with np.errstate(all="ignore"):
        a[-(1 << 17) :] = np.exp(np.random.default_rng(3).uniform(-80, 80, 1 << 17))
        b[-(1 << 17) :] = 88 * np.tanh(b[-(1 << 17) :]) / np.log(np.abs(a[-(1 << 17) :]))
    want = torch.pow(torch.from_numpy(a).double(), torch.from_numpy(b).double()).numpy()
    got = simd.over("pow_f32", "f32", a, b)
    error = ulps(got, want)
    worst = int(error.argmax())
    assert error[worst] <= bounds()["pow"][simd.march == "x86-64"], (a[worst], b[worst], got[worst])
    zero = np.flatnonzero((got == 0) & ~np.isnan(want))
    check_same(np.signbit(got[zero]), np.signbit(want[zero]), a[zero], b[zero])


@pytest.mark.parametrize("name", (*LIBM, *OURS))
@pytest.mark.parametrize("type", FLOATS)
def test_functions_agree_with_torch(simd: Library, name: str, type: str) -> None:
    x = np.concatenate([np.random.default_rng(4).normal(0, 2, 2000), SPECIAL, EDGES])
    x = x.astype(NUMPY[type])
    with np.errstate(over="ignore"):
        want = getattr(torch, name)(torch.from_numpy(x).double()).numpy().astype(NUMPY[type])
    got = simd.over(f"{name}_{type}", type, x)
    tolerance = {"f32": 1e-6, "f64": 1e-12}[type]
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-44)


REFERENCE: Final[Mapping[str, Callable[..., Tensor]]] = {
    "div_floor": torch.floor_divide,
    "div_trunc": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "shift_left": torch.bitwise_left_shift,
    "shift_right": torch.bitwise_right_shift,
    "rsqrt": lambda a: 1 / torch.sqrt(a),
    "isfinite": lambda a: ~(torch.isnan(a) | torch.isinf(a)),
}


def reference(name: str, *arrays: Array) -> Array:
    function = REFERENCE.get(name) or getattr(torch, name)
    return function(*(torch.from_numpy(a.copy()) for a in arrays)).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", (*EXACT, "isnan", "isinf", "isfinite"))
@pytest.mark.parametrize("type", FLOATS)
def test_exact_functions(simd: Library, name: str, type: str) -> None:
    x = np.concatenate([random_bits(type, 4096), np.array([*SPECIAL, *EDGES], NUMPY[type])])
    x = np.concatenate([x, np.arange(-20, 20, 0.25).astype(NUMPY[type])])
    out = "bool" if name.startswith("is") else type
    check_same(simd.over(f"{name}_{type}", out, x), reference(name, x), x)


@pytest.mark.parametrize("name", EXACT_BINARY)
@pytest.mark.parametrize("type", FLOATS)
def test_exact_functions_of_two(simd: Library, name: str, type: str) -> None:
    a, b = grid(type)
    got, want = simd.over(f"{name}_{type}", type, a, b), reference(name, a, b)
    if name in ("maximum", "minimum", "fmax", "fmin"):  # of 0 and -0 torch takes either
        got, want = got + 0, want + 0
    check_same(got, want, a, b)


@pytest.mark.parametrize("name", CLOSE_BINARY)
@pytest.mark.parametrize("type", FLOATS)
def test_other_functions_of_two(simd: Library, name: str, type: str) -> None:
    a, b = grid(type)
    got = simd.over(f"{name}_{type}", type, a, b)
    with np.errstate(over="ignore"):
        want = reference(name, a.astype(np.float64), b.astype(np.float64)).astype(NUMPY[type])
    np.testing.assert_allclose(got, want, rtol={"f32": 2e-7, "f64": 1e-14}[type], atol=1e-44)
    check_same(np.signbit(got[got == 0]), np.signbit(want[got == 0]))


def test_a_constant_argument_gives_the_bits_of_any_other(simd: Library) -> None:
    got = np.empty(3 * LANES, np.float32)
    simd.call("constants", got)
    x = np.full(LANES, 1.5, np.float32)
    check_same(got[:LANES], simd.over("sigmoid_f32", "f32", x))
    check_same(got[LANES : 2 * LANES], simd.over("tan_f32", "f32", x))
    assert (got[2 * LANES :] == 14.5).all()


# --- integers ------------------------------------------------------------------------------------


def integers(type: str) -> tuple[Array, Array]:
    low, high = np.iinfo(NUMPY[type]).min, np.iinfo(NUMPY[type]).max
    special = np.array([0, 1, -1, 2, -2, 3, 7, -8, 31, 32, 33, 63, 64, 65, low, low + 1, high])
    pairs = np.array(list(itertools.product(special, special))).astype(NUMPY[type])
    a = np.concatenate([pairs[:, 0], random_bits(type, 1000, 5)])
    b = np.concatenate([pairs[:, 1], random_bits(type, 500, 6), random_bits("i8", 500, 7)])
    return a, b.astype(NUMPY[type])


@pytest.mark.parametrize("type", INTEGERS)
def test_integer_functions(simd: Library, type: str) -> None:
    a, b = integers(type)
    for name in INTEGER:
        check_same(simd.over(f"{name}_{type}", type, a), reference(name, a), a)
    for name in INTEGER_BINARY:
        check_same(simd.over(f"{name}_{type}", type, a, b), reference(name, a, b), a, b)


@pytest.mark.parametrize("name", DIVISIONS)
@pytest.mark.parametrize("type", INTEGERS)
def test_integer_division_is_total(simd: Library, name: str, type: str) -> None:
    a, b = integers(type)
    got = simd.over(f"{name}_{type}", type, a, b)
    overflows = (a == np.iinfo(NUMPY[type]).min) & (b == -1)
    usual = (b != 0) & ~overflows
    want = reference(name, a[usual], b[usual])
    check_same(got[usual], want, a[usual], b[usual])
    assert (got[b == 0] == 0).all()
    assert (got[overflows] == (a[overflows] if name.startswith("div") else 0)).all()


# --- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", (*FLOATS, *INTEGERS, "bool"))
def test_comparisons(simd: Library, type: str) -> None:
    if type == "bool":
        a, b = np.array([[x, y] for x in (False, True) for y in (False, True)] * 9).T
    else:
        a, b = grid(type) if type in FLOATS else integers(type)
        b[::3] = a[::3]
    for name in COMPARISONS:
        check_same(simd.over(f"{name}_{type}", "bool", a, b), reference(name, a, b), a, b)


def test_logic_and_sets_of_lanes(simd: Library) -> None:
    a, b = random_bits("bool", 100), random_bits("bool", 100, 1)
    for name in LOGICAL:
        check_same(simd.over(f"{name}_bool", "bool", a, b), reference(name, a, b))
    check_same(simd.over("logical_not_bool", "bool", a), ~a)
    for n, m in itertools.product(range(LANES + 1), (a[:16], b[:16], a[:16] | True, a[:16] & ~a[:16])):
        found = np.empty(4, np.int64)
        simd.call("masks", m, found, n=n)
        bits = sum(1 << i for i in range(LANES) if m[i])
        assert found.tolist() == [bits != 0, bits == 0xFFFF, bits, (1 << n) - 1]


@pytest.mark.parametrize("type", (*FLOATS, *INTEGERS, "bool"))
def test_select_iota_lane(simd: Library, type: str) -> None:
    m, a, b = random_bits("bool", 16), random_bits(type, 16), random_bits(type, 16, 1)
    got = np.empty(LANES, NUMPY[type])
    simd.call(f"select_{type}", m, a, b, got)
    check_same(got, np.where(m, a, b))
    if type != "bool":
        simd.call(f"iota_{type}", np.full(1, 5, NUMPY[type]), got, n=0)
        check_same(got, np.arange(5, 5 + LANES).astype(NUMPY[type]))
        for i in range(LANES):
            simd.call(f"lane_{type}", a, got, n=i)
            check_same(got[:1], a[i : i + 1])


# --- storage and casts ---------------------------------------------------------------------------


@pytest.mark.parametrize("type", SMALL_FLOATS)
def test_every_small_float_loads_exactly(simd: Library, type: str) -> None:
    raw = np.dtype(f"u{np.dtype(NUMPY[type]).itemsize}")
    codes = np.arange(1 << (8 * raw.itemsize), dtype=np.uint32).astype(raw).view(NUMPY[type])
    values = as_torch(codes, type).float().numpy()
    check_same(simd.over(f"load_{type}", "f32", codes), values, codes)
    number = ~np.isnan(values)
    stored = simd.over(f"store_{type}", type, values)
    check_same(stored[number].view(raw), codes[number].view(raw), values[number])
    assert np.isnan(as_torch(stored, type).float().numpy()[~number]).all()


@pytest.mark.parametrize("type", SMALL_FLOATS)
def test_small_floats_round_to_nearest_even(simd: Library, type: str) -> None:
    """All midpoints of neighbours, and the floats next to these."""
    raw = np.dtype(f"u{np.dtype(NUMPY[type]).itemsize}")
    codes = np.arange(1 << (8 * raw.itemsize), dtype=np.uint32).astype(raw).view(NUMPY[type])
    values = np.sort(as_torch(codes, type).float().numpy())
    values = values[np.isfinite(values)].astype(np.float64)
    middle = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    near = [np.nextafter(middle, np.float32(side)) for side in (-INF, INF)]
    x = np.concatenate([middle, *near, random_bits("f32", 1 << 16), np.float32([*SPECIAL, *EDGES])])
    want = as_numpy(torch.from_numpy(x).to(TORCH[type]), type)
    back = as_torch(want, type).float().numpy()
    number = ~np.isnan(x)
    stored = simd.over(f"store_{type}", type, x)
    check_same(stored[number].view(raw), want[number].view(raw), x[number])
    assert np.isnan(as_torch(stored[~number], type).float().numpy()).all()
    check_same(simd.over(f"round_{type}", "f32", x), back, x)


@pytest.mark.parametrize("type", [t for t in LANE if t not in SMALL_FLOATS])
def test_integers_and_plain_floats_in_memory(simd: Library, type: str) -> None:
    x = random_bits(type, 1000)
    check_same(simd.over(f"copy_{type}", type, x), x)
    if LANE[type] in INTEGERS:  # they wrap
        lanes = random_bits(LANE[type], 1000)
        check_same(simd.over(f"store_{type}", type, lanes), lanes.astype(NUMPY[type]))
        if type != "u64":  # whose lanes are its bits
            wrapped = lanes.astype(NUMPY[type]).astype(NUMPY[LANE[type]])
            check_same(simd.over(f"round_{type}", LANE[type], lanes), wrapped)
            check_same(simd.over(f"load_{type}", LANE[type], x), x.astype(NUMPY[LANE[type]]))


def cast_points(source: str, to: str) -> Array:
    """What torch casts on all machines alike: unsigned targets get what they can hold."""
    if source in INTEGERS:
        return integers(source)[0]
    if source == "bool":
        return random_bits("bool", 50)
    x = np.array([*SPECIAL, *EDGES, 300, -1, 256.5, 3e9, -3e9, 5e9 + 7, 1e19, -1e19, 2.0**31])
    x = np.concatenate([x, np.random.default_rng(8).normal(0, 1000, 500)])
    if to in ("u16", "u32", "u64"):
        x = x[np.isfinite(x) & (x >= 0) & (x < (1 << 16))]
    with np.errstate(over="ignore"):
        return x.astype(NUMPY[source])


@pytest.mark.parametrize("source", (*FLOATS, *INTEGERS, "bool"))
@pytest.mark.parametrize("to", LANE)
def test_casts_are_those_of_torch(simd: Library, source: str, to: str) -> None:
    x = cast_points(source, to)
    got = simd.over(f"cast_{source}_{to}", to, x)
    want = as_numpy(torch.from_numpy(x).to(TORCH[to]), to)
    if to in SMALL_FLOATS:
        got, want = (as_torch(a, to).float().numpy() for a in (got, want))
    check_same(got, want, x)


# --- memory --------------------------------------------------------------------------------------


class Page:
    """A page of memory before one that nobody may touch."""

    def __init__(self) -> None:
        size = mmap.PAGESIZE
        self._map = mmap.mmap(-1, 2 * size)
        self.bytes = np.frombuffer(self._map, np.uint8, size)
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(self.bytes.ctypes.data + size)
        assert libc.mprotect(address, ctypes.c_size_t(size), 0) == 0

    def end(self, count: int, dtype: npt.DTypeLike) -> Array:
        """Its last `count` elements."""
        size = np.dtype(dtype).itemsize
        return self.bytes[self.bytes.size - count * size :].view(dtype)


@pytest.mark.parametrize("type", LANE)
def test_partial_vectors_touch_nothing_else(simd: Library, type: str) -> None:
    dtype, lane = NUMPY[type], NUMPY[LANE[type]]
    read, written = Page(), Page()
    for n in range(LANES + 1):
        x = random_bits(type, n, n)
        written.bytes[:] = 0xA5
        source, target, lanes = read.end(n, dtype), written.end(n, dtype), np.empty(LANES, lane)
        source[:] = x
        simd.call(f"part_{type}", source, lanes, target, n=n)
        whole = simd.over(f"load_{type}", LANE[type], x)
        check_same(lanes, np.concatenate([whole, np.zeros(LANES - n, lane)]))
        check_same(target.copy(), simd.over(f"copy_{type}", type, x))
        untouched = written.bytes[: written.bytes.size - target.nbytes]
        assert (untouched == 0xA5).all()


@pytest.mark.parametrize("type", LANE)
def test_gather_scatter_and_strides(simd: Library, type: str) -> None:
    x = random_bits(type, 200)
    x = simd.over(f"copy_{type}", type, x)  # as a NaN comes back
    at = np.random.default_rng(9).permutation(200)[:LANES].astype(np.int64)
    for n in range(LANES + 1):
        got = np.ones(LANES, NUMPY[type])
        simd.call(f"gather_{type}", x, at, got, n=n)
        check_same(got, np.concatenate([x[at[:n]], np.zeros(LANES - n, x.dtype)]))
        got, want = np.zeros((2, 200), x.dtype)
        simd.call(f"scatter_{type}", x, at, got, n=n)
        want[at[:n]] = x[:n]
        check_same(got, want)
        for stride in (-3, 0, 1, 7):
            start = 60 if stride < 0 else 0
            got, want = np.zeros((2, 200), x.dtype)
            simd.call(f"strided_{type}", x[start:], np.int64([stride]), got[start:], n=n)
            where = start + stride * np.arange(n)
            want[where] = x[where]
            check_same(got, want)


@pytest.mark.parametrize("name", (*OURS, *LIBM, *CLOSE_BINARY, "remainder", "div_floor"))
def test_an_element_has_the_same_bits_wherever_it_stands(simd: Library, name: str) -> None:
    """Alone, in a partial vector, and beside neighbours for which the function is slow."""
    x = np.float32([*SPECIAL, *EDGES, *np.random.default_rng(10).normal(0, 5, 40)])
    inputs = (x,) if name in (*OURS, *LIBM) else (x, x[::-1].copy())
    whole = simd.over(f"{name}_f32", "f32", *inputs)
    ones = [simd.over(f"{name}_f32", "f32", *(a[i : i + 1] for a in inputs)) for i in range(x.size)]
    check_same(np.concatenate(ones), whole, *inputs)
    shifted = simd.over(f"{name}_f32", "f32", *(np.roll(a, 5) for a in inputs))
    check_same(np.roll(shifted, -5), whole, *inputs)


# --- reductions ----------------------------------------------------------------------------------


def halves(x: Array, combine: Callable[[Array, Array], Array]) -> Array:
    while x.size > 1:
        x = combine(x[: x.size // 2], x[x.size // 2 :])
    return x


@pytest.mark.parametrize("type", (*FLOATS, *INTEGERS))
def test_reductions_go_by_halves(simd: Library, type: str) -> None:
    combine: Sequence[Callable[[Array, Array], Array]] = (np.add, np.multiply, np.maximum, np.minimum)
    for seed in range(20):
        if type in FLOATS:
            x = np.random.default_rng(seed).normal(0, 3, LANES).astype(NUMPY[type])
            x[seed % LANES] = NAN if seed % 4 == 0 else x[seed % LANES]
        else:
            x = random_bits(type, LANES, seed)
        for name, function in zip(REDUCTIONS, combine, strict=True):
            got = np.empty(1, NUMPY[type])
            simd.call(f"{name}_{type}", x, got, n=0)
            check_same(got, halves(x, function))
