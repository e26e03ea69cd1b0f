"""Rewright: a graph compiler for PyTorch that works to stated budgets.

    torch.compile(model, backend="rewright")
    rewright.optimize(model, example_inputs)

Everything is imported on first use, so that `import rewright` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rewright import rules
    from rewright.api import Compiled, optimize, rewrite
    from rewright.backend import programs
    from rewright.calibrate.peak import measured_peak
    from rewright.ir import RewrightError
    from rewright.options import Options
    from rewright.rules import rule

_HOMES = {
    "Compiled": "rewright.api",
    "Options": "rewright.options",
    "RewrightError": "rewright.ir",
    "measured_peak": "rewright.calibrate.peak",
    "optimize": "rewright.api",
    "programs": "rewright.backend",
    "rewrite": "rewright.api",
    "rule": "rewright.rules",
}

__all__ = [
    "Compiled",
    "Options",
    "RewrightError",
    "measured_peak",
    "optimize",
    "programs",
    "rewrite",
    "rule",
    "rules",
]


def __getattr__(name: str) -> Any:
    if name == "rules":
        return importlib.import_module("rewright.rules")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rewright' has no attribute '{name}'")
