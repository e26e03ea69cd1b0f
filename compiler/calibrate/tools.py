"""What passes may have measured: calls, on this machine, within a budget, remembered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from rewright.calibrate.bench import Bench, Sample
from rewright.calibrate.calibration import Calibration, read_calibration, write_calibration
from rewright.calibrate.corpus import Call
from rewright.costmodel import Estimate
from rewright.ir import Graph
from rewright.ir.alone import call_name
from rewright.ir.target import Target


class BenchTools:
    """`Tools` for this machine. Begins nothing after `seconds`; what it measures goes into the
    calibration for the cost model in `model`, where later compiles find it."""

    def __init__(self, target: Target, model: Path, seconds: float) -> None:
        self.target, self._model = target, model
        self._until = time.monotonic() + seconds
        found = read_calibration(target, model) or Calibration({}, {})
        self._scale, self._measured = found.scale, dict(found.measured)

    def measure(self, calls: Sequence[Graph]) -> list[Estimate] | None:
        names = [call_name(str(call)) for call in calls]
        new = {n: c for n, c in zip(names, calls, strict=True) if n not in self._measured}
        if new and not self._add(new):
            return None
        return [Estimate(*self._measured[name], ("measured here",)) for name in names]

    def _add(self, new: dict[str, Graph]) -> bool:
        """False when something could not be measured, or the time is up."""
        if time.monotonic() > self._until:
            return False
        calls = [Call(graph, ()) for graph in new.values()]
        names = dict(zip(map(id, calls), new, strict=True))
        for call, sample in self._bench.measure(calls):
            if isinstance(sample, Sample):
                self._measured[names[id(call)]] = sample.seconds, sample.low, sample.high
        write_calibration(self.target, self._model, Calibration(self._scale, self._measured))
        return all(name in self._measured for name in new)

    @cached_property
    def _bench(self) -> Bench:
        return Bench(self.target)
