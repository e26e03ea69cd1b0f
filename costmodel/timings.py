"""Statistics of timings of several alternatives, taken in turn.

A machine that others use is slow for a while, then fast; alternatives timed in the same round see
the same machine, so the median of their ratios holds where a ratio of medians is off by far.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from random import Random
from typing import Final


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

    def quiet(self, alternative: int) -> float:
        """What one alternative takes when little disturbs: the 20 % quantile of the rounds.

        Of calls that wait for a second core, which other machines share, one round in six is off by
        that much; the median of 24 rounds comes out 7 % (in the median) elsewhere the next time,
        this quantile 3 %.
        """
        return _quantile([r[alternative] for r in self.rounds])

    def quiet_ratio(self, alternative: int, baseline: int) -> float:
        """`quiet` of one alternative over another's."""
        return self.quiet(alternative) / self.quiet(baseline)

    def quiet_interval(self, alternative: int, baseline: int) -> tuple[float, float]:
        """A 90 % bootstrap interval of `quiet_ratio`; a round keeps its figures together."""
        draw, pairs = Random(0), [(r[alternative], r[baseline]) for r in self.rounds]
        found = []
        for _ in range(RESAMPLES):
            sample = draw.choices(pairs, k=len(pairs))
            found.append(_quantile([a for a, _ in sample]) / _quantile([b for _, b in sample]))
        found.sort()
        return found[RESAMPLES // 20], found[-1 - RESAMPLES // 20]


RESAMPLES: Final = 100
QUIET: Final = 0.2


def _quantile(seconds: list[float]) -> float:
    """Between the two that are next to it in order."""
    seconds.sort()
    place = QUIET * (len(seconds) - 1)
    low = int(place)
    high = min(low + 1, len(seconds) - 1)
    return seconds[low] + (place - low) * (seconds[high] - seconds[low])
