"""Memory planning: every intermediate of a schedule gets an address in one arena."""

from rewright.passes.memory.plan import PlanMemory, peak_bytes

__all__ = ["PlanMemory", "peak_bytes"]
