"""Which cost model a target gets: a learned one where one was trained for its kind, else the
roofline; and what was measured on this machine before either.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import rewright.costmodel
from rewright.costmodel import CostModel, Roofline
from rewright.ir.target import Target, known_targets

MODELS: Final = Path(rewright.costmodel.__file__).parent / "models"


def target_called(name: str) -> Target:
    """`host`, a target's full name, or the name of a GPU alone. Raises OptionError."""
    from rewright.calibrate.host import host

    if name == "host":
        return host()
    short = f"cuda:{name.strip().lower()}"
    return Target.parse(short if short in known_targets() else name)


@cache
def cost_model(target: Target) -> CostModel:
    """The best model there is for a target. GPUs have one each; that of CPUs knows them by their
    measured figures, so it is for CPUs that have been measured."""
    if not is_measured(target):
        return trained(target)
    from rewright.calibrate.calibration import read_calibration
    from rewright.costmodel.remembered import Remembering

    found = read_calibration(target, model_file(target))
    if found is None:
        return trained(target)
    return Remembering(trained(target, found.scale), found.estimates())


def trained(target: Target, scale: Mapping[str, float] | None = None) -> CostModel:
    """The model as it was trained, with the times of each family multiplied by its `scale`."""
    path = model_file(target)
    if not path.exists():
        return Roofline(target)
    from rewright.costmodel.learned import Learned
    from rewright.costmodel.model_file import read_model

    model = read_model(path)
    basis = str(model.about["basis"])
    return Learned(target, model.heads, model.screen, basis, scale, model.surroundings)


def model_file(target: Target) -> Path:
    """Where a target's model is, if there is one."""
    name = target.device if is_measured(target) else target.name.partition(":")[2]
    return MODELS / f"{name}.npz"


def is_measured(target: Target) -> bool:
    """True for a CPU that was measured, which is this one's; not for those known by name."""
    return target.device == "cpu" and target not in known_targets().values()
