"""Running a program beside eager: do the numbers agree, and how fast is each?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rewright.ir import Graph
from rewright.tables import seconds_text

Boxed = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True)
class Errors:
    """Relative L2 against float64 over all outputs: ours, and that of eager, node by node."""

    ours: float
    eager: float

    @property
    def holds(self) -> bool:
        """Ours is at most twice eager's plus 1e-6."""
        return self.ours <= 2 * self.eager + 1e-6

    def __str__(self) -> str:
        verdict = "within" if self.holds else "OVER"
        return (
            f"error  {self.ours:.2e} relative L2 against float64, eager's {self.eager:.2e}: "
            f"{verdict} twice that plus 1e-6"
        )


@dataclass(frozen=True)
class Comparison:
    """Seconds are medians of interleaved rounds, those that are predicted the cost model's;
    `errors` is None when nothing was compared."""

    seconds: float
    eager_seconds: float | None = None
    errors: Errors | None = None
    predicted_seconds: float | None = None

    @property
    def holds(self) -> bool:
        return self.errors is None or self.errors.holds

    def __str__(self) -> str:
        lines = [f"time   {seconds_text(self.seconds)}"]
        if self.eager_seconds is not None:
            ratio = self.eager_seconds / self.seconds
            lines[0] += f", eager {seconds_text(self.eager_seconds)} ({ratio:.2f}x)"
        if self.predicted_seconds is not None:
            lines[0] += f", predicted {seconds_text(self.predicted_seconds)}"
        if self.errors is not None:
            lines.append(str(self.errors))
        return "\n".join(lines)


def errors(graph: Graph, program: Boxed, args: Sequence[Any]) -> Errors:
    """The errors of `program`, which runs `graph`, and of eager."""
    from rewright.ir.interpret import interpret

    def run(call: Callable[[list[Any]], list[Any]]) -> list[Any]:
        torch.manual_seed(0)
        return call([a.clone() if isinstance(a, torch.Tensor) else a for a in args])

    with torch.random.fork_rng(devices=[]):
        ours = run(program)
        eager = run(lambda copies: interpret(graph, copies))
        exact = run(lambda copies: interpret(graph, copies, dtype=torch.float64))
    return Errors(relative_error(ours, exact), relative_error(eager, exact))


def relative_error(found: Sequence[Any], reference: Sequence[Any]) -> float:
    """L2 norm of the difference over L2 norm of the reference, all floating outputs together."""
    difference = total = 0.0
    for a, b in zip(found, reference, strict=True):
        if isinstance(b, torch.Tensor) and b.is_floating_point():
            difference += float((a.double() - b.double()).square().sum())
            total += float(b.double().square().sum())
    return float((difference / total) ** 0.5) if total else float(difference**0.5)


def time_interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that noise meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for call in calls.values():
            call()
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}
