"""Command-line options that the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def parser(name: str, description: str, backends: Sequence[str]) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=description)
    options.add_argument(
        "--backends",
        nargs="+",
        default=list(backends),
        metavar="NAME",
        help=f"backends of torch.compile (default: {' '.join(backends)})",
    )
    options.add_argument(
        "--json",
        type=Path,
        default=RESULTS / f"{name}.json",
        metavar="FILE",
        help=f"where the results go (default: benchmarks/results/{name}.json)",
    )
    return options


def add_choice(
    options: argparse.ArgumentParser, name: str, among: Sequence[str], default: Sequence[str]
) -> None:
    """Add `--name`, one or more of `among`."""
    options.add_argument(
        f"--{name}",
        nargs="+",
        choices=among,
        default=list(default),
        metavar="NAME",
        help=f"some of: {' '.join(among)} (default: {' '.join(default)})",
    )


def add_count(options: argparse.ArgumentParser, name: str, default: int, meaning: str) -> None:
    """Add `--name`, a number of at least one."""
    options.add_argument(
        f"--{name}",
        type=positive,
        default=default,
        metavar="N",
        help=f"{meaning} (default: {default})",
    )


def add_turns(options: argparse.ArgumentParser) -> None:
    """Add what says how candidates take turns."""
    add_count(options, "rounds", 15, "rounds in which each candidate has a turn")
    add_count(options, "milliseconds", 50, "least length of a turn")
    add_count(options, "threads", 2, "threads of torch's operators and of compiled code")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def parse(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and refuse backends that torch doesn't know."""
    asked = options.parse_args()
    # Importing this takes seconds, which --help should not.
    from torch.compiler import list_backends

    known = list_backends(exclude_tags=())
    for backend in asked.backends:
        if backend not in known:
            options.error(f"no backend named {backend!r}{did_you_mean(backend, known)}")
    return asked


def did_you_mean(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
