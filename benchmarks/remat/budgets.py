"""Budgets of training steps, kept: what was asked for, predicted and measured.

    python -m benchmarks.remat.budgets [MODEL ...]

runs every model without a budget, then at 80, 60 and 40 % of what that allocates (or the least that
is found, when that is more), and compares every bit of every gradient: of losses that are computed
some rows at a time (see `notes`) gradients are rounded otherwise. Results are written to
`benchmarks/results/budgets.json`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.remat.steps import STEPS, Training, training
from rewright.backend import programs
from rewright.calibrate.peak import measured_peak
from rewright.passes.remat import Fitted

RESULTS: Final = Path(__file__).parents[1] / "results" / "budgets.json"
SHARES: Final = (0.8, 0.6, 0.4)


def main() -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in sys.argv[1:] or STEPS:
        known[name] = judged(training(name))
        print(json.dumps({name: known[name]}, indent=1), flush=True)
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def judged(found: Training) -> dict[str, Any]:
    expected, whole = run(found, {})
    gradients = sum(p.nbytes for p in found.module.parameters() if p.requires_grad)
    rows = [at(found, expected, int(share * whole)) for share in SHARES]
    return {"peak": whole, "gradients": gradients, "budgets": rows}


def at(found: Training, expected: list[Tensor], budget: int) -> dict[str, Any]:
    try:
        gradients, peak = run(found, {"memory_budget": budget})
    except Exception as error:
        least = re.search(r"give it (\d+) bytes", str(error))
        if least is None:
            raise
        budget = int(least[1])
        gradients, peak = run(found, {"memory_budget": budget})
    told = next(p.fitted for p in reversed(programs()) if p.fitted is not None)
    assert isinstance(told, Fitted)
    return {
        "budget": budget,
        "predicted": told.peak,
        "measured": peak,
        "bound": told.bound,
        "slower": told.schedule.seconds / told.first.seconds - 1,
        "equal": all(torch.equal(a, b) for a, b in zip(expected, gradients, strict=True)),
        "difference": max(map(difference, expected, gradients)),
        "notes": list(told.notes),
    }


def difference(a: Tensor, b: Tensor) -> float:
    """Relative, in L2."""
    size = float(a.double().norm())
    return float((a.double() - b.double()).norm()) / (size or 1.0)


def run(found: Training, options: dict[str, Any]) -> tuple[list[Tensor], int]:
    """The gradients of a step, and what a second one allocates at most."""
    state = {name: value.clone() for name, value in found.module.state_dict().items()}
    torch._dynamo.reset()
    ours = torch.compile(
        found.forward, backend="rewright", options=options, fullgraph=True, dynamic=False
    )

    def step() -> None:
        found.module.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        ours(*found.inputs).backward()

    step()
    gradients = [p.grad.clone() for p in found.module.parameters() if p.grad is not None]
    buffers = [value.clone() for value in found.module.buffers()]
    found.module.load_state_dict(state)
    found.module.zero_grad(set_to_none=True)
    peak = measured_peak(step)
    found.module.load_state_dict(state)
    return [*gradients, *buffers], peak


if __name__ == "__main__":
    main()
