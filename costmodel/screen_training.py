"""Training of what screens candidates (see `costmodel.screening`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewright.costmodel.forest import Floats, Forest
from rewright.costmodel.screening import Screen
from rewright.costmodel.sketch import Sketch
from rewright.costmodel.sketch_features import pair_features, sketch_numbers, sketch_parts
from rewright.costmodel.training import FOLDS, Rows, Shape, folds_of, grow, level, weigh
from rewright.ir.target import Target

SCREEN: Final = Shape(trees=100, depth=6, rate=0.2)
PAIRS: Final = Shape(trees=150, depth=5, rate=0.08)


@dataclass(frozen=True)
class Pair:
    """Kernels apart and the one that does their work, by sketch, and how much of the time that they
    take it takes; `group` is the family of models they are from, `target` the machine."""

    apart: Sequence[Sketch]
    together: Sketch
    ratio: float
    group: str
    target: Target


def sketch_rows(
    sketches: Sequence[tuple[Sketch, Target]], seconds: Floats, groups: Sequence[str]
) -> Rows:
    """Of sketches, each on its machine."""
    numbers = np.array([sketch_numbers(*each) for each in sketches])
    parts = np.array([sketch_parts(*each) for each in sketches])
    return Rows(numbers, parts, seconds, groups, [""] * len(sketches))


@dataclass(frozen=True)
class _Quick:
    """Weights of parts and the forest that corrects them."""

    weights: Floats
    forest: Forest

    @staticmethod
    def of(rows: Rows) -> _Quick:
        weights = weigh(rows)
        return _Quick(weights, grow(rows.filled(weights, {}), rows.over(weights), SCREEN))

    def logs(self, rows: Rows) -> tuple[Floats, Floats]:
        """The logarithm of seconds, by the parts and by the forest."""
        expected = np.log(rows.parts @ self.weights)
        return expected, expected + self.forest.predict(rows.filled(self.weights, {}))

    def pair_row(self, pair: Pair) -> tuple[float, ...]:
        sketches = [(sketch, pair.target) for sketch in (*pair.apart, pair.together)]
        rows = sketch_rows(sketches, np.ones(len(sketches)), [""] * len(sketches))
        expected, screened = (np.exp(logs).tolist() for logs in self.logs(rows))
        return pair_features(pair.apart, pair.together, screened, expected, pair.target)


def train_screen(rows: Rows, pairs: Sequence[Pair], full_doubt: float) -> Screen:
    """Rows are of sketches. What the forest of pairs learns from are figures for families of models
    that the forest of sketches behind them has not seen; so are the errors that give its doubt."""
    fold = folds_of(rows.groups, FOLDS)
    of_group = dict(zip(rows.groups, fold.tolist(), strict=True))
    pair_fold = np.array([of_group.get(pair.group, 0) for pair in pairs])
    table: list[tuple[float, ...]] = [()] * len(pairs)
    for f in range(FOLDS):
        quick = _Quick.of(rows.of(fold != f))
        for i in np.flatnonzero(pair_fold == f).tolist():
            table[i] = quick.pair_row(pairs[i])
    x, y = np.array(table), np.log([pair.ratio for pair in pairs])
    pair_errors = np.empty(len(pairs))
    for f in range(FOLDS):
        held_out = pair_fold == f
        if held_out.any():
            found = grow(x[~held_out], y[~held_out], PAIRS).predict(x[held_out])
            pair_errors[held_out] = np.exp(found) - np.exp(y[held_out])
    quick = _Quick.of(rows)
    pair_doubt = level(np.abs(pair_errors))
    return Screen(quick.weights, quick.forest, grow(x, y, PAIRS), pair_doubt, full_doubt)
