"""Statistics of timings of several alternatives, taken in turn.

A machine that others use is slow for a while, then fast; alternatives timed in the same round see
the same machine, so the median of their ratios holds where a ratio of medians is off by far.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Timings:
    """`rounds[r][i]` are the seconds that alternative `i` took in round `r`."""

    rounds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.rounds or len({len(r) for r in self.rounds}) != 1:
            raise ValueError("timings want at least one round, and every alternative in each")

    def seconds(self, alternative: int) -> float:
        """The median time of one alternative."""
        return statistics.median(r[alternative] for r in self.rounds)

    def ratio(self, alternative: int, baseline: int) -> float:
        """The median, over the rounds, of one alternative's time over another's."""
        return statistics.median(r[alternative] / r[baseline] for r in self.rounds)
