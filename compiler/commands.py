"""What each command does. Each function takes parsed arguments and returns the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rewright.calibration_samples import graph_samples
from rewright.driver import Plan, Program, compile_graph, plan_graph
from rewright.ir import Graph, Input, OptionError, did_you_mean
from rewright.options import Options, option_docs
from rewright.passes import Quantize
from rewright.sources import MLIR_SUFFIXES, Source, load_source, made_by


def optimize(arguments: argparse.Namespace) -> int:
    """Compile; print the pass table; write the artefact when asked."""
    from rewright.artefact import check_free, save

    output = Path(arguments.output) if arguments.output else None
    options = _options(arguments)
    if output is not None and output.suffix in MLIR_SUFFIXES:
        return _rewrite(arguments, options, output)
    if output is not None:
        check_free(output)  # before minutes of work, not after
    source = _imported(arguments)
    with _progress("optimizing and building kernels"):
        program = _compiled(source, options)
    if output is not None:
        save(program, source.bindings, output)
    if arguments.json:
        print(json.dumps(program.report.as_json(), indent=1))
        return 0
    print(program.report)
    if output is not None:
        print(f"wrote {output}")
    return 0


def _compiled(source: Source, options: Options) -> Program:
    samples = graph_samples(options, source.graph, source.bindings)
    return compile_graph(source.graph, options, samples=samples)


def _rewrite(arguments: argparse.Namespace, options: Options, output: Path) -> int:
    """Run the passes that stay at the aten level; write what they leave."""
    from rewright.ir.mlir_context import state_path
    from rewright.ir.mlir_export import save_mlir
    from rewright.rewriting import rewrite

    source = _imported(arguments)
    with _progress("optimizing"):
        rewritten = rewrite(source.graph, options)
    state = None if source.bindings is None else source.bindings.state
    save_mlir(rewritten.graph, output, state)
    written = f"{output} and {state_path(output)}" if state else str(output)
    if arguments.json:
        print(json.dumps(rewritten.as_json(), indent=1))
    else:
        print(f"{rewritten}\nwrote {written}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run on example inputs, or random ones; compare and time."""
    from rewright.comparing import Comparison, errors, time_interleaved

    options = _options(arguments)
    program: Callable[[list[Any]], list[Any]]
    eager: dict[str, Callable[[], object]] = {}
    predicted: float | None = None
    if Path(arguments.model).is_dir():
        from rewright.artefact import load

        artefact = load(Path(arguments.model))
        graph, program, args = artefact.graph, artefact.call, artefact.inputs()
    else:
        source = _imported(arguments)
        with _progress("optimizing and building kernels"):
            compiled = _compiled(source, options)
        graph, program = source.graph, compiled.executable
        predicted = compiled.report.passes[-1].estimated_seconds
        args, eager = source.inputs(), _eager_call(source)
    calls = {"ours": lambda: program(list(args)), **eager}
    with _progress("running"):
        measured = errors(graph, program, args) if arguments.check else None
        medians = time_interleaved(calls, arguments.rounds)
    found = Comparison(medians["ours"], medians.get("eager"), measured, predicted)
    shown = dataclasses.asdict(found) | {"holds": found.holds}
    print(json.dumps(shown, indent=1) if arguments.json else found)
    return 0 if found.holds else 1


def show(arguments: argparse.Namespace) -> int:
    """Print a stage."""
    plan = _planned(arguments)[1]
    as_mlir = arguments.mlir or arguments.linalg
    graph = _stage(plan, arguments.after or (_last_of_aten(plan) if as_mlir else None))
    if arguments.node is not None:
        graph = _around(graph, arguments.node)
    if arguments.kernels:
        text = plan.kernel_source or "// no kernels: everything runs as ATen\n"
    elif arguments.calls:
        text = plan.calls
    elif arguments.quantization:
        found = [d for d in plan.log if d.pass_ == Quantize.name]
        text = "\n".join(f"%{d.subject}: {d.sentence}" for d in found) or "nothing is quantized"
    elif arguments.python:
        from rewright.ir.python_dump import as_python

        text = as_python(graph)
    elif as_mlir:
        from rewright.ir.mlir_export import to_linalg, to_mlir

        text = to_linalg(graph) if arguments.linalg else to_mlir(graph)
    else:
        text = str(graph)
    text = text.rstrip("\n")
    print(json.dumps({"graph": graph.name, "text": text}, indent=1) if arguments.json else text)
    return 0


def why(arguments: argparse.Namespace) -> int:
    """Print decisions and refusals, with what runs where for a single node."""
    _, plan = _planned(arguments)
    found = list(plan.log)
    if arguments.of_pass is not None:
        _known_pass(plan, arguments.of_pass)
        found = [d for d in found if d.pass_ == arguments.of_pass]
    name = None
    if arguments.node is not None:
        name = _known_value(plan, arguments.node)
        found = [d for d in found if d.subject == name]
    if arguments.json:
        said = [dataclasses.asdict(d) for d in found]
        print(json.dumps([{"pass": d.pop("pass_"), **d} for d in said], indent=1))
        return 0
    if name is not None:
        print(_where_it_runs(plan, name))
    for decision in found:
        print(f"  {decision.pass_:<14} %{decision.subject}: {decision.sentence}")
    if not found:
        print("  no pass had anything to say about it")
    return 0


def rules(arguments: argparse.Namespace) -> int:
    """Evidence for rules, the rules, where they fire."""
    from rewright.rule_commands import rules

    return rules(arguments)


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

    options = _options(arguments)
    with _progress(f"importing {arguments.model}"):
        module, inputs = made_by(arguments.model)
    with _progress("partitioning") as say:
        found = study(module, inputs, options, say)
    if arguments.plot is not None:
        draw(found, Path(arguments.plot))
    if arguments.timeline is not None:
        draw_steps(found, Path(arguments.timeline))
    print(json.dumps(found.as_json()) if arguments.json else found)
    return 0


# --- shared -------------------------------------------------------------------------------------


def _options(arguments: argparse.Namespace) -> Options:
    names = [name for name, _, _ in option_docs()]
    given = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    return Options.of(given)


def _imported(arguments: argparse.Namespace) -> Source:
    with _progress(f"importing {arguments.model}"):
        return load_source(arguments.model)


def _planned(arguments: argparse.Namespace) -> tuple[Source, Plan]:
    options = _options(arguments)
    source = _imported(arguments)
    with _progress("optimizing"):
        samples = graph_samples(options, source.graph, source.bindings)
        return source, plan_graph(source.graph, options, samples=samples)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """Say on a terminal's stderr what is going on, and whatever it is called with; wipe it when
    done."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda said: None
        return
    with console.status(what) as status:
        yield status.update


def _eager_call(source: Source) -> dict[str, Callable[[], object]]:
    """The module on its examples, when the source has both."""
    eager = source.eager
    if eager is None or not source.has_examples:
        return {}
    return {"eager": lambda: eager(*source.args, **source.kwargs)}


def _stage(plan: Plan, after: str | None) -> Graph:
    """The graph after a pass, `import` for the graph as it came, the final one for None."""
    if after is None:
        return plan.graph
    if after == "import":
        return plan.source
    _known_pass(plan, after)
    stages = (s for s in reversed(plan.stages.stages) if s.spec.split("{")[0] == after)
    return next(s.snapshot for s in stages if s.snapshot is not None)


def _last_of_aten(plan: Plan) -> str:
    """The last pass that left a graph of ATen operators."""
    from rewright.passes import Pipeline

    steps = Pipeline.parse(",".join(s.spec for s in plan.stages.stages))
    return ["import", *(step.name for step in steps if step.gives == "aten")][-1]


def _known_pass(plan: Plan, name: str) -> None:
    ran = list(dict.fromkeys(["import", *(s.spec.split("{")[0] for s in plan.stages.stages)]))
    if name not in ran:
        listed = ", ".join(ran)
        raise OptionError(f"no pass '{name}' ran{did_you_mean(name, ran)}", help=f"ran: {listed}")


def _known_value(plan: Plan, name: str) -> str:
    """The name of a value at any stage. Raises CheckError with the nearest in the source."""
    wanted = name.removeprefix("%")
    if any(d.subject == wanted for d in plan.log):
        return wanted
    return plan.source.value(wanted).name


def _around(graph: Graph, name: str) -> Graph:
    """The node that makes `name`, with what it reads as inputs."""
    value = graph.value(name)
    node = graph.producers.get(value)
    if node is None:
        return dataclasses.replace(graph, nodes=(), outputs=(value,), updates=())
    inputs = tuple(Input(v) for v in dict.fromkeys(node.operands))
    return dataclasses.replace(
        graph, inputs=inputs, nodes=(node,), outputs=node.results, updates=()
    )


def _where_it_runs(plan: Plan, name: str) -> str:
    row = next((r for r in plan.report.nodes if r.name == name), None)
    if row is None:
        inputs = {i.value.name for i in plan.source.inputs}
        return f"%{name} is an input" if name in inputs else f"%{name} was made by a pass"
    places = {
        "ours": f"runs in our kernel of %{row.kernel}",
        "aten": "runs as an ATen call",
        "view": "is a view: no data moves",
        "constant": "was computed at compile time",
        "gone": "is gone: nothing reads it after the rewrites",
    }
    at = f" ({row.loc})" if row.loc else ""
    return f"%{name} = {row.op}{at} {places[row.runs]}"


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
    with _progress(f"planning {len(buffers)} buffers"):
        found = plan_trace(buffers, arguments.alignment, capacity, arguments.time_limit)
    if arguments.output is not None:
        write_plan(found.problem, found.plan, Path(arguments.output))
    if picture is not None:
        draw_plan(found, picture)
    print(json.dumps(found.as_json(), indent=1) if arguments.json else found)
    return 0
