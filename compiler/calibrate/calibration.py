"""What `rewright calibrate` finds out about this machine, and where it is kept.

The model knows how calls relate to a machine's figures from the machines that it was trained on. A
fixed suite of calls says by how much the calls of a family take longer or shorter here; what was
measured is remembered, and given back whenever such a call is asked about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rewright.calibrate.host import fingerprint
from rewright.costmodel import Estimate, show_seconds
from rewright.ir.cache import default_cache, digest
from rewright.ir.target import Target

# Raised whenever records of an older version must not be used.
VERSION: Final = "1"


@dataclass(frozen=True)
class Timed:
    """A call of the suite by its `call_name`: what the model said, as trained, and what it took."""

    family: str
    name: str
    predicted: Estimate
    measured: Estimate


@dataclass(frozen=True)
class Calibration:
    """`scale` multiplies the model's times, by family of calls; `measured` are seconds and bounds
    by `call_name`."""

    scale: Mapping[str, float]
    measured: Mapping[str, tuple[float, float, float]]
    timed: Sequence[Timed] = field(default=(), compare=False)

    def estimates(self) -> dict[str, Estimate]:
        """What was measured, as estimates."""
        return {
            name: Estimate(*numbers, (f"measured here, {show_seconds(numbers[0])}",))
            for name, numbers in self.measured.items()
        }


def read_calibration(target: Target, model: Path) -> Calibration | None:
    """What was found out about this machine for the model in a file, if anything was."""
    record = default_cache().read(_record_name(target, model))
    if record is None:
        return None
    told: dict[str, Any] = json.loads(record)
    measured = {name: (a, b, c) for name, (a, b, c) in told["measured"].items()}
    return Calibration(told["scale"], measured)


def write_calibration(target: Target, model: Path, calibration: Calibration) -> Path:
    told = {"scale": dict(calibration.scale), "measured": dict(calibration.measured)}
    return default_cache().write(_record_name(target, model), json.dumps(told).encode())


def _record_name(target: Target, model: Path) -> str:
    """By everything that a record depends on."""
    content = model.read_bytes() if model.exists() else b""
    return digest(VERSION, *fingerprint(target.cores), content) + ".calibration"
