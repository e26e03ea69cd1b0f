"""What a score can be anywhere in a tile, in Triton: scalar expressions over intervals.

The intervals of codegen/cpp/ranges.h, evaluated for many tiles at once: a range is a pair
(low, high) of blocks of f32 along tiles, of one element where all are alike; truths are within
[0, 1]. Integers count as known below 2^24 only, which f32 holds exactly; what may be further away
may be anything. So may what masks read for a query and a key together. Scores are taken to be
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from rewright.codegen.triton.primitives import functions_of
from rewright.codegen.triton.terms import literal
from rewright.ir import Dim, Size
from rewright.ir.dims import bounds
from rewright.ir.loops import (
    Affine,
    Apply,
    Convert,
    Load,
    Number,
    Position,
    Ref,
    Round,
    Term,
    computes_in,
)

# From here on integers are no longer told apart.
EXACT: Final = 2**24
# The error of one operation in a kernel, and of one on intervals.
ERROR: Final = 2.4e-7

_FUNCTIONS: Final = """
def range_exactly(x):
    value = tl.full((1,), x, tl.float32)
    return value, value

def range_anything():
    return tl.full((1,), float("-inf"), tl.float32), tl.full((1,), float("inf"), tl.float32)

def range_either():
    return tl.full((1,), 0.0, tl.float32), tl.full((1,), 1.0, tl.float32)

def range_score():
    return tl.full((1,), -1e30, tl.float32), tl.full((1,), 1e30, tl.float32)

def range_checked(low, high):
    known = low <= high
    return tl.where(known, low, float("-inf")), tl.where(known, high, float("inf"))

def range_along(low, high):
    zero = tl.zeros((1,), tl.float32)
    return zero + tl.cast(low, tl.float32), zero + tl.cast(high, tl.float32)

def range_of_block(x):
    value = x.to(tl.float32)
    return range_checked(tl.min(value, 0, keep_dims=True), tl.max(value, 0, keep_dims=True))

def range_of_tiles(x):
    value = x.to(tl.float32)
    return range_checked(tl.min(value, 1), tl.max(value, 1))

def range_rounded(x, error: tl.constexpr):
    low = x[0] - error * tl.abs(x[0])
    high = x[1] + error * tl.abs(x[1])
    return tl.where(low == low, low, x[0]), tl.where(high == high, high, x[1])

def range_whole(x, least: tl.constexpr, most: tl.constexpr):
    fits = (x[0] >= least) & (x[1] <= most)
    return tl.where(fits, x[0], float("-inf")), tl.where(fits, x[1], float("inf"))

def range_within(x, most: tl.constexpr):
    low = tl.where((x[0] < -most) & (x[0] > float("-inf")), -most, x[0])
    high = tl.where((x[1] > most) & (x[1] < float("inf")), most, x[1])
    return low, high

def range_integers(x):
    return tl.floor(x[0]), tl.ceil(x[1])

def range_neg(x):
    return -x[1], -x[0]

def range_add(a, b):
    return range_checked(a[0] + b[0], a[1] + b[1])

def range_sub(a, b):
    return range_checked(a[0] - b[1], a[1] - b[0])

def range_mul(a, b):
    w, x, y, z = a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1]
    known = (w == w) & (x == x) & (y == y) & (z == z)
    low = tl.minimum(tl.minimum(w, x), tl.minimum(y, z))
    high = tl.maximum(tl.maximum(w, x), tl.maximum(y, z))
    return tl.where(known, low, float("-inf")), tl.where(known, high, float("inf"))

def range_div(a, b):
    found = range_mul(a, (tl.div_rn(1.0, b[1]), tl.div_rn(1.0, b[0])))
    known = (b[0] > 0) | (b[1] < 0)
    return tl.where(known, found[0], float("-inf")), tl.where(known, found[1], float("inf"))

def range_abs(x):
    least = tl.maximum(tl.maximum(x[0], -x[1]), 0.0)
    return least, tl.maximum(x[1], -x[0])

def range_maximum(a, b):
    return tl.maximum(a[0], b[0]), tl.maximum(a[1], b[1])

def range_minimum(a, b):
    return tl.minimum(a[0], b[0]), tl.minimum(a[1], b[1])

def range_quotient(a, b):
    return tl.floor(tl.div_rn(a + 0.0 * b, b + 0.0 * a))

def range_div_floor(a, b):
    w, x = range_quotient(a[0], b[0]), range_quotient(a[0], b[1])
    y, z = range_quotient(a[1], b[0]), range_quotient(a[1], b[1])
    known = b[0] > 0
    low, high = tl.minimum(w, x), tl.maximum(y, z)
    return tl.where(known, low, float("-inf")), tl.where(known, high, float("inf"))

def range_remainder(a, b):
    first, last = range_quotient(a[0], b[0]), range_quotient(a[1], b[0])
    same = (b[0] == b[1]) & (first == last)
    low = tl.where(same, a[0] - first * b[0], 0.0)
    high = tl.where(same, a[1] - first * b[0], b[1])
    known = b[0] > 0
    return tl.where(known, low, float("-inf")), tl.where(known, high, float("inf"))

def range_tanh(x):
    return tl.where(x[0] < 0, -1.0, 0.0), tl.where(x[1] > 0, 1.0, 0.0)

def range_sigmoid(x):
    return range_either()

def range_truths(certain, possible):
    return tl.where(certain, 1.0, 0.0), tl.where(possible, 1.0, 0.0)

def range_lt(a, b):
    return range_truths(a[1] < b[0], a[0] < b[1])

def range_le(a, b):
    return range_truths(a[1] <= b[0], a[0] <= b[1])

def range_gt(a, b):
    return range_lt(b, a)

def range_ge(a, b):
    return range_le(b, a)

def range_eq(a, b):
    same = (a[0] == a[1]) & (b[0] == b[1]) & (a[0] == b[0])
    return range_truths(same, (a[1] >= b[0]) & (b[1] >= a[0]))

def range_ne(a, b):
    return range_not(range_eq(a, b))

def range_not(x):
    return 1.0 - x[1], 1.0 - x[0]

def range_truth(x):
    return range_ne(x, range_exactly(0.0))

def range_select(which, a, b):
    low = tl.where(which[1] < 1, b[0], tl.minimum(a[0], b[0]))
    high = tl.where(which[1] < 1, b[1], tl.maximum(a[1], b[1]))
    return tl.where(which[0] > 0, a[0], low), tl.where(which[0] > 0, a[1], high)
"""

RANGES: Final = functions_of(_FUNCTIONS)

_OF_INTEGERS: Final = {"div_floor": "div_floor", "remainder": "remainder"}
_OF_NUMBERS: Final = {
    **{name: name for name in ("add", "sub", "mul", "neg", "abs", "maximum", "minimum")},
    **{name: name for name in ("lt", "le", "gt", "ge", "eq", "ne", "select")},
    "fmax": "maximum",
    "fmin": "minimum",
}
_OF_FLOATS: Final = {name: name for name in ("div", "tanh", "sigmoid")}
_OF_TRUTHS: Final = {
    **dict.fromkeys(("logical_and", "bit_and"), "minimum"),
    **dict.fromkeys(("logical_or", "bit_or"), "maximum"),
    **dict.fromkeys(("logical_xor", "bit_xor", "ne"), "ne"),
    **dict.fromkeys(("logical_not", "bit_not"), "not"),
    "eq": "eq",
    "select": "select",
}

# The largest finite number and the relative error of types that round more than f32 does.
_ROUNDED: Final = {
    torch.float16: (65504.0, 1e-3),
    torch.bfloat16: (3.38e38, 8e-3),
    torch.float8_e4m3fn: (448.0, 0.25),
    torch.float8_e5m2: (57344.0, 0.25),
}


@dataclass(frozen=True)
class Ranges:
    """Prints terms over intervals. `spans` gives, for the axes that a tile extends along, texts of
    the first and the last position; `read` makes a range of what is read at a place, or nothing;
    `size` prints sizes."""

    spans: Mapping[str, tuple[str, str]]
    read: Callable[[Load], str | None]
    size: Callable[[Size], str]

    @staticmethod
    def name(of: str) -> str:
        """The variable that holds the range of a scalar."""
        return f"range_{of}"

    def term(self, term: Term) -> str:
        match term:
            case Ref(name=name):
                return self.name(name)
            case Number(value=value, dtype=dtype):
                return self.number(value, dtype)
            case Position(at=at, dtype=dtype):
                return self.held(self.along(at), dtype)
            case Load(guards=()):
                found = self.read(term)
                if found is not None:
                    return found if term.dtype is torch.bool else self.held(found, term.dtype)
            case Convert(arg=arg, dtype=dtype):
                return self.converted(arg, dtype)
            case Round(arg=arg, storage=storage):
                return self.rounded(self.term(arg), storage)
            case Apply(name=name, args=args):
                function = self.function(name, args)
                if function is not None:
                    text = f"range_{function}({', '.join(map(self.term, args))})"
                    return text if term.dtype is torch.bool else self.held(text, term.dtype)
        return "range_either()" if term.dtype is torch.bool else "range_anything()"

    def number(self, value: object, dtype: torch.dtype) -> str:
        if isinstance(value, Dim):
            return f"range_whole(range_exactly({self.size(value)}), {-EXACT + 1}, {EXACT - 1})"
        assert isinstance(value, (bool, int, float))
        if value != value or (not dtype.is_floating_point and abs(value) >= EXACT):
            return "range_anything()"
        return f"range_exactly({literal(float(value), torch.float32)})"

    def along(self, at: Affine) -> str:
        """Of an index expression; what counts neither rows nor keys is one for all tiles."""
        low: list[str] = []
        high: list[str] = []
        for name, factor in at.terms:
            ends = self.spans.get(name, (name, name))
            if name in self.spans and bounds(factor)[0] < 0:
                if not isinstance(factor, int):
                    return "range_anything()"
                ends = ends[::-1]
            for side, end in zip((low, high), ends, strict=True):
                side.append(end if factor == 1 else f"{end} * {self.size(factor)}")
        if at.offset != 0 or not at.terms:
            low, high = ([*side, self.size(at.offset)] for side in (low, high))
        return f"range_along({' + '.join(low)}, {' + '.join(high)})"

    def converted(self, arg: Term, dtype: torch.dtype) -> str:
        text = self.term(arg)
        if arg.dtype == dtype:
            return text
        if dtype is torch.bool:
            return f"range_truth({text})"
        if arg.dtype.is_floating_point and not dtype.is_floating_point:
            text = f"range_integers({text})"
        return self.held(text, dtype)

    def held(self, text: str, dtype: torch.dtype) -> str:
        """What a result of the type may be, where `text` is computed without rounding."""
        if dtype.is_floating_point:
            return f"range_rounded({text}, {ERROR})"
        least, most = (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        return f"range_whole({text}, {max(least, -EXACT + 1)}, {min(most, EXACT - 1)})"

    def rounded(self, text: str, storage: torch.dtype) -> str:
        if storage in _ROUNDED:
            most, error = _ROUNDED[storage]
            return f"range_rounded(range_within({text}, {most}), {error})"
        return text if storage is torch.bool else self.held(text, storage)

    @staticmethod
    def function(name: str, args: tuple[Term, ...]) -> str | None:
        """What bounds a primitive; None for those that may give anything."""
        dtype = computes_in(args[1:] if name == "select" else args)
        if dtype is torch.bool:
            return _OF_TRUTHS.get(name)
        if dtype.is_floating_point:
            return {**_OF_NUMBERS, **_OF_FLOATS}.get(name)
        return {**_OF_NUMBERS, **_OF_INTEGERS}.get(name)
