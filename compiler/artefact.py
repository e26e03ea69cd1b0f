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
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import rewright
from rewright.codegen import runtime
from rewright.ir import ArtefactError, UnsupportedError, op
from rewright.ir.show import show

if TYPE_CHECKING:
    from rewright.driver import Program
    from rewright.ir.pt2 import Bindings

MANIFEST = "rewright.json"


def save(program: Program, bindings: Bindings | None, folder: Path) -> Path:
    """Write the artefact beside its place and move it there in one step.

    Raises ArtefactError when the folder exists and is not an artefact, and UnsupportedError for
    programs that call back into Python functions only Rewright has.
    """
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(program, bindings, made)
        _move(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return folder


def check_free(folder: Path) -> None:
    """Raise ArtefactError unless the folder is missing, empty, or an artefact of ours."""
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
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(program: Program, bindings: Bindings | None, folder: Path) -> None:
    (folder / "program.py").write_text(program_text(program))
    shutil.copy(Path(runtime.__file__), folder / "runtime.py")
    if program.library is not None:
        (folder / "kernels.cpp").write_text(program.kernel_source)
        shutil.copy(program.library.path, folder / "kernels.so")
    torch.save(_tensors(program, bindings), folder / "tensors.pt")
    (folder / "graph.rw").write_text(show(program.graph))
    (folder / "report.json").write_text(json.dumps(program.report.as_json(), indent=1) + "\n")
    manifest = {"rewright": rewright.__version__, "torch": torch.__version__}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _tensors(program: Program, bindings: Bindings | None) -> dict[str, dict[str, torch.Tensor]]:
    constants = {n: c.tensor for n, c in program.executable.calls.constants.items()}
    state = {} if bindings is None else {n: t.detach() for n, t in bindings.state.items()}
    return {"constants": constants, "state": state}


def program_text(program: Program) -> str:
    """`program.py`: imports, the operators and kernels it calls, the call sequence, `load()`."""
    calls = program.executable.calls
    operators = [_operator_line(short, name) for short, name in sorted(calls.operators.items())]
    kernels = sorted(set(calls.kernels.values()))
    inputs = program.source.inputs
    return _PROGRAM.format(
        title=program.source.name,
        operators="\n".join(operators),
        kernels=json.dumps(kernels),
        calls=calls.source.split('"""', 2)[2].strip(),
        inputs=json.dumps([i.value.name for i in inputs]),
        given=json.dumps([i.value.name for i in inputs if i.role == "input"]),
    )


def _operator_line(short: str, name: str) -> str:
    namespace = op(name).namespace
    if namespace == "py":
        raise UnsupportedError(f"an artefact cannot hold {name} yet", who="save")
    if namespace == "hop":
        raise UnsupportedError(f"an artefact cannot hold the higher-order {name}", who="save")
    return f"{short} = torch.ops.{name}"


_PROGRAM = '''"""graph {title} as Python: `load()` gives a function of the model's inputs.

Written by rewright; needs torch, nothing else.
"""

import ctypes
import pathlib
import sys

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from runtime import Frame, Frames, new, place_again

{operators}

KERNELS = {kernels}
INPUTS = {inputs}
GIVEN = {given}
constants = {{}}


{calls}


def load(device="cpu"):
    """A function that takes the model's inputs and returns its outputs as a list."""
    if KERNELS:
        library = ctypes.CDLL(str(HERE / "kernels.so"))
        for name in KERNELS:
            function = getattr(library, name)
            function.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
            function.restype = None
            globals()[name] = function
    tensors = torch.load(HERE / "tensors.pt", weights_only=True)
    constants.update(tensors["constants"])
    state = tensors["state"]
    frames = Frames(lambda sizes: prepare(sizes, torch.device(device)), retain=True)

    @torch.no_grad()
    def call(*inputs):
        if len(inputs) != len(GIVEN):
            raise TypeError(f"takes {{len(GIVEN)}} inputs: {{', '.join(GIVEN)}}")
        given = dict(zip(GIVEN, inputs))
        args = [given[n] if n in given else state[n] for n in INPUTS]
        sizes = sizes_of(args)
        frame = frames.take(sizes)
        try:
            return run(args, frame)
        finally:
            frames.put(sizes, frame)

    return call
'''
