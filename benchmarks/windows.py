"""Attention of SmolLM2 narrowed to windows within an error budget: what is found, how far it is off
on text that the search has not seen, and what it brings.

    python -m benchmarks.windows

Layers stay float. Attention's time is the sum over its calls, each timed within the program.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

import rewright
from benchmarks.options import RESULTS, add_choice
from benchmarks.report import track, write_json
from benchmarks.timing import compare
from benchmarks.trained import smollm2, token_windows
from rewright.passes import DEFAULT, FlashAttention, Pass, Pipeline, Quantize
from rewright.passes.budget import ErrorBudget
from rewright.profiling import profiled

BUDGET: Final = "kl<=0.02"


@dataclass(frozen=True)
class Case:
    """Samples of `length` tokens: some to search on, some to judge by."""

    length: int
    seen: int
    unseen: int


CASES: Final = {"2048": Case(2048, 3, 3), "8192": Case(8192, 2, 2)}


def pipeline() -> str:
    """The default, with a search that leaves layers alone."""
    steps: list[Pass] = []
    for step in DEFAULT:
        if isinstance(step, FlashAttention):
            steps.append(Quantize(formats="none"))
        steps.append(step)
    return str(Pipeline(tuple(steps)))


def row(case: Case) -> dict[str, Any]:
    model = smollm2()
    windows = token_windows(case.length, case.seen + case.unseen)
    seen, unseen = windows[: case.seen], windows[case.seen :]
    plain = rewright.optimize(model, (seen[0],))
    started = time.perf_counter()
    narrowed = rewright.optimize(
        model,
        (seen[0],),
        error_budget=BUDGET,
        calibration=[(x,) for x in seen],
        passes=pipeline(),
    )
    seconds = time.perf_counter() - started
    said = [d for d in narrowed.program.plan.log if d.pass_ == Quantize.name]
    budget = ErrorBudget.of(BUDGET)
    with torch.no_grad():
        errors = [budget.error([plain(x)], [narrowed(x)]) for x in unseen]
        calls = {"dense": lambda: plain(seen[0]), "windows": lambda: narrowed(seen[0])}
        whole = compare(calls, rounds=5)
    return {
        "seconds": seconds,
        "certificate": next(d.sentence for d in said if "[" not in d.subject),
        "heads": dict(Counter(d.sentence.split(",")[0] for d in said if "[" in d.subject)),
        "errors": errors,
        "attention_seconds": {"dense": attention(plain), "windows": attention(narrowed)},
        "whole": whole.as_json(["windows"]),
    }


def attention(compiled: Any) -> float:
    """Seconds of all calls of attention in a run."""
    report = profiled(compiled.program).report
    return sum(k.measured_seconds or 0.0 for k in report.kernels if "attention" in k.op)


def main() -> None:
    asked = argparse.ArgumentParser("python -m benchmarks.windows", description=__doc__)
    add_choice(asked, "cases", list(CASES), list(CASES))
    asked.add_argument("--json", type=Path, default=RESULTS / "windows.json", metavar="FILE")
    given = asked.parse_args()
    torch.set_num_threads(2)
    rows = []
    for name in track(given.cases, str):
        rows.append({"tokens": name, **row(CASES[name])})
        print(rows[-1], flush=True)
        write_json(given.json, "windows", {"budget": BUDGET}, rows)


if __name__ == "__main__":
    main()
