"""Less memory never takes less time, and is less memory: falling budgets, each in a new process.

    python -m benchmarks.remat.monotone [MODEL ...]

runs a training step at 20 budgets from what it allocates without one down to the least that is
found. Printed are the peak that was measured and the seconds that the plan is judged to take; where
one is larger at a smaller budget, or the other smaller, the model is said to fail. Results go to
`benchmarks/results/remat_monotone.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.remat.budgets import run
from benchmarks.remat.results import FOLDER, write
from benchmarks.remat.steps import training
from rewright.backend import programs
from rewright.passes.remat import Fitted

MODELS: Final = ("gpt2_dropout", "unet", "llama", "llama_gqa")
BUDGETS: Final = 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--budget", help="of one process: bytes, 'min' or '' for none")
    given = parser.parse_args()
    if given.budget is not None:
        print(json.dumps(one(given.models[0], given.budget)))
        return 0
    path = FOLDER / "remat_monotone.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for name in given.models:
        known[name] = falling(name)
        write("monotone", known)
    return 0 if all(known[name]["monotone"] for name in given.models) else 1


def falling(name: str) -> dict[str, Any]:
    most, least = fresh(name, "")["measured"], fresh(name, "min")["planned"]
    budgets = [most - (most - least) * place // (BUDGETS - 1) for place in range(BUDGETS)]
    rows = [fresh(name, str(budget)) for budget in budgets]
    kept = all(row["measured"] <= row["budget"] for row in rows)
    monotone = all(
        a["measured"] >= b["measured"] and a["seconds"] <= b["seconds"]
        for a, b in itertools.pairwise(rows)
    )
    print(name, "kept" if kept else "NOT KEPT", "monotone" if monotone else "NOT MONOTONE")
    return {"kept": kept, "monotone": monotone, "rows": rows}


def fresh(name: str, budget: str) -> dict[str, Any]:
    """One budget in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.remat.monotone", name, f"--budget={budget}"]
    folder = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(name, row, flush=True)
    return row


def one(name: str, budget: str) -> dict[str, Any]:
    _, peak = run(training(name), {"memory_budget": budget} if budget else {})
    told = next((p.fitted for p in reversed(programs()) if isinstance(p.fitted, Fitted)), None)
    asked = int(budget) if budget.isdigit() else None
    planned, seconds = (told.peak, told.schedule.seconds) if told else (None, None)
    return {"budget": asked, "measured": peak, "planned": planned, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
