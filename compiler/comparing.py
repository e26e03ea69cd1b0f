"""Running a program beside eager: do the numbers agree, and how fast is each?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rewright.driver import Program
from rewright.sources import Source, random_inputs
from rewright.tables import seconds_text


@dataclass(frozen=True)
class Comparison:
    """Errors are relative L2 over all outputs; seconds are medians of interleaved rounds.

    `holds`: our error against float64 is at most twice eager's plus 1e-6 (always True when no
    comparison was asked for).
    """

    seconds: float
    eager_seconds: float | None
    error: float | None
    eager_error: float | None
    holds: bool

    def __str__(self) -> str:
        lines = [f"time   {seconds_text(self.seconds)}"]
        if self.eager_seconds is not None:
            ratio = self.eager_seconds / self.seconds
            lines[0] += f", eager {seconds_text(self.eager_seconds)} ({ratio:.2f}x)"
        if self.error is not None:
            lines.append(f"error  {self.error:.2e} relative L2 against float64")
        if self.eager_error is not None:
            verdict = "within" if self.holds else "OVER"
            lines[-1] += f", eager's {self.eager_error:.2e}: {verdict} twice that plus 1e-6"
        return "\n".join(lines)


def compare(source: Source, program: Program, *, against: str | None, rounds: int) -> Comparison:
    """Run `program` on the source's inputs (or random ones), checked and timed."""
    from rewright.ir.interpret import interpret

    args = _arguments(source)
    ours = program.executable(list(args))
    reference = error = eager_error = None
    if against is not None:
        reference = interpret(source.graph, _copies(args), dtype=torch.float64)
        eager = interpret(source.graph, _copies(args))
        error, eager_error = relative_error(ours, reference), relative_error(eager, reference)
    holds = error is None or eager_error is None or error <= 2 * eager_error + 1e-6
    calls: dict[str, Callable[[], object]] = {"ours": lambda: program.executable(list(args))}
    if source.eager is not None and source.inputs:
        module, inputs = source.eager, source.inputs
        calls["eager"] = lambda: module(*inputs)
    medians = time_interleaved(calls, rounds)
    return Comparison(medians["ours"], medians.get("eager"), error, eager_error, holds)


def _arguments(source: Source) -> list[Any]:
    if source.bindings is not None and source.inputs:
        return source.bindings.flatten(source.inputs, {})
    return random_inputs(source.graph)


def _copies(args: list[Any]) -> list[Any]:
    return [a.clone() if isinstance(a, torch.Tensor) else a for a in args]


def relative_error(found: list[Any], reference: list[Any]) -> float:
    """L2 norm of the difference over L2 norm of the reference, all floating outputs together."""
    difference = total = 0.0
    for a, b in zip(found, reference, strict=True):
        if isinstance(b, torch.Tensor) and b.is_floating_point():
            difference += float((a.double() - b.double()).square().sum())
            total += float(b.double().square().sum())
    return (difference / total) ** 0.5 if total else difference**0.5


def time_interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
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
