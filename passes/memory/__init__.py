"""Memory planning: every intermediate of a schedule gets an address in one arena."""

from rewright.passes.memory.held import Held, held, held_bytes, peak_bytes
from rewright.passes.memory.lifetimes import lifetimes
from rewright.passes.memory.plan import PlanMemory, problem_of
from rewright.passes.memory.solve import solve

__all__ = [
    "Held",
    "PlanMemory",
    "held",
    "held_bytes",
    "lifetimes",
    "peak_bytes",
    "problem_of",
    "solve",
]
