"""What every call of a program takes while the program runs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rewright.building import Recipe, build_program
from rewright.calibrate.bench import Bench, anchor_of, undisturbed
from rewright.codegen import Executable
from rewright.costmodel.timings import Timings

ROUNDS: Final = 24
# Runs before anything counts.
FIRST: Final = 4


@dataclass(frozen=True)
class Profile:
    """Seconds at the machine's usual pace when little disturbs: of `start`, what comes before the
    first step; of each step, by its node; and of the whole as it runs when no step is timed."""

    start: float
    steps: Mapping[str, float]
    whole: float

    @property
    def seconds(self) -> float:
        return self.start + sum(self.steps.values())


class _Clock(list[tuple[str, str]]):
    """A trace that keeps the time of each record too."""

    def __init__(self) -> None:
        super().__init__()
        self.ticks: list[float] = []

    def append(self, step: tuple[str, str]) -> None:
        super().append(step)
        self.ticks.append(time.perf_counter())

    def clear(self) -> None:
        super().clear()
        self.ticks.clear()


def profile(bench: Bench, recipe: Recipe, inputs: Sequence[Any], rounds: int = ROUNDS) -> Profile:
    """Runs a program `rounds` times with a clock at every step, as often without, and the anchors,
    in turn."""
    clock = _Clock()
    plain = build_program(recipe).executable
    clocked = build_program(recipe, trace=clock).executable
    anchors = {node.name: anchor_of(node) for node in recipe.graph.nodes}
    names: list[str] = []
    found: list[tuple[float, ...]] = []
    with undisturbed():
        for _ in range(FIRST + rounds):
            slow = bench.slowness()
            whole = _seconds(plain, list(inputs))
            clock.clear()
            started = time.perf_counter()
            clocked(list(inputs))
            names, ticks = ["", *(name for _, name in clock)], [started, *clock.ticks]
            took = [b - a for a, b in itertools.pairwise([*ticks, time.perf_counter()])]
            usual = [t / slow[anchors.get(n, "stream")] for t, n in zip(took, names, strict=True)]
            found.append((whole * sum(usual) / sum(took), *usual))
    timings = Timings(tuple(found[FIRST:]))
    steps: dict[str, float] = {}
    for place, name in enumerate(names, 1):  # a value is let go of under its node's name
        steps[name] = steps.get(name, 0.0) + timings.quiet(place)
    return Profile(steps.pop(""), steps, timings.quiet(0))


def _seconds(executable: Executable, args: list[Any]) -> float:
    started = time.perf_counter()
    executable(args)
    return time.perf_counter() - started
