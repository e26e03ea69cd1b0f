"""Fuzz: `python -m fuzz`, with tests/ on the path; `make fuzz` runs it.

Draws graphs, compiles them, and compares with the interpreter in float64, until the time is up. A
failure is made small and printed as a case file, which also lies in build/fuzz. Exit status 1 when
there was one. `--seed N --seconds 1` draws the graph of N again; files, of build/fuzz or of
tests/fuzz/cases, are checked instead of random graphs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fuzz.workers import BUILD, News, run_all

MINUTE = 60.0


def main() -> int:
    asked = arguments()
    BUILD.mkdir(parents=True, exist_ok=True)
    libraries = tempfile.mkdtemp(prefix="rewright-fuzz-")
    os.environ.update(REWRIGHT_CACHE_DIR=libraries, REWRIGHT_CHECK="1", OMP_NUM_THREADS="1")
    try:
        return check_files(asked.files) if asked.files else search(asked)
    finally:
        shutil.rmtree(libraries, ignore_errors=True)


def arguments() -> argparse.Namespace:
    asked = argparse.ArgumentParser("python -m fuzz", description=__doc__)
    asked.add_argument("files", nargs="*", type=Path, help="graphs to check instead")
    asked.add_argument("--seconds", type=float, default=600)
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--seed", type=int, default=int(time.time()), help="of the first graph")
    return asked.parse_args()


def search(asked: argparse.Namespace) -> int:
    print(f"{asked.workers} workers for {asked.seconds:.0f} s, seed {asked.seed}", flush=True)
    counts: dict[int, int] = {}
    failures = again = 0
    started = said = time.monotonic()
    for worker, news in run_all(asked.seed, asked.workers, asked.seconds):
        counts[worker] = news.examined
        again += news.again
        if news.text is not None:
            failures += 1
            report(news)
        if time.monotonic() - said >= MINUTE:
            said = time.monotonic()
            print(f"{said - started:5.0f} s: {tally(counts, failures, again)}", flush=True)
    print(f"in all: {tally(counts, failures, again)}", flush=True)
    return 1 if failures else 0


def tally(counts: dict[int, int], failures: int, again: int) -> str:
    more = f" ({again} graphs more fail alike)" if again else ""
    return f"{sum(counts.values())} graphs checked, {failures} failures{more}"


def report(news: News) -> None:
    assert news.text is not None
    path = BUILD / f"seed-{news.number}.rw"
    path.write_text(news.text)
    print(f"a failure, in {path.relative_to(BUILD.parents[1])}:\n{news.text}", flush=True)


def check_files(paths: Sequence[Path]) -> int:
    """A line for each: what is wrong with it, or that nothing is."""
    from fuzz.case_text import read_graph
    from fuzz.hunt import examined

    wrong = 0
    for path in paths:
        trouble = examined(read_graph(path), 0)
        what = "right" if trouble is None else " ".join(trouble.what.split())
        print(f"{path.name}: {what}", flush=True)
        wrong += trouble is not None
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
