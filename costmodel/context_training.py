"""Training of what becomes of calls in programs (see `costmodel.context`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from rewright.costmodel.context import Surroundings, context_rows
from rewright.costmodel.forest import Floats
from rewright.costmodel.reuse import Walk
from rewright.costmodel.training import Shape, grow
from rewright.ir.target import Target

FOREST: Final = Shape(trees=200, depth=5, rate=0.06)
# A call counts for its share of its program's time, but none for nothing.
LEAST_SHARE: Final = 0.002


@dataclass(frozen=True)
class TimedProgram:
    """A program on a machine: what its calls take alone, by a model, and within it; what a run
    takes besides. Seconds."""

    found: Walk
    alone: Floats
    within: Floats
    besides: float
    target: Target
    family: str


def train_surroundings(programs: Sequence[TimedProgram]) -> Surroundings:
    rows = np.concatenate([context_rows(p.found, p.alone.tolist(), p.target) for p in programs])
    longer = np.concatenate([np.log(p.within / p.alone) for p in programs])
    shares = np.concatenate([p.within / p.within.sum() + LEAST_SHARE for p in programs])
    start, view = _besides(programs)
    return Surroundings(grow(rows, longer, FOREST, shares), start, view)


def _besides(programs: Sequence[TimedProgram]) -> tuple[float, float]:
    """Dispatches for the start of a run and for a view, none negative, by least squares of relative
    errors."""
    from scipy.optimize import nnls

    counts = np.array([(1.0, p.found.views) for p in programs])
    dispatches = np.array([p.besides / p.target.dispatch_seconds for p in programs])
    start, view = nnls(counts / dispatches[:, None], np.ones(len(programs)))[0].tolist()
    return start, view
