"""Draw calls, time them on this machine, train the models, write them, and judge them anew.

    python -m benchmarks.costmodel [--train-only]

Goes on where it was stopped: what was drawn and timed stays in build/costmodel. With
`--train-only` the data set in the repository is used as it is, and nothing is timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from benchmarks.costmodel import (
    calls,
    dataset,
    fresh,
    library_calls,
    measure,
    oracle,
    pairs,
    programs,
    regret,
    text_model,
    train,
    train_gpu,
    whole_models,
)

FOLDER: Final = Path("build/costmodel")
LIBRARY_CALLS: Final = 2400


def generate(folder: Path) -> None:
    """Draw, time and pack."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("calls", "pairs", "samples", "programs")
    drawn, paired, timed, programmed = (folder / f"{name}.jsonl" for name in names)
    if not paired.exists():
        calls.main(drawn)
        library_calls.main(LIBRARY_CALLS, drawn)
        pairs.main(drawn, paired)
    measure.main(drawn, paired, timed)
    programs.main(programmed)
    dataset.pack(drawn, timed, paired, programmed)


def judge(folder: Path) -> None:
    """Calls, choices and whole models, timed anew."""
    fresh.main(None)
    plans = folder / "plans.json"
    if not plans.exists():
        oracle.main(plans)
    regret.main(plans)
    whole_models.main()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--train-only", action="store_true", help="use the data set as it is")
    train_only = parser.parse_args().train_only
    if not train_only:
        generate(FOLDER)
    train.main(write=True)
    train_gpu.main(write=True)
    text_model.main()
    if not train_only:
        judge(FOLDER)


if __name__ == "__main__":
    main()
