"""The commands that only look: show, why, diff. Each takes a model, or the folder of a trace."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from rewright.command_line import options_of, planned
from rewright.ir import OptionError
from rewright.looking import known_pass, last_of_aten, name_after, saved, stage_after
from rewright.options import option_docs
from rewright.record import Record, record_of


def seen(arguments: argparse.Namespace, model: str) -> Record:
    """The record of a compile of `model`, or the one that lies there. Raises OptionError when a
    trace is given options of a compile."""
    if not Path(model).is_dir():
        return record_of(planned(model, options_of(arguments)))
    given = [name for name, _, _ in option_docs() if getattr(arguments, name, None) is not None]
    if given:
        raise OptionError(
            f"{model} is a trace, of a compile that is done: --{given[0].replace('_', '-')} "
            "changes nothing in it",
            help="name the model instead",
        )
    return saved(Path(model))


# --- show ---------------------------------------------------------------------------------------


def show(arguments: argparse.Namespace) -> int:
    """Print a stage, or what was written for it."""
    from rewright.highlighting import print_text

    record = seen(arguments, arguments.model)
    shown = _shown(record, arguments)
    text = shown.text.rstrip("\n")
    if arguments.json:
        print(json.dumps({"graph": record.source.name, "text": text}, indent=1))
    else:
        print_text(text, shown.language)
    return 0


@dataclass(frozen=True)
class _Shown:
    text: str
    language: str


def _no_source(record: Record) -> str:
    if any(call.kind == "ours" for call in record.report.kernels):
        target = record.report.target
        return f"// kernels for {target} lie in the folder that optimize -o writes\n"
    return "// no kernels: everything runs as ATen\n"


def _shown(record: Record, arguments: argparse.Namespace) -> _Shown:
    if arguments.kernels or arguments.loops:
        return _kernels(record, arguments)
    if arguments.calls or arguments.quantization:
        _refuse_parts(arguments)
        return _Shown(record.calls, "python") if arguments.calls else _quantization(record)
    return _graph(record, arguments)


def _graph(record: Record, arguments: argparse.Namespace) -> _Shown:
    from rewright.slices import Where, around, only, uses

    as_mlir = arguments.mlir or arguments.linalg
    place = stage_after(record, arguments.after)
    if as_mlir and arguments.after is None:
        place = last_of_aten(record)
    graph = record.stages[place][1]

    def where(text: str, option: str) -> Where:
        found = Where.parse(text, option)
        return Where(name_after(record, found.name, place), found.steps)

    if arguments.node is not None:
        graph = only(graph, name_after(record, arguments.node, place))
    elif arguments.around is not None:
        graph = around(graph, where(arguments.around, "--around"))
    elif arguments.uses is not None:
        graph = uses(graph, where(arguments.uses, "--uses"))
    if arguments.python:
        from rewright.ir.python_dump import as_python

        return _Shown(as_python(graph), "python")
    if as_mlir:
        from rewright.ir.mlir_export import to_linalg, to_mlir

        return _Shown(to_linalg(graph) if arguments.linalg else to_mlir(graph), "plain")
    if arguments.source:
        from rewright.source_lines import beside_source

        folders = (Path(), Path(arguments.model).parent)
        return _Shown(beside_source(graph, record.report.sources, folders), "rw")
    return _Shown(str(graph), "rw")


def _kernels(record: Record, arguments: argparse.Namespace) -> _Shown:
    """The source, or the loop nests, of all kernels or of the one that computes a node."""
    from rewright.codegen import kernels_of
    from rewright.ir.loops.show import show_nest

    wanted = None
    if arguments.node is not None:
        wanted = _function(record, arguments.node)
    elif arguments.around is not None or arguments.uses is not None:
        _refuse_parts(arguments)
    if arguments.kernels:
        text = record.kernel_source or _no_source(record)
        return _Shown(_one_kernel(text, wanted) if wanted else text, "cpp")
    nests = (n for n in kernels_of(record.graph).nests if wanted in (None, n.name))
    return _Shown("\n\n".join(map(show_nest, nests)) or "# no kernels", "rw")


def _function(record: Record, name: str) -> str:
    """The kernel of that name, or that computes the value of that name. Raises OptionError for one
    that is in no kernel."""
    from rewright.explaining import function_called, kernel_of

    called = function_called(record, name)
    if called is not None:
        return called
    last = len(record.stages) - 1
    row = kernel_of(record, name_after(record, name, last))
    if row is None or not row.function:
        raise OptionError(f"no kernel of ours computes %{name.removeprefix('%')}")
    return row.function


def _one_kernel(source: str, function: str) -> str:
    """Kernels are paragraphs of a unit."""
    return next(part for part in source.split("\n\n") if f" {function}(" in part)


def _quantization(record: Record) -> _Shown:
    from rewright.passes import Quantize

    found = [d for d in record.report.decisions if d.pass_ == Quantize.name]
    lines = "\n".join(f"%{d.subject}: {d.sentence}" for d in found)
    return _Shown(lines or "nothing is quantized", "plain")


def _refuse_parts(arguments: argparse.Namespace) -> None:
    """Raises OptionError for parts of what has none."""
    for option in ("node", "around", "uses"):
        if getattr(arguments, option) is not None:
            raise OptionError(
                f"--{option} is for graphs", help="leave out what is not a graph, such as --calls"
            )


# --- why ----------------------------------------------------------------------------------------


def why(arguments: argparse.Namespace) -> int:
    """Print decisions and refusals, with what runs where and what it takes."""
    from rewright.explaining import explain

    record = seen(arguments, arguments.model)
    if arguments.of_pass is not None:
        known_pass(record, arguments.of_pass)
    found = explain(record, arguments.subject, arguments.of_pass)
    text = found.text(every=arguments.all)
    print(json.dumps(found.as_json(), indent=1) if arguments.json else text)
    return 0


# --- diff ---------------------------------------------------------------------------------------


def diff(arguments: argparse.Namespace) -> int:
    """Print what differs between two stages of a compile, or between two compiles."""
    from rewright.differences import between_compiles, between_stages

    record = seen(arguments, arguments.model)
    if arguments.other is None:
        found = between_stages(record, arguments.before, arguments.after)
    elif arguments.before is not None:
        raise OptionError(
            "--before is for two stages of one compile", help="--after PASS is for both"
        )
    else:
        names = arguments.model, arguments.other
        other = seen(arguments, arguments.other)
        found = between_compiles((record, other), names, arguments.after)
    text = found.text(every=arguments.all)
    print(json.dumps(found.as_json(), indent=1) if arguments.json else text)
    return 0
