"""`rewright calibrate`: this machine measured, and how well the model knows it."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rewright.calibrate.calibration import Calibration, Timed, write_calibration
from rewright.calibrate.host import renewed_host
from rewright.calibrate.measuring import calibrate
from rewright.cost_models import cost_model, model_file, trained
from rewright.costmodel import Estimate, show_seconds
from rewright.ir.target import Target
from rewright.pictures import Picture


@dataclasses.dataclass(frozen=True)
class Findings:
    """A machine's figures, its calibration and where that was written."""

    target: Target
    calibration: Calibration
    path: Path

    def rows(self) -> Iterator[tuple[str, int, float, float, float]]:
        """Family, calls, scale, and the median error of the model without and with it."""
        of: dict[str, list[Timed]] = {}
        for t in self.calibration.timed:
            of.setdefault(t.family, []).append(t)
        for family, found in of.items():
            scale = self.calibration.scale.get(family, 1.0)
            yield family, len(found), scale, _error(found, 1.0), _error(found, scale)

    def as_json(self) -> dict[str, Any]:
        names = ("family", "calls", "scale", "error_before", "error_after")
        return {
            "target": self.target.name,
            "source": self.target.source,
            "families": [dict(zip(names, row, strict=True)) for row in self.rows()],
            "calls": [dataclasses.asdict(t) for t in self.calibration.timed],
            "record": str(self.path),
        }

    def __str__(self) -> str:
        caches = ", ".join(f"{c.name} {c.bandwidth / 1e9:.0f} GB/s" for c in self.target.caches)
        rates = ", ".join(f"{str(d)[6:]} {rate / 1e9:.0f}" for d, rate in self.target.flops)
        lines = [
            f"{self.target.name}: {self.target.source}",
            f"  GFLOP/s: {rates}",
            f"  memory {self.target.bandwidth / 1e9:.0f} GB/s, {caches}",
            f"  a kernel {show_seconds(self.target.launch_seconds)}, a call of ATen "
            f"{show_seconds(self.target.dispatch_seconds)}",
            "",
            "family        calls  scale  error as trained  error with scale",
        ]
        for family, calls, scale, before, after in self.rows():
            lines.append(f"{family:12} {calls:6} {scale:6.2f} {before:17.1%} {after:17.1%}")
        lines += ["", f"kept in {self.path}"]
        return "\n".join(lines)


def calibrated(seconds: float, progress: Callable[[float], None]) -> Findings:
    """Measure this machine, and keep what was found for all later processes."""
    target = renewed_host()
    found = calibrate(target, trained(target), seconds, progress)
    path = write_calibration(target, model_file(target), found)
    cost_model.cache_clear()
    return Findings(target, found, path)


def _error(timed: Sequence[Timed], scale: float) -> float:
    return statistics.median(
        abs(scale * t.predicted.seconds / t.measured.seconds - 1) for t in timed
    )


def plot(calibration: Calibration, picture: Picture) -> None:
    """Predicted against measured."""
    axes = picture.figure.add_subplot(xscale="log", yscale="log", aspect="equal")
    axes.set(xlabel="measured, seconds", ylabel="predicted, seconds")
    for family in dict.fromkeys(t.family for t in calibration.timed):
        scale = calibration.scale.get(family, 1.0)
        found = [t for t in calibration.timed if t.family == family]
        axes.errorbar(
            [t.measured.seconds for t in found],
            [scale * t.predicted.seconds for t in found],
            yerr=_bars([t.predicted for t in found], scale),
            fmt="o",
            markersize=4,
            linewidth=0.6,
            label=family,
        )
    seconds = [t.measured.seconds for t in calibration.timed]
    axes.plot([min(seconds), max(seconds)], [min(seconds), max(seconds)], "k-", linewidth=0.8)
    axes.legend()
    picture.write()


def _bars(predicted: Sequence[Estimate], scale: float) -> list[list[float]]:
    """Lengths of the bars below and above."""
    return [
        [scale * (e.seconds - e.low) for e in predicted],
        [scale * (e.high - e.seconds) for e in predicted],
    ]
