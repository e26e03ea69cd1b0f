"""The exact search for memory plans: published instances, and random ones that are known to fit.

The instances of MiniMalloc are asked to fit their capacity; of the others the smallest arena is
wanted. Seconds are those of one core, and end with the proof, or with the limit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from time import process_time
from typing import NamedTuple

from benchmarks.options import RESULTS, add_count, positive
from benchmarks.remat.step_traces import buffers
from benchmarks.remat.steps import STEPS
from benchmarks.report import print_table, track, write_json
from rewright.ir import OptionError
from rewright.ir.native import native
from rewright.passes.memory.problem import Buffer, MemoryProblem, lower_bound
from rewright.planning import plan_trace
from rewright.traces import read_trace

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
CAPACITY = 1_048_576  # of all of MiniMalloc's
PIECES = (50, 100, 200)
HEIGHT = 1_024


class Instance(NamedTuple):
    name: str
    buffers: tuple[Buffer, ...]
    capacity: int | None = None


def instances(jigsaws: int) -> Iterator[Instance]:
    """Published instances, and so many jigsaws of each number of pieces."""
    for path in sorted((DATA / "minimalloc").glob(f"*.{CAPACITY}.csv")):
        yield Instance(path.name.split(".")[0], read_trace(path), CAPACITY)
    for path in sorted((DATA / "traces").glob("*.csv")):
        yield Instance(path.stem, read_trace(path))
    for name in STEPS:
        yield Instance(f"step of {name}", buffers(name))
    for pieces in PIECES:
        for seed in range(1_000, 1_000 + jigsaws):  # none of those that the search was made with
            yield Instance(f"jigsaw {pieces}/{seed}", jigsaw(seed, pieces))


# --- jigsaws ------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Steps left <= t < right and bytes bottom <= b < top of a packing."""

    left: int
    right: int
    bottom: int
    top: int

    @property
    def area(self) -> int:
        return (self.right - self.left) * (self.top - self.bottom)


def jigsaw(
    seed: int, pieces: int, steps: int | None = None, height: int = HEIGHT
) -> tuple[Buffer, ...]:
    """About so many buffers that fill an arena of `height` bytes at every step."""
    draw = Random(seed)
    cut = list(_cut(draw, Piece(0, steps or 4 * pieces, 0, height), pieces))
    draw.shuffle(cut)
    return tuple(Buffer(f"b{i}", p.left, p.right, p.top - p.bottom) for i, p in enumerate(cut))


def _cut(draw: Random, whole: Piece, pieces: int) -> Iterator[Piece]:
    width, height = whole.right - whole.left, whole.top - whole.bottom
    if pieces < 2 or max(width, height) < 2:
        yield whole
        return
    if pieces >= 5 and min(width, height) >= 4 and draw.random() < 0.7:
        parts = _pinwheel(draw, whole)
    else:
        parts = _halves(draw, whole, across=height < 2 or (width >= 2 and draw.random() < 0.5))
    for part in parts:
        yield from _cut(draw, part, max(1, round(pieces * part.area / whole.area)))


def _halves(draw: Random, whole: Piece, across: bool) -> tuple[Piece, ...]:
    if across:
        x = draw.randint(whole.left + 1, whole.right - 1)
        return whole._replace(right=x), whole._replace(left=x)
    y = draw.randint(whole.bottom + 1, whole.top - 1)
    return whole._replace(top=y), whole._replace(bottom=y)


def _pinwheel(draw: Random, whole: Piece) -> tuple[Piece, ...]:
    """Four pieces around a fifth: no straight cut goes through."""
    left, right, bottom, top = whole
    a, b = sorted(draw.sample(range(left + 1, right), 2))
    c, d = sorted(draw.sample(range(bottom + 1, top), 2))
    around = (
        Piece(left, b, bottom, c),
        Piece(b, right, bottom, d),
        Piece(a, right, d, top),
        Piece(left, a, c, top),
    )
    return (*around, Piece(a, b, c, d))


# --- measuring ----------------------------------------------------------------------------------


class Row(NamedTuple):
    """`found` is None where there was no plan within the capacity in time."""

    name: str
    buffers: int
    bound: int
    found: int | None
    seconds: float


def measure(instance: Instance, seconds: float) -> Row:
    bound = lower_bound(MemoryProblem(instance.buffers, 1))
    start = process_time()
    try:
        found = plan_trace(instance.buffers, 1, instance.capacity, seconds).plan.nbytes
    except OptionError:
        found = None
    return Row(instance.name, len(instance.buffers), bound, found, process_time() - start)


def main() -> int:
    asked = arguments()
    native("pack")  # built now: that is not what is measured
    found = [
        measure(instance, asked.seconds)
        for instance in track(list(instances(asked.jigsaws)), lambda each: each.name)
    ]
    print_table(
        ("instance", "buffers", "bound", "found", "gap", "seconds"),
        [[r.name, str(r.buffers), f"{r.bound:,}", *_shown(r), f"{r.seconds:.2f}"] for r in found],
    )
    settings = {"seconds": asked.seconds, "jigsaws": asked.jigsaws}
    write_json(asked.json, "packing", settings, [row._asdict() for row in found])
    return 0


def _shown(row: Row) -> tuple[str, str]:
    if row.found is None:
        return "none in time", ""
    return f"{row.found:,}", f"{row.found / row.bound - 1:.2%}"


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser("python -m benchmarks.packing", description=__doc__)
    options.add_argument("--json", type=Path, default=RESULTS / "packing.json", metavar="FILE")
    options.add_argument("--seconds", type=positive, default=30, help="of each (default: 30)")
    add_count(options, "jigsaws", 4, "jigsaws of each number of pieces")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(main())
