"""Forests of oblivious trees as flat arrays, evaluated by NumPy.

All nodes of one level of an oblivious tree ask the same question, so a tree is a few comparisons
whose answers are the bits of a leaf's number (Prokhorenkova et al., "CatBoost: unbiased boosting
with categorical features", 2018). Rows and trees are all done at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Rows at once: more would leave the caches.
CHUNK = 256


@dataclass(frozen=True)
class Forest:
    """`features[t, d]` is asked at level d of tree t, whether it is above `borders[t, d]`; the
    answers number a leaf, level 0 lowest. The prediction is `bias` plus `scale` times the sum of
    `leaves[t, number]`."""

    features: NDArray[np.uint8]
    borders: NDArray[np.float32]
    leaves: NDArray[np.int16]
    scale: float
    bias: float

    def predict(self, rows: Floats) -> Floats:
        """[n, features] -> [n]."""
        trees, depth = self.features.shape
        powers = (1 << np.arange(depth)).astype(np.int32)
        first = np.arange(trees, dtype=np.int32) * (1 << depth)
        flat = self.leaves.reshape(-1)
        single = rows.astype(np.float32)
        found = np.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            part = single[start : start + CHUNK]
            numbers = first + (part[:, self.features] > self.borders) @ powers
            found[start : start + CHUNK] = flat[numbers].sum(1, dtype=np.int32)
        return self.bias + self.scale * found

    @staticmethod
    def constant(prediction: float) -> Forest:
        """The same for every row."""
        feature, border = np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.float32)
        return Forest(feature, border, np.zeros((1, 2), np.int16), 1.0, prediction)

    def arrays(self, name: str) -> dict[str, NDArray[np.generic]]:
        """What `from_arrays` reads, each under `name/...`."""
        return {
            f"{name}/features": self.features,
            f"{name}/borders": self.borders,
            f"{name}/leaves": self.leaves,
            f"{name}/line": np.array([self.scale, self.bias]),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Forest:
        scale, bias = (float(x) for x in arrays[f"{name}/line"])
        return Forest(
            np.asarray(arrays[f"{name}/features"], np.uint8),
            np.asarray(arrays[f"{name}/borders"], np.float32),
            np.asarray(arrays[f"{name}/leaves"], np.int16),
            scale,
            bias,
        )
