"""Which cost model a target gets: a learned one where one was trained for its kind, else the
roofline.
"""

from __future__ import annotations

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
    """The best model there is for a target. The one of CPUs knows them by their measured figures,
    so it is for CPUs that have been measured."""
    path = MODELS / f"{target.device}.npz"
    if target in known_targets().values() or not path.exists():
        return Roofline(target)
    from rewright.costmodel.learned import Learned
    from rewright.costmodel.model_file import read_model

    model = read_model(path)
    return Learned(target, model.heads, model.screen, str(model.about["basis"]))
