"""Training of the learned model. Needs CatBoost (`pip install rewright[train]`); using what was
trained does not.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rewright.costmodel.forest import Floats, Forest
from rewright.costmodel.learned import GROUPS, Gate, Head, filled

_LARGEST: Final = 32_000


@dataclass(frozen=True)
class Shape:
    """How a forest is grown."""

    trees: int
    depth: int
    rate: float
    loss: str = "RMSE"
    l2: float = 3.0


FULL: Final = Shape(trees=1500, depth=7, rate=0.045)
SPREAD: Final = Shape(trees=150, depth=4, rate=0.08)
FOLDS: Final = 8
COVERAGE: Final = 0.9
# A group of fewer held-out errors takes the figure of all.
FEWEST: Final = 60
# How many calls with the mean of all are counted with those of an operator.
SHRINK: Final = 5
# Steps of the fit of weights, and the relative error from which a call counts for less.
REWEIGHTED, TRUSTED = 6, 0.2
# Shares of the forest of residuals that are tried.
BLENDS: Final = (1.0, 0.75, 0.5)
# Calls that a gate keeps.
KEPT: Final = 128


def grow(rows: Floats, targets: Floats, shape: Shape, weights: Floats | None = None) -> Forest:
    """A forest fitted to `targets`. Raises ImportError without CatBoost."""
    from catboost import CatBoostRegressor

    if np.ptp(targets) < 1e-9:  # which CatBoost refuses
        return Forest.constant(float(targets[0]))
    model = CatBoostRegressor(
        iterations=shape.trees,
        depth=shape.depth,
        learning_rate=shape.rate,
        loss_function=shape.loss,
        l2_leaf_reg=shape.l2,
        border_count=254,
        random_seed=0,
        thread_count=-1,
        allow_writing_files=False,
        verbose=False,
    )
    model.fit(rows.astype(np.float32), targets, sample_weight=weights)
    with tempfile.TemporaryDirectory(prefix="rewright-") as folder:
        path = Path(folder) / "forest.json"
        model.save_model(str(path), format="json")
        return _flat(json.loads(path.read_text()), shape.depth)


@dataclass(frozen=True)
class Rows:
    """What a head learns from: features [n, f], parts [n, p] and seconds [n], and the group of each
    row (its family of models), of which none is in two folds; operators are empty for kernels.
    `shares` are the places of parts whose shares are features too."""

    features: Floats
    parts: Floats
    seconds: Floats
    groups: Sequence[str]
    operators: Sequence[str]
    shares: Sequence[Sequence[int]] = ()

    def __len__(self) -> int:
        return len(self.seconds)

    def of(self, chosen: NDArray[np.bool_]) -> Rows:
        """Some of them."""
        return Rows(
            self.features[chosen],
            self.parts[chosen],
            self.seconds[chosen],
            list(compress(self.groups, chosen)),
            list(compress(self.operators, chosen)),
            self.shares,
        )

    def filled(self, weights: Floats, usual: Mapping[str, float]) -> Floats:
        return filled(self.features, self.parts, weights, self.operators, usual, self.shares)

    def over(self, weights: Floats) -> Floats:
        """The logarithm of the seconds over what is expected."""
        return np.log(self.seconds / (self.parts @ weights))


def weigh(rows: Rows) -> Floats:
    """Weights, none negative, of a sum of the parts that is off by little; calls that it misses by
    far count for less and less (iteratively reweighted least squares)."""
    from scipy.optimize import nnls

    trust = np.ones(len(rows))
    for _ in range(REWEIGHTED):
        weights: Floats = nnls(rows.parts * (trust / rows.seconds)[:, None], trust)[0]
        miss = rows.parts @ weights / rows.seconds - 1
        trust = 1 / np.sqrt(1 + (miss / TRUSTED) ** 2)
    return weights


def _usual(rows: Rows, weights: Floats) -> dict[str, float]:
    """What calls of each operator take over what is expected, shrunk to what all do."""
    over = rows.over(weights)
    overall = float(np.mean(over))
    sums: dict[str, list[float]] = {}
    for name, each in zip(rows.operators, over.tolist(), strict=True):
        if name:
            sums.setdefault(name, []).append(each)
    return {
        name: (sum(found) + SHRINK * overall) / (len(found) + SHRINK)
        for name, found in sums.items()
    }


@dataclass(frozen=True)
class _Fit:
    """What predicts the time itself."""

    weights: Floats
    usual: dict[str, float]
    residual: Forest
    absolute: Forest

    @staticmethod
    def of(rows: Rows, shape: Shape) -> _Fit:
        weights = weigh(rows)
        usual = _usual(rows, weights)
        x = rows.filled(weights, usual)
        residual = grow(x, rows.over(weights), shape)
        return _Fit(weights, usual, residual, grow(x, np.log(rows.seconds), shape))

    def logs(self, rows: Rows) -> tuple[Floats, Floats]:
        """Log seconds by either forest."""
        x = rows.filled(self.weights, self.usual)
        over = self.residual.predict(x) + np.log(rows.parts @ self.weights)
        return over, self.absolute.predict(x)


class Trained(NamedTuple):
    """A head, and the logarithms of what heads that did not see a row's group said of it."""

    head: Head
    held_out: Floats


def train_head(rows: Rows, full: Shape = FULL, folds: int = FOLDS) -> Trained:
    """The head of one family of calls, cross-validated over `folds` parts of its groups.

    Bounds come from errors on groups that a fold's forests have not seen, and are widened by what
    groups that the bounds' own forests have not seen needed.
    """
    fold = folds_of(rows.groups, folds)
    over, absolute = np.empty(len(rows)), np.empty(len(rows))
    for f in range(folds):
        fit = _Fit.of(rows.of(fold != f), full)
        over[fold == f], absolute[fold == f] = fit.logs(rows.of(fold == f))
    truth = np.log(rows.seconds)
    blend = min(BLENDS, key=lambda b: np.abs(b * over + (1 - b) * absolute - truth).mean())
    logs = blend * over + (1 - blend) * absolute
    errors = truth - logs
    fit = _Fit.of(rows, full)
    x = rows.filled(fit.weights, fit.usual)
    misses = np.empty(len(rows))
    for f in range(folds):
        low, high = _bounds(x[fold != f], errors[fold != f])
        held, e = x[fold == f], errors[fold == f]
        misses[fold == f] = np.maximum(low.predict(held) - e, e - high.predict(held))
    low, high = _bounds(x, errors)
    head = Head(
        weights=fit.weights,
        blend=blend,
        residual=fit.residual,
        absolute=fit.absolute if blend < 1 else Forest.constant(0.0),
        low=low,
        high=high,
        widen=_widths(misses, logs),
        gate=_gate(x),
        usual=fit.usual,
        shares=rows.shares,
    )
    return Trained(head, logs)


def folds_of(groups: Sequence[str], folds: int) -> NDArray[np.int64]:
    """A fold for each row; the largest groups are dealt out first, to the smallest fold."""
    sizes = Counter(groups)
    filled, fold_of = [0] * folds, {}
    for group, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        fold_of[group] = filled.index(min(filled))
        filled[fold_of[group]] += size
    return np.array([fold_of[group] for group in groups])


def _bounds(features: Floats, errors: Floats) -> tuple[Forest, Forest]:
    low, high = (replace(SPREAD, loss=f"Quantile:alpha={a}") for a in (0.05, 0.95))
    return grow(features, errors, low), grow(features, errors, high)


def _widths(misses: Floats, logs: Floats) -> Floats:
    """By how much bounds must be widened (narrowed where negative) to hold `COVERAGE`, by group."""
    group = np.searchsorted(GROUPS, np.exp(logs))
    widths = np.full(len(GROUPS) + 1, level(misses))
    for g in range(len(widths)):
        if (group == g).sum() >= FEWEST:
            widths[g] = level(misses[group == g])
    return widths


def level(misses: Floats) -> float:
    """What `COVERAGE` of them do not exceed, with the correction for their number."""
    level = min(1.0, COVERAGE * (len(misses) + 1) / len(misses))
    return float(np.quantile(misses, level, method="higher"))


def _gate(x: Floats) -> Gate:
    """Keeps calls that are far from one another (greedy k-center, Gonzalez 1985)."""
    gate = Gate(x.min(0), x.max(0), x[:1], np.inf)
    distance = gate.distance(x)
    kept = [0]
    while len(kept) < min(KEPT, len(x)) and distance.max() > 0:
        kept.append(int(distance.argmax()))
        distance = np.minimum(distance, replace(gate, kept=x[kept[-1:]]).distance(x))
    reach = 1.5 * float(np.quantile(distance, 0.995))
    return replace(gate, kept=x[kept], reach=reach)


def _flat(model: dict[str, Any], depth: int) -> Forest:
    """CatBoost's JSON as arrays. A tree of fewer levels asks what is never true at the others."""
    trees: Sequence[dict[str, Any]] = model["oblivious_trees"]
    features = np.zeros((len(trees), depth), np.uint8)
    borders = np.full((len(trees), depth), np.inf, np.float32)
    leaves = np.zeros((len(trees), 1 << depth))
    for t, tree in enumerate(trees):
        for level, split in enumerate(tree["splits"] or ()):
            features[t, level] = split["float_feature_index"]
            borders[t, level] = split["border"]
        values = tree["leaf_values"]
        leaves[t, : len(values)] = values
    factor, bias = model["scale_and_bias"]
    bias = bias[0] if isinstance(bias, list) else bias
    unit = max(float(np.abs(leaves).max()), 1e-12) / _LARGEST
    whole: NDArray[np.int16] = np.round(leaves / unit).astype(np.int16)
    return Forest(features, borders, whole, factor * unit, float(bias))
