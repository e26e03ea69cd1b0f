"""What becomes of names, pass by pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Renames = Mapping[str, tuple[str, ...]]


def now(names: Iterable[str], renamed: Renames) -> tuple[str, ...]:
    """What stands for `names` after one step."""
    return tuple(new for old in names for new in renamed.get(old, (old,)))


def composed(steps: Iterable[Renames]) -> dict[str, tuple[str, ...]]:
    """Several steps as one."""
    found: dict[str, tuple[str, ...]] = {}
    for step in steps:
        found = {old: now(names, step) for old, names in found.items()}
        found = {**step, **found}
    return found
