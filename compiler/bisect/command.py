"""`rewright bisect`: what it prints and writes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rewright.bisect.finding import Finding, Healthy
from rewright.bisect.replay import Say
from rewright.bisect.search import bisect
from rewright.bisect.write import case_text, shows_again, write
from rewright.ir.show import show
from rewright.options import Options
from rewright.sources import Source


def searched(
    arguments: argparse.Namespace,
    source: Source,
    options: Options,
    samples: tuple[object, ...],
    say: Say,
) -> Finding | Healthy:
    asked = {
        "crash": arguments.crash,
        "slow": arguments.slow,
        "predicted": arguments.slow_predicted,
    }
    return bisect(
        source.graph,
        options,
        source.inputs(),
        how=next((how for how, given in asked.items() if given), "numbers"),
        samples=samples,  # type: ignore[arg-type]
        seconds=arguments.seconds,
        say=say,
    )


def report(found: Finding | Healthy, output: Path | None, *, as_json: bool) -> int:
    """Print what was found, and write it when asked; 1 when something was."""
    told = found.as_json()
    lines = [str(found)]
    if isinstance(found, Finding):
        case = found.case
        files = [] if case is None or output is None else write(found, case, output)
        told |= {"case": None if case is None else case_text(found, case)}
        told |= {"files": [str(path) for path in files]}
        lines += _told(found)
        lines += [f"wrote {path}" for path in files]
        if case is not None:
            told |= {"shows_again": (again := shows_again(case))}
            lines += [] if again else ["read back from its text, the graph does not show it"]
            lines += [] if output else ["-o DIR writes this as a case file, and a script"]
    print(json.dumps(told, indent=1) if as_json else "\n".join(lines))
    return 0 if isinstance(found, Healthy) else 1


def _told(found: Finding) -> list[str]:
    lines = []
    rewrite, case = found.rewrite, found.case
    if rewrite is not None:
        lines.append(f"  it is application {rewrite.number} of {rewrite.count} in that pass")
    if found.said and rewrite is None:
        lines.append(f"  the pass said: {found.said}")
    if case is None:
        return [*lines, "by itself, no part of the graph shows it"]
    count = len(case.graph.nodes)
    nodes = "one node shows it" if count == 1 else f"{count} nodes show it"
    return [*lines, f"{nodes}, by {case.steps} alone ({case.fault}):", show(case.graph)]
