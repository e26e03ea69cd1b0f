"""What passes may have measured: calls, on this machine, remembered."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from rewright.calibrate.bench import Bench, Sample
from rewright.calibrate.calibration import Calibration, read_calibration, write_calibration
from rewright.calibrate.corpus import Call
from rewright.calibrate.race import race, races
from rewright.costmodel import Estimate
from rewright.ir import Graph
from rewright.ir.alone import call_name
from rewright.ir.target import Target


class BenchTools:
    """`Tools` for this machine. Kernels are measured for about `seconds`, and go into the
    calibration for the cost model in `model`, where later compiles find them."""

    def __init__(self, target: Target, model: Path, seconds: float) -> None:
        self.target, self.seconds, self._model = target, seconds, model
        self._until = time.monotonic() + seconds

    def race(self, calls: Sequence[Graph]) -> list[float] | None:
        return race(calls, self.target)

    def races(self, groups: Sequence[Sequence[Graph]]) -> list[list[float] | None]:
        return races(groups, self.target)

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
        found = Calibration(self._calibration.scale, self._measured)
        write_calibration(self.target, self._model, found)
        return all(name in self._measured for name in new)

    @cached_property
    def _measured(self) -> dict[str, tuple[float, float, float]]:
        return dict(self._calibration.measured)

    @cached_property
    def _calibration(self) -> Calibration:
        return read_calibration(self.target, self._model) or Calibration({}, {})

    @cached_property
    def _bench(self) -> Bench:
        return Bench(self.target)
