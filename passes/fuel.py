"""Fuel: how many rewrites a pass may still make. With less and less of it, the first rewrite that
does harm is found by halving."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Application:
    """A rule that was applied at a node."""

    rule: str
    node: str


class Fuel:
    """Lets the first `limit` rewrites happen, and remembers them."""

    def __init__(self, limit: float = math.inf) -> None:
        self.limit = limit
        self.spent: list[Application] = []

    @property
    def is_out(self) -> bool:
        return len(self.spent) >= self.limit

    def spend(self, rule: str, node: str) -> None:
        """Note a rewrite. There must be fuel for it."""
        self.spent.append(Application(rule, node))
