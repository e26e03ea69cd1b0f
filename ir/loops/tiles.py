"""Which tiles of an attention's scores its mask leaves: intervals of what a score can be anywhere
in a tile, evaluated for all tiles at once. Kernels decide alike when they run, and know more: what
masks read from memory counts as anything here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from rewright.ir.dims import Dim, hint
from rewright.ir.loops.affine import Affine
from rewright.ir.loops.attention import AttentionNest
from rewright.ir.loops.attention_backward import AttentionBackwardNest
from rewright.ir.loops.nest import Apply, Convert, Number, Position, Ref, Round, Term, reads

# Of a tile of kernels, and what is too little to take any probability (codegen/cpp/ranges.h).
ROWS: Final = 96
KEYS: Final = 64
DEAD: Final = -1e34
ANY_SCORE: Final = 1e30

Numbers = NDArray[np.floating[Any]]


AnyAttention = AttentionNest | AttentionBackwardNest


@dataclass(frozen=True)
class Range:
    """[low, high] of every tile; truths are within [0, 1]."""

    low: Numbers
    high: Numbers


def kept_share(nest: AnyAttention) -> float:
    """The share of tiles in which some score counts, at the sizes seen."""
    score = _Tiles(nest).score()
    return float(np.mean(score.high >= DEAD))


def may_be_dead(nest: AnyAttention) -> bool:
    """True when some score may be masked, for all that is known before the kernel runs."""
    return bool(np.any(_Tiles(nest).score().low < DEAD))


def conditions(nest: AnyAttention) -> tuple[str, ...]:
    """Truths that numbers depend on."""
    truths = {s.name for s in nest.statements if s.term.dtype is torch.bool}
    read = {n for s in nest.statements if s.term.dtype is not torch.bool for n in reads(s)}
    return tuple(s.name for s in nest.statements if s.name in truths & read)


def live_values(nest: AnyAttention) -> dict[str, bool]:
    """The conditions that leave no score alive where they are one value, each with the other."""
    found = {}
    for name in conditions(nest):
        alive = [v for v in (False, True) if np.any(_Tiles(nest, {name: v}).score().high >= DEAD)]
        if len(alive) == 1:
            found[name] = alive[0]
    return found


class _Tiles:
    """[tiles of rows, tiles of keys]; heads are taken to be alike. Conditions in `known` have one
    value everywhere."""

    def __init__(self, nest: AnyAttention, known: Mapping[str, bool] | None = None) -> None:
        self._nest, self._known = nest, known or {}
        self._rows = _spans(hint(nest.row.size), ROWS)
        self._keys = _spans(hint(nest.key.size), KEYS)
        self._shape = len(self._rows[0]), len(self._keys[0])
        self._ranges: dict[str, Range] = {nest.given: self.exactly(-ANY_SCORE, ANY_SCORE)}
        if isinstance(nest, AttentionBackwardNest):
            self._ranges[nest.grad] = self.exactly(-np.inf, np.inf)

    def score(self) -> Range:
        with np.errstate(all="ignore"):
            for statement in self._nest.statements:
                known = self._known.get(statement.name)
                self._ranges[statement.name] = (
                    self.term(statement.term) if known is None else self.exactly(known, known)
                )
        return self._ranges[self._nest.taken.name]

    def term(self, term: Term) -> Range:
        match term:
            case Ref(name=name):
                return self._ranges[name]
            case Number(value=value):
                number = float(hint(value) if isinstance(value, Dim) else value)
                return self.exactly(number, number)
            case Position(at=at):
                return self.along(at)
            case Convert(arg=arg, dtype=dtype):
                found = self.term(arg)
                if dtype is torch.bool:
                    return _truth(found)
                if not dtype.is_floating_point:
                    found = Range(np.floor(found.low), np.ceil(found.high))
                return _held(found, dtype)
            case Round(arg=arg, storage=storage):
                return _held(self.term(arg), storage)
            case Apply(name=name, args=args, dtype=dtype) if name in _RULES:
                if name.startswith("bit_") and args[-1].dtype is not torch.bool:
                    return self.exactly(-np.inf, np.inf)
                return _held(_RULES[name](*(self.term(a) for a in args)), dtype)
        return self.exactly(0, 1) if term.dtype is torch.bool else self.exactly(-np.inf, np.inf)

    def exactly(self, low: float, high: float) -> Range:
        return Range(np.full(self._shape, low), np.full(self._shape, high))

    def along(self, at: Affine) -> Range:
        low = high = np.full(self._shape, float(hint(at.offset)))
        spans = {self._nest.row.name: [s[:, None] for s in self._rows]}
        spans[self._nest.key.name] = [s[None, :] for s in self._keys]
        for axis in self._nest.batch:
            last = np.full((1, 1), hint(axis.size) - 1.0)
            spans[axis.name] = [last * 0, last]
        for name, factor in at.terms:
            ends = [hint(factor) * end for end in spans[name]]
            low = low + np.minimum(*ends)
            high = high + np.maximum(*ends)
        return Range(low, high)


def _spans(size: int, tile: int) -> tuple[Numbers, Numbers]:
    """First and last position of each tile."""
    first = np.arange(0, size, tile, dtype=np.float64)
    return first, np.minimum(first + tile, size) - 1


def _held(x: Range, dtype: torch.dtype) -> Range:
    """What a result is as its type holds it: rounded, or wrapped, which may be anything."""
    unknown = np.isnan(x.low) | np.isnan(x.high)
    low, high = np.where(unknown, -np.inf, x.low), np.where(unknown, np.inf, x.high)
    if dtype is torch.bool:
        return Range(low, high)
    if dtype.is_floating_point:
        error = torch.finfo(dtype).eps
        return Range(
            np.where(np.isinf(low), low, low - error * np.abs(low)),
            np.where(np.isinf(high), high, high + error * np.abs(high)),
        )
    limits = torch.iinfo(dtype)
    wraps = (low < limits.min) | (high > limits.max)
    return Range(np.where(wraps, -np.inf, low), np.where(wraps, np.inf, high))


# --- rules --------------------------------------------------------------------------------------


def _neg(x: Range) -> Range:
    return Range(-x.high, -x.low)


def _add(a: Range, b: Range) -> Range:
    return Range(a.low + b.low, a.high + b.high)


def _mul(a: Range, b: Range) -> Range:
    ends = np.stack([a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high])
    return Range(ends.min(0), ends.max(0))


def _max(a: Range, b: Range) -> Range:
    return Range(np.maximum(a.low, b.low), np.maximum(a.high, b.high))


def _min(a: Range, b: Range) -> Range:
    return Range(np.minimum(a.low, b.low), np.minimum(a.high, b.high))


def _abs(x: Range) -> Range:
    least = np.maximum(np.maximum(x.low, -x.high), 0)
    return Range(least, np.maximum(x.high, -x.low))


def _div_floor(a: Range, b: Range) -> Range:
    nowhere = np.where(b.low > 0, 0.0, np.nan)
    ends = np.stack([np.floor(x / y) for x in (a.low, a.high) for y in (b.low, b.high)])
    return Range(ends.min(0) + nowhere, ends.max(0) + nowhere)


def _lt(a: Range, b: Range) -> Range:
    return Range((a.high < b.low) * 1.0, (a.low < b.high) * 1.0)


def _eq(a: Range, b: Range) -> Range:
    apart = (a.high < b.low) | (b.high < a.low)
    one = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
    return Range(one * 1.0, ~apart * 1.0)


def _not(x: Range) -> Range:
    return Range(1 - x.high, 1 - x.low)


def _truth(x: Range) -> Range:
    zero = Range(x.low * 0, x.low * 0)
    return _not(_eq(x, zero))


def _select(which: Range, a: Range, b: Range) -> Range:
    low = np.where(which.low > 0, a.low, np.where(which.high < 1, b.low, np.minimum(a.low, b.low)))
    high = np.where(
        which.low > 0, a.high, np.where(which.high < 1, b.high, np.maximum(a.high, b.high))
    )
    return Range(low, high)


_RULES: Final[Mapping[str, Callable[..., Range]]] = {
    "add": _add,
    "sub": lambda a, b: _add(a, _neg(b)),
    "mul": _mul,
    "neg": _neg,
    "abs": _abs,
    **dict.fromkeys(("maximum", "fmax"), _max),
    **dict.fromkeys(("minimum", "fmin"), _min),
    "div_floor": _div_floor,
    "floor": lambda x: Range(np.floor(x.low), np.floor(x.high)),
    "tanh": lambda x: Range(np.tanh(x.low), np.tanh(x.high)),
    "lt": _lt,
    "gt": lambda a, b: _lt(b, a),
    "ge": lambda a, b: _not(_lt(a, b)),
    "le": lambda a, b: _not(_lt(b, a)),
    "eq": _eq,
    "ne": lambda a, b: _not(_eq(a, b)),
    **dict.fromkeys(("logical_and", "bit_and"), _min),
    **dict.fromkeys(("logical_or", "bit_or"), _max),
    "logical_not": _not,
    "logical_xor": lambda a, b: _not(_eq(a, b)),
    "select": _select,
}
