"""Artefacts: a folder that holds a program and runs with torch alone.

program.py        the call sequence; `load()` gives a callable
runtime.py        frames and arenas (a copy of rewright/codegen/runtime.py)
kernels.cpp, .so  our kernels, source and binary
tensors.pt        parameters, buffers and constants by name
graph.rw          the schedule, as text
report.json       what the compile did
rewright.json     what made this folder
"""

from __future__ import annotations

import json
import pickle
import runpy
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import rewright
from rewright.artefact_text import program_text
from rewright.codegen import runtime
from rewright.ir import ArtefactError, Constant, Graph
from rewright.ir.parse import parse
from rewright.settled_weights import settled

if TYPE_CHECKING:
    from rewright.driver import Program
    from rewright.ir.pt2 import Bindings
    from rewright.report import Report

MANIFEST = "rewright.json"


def save(program: Program, bindings: Bindings | None, folder: Path) -> Path:
    """Write the artefact beside its place and move it there in one step.

    Raises ArtefactError when the folder exists and is not an artefact, and UnsupportedError for
    programs that call back into Python functions only Rewright has.
    """
    check_free(folder)
    given = {} if bindings is None else bindings.state
    report = program.report
    program, state = settled(program, {n: t.detach() for n, t in given.items()})
    text = program_text(program, state)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ArtefactError(f"cannot write {folder}: {error.strerror or error}") from None
    try:
        _write(program, state, report, text, made)
        _move(made, folder)
    except OSError as error:
        raise ArtefactError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def check_free(folder: Path) -> None:
    """Raise ArtefactError unless the folder is missing, empty, or an artefact of ours."""
    above = next((p for p in folder.absolute().parents if p.exists()), folder)
    if above.is_file():
        raise ArtefactError(f"{above} is a file, not a folder", help="give -o another name")
    if not folder.exists() or (folder / MANIFEST).is_file():
        return
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is a file, not a folder", help="give -o another name")
    if any(folder.iterdir()):
        raise ArtefactError(
            f"{folder} exists and was not written by rewright",
            help="give -o another folder, or empty this one",
        )


def _move(made: Path, folder: Path) -> None:
    """A folder cannot be replaced in one step; what was there is gone only once the new one is."""
    made.chmod(0o755)  # tempfile makes folders for their owner alone
    old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    if folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write(
    program: Program, state: Mapping[str, torch.Tensor], report: Report, text: str, folder: Path
) -> None:
    (folder / "program.py").write_text(text)
    shutil.copyfile(Path(runtime.__file__), folder / "runtime.py")
    if program.library is not None:
        (folder / "kernels.cpp").write_text(program.plan.kernel_source)
        shutil.copyfile(program.library.path, folder / "kernels.so")
    torch.save(_tensors(program, state), folder / "tensors.pt")
    (folder / "graph.rw").write_text(f"{program.graph}\n")
    (folder / "report.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    manifest = {"rewright": rewright.__version__, "torch": torch.__version__}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _tensors(
    program: Program, state: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    constants = {n: c.tensor for n, c in program.executable.calls.constants.items()}
    return {"constants": constants, "state": dict(state)}


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact. `call` takes all inputs of `graph`, parameters included, in a list."""

    graph: Graph
    call: Callable[[list[Any]], list[Any]]
    state: Mapping[str, torch.Tensor]

    def inputs(self) -> list[Any]:
        """Its parameters and buffers, and random tensors for what the caller passes."""
        from rewright.sources import random_inputs

        names = (i.value.name for i in self.graph.inputs)
        pairs = zip(names, random_inputs(self.graph), strict=True)
        return [self.state.get(name, random) for name, random in pairs]


def load(folder: Path) -> Artefact:
    """Read an artefact; its program runs as it would without Rewright. Raises ArtefactError."""
    if not (folder / MANIFEST).is_file():
        raise ArtefactError(f"{folder} is not an artefact: it has no {MANIFEST}")
    try:
        call = runpy.run_path(str(folder / "program.py"))["load"]()
        tensors = torch.load(folder / "tensors.pt", weights_only=True)
        constants = (Constant.of(tensor) for tensor in tensors["constants"].values())
        by_digest = {c.sha256: c.tensor for c in constants}
        text = (folder / "graph.rw").read_text()
        graph = parse(text, file=str(folder / "graph.rw"), constants=by_digest)
    except (OSError, RuntimeError, KeyError, SyntaxError, pickle.UnpicklingError) as error:
        raise ArtefactError(f"{folder} is damaged: {error}") from error
    given = [n for n, i in enumerate(graph.inputs) if i.value.name not in tensors["state"]]
    return Artefact(graph, lambda args: call(*(args[n] for n in given)), tensors["state"])
