"""Comparing candidates fairly on a machine that is not quiet.

They are timed in turn, round after round: what disturbs one disturbs the others. A result is a
ratio of medians with the interval that the rounds support, and says how much of the machine other
processes used meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from statistics import median
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

from benchmarks.load import watch_others
from rewright.quiet import without_collection

T = TypeVar("T")

RESAMPLES = 1000


@dataclass(frozen=True)
class Speedup:
    """How many times faster: the ratio of medians, and its 90 % bootstrap interval."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Comparison:
    """Seconds per call of each candidate, one figure a round; rounds line up across candidates.

    `other_load` is the share of the cores that other processes used meanwhile, None if unknown.
    """

    seconds: Mapping[str, Sequence[float]]
    other_load: float | None

    def median(self, name: str) -> float:
        return median(self.seconds[name])

    def speedup(self, name: str, over: str) -> Speedup:
        slow, fast = self.seconds[over], self.seconds[name]
        ratios = sorted(resampled_ratios(slow, fast))
        low, high = ratios[RESAMPLES // 20], ratios[-RESAMPLES // 20]
        return Speedup(median(slow) / median(fast), low, high)

    def as_json(self, subjects: Sequence[str]) -> dict[str, Any]:
        """Medians, and the speedup of each of `subjects` over every other candidate."""
        return {
            "median_seconds": {name: self.median(name) for name in self.seconds},
            "speedup": {
                f"{subject} vs {other}": vars(self.speedup(subject, over=other))
                for subject in subjects
                if subject in self.seconds
                for other in self.seconds
                if other != subject
            },
            "other_load": self.other_load,
        }


Timer: TypeAlias = Callable[[int], float]
"""Makes so many calls, and says how many seconds they took."""


def compare(
    callables: Mapping[str, Callable[[], object]], rounds: int = 15, min_seconds: float = 0.05
) -> Comparison:
    """`compare_timers` of functions of this process."""
    timers = {name: partial(time_calls, call) for name, call in callables.items()}
    gc.collect()
    with without_collection():
        return compare_timers(timers, rounds, min_seconds)


def compare_timers(
    timers: Mapping[str, Timer], rounds: int, min_seconds: float, ours: Collection[int] = ()
) -> Comparison:
    """Time every candidate once a round, each time over as many calls as last `min_seconds`.

    Each is called before the first round until its time settles what "as many" is, so compilation
    on a first call is not counted. The order rotates from round to round, so that none always
    runs in the caches its neighbour left. `ours` are other processes that count as this one.
    """
    if rounds < 1:
        raise ValueError(f"compare: rounds must be at least 1, got {rounds}")
    calls = {name: calls_lasting(min_seconds, timer) for name, timer in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    others = watch_others(ours)
    for turn in range(rounds):
        for name in rotated(list(timers), turn):
            seconds[name].append(timers[name](calls[name]) / calls[name])
    return Comparison(seconds, others())


def calls_lasting(min_seconds: float, timer: Timer) -> int:
    timer(1)
    count = 1
    while timer(count) < min_seconds:
        count *= 2
    return count


def time_calls(call: Callable[[], object], count: int) -> float:
    start = perf_counter()
    for _ in range(count):
        call()
    return perf_counter() - start


def rotated(items: Sequence[T], turn: int) -> list[T]:
    first = turn % len(items)
    return [*items[first:], *items[:first]]


def resampled_ratios(slow: Sequence[float], fast: Sequence[float]) -> Iterator[float]:
    """Ratios of medians over rounds drawn with replacement; a round keeps its two figures."""
    draw, rounds = Random(0), list(zip(slow, fast, strict=True))
    for _ in range(RESAMPLES):
        sample = draw.choices(rounds, k=len(rounds))
        yield median(s for s, _ in sample) / median(f for _, f in sample)
