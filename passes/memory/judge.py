"""The judge of memory plans: short, obvious, and knowing nothing of how a plan was found."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import Enum

from .problem import Buffer, MemoryPlan, MemoryProblem


class FaultKind(Enum):
    COUNT = "wrong number of offsets"
    MISALIGNED = "misaligned offset"
    OUTSIDE = "outside the arena"
    OVERLAP = "overlap"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a plan, which buffers it concerns, and the figures that show it."""

    kind: FaultKind
    names: tuple[str, ...]
    detail: str

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.detail}"


def judge(problem: MemoryProblem, plan: MemoryPlan) -> Fault | None:
    """The first fault of `plan`, or None: it is a correct plan for `problem`."""
    if len(plan.offsets) != len(problem.buffers):
        detail = f"{len(plan.offsets)} offsets for {len(problem.buffers)} buffers"
        return Fault(FaultKind.COUNT, (), detail)
    placed = list(zip(problem.buffers, plan.offsets, strict=True))
    for buffer, offset in placed:
        if fault := _misplaced(buffer, offset, problem.alignment, plan.nbytes):
            return fault
    return _first_overlap(placed)


def _misplaced(buffer: Buffer, offset: int, alignment: int, arena: int) -> Fault | None:
    if offset % alignment != 0:
        detail = f"{buffer.name} at {offset}, which is not a multiple of {alignment}"
        return Fault(FaultKind.MISALIGNED, (buffer.name,), detail)
    if offset < 0 or offset + buffer.nbytes > arena:
        detail = f"{_bytes_of(buffer, offset)} in an arena of {arena} bytes"
        return Fault(FaultKind.OUTSIDE, (buffer.name,), detail)
    return None


def _first_overlap(placed: list[tuple[Buffer, int]]) -> Fault | None:
    """Go through time. As long as those that are live together are apart, they lie in one order,
    and a new one that overlaps another overlaps a neighbour in it."""
    # An empty buffer shares bytes with nobody, wherever it stands. At one step, stops come first.
    changes = sorted(
        (step, is_start, i)
        for i, (buffer, _) in enumerate(placed)
        for step, is_start in ((buffer.start, True), (buffer.stop, False))
        if buffer.nbytes
    )
    live: list[tuple[int, int]] = []  # offset and number
    for step, is_start, i in changes:
        buffer, offset = placed[i]
        at = bisect_left(live, (offset, i))
        if not is_start:
            del live[at]
            continue
        for _, j in live[max(0, at - 1) : at + 1]:
            other, start = placed[j]
            if max(offset, start) < min(offset + buffer.nbytes, start + other.nbytes):
                both = f"{_bytes_of(other, start)} and {_bytes_of(buffer, offset)}"
                detail = f"{both} are both live at step {step}"
                return Fault(FaultKind.OVERLAP, (other.name, buffer.name), detail)
        live.insert(at, (offset, i))
    return None


def _bytes_of(buffer: Buffer, offset: int) -> str:
    return f"{buffer.name} [{offset}, {offset + buffer.nbytes})"
