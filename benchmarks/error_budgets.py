"""Error budgets on trained models: what is found, how long that takes, and what it brings.

    python -m benchmarks.error_budgets [--cases CASE ...]

Every case is compiled with its budget, and most are timed in turn with float, and with all layers
in one format of torchao's; errors are measured on text that the search has not seen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

import rewright
from benchmarks.contestants import TORCHAO, by_torchao
from benchmarks.options import RESULTS, add_choice
from benchmarks.report import track
from benchmarks.timing import compare
from benchmarks.trained import minilm, minilm_inputs, smollm2, token_windows
from rewright.passes import Quantize
from rewright.passes.budget import ErrorBudget
from rewright.passes.quantize.formats import FORMAT_OF

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """A model, samples to choose on, unseen ones, and what to time besides the first sample. Where
    nothing is `timed`, the question is whether the budget holds."""

    model: Callable[[], nn.Module]
    samples: Callable[[], Sequence[Inputs]]
    unseen: Callable[[], Sequence[Inputs]]
    budget: str
    objective: str = "time"
    also: tuple[tuple[str, Callable[[], Inputs]], ...] = ()
    dynamic: Any = None
    timed: bool = True


def _windows(length: int, count: int, first: int = 0) -> Callable[[], Sequence[Inputs]]:
    return lambda: [(window,) for window in token_windows(length, count, first)]


def _batches(count: int, first: int = 0) -> Callable[[], Sequence[Inputs]]:
    return lambda: [minilm_inputs(8, 128, first + i) for i in range(count)]


_LENGTHS: Final = {"tokens": {1: torch.export.Dim("length", min=2, max=2048)}}
_ONE_TOKEN: Final = ("2 tokens", lambda: (token_windows(2, 1)[0],))

CASES: Final = {
    "SmolLM2, kl<=0.03": Case(
        smollm2, _windows(512, 3), _windows(512, 5, first=20), "kl<=0.03",
        also=(_ONE_TOKEN,), dynamic=_LENGTHS,
    ),
    "SmolLM2, kl<=0.005, bytes": Case(
        smollm2, _windows(512, 3), _windows(512, 5, first=20), "kl<=0.005", "bytes"
    ),
    "SmolLM2, kl<=0.01": Case(
        smollm2, _windows(512, 3), _windows(512, 5, first=20), "kl<=0.01", timed=False
    ),
    "SmolLM2, rel_l2<=0.05, bytes": Case(
        smollm2, _windows(512, 3), _windows(512, 5, first=20), "rel_l2<=0.05", "bytes", timed=False
    ),
    "SmolLM2, top1>=0.95, bytes": Case(
        smollm2, _windows(512, 3), _windows(512, 5, first=20), "top1>=0.95", "bytes", timed=False
    ),
    "MiniLM 8x128, rel_l2<=0.04": Case(minilm, _batches(4), _batches(4, first=10), "rel_l2<=0.04"),
}  # fmt: skip


def main() -> None:
    asked = argparse.ArgumentParser("python -m benchmarks.error_budgets", description=__doc__)
    add_choice(asked, "cases", list(CASES), list(CASES))
    asked.add_argument("--json", type=Path, default=RESULTS / "error_budgets.json")
    given = asked.parse_args()
    known = json.loads(given.json.read_text()) if given.json.exists() else {}
    for name in track(given.cases, str):
        known[name] = found = _row(CASES[name])
        print(name, json.dumps(found), flush=True)
        given.json.write_text(json.dumps(known, indent=1) + "\n")


def _row(case: Case) -> dict[str, Any]:
    model, samples = case.model(), case.samples()
    shapes = {"dynamic_shapes": case.dynamic} if case.dynamic else {}
    started = time.perf_counter()
    compiled = rewright.optimize(
        model,
        samples[0],
        error_budget=case.budget,
        calibration=list(samples),
        objective=case.objective,
        **shapes,
    )
    seconds = time.perf_counter() - started
    contestants: dict[str, Any] = {"budget": compiled}
    if case.timed:
        contestants["float"] = rewright.optimize(model, samples[0], **shapes)
        contestants |= {f"torchao {format}": by_torchao(model, format) for format in TORCHAO}
    budget = ErrorBudget.of(case.budget)
    timed = {"sample": samples[0], **{name: inputs() for name, inputs in case.also}}
    with torch.no_grad():
        unseen = [(x, [model(*x)]) for x in case.unseen()]
        errors = {
            name: [budget.error(exact, [made(*x)]) for x, exact in unseen]
            for name, made in contestants.items()
        }
        faster = {
            name: _faster(contestants, inputs) for name, inputs in timed.items() if case.timed
        }
    told = [d.sentence for d in compiled.program.plan.log if d.pass_ == Quantize.name]
    formats = Counter(sentence.split(",")[0] for sentence in told)
    return {
        "seconds": seconds,
        "formats": {name: formats[name] for name in sorted(FORMAT_OF) if formats[name]},
        "certificate": told[0],
        "errors": errors,
        "faster": faster,
    }


def _faster(contestants: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    calls = {name: partial(made, *inputs) for name, made in contestants.items()}
    return compare(calls, rounds=9).as_json(["budget"])


if __name__ == "__main__":
    main()
