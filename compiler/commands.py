"""What each command does. Each function takes parsed arguments and returns the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewright.calibration_samples import graph_samples
from rewright.command_line import compiled, imported, options_of, progress
from rewright.driver import Program
from rewright.ir import Graph, OptionError
from rewright.look_commands import diff, show, why
from rewright.options import Options
from rewright.report import Report
from rewright.report_json import to_json
from rewright.sources import MLIR_SUFFIXES, Source, made_by
from rewright.tables import slowest_table

__all__ = [
    "bisect",
    "calibrate",
    "diff",
    "doctor",
    "estimate",
    "optimize",
    "pareto",
    "plan_memory",
    "report",
    "rules",
    "run",
    "show",
    "why",
]


def optimize(arguments: argparse.Namespace) -> int:
    """Compile; print the pass table; write the artefact when asked."""
    from rewright.artefact import check_free, save

    output = Path(arguments.output) if arguments.output else None
    options = options_of(arguments)
    if output is not None and output.suffix in MLIR_SUFFIXES:
        _refuse_profile(arguments)
        return _rewrite(arguments, options, output)
    if output is not None:
        check_free(output)  # before minutes of work, not after
    source = imported(arguments.model)
    if arguments.profile:
        program = _profiled(source, options)
    else:
        program = compiled(source, options)
    if output is not None:
        save(program, source.bindings, output)
    if arguments.json:
        print(json.dumps(program.report.as_json(), indent=1))
        return 0
    print(program.report)
    if arguments.profile:
        print(slowest_table(program.report.kernels))
    if output is not None:
        print(f"wrote {output}")
    return 0


def _refuse_profile(arguments: argparse.Namespace) -> None:
    if arguments.profile:
        raise OptionError("a graph that is written as MLIR is not run, so nothing is timed")


def _profiled(source: Source, options: Options) -> Program:
    """A program whose calls were timed; so says its trace."""
    from rewright.profiling import profiled
    from rewright.trace import write_trace

    program = compiled(source, dataclasses.replace(options, trace=""))
    with progress("timing calls"):
        program = profiled(program, source.inputs())
    if options.trace:
        write_trace(program, Path(options.trace))
    return program


def _rewrite(arguments: argparse.Namespace, options: Options, output: Path) -> int:
    """Run the passes that stay at the aten level; write what they leave."""
    from rewright.rewriting import rewrite

    source = imported(arguments.model)
    state = None if source.bindings is None else source.bindings.state
    with progress("optimizing"):
        rewritten = rewrite(source.graph, options, state)
    written = " and ".join(map(str, rewritten.save(output)))
    if arguments.json:
        print(json.dumps(rewritten.as_json(), indent=1))
    else:
        print(f"{rewritten}\nwrote {written}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run on example inputs, or random ones; compare and time."""
    from rewright.comparing import Comparison, errors, time_interleaved

    found = _running(arguments)
    report = found.report
    calls = {"ours": lambda: found.call(list(found.args)), **found.eager}
    with progress("running"):
        measured = errors(found.graph, found.call, found.args) if arguments.check else None
        medians = time_interleaved(calls, arguments.rounds)
    predicted = None if report is None else report.passes[-1].estimated_seconds
    compared = Comparison(medians["ours"], medians.get("eager"), measured, predicted)
    kernels = report.kernels if report is not None and arguments.profile else ()
    if arguments.json:
        shown = dataclasses.asdict(compared) | {"holds": compared.holds}
        told = {"kernels": to_json(kernels)} if arguments.profile else {}
        print(json.dumps(shown | told, indent=1))
    else:
        print(f"{compared}\n{slowest_table(kernels)}" if arguments.profile else compared)
    return 0 if compared.holds else 1


@dataclass(frozen=True)
class _Running:
    """What runs, on what, and beside what; an artefact has no report."""

    graph: Graph
    call: Callable[[list[Any]], list[Any]]
    args: list[Any]
    eager: dict[str, Callable[[], object]]
    report: Report | None


def _running(arguments: argparse.Namespace) -> _Running:
    from rewright.artefact import load

    options = options_of(arguments)
    if not Path(arguments.model).is_dir():
        source = imported(arguments.model)
        made = _profiled(source, options) if arguments.profile else compiled(source, options)
        eager = _eager_call(source)
        return _Running(source.graph, made.executable, source.inputs(), eager, made.report)
    if arguments.profile:
        raise OptionError(
            f"{arguments.model} is an artefact, which does not know what its calls should take",
            who="profile",
            help="name the model that it was made of",
        )
    artefact = load(Path(arguments.model))
    return _Running(artefact.graph, artefact.call, artefact.inputs(), {}, None)


def bisect(arguments: argparse.Namespace) -> int:
    """Find what breaks a model; write the least graph that shows it."""
    from rewright.bisect.command import report, searched

    options = options_of(arguments)
    source = imported(arguments.model)
    output = None if arguments.output is None else Path(arguments.output)
    with progress("optimizing") as say:
        samples = graph_samples(options, source.graph, source.bindings)
        found = searched(arguments, source, options, samples, say)
    return report(found, output, as_json=arguments.json)


def rules(arguments: argparse.Namespace) -> int:
    """Evidence for rules, the rules, where they fire."""
    from rewright.rule_commands import rules

    return rules(arguments)


def report(arguments: argparse.Namespace) -> int:
    """A compile as a page."""
    from rewright.page_command import report

    return report(arguments)


def doctor(arguments: argparse.Namespace) -> int:
    """What works here."""
    from rewright.doctor import examine

    findings = examine()
    if arguments.json:
        print(json.dumps([dataclasses.asdict(f) for f in findings], indent=1))
    else:
        for finding in findings:
            print(finding)
    return 0 if all(f.works or f.optional for f in findings) else 1


def pareto(arguments: argparse.Namespace) -> int:
    """Print what memory costs in time."""
    from rewright.pareto import draw, draw_steps, study

    options = options_of(arguments)
    with progress(f"importing {arguments.model}"):
        module, inputs = made_by(arguments.model)
    with progress("partitioning") as say:
        found = study(module, inputs, options, say)
    if arguments.plot is not None:
        draw(found, Path(arguments.plot))
    if arguments.timeline is not None:
        draw_steps(found, Path(arguments.timeline))
    print(json.dumps(found.as_json()) if arguments.json else found)
    return 0


def _eager_call(source: Source) -> dict[str, Callable[[], object]]:
    """The module on its examples, when the source has both."""
    eager = source.eager
    if eager is None or not source.has_examples:
        return {}
    return {"eager": lambda: eager(*source.args, **source.kwargs)}


def estimate(arguments: argparse.Namespace) -> int:
    """Print what calls take; a line that cannot be read ends it."""
    from rewright.cost_models import cost_model, target_called
    from rewright.estimating import estimate_line

    cost = cost_model(target_called(arguments.device))
    lines = sys.stdin if arguments.call is None else [arguments.call]
    for line in filter(str.strip, lines):
        found = estimate_line(line, cost)
        if arguments.json:
            told = dataclasses.asdict(found) | {"call": line.strip(), "device": cost.target.name}
            print(json.dumps(told), flush=True)
        else:
            print(found, flush=True)
    return 0


def calibrate(arguments: argparse.Namespace) -> int:
    """Measure this machine; print how well the cost model knows it, draw it when asked."""
    from rich.console import Console
    from rich.progress import Progress

    from rewright.calibrating import calibrated, plot
    from rewright.pictures import Picture

    picture = None if arguments.plot is None else Picture(Path(arguments.plot), 6, 6)
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task("timing calls", total=1.0)
        found = calibrated(arguments.seconds, lambda share: progress.update(task, completed=share))
    if picture is not None:
        plot(found.calibration, picture)
    print(json.dumps(found.as_json()) if arguments.json else found)
    return 0


def plan_memory(arguments: argparse.Namespace) -> int:
    """Plan the memory of a trace; write the plan, draw it when asked."""
    from rewright.passes import Bytes
    from rewright.pictures import Picture
    from rewright.planning import draw_plan, plan_trace
    from rewright.traces import read_trace, write_plan

    capacity = None if arguments.capacity is None else Bytes.parse(arguments.capacity)
    picture = None if arguments.picture is None else Picture(Path(arguments.picture), 10, 6)
    buffers = read_trace(Path(arguments.trace))
    with progress(f"planning {len(buffers)} buffers"):
        found = plan_trace(buffers, arguments.alignment, capacity, arguments.time_limit)
    if arguments.output is not None:
        write_plan(found.problem, found.plan, Path(arguments.output))
    if picture is not None:
        draw_plan(found, picture)
    print(json.dumps(found.as_json(), indent=1) if arguments.json else found)
    return 0
