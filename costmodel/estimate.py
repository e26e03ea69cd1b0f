"""Estimate: how long something takes, between which bounds, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Estimate:
    """Seconds, an interval that holds the truth as far as the model knows, and sentences.

    Also the difference of two times; then all three may be negative.
    """

    seconds: float
    low: float
    high: float
    because: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Seconds to be expected, which are more than `seconds` where the truth may be far above:
        of bounds that one in twenty lies below, one in twenty above (the extended Pearson-Tukey
        approximation; Keefer, Bodily, 1983)."""
        return 0.63 * self.seconds + 0.185 * (self.low + self.high)

    def __add__(self, other: Estimate) -> Estimate:
        """One after the other: the bounds add up, as nothing says that the errors cancel."""
        return total((self, other))

    def __sub__(self, other: Estimate) -> Estimate:
        """How much longer `self` takes, when the errors of the two have nothing in common."""
        return Estimate(
            self.seconds - other.seconds,
            self.low - other.high,
            self.high - other.low,
            _joined((self, other)),
        )

    def __str__(self) -> str:
        span = f"{show_seconds(self.seconds)} ({show_seconds(self.low)} to"
        text = f"{span} {show_seconds(self.high)})"
        return f"{text}: {'; '.join(self.because)}" if self.because else text


NOTHING: Final = Estimate(0.0, 0.0, 0.0)


def total(estimates: Iterable[Estimate]) -> Estimate:
    """All of them, one after the other; equal sentences are said once."""
    listed = tuple(estimates)
    return Estimate(
        sum(e.seconds for e in listed),
        sum(e.low for e in listed),
        sum(e.high for e in listed),
        _joined(listed),
    )


def _joined(estimates: Iterable[Estimate]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason for e in estimates for reason in e.because))


# --- numbers with units -------------------------------------------------------------------------

_BYTES: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_COUNTS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show_bytes(nbytes: float) -> str:
    """`12.6 MiB`."""
    for unit, name in _BYTES:
        if abs(nbytes) >= unit:
            return f"{_three_digits(nbytes / unit)} {name}"
    return f"{nbytes:.0f} B"


def show_flops(count: float) -> str:
    """`1.2 GFLOP`."""
    for unit, prefix in _COUNTS:
        if abs(count) >= unit:
            return f"{_three_digits(count / unit)} {prefix}FLOP"
    return f"{count:.0f} FLOP"


def show_seconds(seconds: float) -> str:
    """`41.7 us`."""
    size = abs(seconds)
    if size >= 1:
        return f"{_three_digits(seconds)} s"
    if size >= 1e-3:
        return f"{_three_digits(seconds * 1e3)} ms"
    return f"{_three_digits(seconds * 1e6)} us"


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
