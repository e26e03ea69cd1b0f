"""Start-up: what a backend adds to the first call of a model.

The *own time* of a backend is the time of its first call minus that of `aot_eager`, which does
what every backend needs done (Dynamo, AOTAutograd) and compiles nothing. Every figure comes from
a fresh process; cold starts with empty caches, warm repeats in those the cold one left. Backends
take turns within a repeat, own times are differences within a repeat, and the table has medians.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import sleep
from typing import Any, TypeAlias

from benchmarks.load import warning, watch_others
from benchmarks.models import MODELS
from benchmarks.options import add_choice, add_count, parse, parser
from benchmarks.report import fail, print_table, track, warn, write_json
from benchmarks.timing import rotated

ROOT = Path(__file__).parents[1]
BASELINE = "aot_eager"
PEER = "inductor"
CACHES = ("cold", "warm")

IMPORT = """
import torch
from time import perf_counter
start = perf_counter()
import rewright
print(f'{{"seconds": {perf_counter() - start}}}')
"""


class ChildFailed(Exception):
    """A measuring process ended without a figure."""


@dataclass(frozen=True)
class Job:
    """One first call to be measured in a process of its own."""

    repeat: int
    model: str
    caches: str
    backend: str

    def __str__(self) -> str:
        return f"repeat {self.repeat + 1}: {self.model}, {self.caches}, {self.backend}"


@dataclass(frozen=True)
class Sample:
    """Seconds of a first call, and what other processes did just before it."""

    seconds: float
    other_load: float | None


Samples: TypeAlias = Mapping[tuple[str, str, str], Sequence[Sample]]
"""By model, caches and backend, one sample a repeat."""


def main() -> int:
    asked = arguments()
    backends = list(dict.fromkeys([*asked.backends, BASELINE]))
    try:
        samples = measure(asked.models, backends, asked.repeat)
        imports = import_seconds(asked.repeat) if "rewright" in backends else []
    except ChildFailed as failure:
        return fail(str(failure))
    results = summary(samples)
    show(results)
    if imports:
        print(f"import rewright, beyond import torch: {median(imports):.2f} s")
    warn(warning([sample.other_load for row in samples.values() for sample in row]))
    record = {"first_call": results, "import_rewright_seconds": imports}
    write_json(asked.json, "startup", {"repeat": asked.repeat}, record)
    return 0


def arguments() -> argparse.Namespace:
    asked = parser(
        "startup",
        "Time first calls in fresh processes, with cold and with warm caches.",
        ["rewright", PEER],
    )
    asked.epilog = f"{BASELINE} always runs: its time is what the others' own time is beyond."
    models = ["gpt2_124m", "two_block_transformer"]
    add_choice(asked, "models", list(MODELS), default=models)
    add_count(asked, "repeat", 5, "fresh processes per figure")
    return parse(asked)


def measure(models: Sequence[str], backends: Sequence[str], repeats: int) -> Samples:
    jobs = [
        Job(repeat, model, caches, backend)
        for repeat in range(repeats)
        for model in models
        for caches in CACHES
        for backend in rotated(backends, repeat)
    ]
    samples: dict[tuple[str, str, str], list[Sample]] = {}
    with TemporaryDirectory(prefix="startup-") as scratch:
        for job in track(jobs, str):
            key = (job.model, job.caches, job.backend)
            load = load_now()
            samples.setdefault(key, []).append(Sample(run(job, Path(scratch)), load))
    return samples


def load_now() -> float | None:
    others = watch_others()
    sleep(0.3)
    return others()


def run(job: Job, scratch: Path) -> float:
    caches = scratch / f"{job.repeat}-{job.model}-{job.backend}"
    environment = {
        "REWRIGHT_CACHE_DIR": str(caches / "rewright"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    command = ["-m", "benchmarks.first_call", job.model, job.backend]
    return child_seconds(str(job), command, environment)


def import_seconds(repeats: int) -> list[float]:
    turns = track(range(repeats), lambda turn: f"repeat {turn + 1}: import rewright")
    return [child_seconds("import rewright", ["-c", IMPORT], {}) for _ in turns]


def child_seconds(what: str, arguments: Sequence[str], environment: Mapping[str, str]) -> float:
    # Whatever this process was told: an installed package has its bytecode, torch's too.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    child = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        raise ChildFailed(f"{what}: exit status {child.returncode}\n{child.stderr.strip()}")
    return float(json.loads(child.stdout.splitlines()[-1])["seconds"])


def summary(samples: Samples) -> list[dict[str, Any]]:
    """Medians per model, caches and backend, with the samples they come from."""
    return [
        {
            "model": model,
            "caches": caches,
            "backend": backend,
            "first_call_seconds": median(sample.seconds for sample in row),
            "own_seconds": own_seconds(row, samples[model, caches, BASELINE]),
            "samples": [vars(sample) for sample in row],
        }
        for (model, caches, backend), row in samples.items()
    ]


def own_seconds(row: Sequence[Sample], base: Sequence[Sample]) -> float:
    return median(mine.seconds - least.seconds for mine, least in zip(row, base, strict=True))


def show(results: Sequence[Mapping[str, Any]]) -> None:
    peers = {(r["model"], r["caches"]): r for r in results if r["backend"] == PEER}
    rows = [
        [
            *(row[key] for key in ("model", "caches", "backend")),
            f"{row['first_call_seconds']:.2f} s",
            *own_cells(row, peers.get((row["model"], row["caches"]))),
        ]
        for row in results
    ]
    columns = ["model", "caches", "backend", "first call", "own time", f"own, of {PEER}'s"]
    print_table(columns, rows, texts=3)


def own_cells(row: Mapping[str, Any], peer: Mapping[str, Any] | None) -> tuple[str, str]:
    if row["backend"] == BASELINE:
        return "", ""
    share = f"{row['own_seconds'] / peer['own_seconds']:.2f}" if peer else ""
    return f"{row['own_seconds']:.2f} s", share


if __name__ == "__main__":
    sys.exit(main())
