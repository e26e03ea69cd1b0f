"""What commands share: the options that were given, the model that was named, progress."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rewright.calibration_samples import graph_samples
from rewright.driver import Plan, Program
from rewright.gpu_artefact import compile_for_target, plan_for_target
from rewright.options import Options, option_docs
from rewright.sources import Source, load_source


def options_of(arguments: argparse.Namespace) -> Options:
    names = [name for name, _, _ in option_docs()]
    given = {n: getattr(arguments, n) for n in names if getattr(arguments, n) is not None}
    return Options.of(given)


def imported(model: str) -> Source:
    with progress(f"importing {model}"):
        return load_source(model)


def compiled(source: Source, options: Options) -> Program:
    with progress("optimizing and building kernels"):
        samples = graph_samples(options, source.graph, source.bindings)
        return compile_for_target(source.graph, options, samples)


def planned(model: str, options: Options) -> Plan:
    source = imported(model)
    with progress("optimizing"):
        samples = graph_samples(options, source.graph, source.bindings)
        return plan_for_target(source.graph, options, samples)


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Say on a terminal's stderr what is going on, and whatever it is called with; wipe it when
    done."""
    from rich.console import Console

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield lambda said: None
        return
    with console.status(what) as status:
        yield status.update
