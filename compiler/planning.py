"""`rewright plan-memory`: the arena found for a trace, and a picture of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rewright.ir import CheckError, OptionError
from rewright.passes.memory.fit import Clock
from rewright.passes.memory.judge import judge
from rewright.passes.memory.problem import (
    Buffer,
    Found,
    MemoryPlan,
    MemoryProblem,
    loads,
    lower_bound,
)
from rewright.passes.memory.solve import blocks_of, smallest, within
from rewright.pictures import Picture

MOST_BYTES: Final = 1 << 62  # offsets are worked out as 64-bit integers


@dataclass(frozen=True)
class PlannedTrace:
    """A trace, the plan found for it, and what no arena is smaller than."""

    problem: MemoryProblem
    plan: MemoryPlan
    bound: int

    @property
    def gap(self) -> float:
        return self.plan.nbytes / self.bound - 1 if self.bound else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "buffers": len(self.problem.buffers),
            "bytes": sum(b.nbytes for b in self.problem.buffers),
            "alignment": self.problem.alignment,
            "arena": self.plan.nbytes,
            "lower_bound": self.bound,
            "gap": self.gap,
        }

    def __str__(self) -> str:
        buffers = self.problem.buffers
        total = sum(b.nbytes for b in buffers)
        return (
            f"{len(buffers)} buffers of {total:,} bytes lie in an arena of {self.plan.nbytes:,} "
            f"bytes\nnone is smaller than {self.bound:,} bytes: a gap of {self.gap:.2%}"
        )


def plan_trace(
    buffers: Sequence[Buffer], alignment: int, capacity: int | None, seconds: float
) -> PlannedTrace:
    """A plan within `capacity`, or the smallest found in about so many seconds.

    Raises OptionError for a capacity in which none is found.
    """
    problem = MemoryProblem(tuple(buffers), alignment)
    if sum(block.size for block in blocks_of(problem)) >= MOST_BYTES:
        raise OptionError(f"the buffers have {MOST_BYTES:,} bytes and more")
    end = time.monotonic() + seconds

    def seconds_left() -> float:
        return end - time.monotonic()

    if capacity is None:
        plan, bound = smallest(problem, seconds_left)
    else:
        found, inside = within(problem, capacity, seconds_left)
        if inside is None:
            raise _too_small(problem, capacity, found, seconds_left)
        plan, bound = inside, lower_bound(problem)
    fault = judge(problem, plan)
    if fault is not None:
        raise CheckError(f"the memory plan is wrong: {fault}")
    return PlannedTrace(problem, plan, bound)


def _too_small(
    problem: MemoryProblem, capacity: int, found: Found, seconds_left: Clock
) -> OptionError:
    """What to say of a capacity: why, and which would do."""
    live = lower_bound(problem)
    if capacity < live:
        why = f"no arena of {capacity:,} bytes holds the buffers: {_crowd(problem, live)}"
    elif found is Found.FAILS:
        why = f"no arena of {capacity:,} bytes holds the buffers, as a search of all plans shows"
    else:
        why = f"no plan in {capacity:,} bytes was found in time, nor is it shown that there is none"
    plan, _ = smallest(problem, seconds_left)
    longer = "" if found is Found.FAILS else "; a longer --time-limit may find a smaller one"
    return OptionError(why, help=f"the smallest found is --capacity {plan.nbytes}{longer}")


def _crowd(problem: MemoryProblem, most: int) -> str:
    """Where the most bytes are live, in aligned sizes."""
    step = next(step for step, load in loads(blocks_of(problem)) if load == most)
    live = sum(b.start <= step < b.stop for b in problem.buffers)
    return f"{live} of {most:,} bytes are live at step {step}"


# --- the picture --------------------------------------------------------------------------------


def draw_plan(found: PlannedTrace, picture: Picture) -> None:
    """Write a picture of a plan: steps to the right, addresses upwards, a buffer a rectangle."""
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    axes = picture.figure.add_subplot(xlabel="step", ylabel="address, bytes")
    buffers, plan = found.problem.buffers, found.plan
    corners = [
        [(b.start, at), (b.start, at + b.nbytes), (b.stop, at + b.nbytes), (b.stop, at)]
        for b, at in zip(buffers, plan.offsets, strict=True)
    ]
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    shown = [colours[i % len(colours)] for i in range(len(buffers))]
    edge = 0.4 if len(buffers) <= 2_000 else 0.0  # lines would hide what they enclose
    axes.add_collection(
        PolyCollection(corners, facecolors=shown, edgecolors="black", linewidths=edge)
    )
    axes.set_xlim(min((b.start for b in buffers), default=0), _last(buffers))
    axes.set_ylim(0, max(plan.nbytes, 1))
    axes.set_title(f"{len(buffers)} buffers in {plan.nbytes:,} bytes")
    picture.write()


def _last(buffers: Sequence[Buffer]) -> int:
    return max((b.stop for b in buffers), default=1)
