"""Whole models, in inference or training, per contestant: each in a process of its own, in turn."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.contestants import INFERENCE, TRAINING
from benchmarks.load import percent, warning
from benchmarks.models import MODELS, SETS
from benchmarks.options import RESULTS, add_choice, add_turns
from benchmarks.report import print_table, track, warn, write_json
from benchmarks.steady import allowed
from benchmarks.timing import Comparison, compare_timers


@dataclass(frozen=True)
class First:
    """What a contestant's first call took, and how far it and eager are from float64; or why there
    was none."""

    first: float = math.nan
    error: float = math.nan
    eager_error: float = math.nan
    failed: str = ""

    @property
    def wrong(self) -> str:
        """Why its times do not count; a relative L2 of twice eager's and 1e-6 is allowed."""
        if self.failed:
            return self.failed
        limit = allowed(self.eager_error)
        right = self.error <= limit  # not for NaN
        return "" if right else f"{self.error:.1e} off float64, over {limit:.1e}"


class Worker:
    """A contestant on a model, in another process."""

    def __init__(self, model: str, contestant: str, mode: str, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", model, contestant, mode, str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.first = First(**json.loads(self._line() or '{"failed": "it died"}'))

    def time(self, count: int) -> float:
        assert self.process.stdin is not None
        print(count, file=self.process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@contextmanager
def worker(model: str, contestant: str, mode: str, threads: int) -> Iterator[Worker]:
    made = Worker(model, contestant, mode, threads)
    with made.process:  # which closes its pipes and waits for it
        try:
            yield made
        finally:
            made.process.kill()


def raced(
    model: str, contestants: Sequence[str], asked: argparse.Namespace
) -> tuple[Mapping[str, First], Comparison]:
    """What each did at first, and the times of those whose answers are right."""
    mode = "training" if asked.training else "inference"
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(worker(model, name, mode, asked.threads))
            for name in contestants
        }
        right = {name: w for name, w in workers.items() if not w.first.wrong}
        processes = [w.process.pid for w in right.values()]
        timers = {name: w.time for name, w in right.items()}
        times = compare_timers(timers, asked.rounds, asked.milliseconds / 1000, processes)
        return {name: w.first for name, w in workers.items()}, times


def as_json(
    firsts: Mapping[str, First], times: Comparison, subjects: Sequence[str]
) -> dict[str, Any]:
    return {
        **times.as_json(subjects),
        "first_seconds": {name: first.first for name, first in firsts.items() if not first.wrong},
        "wrong": {name: first.wrong for name, first in firsts.items() if first.wrong},
    }


def means(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, float, float, int]]:
    """(set, pair, geometric mean, least ratio, models) of every pair, over the models of a set."""
    pairs = dict.fromkeys(pair for result in results.values() for pair in result["speedup"])
    for name, models in (*SETS.items(), ("all", tuple(results))):
        for pair in pairs:
            found = [results[m]["speedup"].get(pair) for m in models if m in results]
            ratios = [speedup["ratio"] for speedup in found if speedup is not None]
            if ratios:
                yield name, pair, geometric_mean(ratios), min(ratios), len(ratios)


def show(results: Mapping[str, Mapping[str, Any]], contestants: Sequence[str]) -> None:
    rows = []
    for model, result in results.items():
        medians, wrong = result["median_seconds"], result["wrong"]
        cells = [
            f"{medians[c] * 1e3:.1f} ms" if c in medians else wrong.get(c, "?")[:24]
            for c in contestants
        ]
        rows.append([model, *cells, percent(result["other_load"])])
    print_table(["model", *contestants, "other load"], rows)
    table = [
        [name, pair, f"{mean:.2f}x", f"{least:.2f}x", str(count)]
        for name, pair, mean, least, count in means(results)
    ]
    print_table(["set", "pair", "geometric mean", "least", "models"], table, texts=2)


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser("python -m benchmarks.inference", description=__doc__)
    add_choice(options, "models", list(MODELS), default=list(MODELS))
    add_choice(options, "contestants", list(INFERENCE), default=[])
    options.add_argument(
        "--training", action="store_true", help="forward and backward, not inference"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="where the results go")
    add_turns(options)
    return options.parse_args()


def main() -> int:
    asked = arguments()
    name = "training" if asked.training else "inference"
    among = TRAINING if asked.training else tuple(INFERENCE)
    contestants = [c for c in asked.contestants or among if c in among]
    subjects = [c for c in contestants if c.startswith("rewright")]
    results: dict[str, dict[str, Any]] = {}
    for model in track(asked.models, str):
        results[model] = as_json(*raced(model, contestants, asked), subjects)
    show(results, contestants)
    warn(warning([result["other_load"] for result in results.values()]))
    settings = {key: getattr(asked, key) for key in ("rounds", "milliseconds", "threads")}
    write_json(asked.json or RESULTS / f"{name}.json", name, settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
