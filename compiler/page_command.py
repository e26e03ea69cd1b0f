"""`rewright report`: the page of a compile, written to a file."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from rewright.command_line import compiled, imported, options_of, progress
from rewright.ir import ArtefactError, OptionError
from rewright.ir.text_files import replace_file
from rewright.look_commands import seen
from rewright.page import page
from rewright.record import Record, record_of


def report(arguments: argparse.Namespace) -> int:
    """Write the page of a model, or of a trace."""
    output = Path(arguments.output)
    _check_writable(output)  # before minutes of work, not after
    record = _profiled(arguments) if arguments.profile else seen(arguments, arguments.model)
    with progress("drawing"):
        text = page(record)
        replace_file(output, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
    written = {"graph": record.report.graph, "page": str(output), "bytes": output.stat().st_size}
    print(json.dumps(written, indent=1) if arguments.json else f"wrote {output}")
    return 0


def _check_writable(output: Path) -> None:
    if output.is_dir():
        raise ArtefactError(
            f"{output} is a folder", help=f"name a file, such as {output / 'report.html'}"
        )
    if not output.parent.is_dir():
        raise ArtefactError(f"there is no folder {output.parent}")


def _profiled(arguments: argparse.Namespace) -> Record:
    """The record of a program whose calls were timed."""
    from rewright.profiling import profiled

    if Path(arguments.model).is_dir():
        raise OptionError(
            f"{arguments.model} is a trace, of a compile that is done: nothing in it can be timed",
            help="name the model instead, or write the trace with rewright optimize --profile",
        )
    source = imported(arguments.model)
    program = compiled(source, dataclasses.replace(options_of(arguments), trace=""))
    with progress("timing calls"):
        return record_of(profiled(program, source.inputs()))
