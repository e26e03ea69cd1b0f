"""Screening: quick figures for kernels that are only sketched, and for joining some into one.

Where kernels are simple, a weighted sum of parts settles what is clear. For the rest a small forest
corrects the sum, and a forest of pairs has learned what joining really saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewright.costmodel.estimate import Estimate, show_seconds
from rewright.costmodel.forest import Floats, Forest
from rewright.costmodel.sketch import Sketch
from rewright.costmodel.sketch_features import pair_features, sketch_numbers, sketch_parts
from rewright.ir.target import Target

# A gain of so much of the time apart is clear without any forest.
CLEAR: Final = 0.25
# The shortest inner loop of a simple kernel.
SIMPLE_INNER: Final = 64


@dataclass(frozen=True)
class Screen:
    """What was trained: weights of parts, a forest over sketches, one over pairs, and what nine in
    ten savings by pairs and by the full model are off by, as shares of the time apart."""

    weights: Floats
    forest: Forest
    pairs: Forest
    pair_doubt: float
    full_doubt: float


class Screening:
    """A `Screen` at work on one target. Equal sketches are computed once."""

    def __init__(self, target: Target, screen: Screen, scale: float = 1.0) -> None:
        self.target, self._screen, self._scale = target, screen, scale
        self._weights = screen.weights.tolist()
        self._expected: dict[Sketch, float] = {}
        self._seconds: dict[Sketch, float] = {}

    def expected(self, sketch: Sketch) -> float:
        """Seconds of a kernel, by its parts."""
        found = self._expected.get(sketch)
        if found is None:
            parts = sketch_parts(sketch, self.target)
            found = sum(w * p for w, p in zip(self._weights, parts, strict=True))
            self._expected[sketch] = found
        return found

    def seconds(self, sketches: Sequence[Sketch]) -> list[float]:
        """Seconds of kernels, by the forest."""
        new = [s for s in dict.fromkeys(sketches) if s not in self._seconds]
        if new:
            rows = np.array([sketch_numbers(s, self.target) for s in new])
            expected = np.array([self.expected(s) for s in new])
            rows[:, 0] = np.log2(expected)
            found = self._scale * expected * np.exp(self._screen.forest.predict(rows))
            self._seconds.update(zip(new, found.tolist(), strict=True))
        return [self._seconds[s] for s in sketches]

    def gain(self, apart: Sequence[Sketch], together: Sketch) -> Estimate:
        """How much longer kernels take apart than together."""
        expected = [self.expected(s) for s in (*apart, together)]
        before = sum(expected[:-1])
        saved = before - expected[-1]
        if abs(saved) > CLEAR * before and all(map(_is_simple, (*apart, together))):
            return saving(self._scale * before, self._scale * saved, CLEAR)
        screened = self.seconds([*apart, together])
        row = pair_features(apart, together, screened, expected, self.target)
        (ratio,) = np.exp(self._screen.pairs.predict(np.array([row])))
        before = sum(screened[:-1])
        return saving(before, before * (1 - float(ratio)), self._screen.pair_doubt)

    @property
    def full_doubt(self) -> float:
        return self._screen.full_doubt


def _is_simple(s: Sketch) -> bool:
    """True for a kernel that runs along memory and does everything once."""
    return s.inner >= SIMPLE_INNER and not (
        s.guarded or s.strided or s.again or s.columns or s.read[2] or s.read[3] or s.reductions > 1
    )


def saving(before: float, saved: float, doubt: float) -> Estimate:
    """Of kernels that take `before` seconds apart; `doubt` is a share of those."""
    why = f"{show_seconds(before)} apart, {show_seconds(before - saved)} together"
    return Estimate(saved, saved - doubt * before, saved + doubt * before, (why,))
