"""Memory planning: every intermediate of a schedule gets an address in one arena."""

from rewright.passes.memory.lifetimes import lifetimes
from rewright.passes.memory.plan import PlanMemory, peak_bytes, problem_of
from rewright.passes.memory.solve import solve

__all__ = ["PlanMemory", "lifetimes", "peak_bytes", "problem_of", "solve"]
