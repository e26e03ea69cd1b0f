"""What benchmarks print and write: progress, a table, a JSON file that names the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

T = TypeVar("T")


def track(items: Sequence[T], label: Callable[[T], str]) -> Iterator[T]:
    """Yield the items, showing on stderr which is under way: a bar, or lines when piped."""
    console = Console(stderr=True)
    if not console.is_terminal:
        for position, item in enumerate(items, 1):
            print(f"[{position}/{len(items)}] {label(item)}", file=sys.stderr, flush=True)
            yield item
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("", total=len(items))
        for item in items:
            progress.update(task, description=label(item))
            yield item
            progress.advance(task)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> None:
    """Print a Markdown table; all but the first `texts` columns hold numbers."""
    table = Table(box=box.MARKDOWN)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < texts else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Wider than any table: one cut to the terminal, or to a guess of a pipe, can't be quoted.
    Console(width=400).print(table)


def warn(message: str | None) -> None:
    if message:
        print(message, file=sys.stderr)


def write_json(path: Path, benchmark: str, settings: dict[str, Any], results: Any) -> None:
    """Write the results whole or not at all."""
    record = {
        "benchmark": benchmark,
        "machine": machine(),
        "settings": settings,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(record, indent=2) + "\n")
    unfinished.replace(path)


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": compiler_version(os.environ.get("CXX", "g++")),
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def compiler_version(command: str) -> str:
    try:
        answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return answer.stdout.splitlines()[0]


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1
