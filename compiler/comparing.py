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
class Comparison:
    """Errors are relative L2 over all outputs; seconds are medians of interleaved rounds.

    `holds`: our error against float64 is at most twice eager's plus 1e-6 (True when nothing was
    compared).
    """

    seconds: float
    eager_seconds: float | None = None
    error: float | None = None
    eager_error: float | None = None

    @property
    def holds(self) -> bool:
        if self.error is None or self.eager_error is None:
            return True
        return self.error <= 2 * self.eager_error + 1e-6

    def __str__(self) -> str:
        lines = [f"time   {seconds_text(self.seconds)}"]
        if self.eager_seconds is not None:
            ratio = self.eager_seconds / self.seconds
            lines[0] += f", eager {seconds_text(self.eager_seconds)} ({ratio:.2f}x)"
        if self.error is not None and self.eager_error is not None:
            verdict = "within" if self.holds else "OVER"
            lines.append(
                f"error  {self.error:.2e} relative L2 against float64, eager's "
                f"{self.eager_error:.2e}: {verdict} twice that plus 1e-6"
            )
        return "\n".join(lines)


def errors(graph: Graph, program: Boxed, args: Sequence[Any]) -> tuple[float, float]:
    """The relative errors of `program` and of eager, node by node, against float64."""
    from rewright.ir.interpret import interpret

    def run(call: Callable[[list[Any]], list[Any]]) -> list[Any]:
        torch.manual_seed(0)
        return call([a.clone() if isinstance(a, torch.Tensor) else a for a in args])

    with torch.random.fork_rng(devices=[]):
        ours = run(program)
        eager = run(lambda copies: interpret(graph, copies))
        exact = run(lambda copies: interpret(graph, copies, dtype=torch.float64))
    return relative_error(ours, exact), relative_error(eager, exact)


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
