"""The judge of memory plans: short, obvious, and knowing nothing of how a plan was found."""

from __future__ import annotations

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
    live: list[tuple[Buffer, int]] = []
    for buffer, offset in sorted(placed, key=lambda pair: pair[0].start):
        live = [pair for pair in live if pair[0].stop > buffer.start]
        for other, at in live:
            # An empty buffer shares bytes with nobody, wherever it stands.
            if max(offset, at) < min(offset + buffer.nbytes, at + other.nbytes):
                detail = (
                    f"{_bytes_of(other, at)} and {_bytes_of(buffer, offset)}"
                    f" are both live at step {buffer.start}"
                )
                return Fault(FaultKind.OVERLAP, (other.name, buffer.name), detail)
        live.append((buffer, offset))
    return None


def _bytes_of(buffer: Buffer, offset: int) -> str:
    return f"{buffer.name} [{offset}, {offset + buffer.nbytes})"
