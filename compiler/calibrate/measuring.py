"""Timing the suite on this machine: how much longer or shorter calls take than the model says."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

from rewright.calibrate.bench import Bench, Sample
from rewright.calibrate.calibration import Calibration, Timed
from rewright.calibrate.corpus import Call
from rewright.calibrate.suite import suite
from rewright.costmodel import CostModel, Estimate
from rewright.costmodel.features import family_of
from rewright.ir.alone import call_name
from rewright.ir.target import Target

# Calls timed together; the clock is looked at between two batches.
BATCH: Final = 12
# A family of fewer timed calls is left as the model has it, and no scale goes beyond these bounds.
FEWEST: Final = 4
MOST: Final = 3.0


def calibrate(
    target: Target,
    model: CostModel,
    seconds: float,
    progress: Callable[[float], None] = lambda share: None,
) -> Calibration:
    """Time the suite against `model`, for at most `seconds`; `progress` is told the share of it
    that is done.

    Raises ToolchainError when no kernel can be built.
    """
    started = time.monotonic()
    calls, bench = list(suite(target)), Bench(target)
    timed: list[Timed] = []
    for first in range(0, len(calls), BATCH):
        batch = calls[first : first + BATCH]
        spent = time.monotonic() - started
        # The next batch takes about as long as those before it.
        if first and spent * (1 + BATCH / first) > seconds:
            break
        timed += (_timed(model, c, s) for c, s in bench.measure(batch) if isinstance(s, Sample))
        progress(min(1.0, max(first / len(calls), (time.monotonic() - started) / seconds)))
    progress(1.0)
    measured = {t.name: (t.measured.seconds, t.measured.low, t.measured.high) for t in timed}
    return Calibration(scales(timed), measured, timed)


def _timed(model: CostModel, call: Call, sample: Sample) -> Timed:
    (node,) = call.graph.nodes
    (predicted,) = model.estimate([node])
    measured = Estimate(sample.seconds, sample.low, sample.high)
    return Timed(family_of(node), call_name(str(call.graph), call.cold), predicted, measured)


def scales(timed: Sequence[Timed]) -> dict[str, float]:
    """The median of measured over predicted, by family."""
    ratios: dict[str, list[float]] = {}
    for t in timed:
        ratios.setdefault(t.family, []).append(t.measured.seconds / t.predicted.seconds)
    return {
        family: min(MOST, max(1 / MOST, statistics.median(found)))
        for family, found in ratios.items()
        if len(found) >= FEWEST
    }
