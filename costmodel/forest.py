"""Forests of oblivious trees as flat arrays, evaluated in C, or by NumPy.

All nodes of one level of an oblivious tree ask the same question, so a tree is a few comparisons
whose answers are the bits of a leaf's number (Prokhorenkova et al., "CatBoost: unbiased boosting
with categorical features", 2018).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rewright.ir.native import native

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Sums = NDArray[np.int64]

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
        single = np.ascontiguousarray(rows, np.float32)
        return self.bias + self.scale * self._sums(single).astype(np.float64)

    @cached_property
    def _sums(self) -> Callable[[Singles], Sums]:
        """Rows to sums of leaves."""
        library = native("forest")
        if library is None:
            return self._sums_slowly
        function, (trees, depth) = library.rw_predict, self.features.shape
        kept = [np.ascontiguousarray(a) for a in (self.features, self.borders, self.leaves)]
        forest = [ctypes.c_void_p(array.ctypes.data) for array in kept]
        forest += [ctypes.c_int64(trees), ctypes.c_int64(depth)]  # type: ignore[list-item]

        def sums(rows: Singles, kept: object = kept) -> Sums:
            count, width = rows.shape
            found = np.empty(count, np.int64)
            size = ctypes.c_int64(count), ctypes.c_int64(width)
            function(_pointer(rows), *size, *forest, _pointer(found))
            return found

        return sums

    def _sums_slowly(self, rows: Singles) -> Sums:
        trees, depth = self.features.shape
        powers = (1 << np.arange(depth)).astype(np.int32)
        first = np.arange(trees, dtype=np.int32) * (1 << depth)
        flat = self.leaves.reshape(-1)
        found = np.empty(len(rows), np.int64)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            numbers = first + (part[:, self.features] > self.borders) @ powers
            found[start : start + CHUNK] = flat[numbers].sum(1, dtype=np.int32)
        return found

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


def _pointer(array: Singles | Sums) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
