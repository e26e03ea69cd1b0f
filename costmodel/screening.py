"""Screening: quick figures for kernels that are only sketched, and for joining some into one.

Where kernels are simple, a weighted sum of parts settles what is clear. For the rest a small forest
corrects the sum, and a forest of pairs has learned what joining really saved.
"""

from __future__ import annotations

import math
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


@dataclass(slots=True)
class _Known:
    """Of a kernel: seconds by its parts and, once somebody asks, by the forest."""

    expected: float
    simple: bool
    seconds: float | None = None


class Screening:
    """A `Screen` at work on one target. Equal sketches, and equal questions, are answered once."""

    def __init__(self, target: Target, screen: Screen, scale: float = 1.0) -> None:
        self.target, self._screen, self._scale = target, screen, scale
        self._weights = screen.weights.tolist()
        self._known: dict[Sketch, _Known] = {}
        self._gains: dict[tuple[tuple[Sketch, ...], Sketch], Estimate] = {}

    def seconds(self, sketches: Sequence[Sketch]) -> list[float]:
        """Seconds of kernels, by the forest."""
        return self._seconds(sketches, [self._of(s) for s in sketches])

    def gain(self, apart: Sequence[Sketch], together: Sketch) -> Estimate:
        """How much longer kernels take apart than together."""
        question = tuple(apart), together
        found = self._gains.get(question)
        if found is None:
            found = self._gains[question] = self._gain(*question)
        return found

    def _gain(self, apart: tuple[Sketch, ...], together: Sketch) -> Estimate:
        sketches = (*apart, together)
        known = [self._of(s) for s in sketches]
        expected = [k.expected for k in known]
        before = sum(expected[:-1])
        saved = before - expected[-1]
        if abs(saved) > CLEAR * before and all(k.simple for k in known):
            return saving(self._scale * before, self._scale * saved, CLEAR)
        screened = self._seconds(sketches, known)
        row = pair_features(apart, together, screened, expected, self.target)
        ratio = math.exp(self._screen.pairs.predict(np.array([row]))[0])
        before = sum(screened[:-1])
        return saving(before, before * (1 - ratio), self._screen.pair_doubt)

    def _of(self, sketch: Sketch) -> _Known:
        found = self._known.get(sketch)
        if found is None:
            parts = sketch_parts(sketch, self.target)
            expected = sum(w * p for w, p in zip(self._weights, parts, strict=True))
            found = self._known[sketch] = _Known(expected, _is_simple(sketch))
        return found

    def _seconds(self, sketches: Sequence[Sketch], known: Sequence[_Known]) -> list[float]:
        new = {id(k): (s, k) for s, k in zip(sketches, known, strict=True) if k.seconds is None}
        if new:
            rows = np.array([sketch_numbers(s, self.target) for s, _ in new.values()])
            expected = np.array([k.expected for _, k in new.values()])
            rows[:, 0] = np.log2(expected)
            found = self._scale * expected * np.exp(self._screen.forest.predict(rows))
            for (_, of), seconds in zip(new.values(), found.tolist(), strict=True):
                of.seconds = seconds
        return [k.seconds for k in known if k.seconds is not None]

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
