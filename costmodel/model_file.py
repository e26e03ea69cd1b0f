"""Model files: forests and gates as flat arrays in one `.npz`, without pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rewright.costmodel.context import CONTEXT, Surroundings
from rewright.costmodel.features import FAMILIES, SHARED_PARTS
from rewright.costmodel.forest import Forest
from rewright.costmodel.gpu_features import GPU_FAMILIES
from rewright.costmodel.learned import Gate, Head
from rewright.costmodel.screening import Screen
from rewright.costmodel.sketch_features import PAIR, SKETCH
from rewright.ir import OptionError

Arrays = dict[str, NDArray[np.generic]]

FORESTS: Final = ("residual", "absolute", "low", "high")
OTHERS: Final = {"sketch": SKETCH, "pair": PAIR, "program": CONTEXT}
VERSION: Final = 2


@dataclass(frozen=True)
class Model:
    """What one file holds: heads by family, what screens candidates, what becomes of calls in
    programs, and what all that was trained on."""

    heads: Mapping[str, Head]
    screen: Screen | None
    about: Mapping[str, Any]
    surroundings: Surroundings | None = None


def write_model(path: Path, model: Model) -> None:
    arrays: Arrays = {} if model.screen is None else _screen_arrays(model.screen)
    if model.surroundings is not None:
        around = model.surroundings
        arrays |= around.forest.arrays("program/forest")
        arrays["program/besides"] = np.array([around.start, around.view])
    for family, head in model.heads.items():
        for part in FORESTS:
            arrays |= getattr(head, part).arrays(f"{family}/{part}")
        arrays[f"{family}/widen"], arrays[f"{family}/weights"] = head.widen, head.weights
        arrays[f"{family}/blend"] = np.array(head.blend)
        for part in ("low", "high", "kept"):
            arrays[f"{family}/gate/{part}"] = getattr(head.gate, part).astype(np.float32)
        arrays[f"{family}/gate/reach"] = np.array(head.gate.reach)
    told = {
        "version": VERSION,
        "features": {f: _names(f) for f in (*model.heads, *OTHERS)},
        "usual": {f: dict(head.usual) for f, head in model.heads.items()},
        "about": model.about,
    }
    arrays["told"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_model(path: Path) -> Model:
    """Raises OptionError for a file of another version, or over other features."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    told = json.loads(arrays["told"].tobytes())
    features = {family: tuple(names) for family, names in told["features"].items()}
    if told["version"] != VERSION or any(_names(f) != n for f, n in features.items()):
        raise OptionError(f"{path.name} was trained on other features", help="make costmodel")
    heads = {family: _head(arrays, family, usual) for family, usual in told["usual"].items()}
    screen = _screen(arrays) if "screen/doubts" in arrays else None
    return Model(heads, screen, told["about"], _surroundings(arrays))


def _names(family: str) -> tuple[str, ...] | None:
    """Of the features of a family."""
    return (FAMILIES | GPU_FAMILIES | OTHERS).get(family)


def _screen_arrays(screen: Screen) -> Arrays:
    return {
        **screen.forest.arrays("screen/forest"),
        **screen.pairs.arrays("screen/pairs"),
        "screen/weights": screen.weights,
        "screen/doubts": np.array([screen.pair_doubt, screen.full_doubt]),
    }


def _screen(arrays: Mapping[str, NDArray[np.generic]]) -> Screen:
    pair_doubt, full_doubt = np.asarray(arrays["screen/doubts"], np.float64).tolist()
    return Screen(
        np.asarray(arrays["screen/weights"], np.float64),
        Forest.from_arrays(arrays, "screen/forest"),
        Forest.from_arrays(arrays, "screen/pairs"),
        pair_doubt,
        full_doubt,
    )


def _surroundings(arrays: Mapping[str, NDArray[np.generic]]) -> Surroundings | None:
    if "program/besides" not in arrays:
        return None
    start, view = np.asarray(arrays["program/besides"], np.float64).tolist()
    return Surroundings(Forest.from_arrays(arrays, "program/forest"), start, view)


def _head(
    arrays: Mapping[str, NDArray[np.generic]], family: str, usual: Mapping[str, float]
) -> Head:
    forests = {part: Forest.from_arrays(arrays, f"{family}/{part}") for part in FORESTS}
    low, high, kept = (
        np.asarray(arrays[f"{family}/gate/{part}"], np.float64) for part in ("low", "high", "kept")
    )
    gate = Gate(low, high, kept, float(arrays[f"{family}/gate/reach"]))
    widen, weights = (
        np.asarray(arrays[f"{family}/{part}"], np.float64) for part in ("widen", "weights")
    )
    blend = float(arrays[f"{family}/blend"])
    shares = SHARED_PARTS.get(family, ())
    return Head(weights, blend, widen=widen, gate=gate, usual=usual, shares=shares, **forests)
