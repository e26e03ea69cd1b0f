"""What each command does. Each function takes parsed arguments and returns the exit code."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rewright.driver import Program, compile_graph
from rewright.ir import Graph, Node, OptionError, did_you_mean
from rewright.options import Options, option_docs
from rewright.sources import Source, load_source


def optimize(arguments: argparse.Namespace) -> int:
    """Compile; print the pass table; write the artefact when asked."""
    from rewright.artefact import check_free, save

    output = Path(arguments.output) if arguments.output else None
    if output is not None:
        check_free(output)  # before minutes of work, not after
    source, program = _compiled(arguments)
    if output is not None:
        save(program, source.bindings, output)
    if arguments.json:
        print(json.dumps(program.report.as_json(), indent=1))
        return 0
    print(program.report)
    if output is not None:
        print(f"wrote {output}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run on example inputs; compare and time."""
    from rewright.comparing import compare

    source, program = _compiled(arguments)
    found = compare(source, program, against=arguments.against, rounds=arguments.rounds)
    print(json.dumps(dataclasses.asdict(found), indent=1) if arguments.json else str(found))
    return 0 if found.holds else 1


def show(arguments: argparse.Namespace) -> int:
    """Print a stage."""
    _, program = _compiled(arguments)
    if arguments.kernels:
        print(program.kernel_source, end="")
    elif arguments.calls:
        print(program.executable.source, end="")
    else:
        graph = _stage(program, arguments.after)
        print(_spelled(graph, arguments), end="")
    return 0


def why(arguments: argparse.Namespace) -> int:
    """Print decisions and refusals, with what runs where for a single node."""
    _, program = _compiled(arguments)
    found = [d for d in program.log if arguments.of_pass in (None, d.pass_)]
    if arguments.of_pass is not None:
        _known_pass(program, arguments.of_pass)
    if arguments.node is not None:
        name = arguments.node.removeprefix("%")
        program.source.value(name)
        found = [d for d in found if d.subject == name]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(d) for d in found], indent=1))
        return 0
    if arguments.node is not None:
        print(_where_it_runs(program, arguments.node.removeprefix("%")))
    for decision in found:
        print(f"  {decision.pass_:<14} %{decision.subject}: {decision.sentence}")
    if not found:
        print("  no pass had anything to say about it")
    return 0


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


# --- shared -------------------------------------------------------------------------------------


def _compiled(arguments: argparse.Namespace) -> tuple[Source, Program]:
    names = [name for name, _, _ in option_docs()]
    given = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    options = Options.of(given)
    with _progress(f"importing {arguments.model}"):
        source = load_source(arguments.model)
    with _progress("optimizing"):
        return source, compile_graph(source.graph, options)


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Say on a terminal's stderr what is going on; wipe it when done."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _stage(program: Program, after: str | None) -> Graph:
    """The graph after a pass, `import` for the graph as it came, the final one for None."""
    if after is None:
        return program.graph
    if after == "import":
        return program.source
    _known_pass(program, after)
    for stage in reversed(program.stages.stages):
        if stage.spec.split("{")[0] == after and stage.snapshot is not None:
            return stage.snapshot
    raise AssertionError("every pass leaves a snapshot")


def _known_pass(program: Program, name: str) -> None:
    ran = ["import", *(s.spec.split("{")[0] for s in program.stages.stages)]
    if name not in ran:
        listed = ", ".join(ran)
        raise OptionError(f"no pass '{name}' ran{did_you_mean(name, ran)}", help=f"ran: {listed}")


def _spelled(graph: Graph, arguments: argparse.Namespace) -> str:
    from rewright.ir.python_dump import as_python
    from rewright.ir.show import show as show_graph

    if arguments.node is not None:
        graph = _around(graph, arguments.node)
    return as_python(graph) if arguments.python else show_graph(graph)


def _around(graph: Graph, name: str) -> Graph:
    """The node that makes `name` with its direct producers as inputs."""
    from rewright.ir import Input

    value = graph.value(name)
    node: Node | None = graph.producers.get(value)
    if node is None:
        return dataclasses.replace(graph, nodes=(), outputs=(value,), updates=())
    inputs = tuple(Input(v) for v in dict.fromkeys(node.operands))
    return dataclasses.replace(
        graph, inputs=inputs, nodes=(node,), outputs=node.results, updates=()
    )


def _where_it_runs(program: Program, name: str) -> str:
    row = next((r for r in program.report.nodes if r.name == name), None)
    if row is None:
        return f"%{name} is an input"
    places = {
        "ours": f"runs in our kernel of %{row.kernel or name}",
        "aten": "runs as an ATen call",
        "view": "is a view: no data moves",
        "constant": "was computed at compile time",
        "gone": "is gone: nothing reads it after the rewrites",
    }
    at = f" ({row.loc})" if row.loc else ""
    return f"%{name} = {row.op}{at} {places[row.runs]}"
