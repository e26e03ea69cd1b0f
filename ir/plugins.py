"""What installed packages add, by entry points: operators, rules and passes.

They are loaded when a name is asked for that is none of ours, so that who has none pays nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

KINDS: Final = ("ops", "passes", "rules")


@cache
def _declared(kind: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"rewright.{kind}"))


@cache
def plugins(kind: str) -> Mapping[str, Any]:
    """What stands under the entry points `rewright.KIND` of all installed packages, by name; loaded
    once. What cannot be loaded is warned of and left out."""
    found: dict[str, Any] = {}
    for point in _declared(kind):
        try:
            found[point.name] = point.load()
        except Exception as error:  # a package that has nothing to do with the user's model
            warnings.warn(
                f"rewright: plugin {_title(point)} cannot be loaded: {error}", stacklevel=2
            )
    return found


def versions() -> list[str]:
    """A line for each plugin that is installed, loaded or not."""
    return sorted(f"{kind} {_title(point)}" for kind in KINDS for point in _declared(kind))


def _title(point: EntryPoint) -> str:
    package = "" if point.dist is None else f" of {point.dist.name} {point.dist.version}"
    return f"'{point.name}'{package}"
