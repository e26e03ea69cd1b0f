"""Whether error budgets hold, over random models and budgets.

    python -m benchmarks.error_draws

Every draw is a model (MiniLM with its trained weights, or a small one with random weights), a
metric, a limit and an objective. The error is the largest on inputs that the search has not seen;
what was expected of the plan, before any of it was measured, is compared with what was measured.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn

import rewright
from benchmarks.costmodel.families import JUDGING, TRAINING
from benchmarks.options import RESULTS, add_count
from benchmarks.report import track, write_json
from benchmarks.trained import minilm, minilm_inputs
from rewright.passes.budget import ErrorBudget

MINILM: Final = "minilm"
FAMILIES: Final = (
    *("mlp", "gpt2", "bert", "llama", "vit", "qwen3", "t5_encoder", "distilbert", "opt"),
    *("gpt_neox", "mistral", "phi3", "swin"),
)
# Of a metric: the least and the largest limit, drawn evenly by their logarithms.
LIMITS: Final = {"rel_l2": (3e-3, 0.1), "kl": (1e-4, 0.03)}
SEEN: Final = 6
UNSEEN: Final = 4

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Draw:
    """One question: keep `budget` on a model of this family, for the least of the objective."""

    family: str
    number: int
    budget: str
    objective: str

    @staticmethod
    def of(number: int) -> Draw:
        draw = Random(f"error budgets {number}")
        family = MINILM if draw.random() < 0.1 else draw.choice(FAMILIES)
        metric = draw.choice(("rel_l2", "rel_l2", "kl"))
        low, high = LIMITS[metric]
        limit = low * (high / low) ** draw.random()
        return Draw(family, number, f"{metric}<={limit:.3g}", draw.choice(("time", "bytes")))

    def model(self) -> tuple[nn.Module, list[Inputs]]:
        """A model in float32, and inputs: some to be seen, the last to be judged on."""
        count = SEEN + UNSEEN
        if self.family == MINILM:
            return minilm(), [minilm_inputs(4, 64, first=n) for n in range(count)]
        module, args = {**TRAINING, **JUDGING}[self.family](Random(f"{self.family} {self.number}"))
        generator = torch.Generator().manual_seed(self.number)
        return module, [tuple(_another(a, generator) for a in args) for _ in range(count)]


def _another(x: Tensor, generator: torch.Generator) -> Tensor:
    """Of the same kind: tokens up to the largest that there is, or normal numbers."""
    if x.is_floating_point():
        return torch.randn(x.shape, generator=generator)
    return torch.randint(0, int(x.max()) + 1, x.shape, generator=generator, dtype=x.dtype)


@dataclass(frozen=True)
class Outcome:
    """`error`: on inputs that nobody has seen. The others are the certificate's; `expected` comes
    before anything of the plan was measured. None where all stayed float."""

    draw: Draw
    layers: int
    error: float
    expected: float | None
    measured: float | None

    @property
    def holds(self) -> bool:
        return self.error <= ErrorBudget.of(self.draw.budget).limit

    @property
    def ratio(self) -> float | None:
        """Measured over expected."""
        if not self.expected or self.measured is None:
            return None
        return self.measured / self.expected


def outcome(draw: Draw) -> Outcome:
    model, inputs = draw.model()
    seen, unseen = inputs[:SEEN], inputs[SEEN:]
    compiled = rewright.optimize(
        model, seen[0], error_budget=draw.budget, calibration=seen, objective=draw.objective
    )
    budget = ErrorBudget.of(draw.budget)
    with torch.no_grad():
        errors = [budget.error(_outputs(model(*x)), _outputs(compiled(*x))) for x in unseen]
    layers = sum(node.op.name == "rw.quantized_linear" for node in compiled.graph.nodes)
    expected, measured = _first_round(compiled)
    return Outcome(draw, layers, max(errors), expected, measured)


def _outputs(found: Any) -> Sequence[Tensor]:
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _first_round(compiled: Any) -> tuple[float | None, float | None]:
    """What was expected and then measured of the first plan, by the certificate."""
    for decision in compiled.program.plan.log:
        found = re.search(r"measured ([\d.e+-]+) \(expected ([\d.e+-]+)\)", decision.sentence)
        if found:
            return float(found[2]), float(found[1])
    return None, None


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    ratios = [r for o in found if (r := o.ratio) is not None]
    return {
        "draws": len(found),
        "holds": sum(o.holds for o in found) / len(found),
        "quantized": sum(o.layers > 0 for o in found) / len(found),
        "measured_over_expected": median(ratios) if ratios else None,
        "within_1.5x": sum(1 / 1.5 <= r <= 1.5 for r in ratios) / max(1, len(ratios)),
    }


def main() -> None:
    asked = argparse.ArgumentParser("python -m benchmarks.error_draws", description=__doc__)
    add_count(asked, "draws", 100, "how many models and budgets")
    asked.add_argument("--json", type=Path, default=RESULTS / "error_draws.json", metavar="FILE")
    given = asked.parse_args()
    found = []
    for number in track(range(given.draws), str):
        found.append(outcome(Draw.of(number)))
        if not found[-1].holds:
            print(f"over its budget: {found[-1]}", flush=True)
        rows = [vars(o) | {"draw": vars(o.draw), "holds": o.holds} for o in found]
        told = summary(found)
        write_json(given.json, "error_draws", told, rows)
    print(*(f"{name}: {value}" for name, value in told.items()), sep="\n")


if __name__ == "__main__":
    main()
