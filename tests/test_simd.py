"""simd.h on every instruction set this CPU has: error bounds, exact results, memory, lanes."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import re
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from simd_harness import (
    CLASSES,
    CLOSE_BINARY,
    COMPARISONS,
    DIVISIONS,
    EXACT,
    EXACT_BINARY,
    FLOATS,
    HEADERS,
    INTEGER,
    INTEGER_BINARY,
    INTEGERS,
    LANE,
    LANES,
    LIBM,
    LOGICAL,
    NUMPY,
    OURS,
    REDUCTIONS,
    SMALL_FLOATS,
    TORCH,
    WITH_TAIL,
    Array,
    Library,
    as_numpy,
    as_torch,
    built,
    has,
    random_bits,
)

pytestmark = pytest.mark.cpu

INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="session", params=["native", "x86-64-v3", "x86-64"])
def simd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    if not has(request.param):
        pytest.skip(f"this CPU does not run {request.param}")
    return built(request.param, tmp_path_factory.mktemp("simd"))


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
    """More than 2^18 floats: of all sizes, and densely in the middle, around 1 and at edges."""
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


@pytest.mark.parametrize("name", [*LIBM, *OURS])
@pytest.mark.parametrize("type", FLOATS)
def test_functions_agree_with_torch(simd: Library, name: str, type: str) -> None:
    x = np.concatenate([np.random.default_rng(4).normal(0, 2, 2000), SPECIAL, EDGES])
    x = x.astype(NUMPY[type])
    with np.errstate(over="ignore"):
        want = getattr(torch, name)(torch.from_numpy(x).double()).numpy().astype(NUMPY[type])
    got = simd.over(f"{name}_{type}", type, x)
    tolerance = 1e-6 if type == "f32" else 1e-9 if name == "erfinv" else 1e-12
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-44)


def of_torch(function: Callable[..., Tensor]) -> Callable[..., Array]:
    return lambda *arrays: function(*(torch.from_numpy(a.copy()) for a in arrays)).numpy()


def remainder(a: Array, b: Array) -> Array:
    m = np.fmod(a, b)
    return np.where((m != 0) & ((m < 0) != (b < 0)), m + b, m)


# Where torch itself is not exact (sqrt of MKL, fmod by subnormals), numpy.
REFERENCE: Final[Mapping[str, Callable[..., Array]]] = {
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "fmod": np.fmod,
    "remainder": remainder,
    "isfinite": np.isfinite,
    "div_floor": of_torch(torch.floor_divide),
    "div_trunc": of_torch(lambda a, b: torch.div(a, b, rounding_mode="trunc")),
    "shift_left": of_torch(torch.bitwise_left_shift),
    "shift_right": of_torch(torch.bitwise_right_shift),
}


def reference(name: str, *arrays: Array) -> Array:
    function = REFERENCE.get(name) or of_torch(getattr(torch, name))
    with np.errstate(all="ignore"):
        return function(*arrays)


@pytest.mark.parametrize("name", [*EXACT, *CLASSES])
@pytest.mark.parametrize("type", FLOATS)
def test_exact_functions(simd: Library, name: str, type: str) -> None:
    x = np.concatenate([random_bits(type, 4096), np.array([*SPECIAL, *EDGES], NUMPY[type])])
    x = np.concatenate([x, np.arange(-20, 20, 0.25).astype(NUMPY[type])])
    out = "bool" if name in CLASSES else type
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


@pytest.mark.parametrize("type", [*FLOATS, *INTEGERS, "bool"])
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
    some, other = a[:LANES], b[:LANES]
    for n, m in itertools.product(range(LANES + 1), (some, other, some | True, some & ~some)):
        found = np.empty(4, np.int64)
        simd.call("masks", m, found, n=n)
        bits = sum(1 << i for i in range(LANES) if m[i])
        assert found.tolist() == [bits != 0, bits == 0xFFFF, bits, (1 << n) - 1]


@pytest.mark.parametrize("type", [*FLOATS, *INTEGERS, "bool"])
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
    x = np.concatenate(
        [middle, *near, random_bits("f32", 1 << 16), np.array([*SPECIAL, *EDGES], np.float32)]
    )
    want = as_numpy(torch.from_numpy(x).to(TORCH[type]), type)
    back = as_torch(want, type).float().numpy()
    number = ~np.isnan(x)
    stored = simd.over(f"store_{type}", type, x)
    check_same(stored[number].view(raw), want[number].view(raw), x[number])
    assert np.isnan(as_torch(stored[~number], type).float().numpy()).all()
    check_same(simd.over(f"rounded_{type}", "f32", x), back, x)


@pytest.mark.parametrize("type", [t for t in LANE if t not in SMALL_FLOATS])
def test_integers_and_plain_floats_in_memory(simd: Library, type: str) -> None:
    x = random_bits(type, 1000)
    check_same(simd.over(f"copy_{type}", type, x), x)
    if LANE[type] in INTEGERS:  # they wrap
        lanes = random_bits(LANE[type], 1000)
        check_same(simd.over(f"store_{type}", type, lanes), lanes.astype(NUMPY[type]))
        if type != "u64":  # whose lanes are its bits
            wrapped = lanes.astype(NUMPY[type]).astype(NUMPY[LANE[type]])
            check_same(simd.over(f"rounded_{type}", LANE[type], lanes), wrapped)
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


@pytest.mark.parametrize("source", [*FLOATS, *INTEGERS, "bool"])
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
            simd.call(f"strided_{type}", x[start:], np.array([stride]), got[start:], n=n)
            where = start + stride * np.arange(n)
            want[where] = x[where]
            check_same(got, want)


@pytest.mark.parametrize("name", [*OURS, *LIBM, *WITH_TAIL])
def test_an_element_has_the_same_bits_wherever_it_stands(simd: Library, name: str) -> None:
    """Alone, in a partial vector, and beside neighbours for which the function is slow."""
    x = np.array([*SPECIAL, *EDGES, *np.random.default_rng(10).normal(0, 5, 40)], np.float32)
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


@pytest.mark.parametrize("type", [*FLOATS, *INTEGERS])
def test_reductions_go_by_halves(simd: Library, type: str) -> None:
    combine = (np.add, np.multiply, np.maximum, np.minimum)
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
