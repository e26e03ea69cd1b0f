"""Artefacts: a folder that holds a program and runs with torch alone (docs/artefacts.md).

Written here, opened by `rewright.codegen.loading`, of which the folder has a copy.
"""

from __future__ import annotations

import json
import runpy
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from rewright.artefact_files import manifest, readme, write_kernels, write_memory
from rewright.artefact_text import program_text
from rewright.codegen import loading, runtime
from rewright.codegen.cuda import driver_runtime
from rewright.gpu_artefact import write_gpu_kernels
from rewright.ir import ArtefactError, Constant, Graph, TextError, fresh_names
from rewright.ir.parse import parse
from rewright.settled_weights import settled
from rewright.tensor_file import write_tensors

if TYPE_CHECKING:
    from rewright.driver import Program
    from rewright.ir.pt2 import Bindings
    from rewright.report import Report

TENSORS: Final = "tensors.safetensors"


def save(program: Program, bindings: Bindings | None, folder: Path) -> Path:
    """Write the artefact beside its place and move it there in one step.

    Raises ArtefactError when the folder exists and is not an artefact, and UnsupportedError for
    programs that call back into Python functions only Rewright has.
    """
    check_free(folder)
    given = {} if bindings is None else bindings.state
    report = program.report
    program, state = settled(program, {n: t.detach() for n, t in given.items()})
    text = program_text(program, state, _constant_names(program, state))
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
    """Raise ArtefactError unless the folder is missing, empty, or an artefact of ours and nothing
    else: what it holds will be gone."""
    above = next((p for p in folder.absolute().parents if p.exists()), folder)
    if above.is_file():
        raise ArtefactError(f"{above} is a file, not a folder", help="give -o another name")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is a file, not a folder", help="give -o another name")
    known = _files_of(folder)
    for name in loading.found_in(folder):
        if known is None:
            raise ArtefactError(
                f"{folder} exists and was not written by rewright",
                help="give -o another folder, or empty this one",
            )
        if name not in known:
            raise ArtefactError(
                f"{folder} would be replaced, and {name} in it was not written by rewright",
                help="give -o another folder, or move that file",
            )


def _files_of(folder: Path) -> set[str] | None:
    """What the manifest of a folder names, of whatever version; None when it has none."""
    try:
        found = json.loads((folder / loading.MANIFEST).read_bytes())
        return {*found["files"], loading.MANIFEST} if found["format"] == loading.FORMAT else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


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
    program: Program, state: Mapping[str, Tensor], report: Report, text: str, folder: Path
) -> None:
    (folder / "program.py").write_text(text)
    for module in (runtime, loading):
        source = Path(str(module.__file__))
        shutil.copyfile(source, folder / source.name)
    if program.plan.gpu is not None and program.plan.gpu.built:
        write_gpu_kernels(program, program.plan.gpu, folder)
        shutil.copyfile(driver_runtime.__file__, folder / "driver.py")
    if program.library is not None:
        write_kernels(program, folder)
        (folder / "kernels.so").write_bytes(program.library.content)
    write_tensors({**state, **_constants(program, state)}, folder / TENSORS)
    write_memory(program.graph, folder / "memory.csv")
    (folder / "graph.rw").write_text(f"{program.graph}\n")
    (folder / "report.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    made = manifest(program, state, folder)
    (folder / "README.md").write_text(readme(made, program.graph))
    made["files"]["README.md"] = loading.file_facts(folder / "README.md")
    loading.write_manifest(made, folder)


def _constant_names(program: Program, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Where each constant lies among the tensors, by its name in the call sequence."""
    fresh = fresh_names(state)
    return {name: fresh(f"constants/{name}") for name in program.executable.calls.constants}


def _constants(program: Program, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    of_name = program.executable.calls.constants
    return {held: of_name[n].tensor for n, held in _constant_names(program, state).items()}


# --- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Artefact:
    """A loaded artefact. `call` takes all inputs of `graph`, parameters included, in a list."""

    graph: Graph
    call: Callable[[list[Any]], list[Any]]
    state: Mapping[str, Tensor]

    def inputs(self) -> list[Any]:
        """Its parameters and buffers, and random tensors for what the caller passes."""
        from rewright.sources import random_inputs

        names = (i.value.name for i in self.graph.inputs)
        pairs = zip(names, random_inputs(self.graph), strict=True)
        return [self.state.get(name, random) for name, random in pairs]


def load(folder: Path, *, verify: bool = True) -> Artefact:
    """Read an artefact; its program runs as it would without Rewright. Raises ArtefactError.

    With `verify` no code of it runs before every file was compared with its digest.
    """
    try:
        made = loading.opened(folder, verify=verify)
        tensors = loading.read_tensors(folder / TENSORS)
        held = {i["name"] for i in made["inputs"] if i["held"]}
        state = {name: tensors[name] for name in tensors if name in held}
        constants = (Constant.of(x) for name, x in tensors.items() if name not in held)
        by_digest = {c.sha256: c.tensor for c in constants}
        text = (folder / "graph.rw").read_text()
        graph = parse(text, file=str(folder / "graph.rw"), constants=by_digest)
        call = runpy.run_path(str(folder / "program.py"))["load"](verify=False)
    except RuntimeError as error:
        raise ArtefactError(str(error)) from None
    except AttributeError as error:
        raise ArtefactError(
            f"{folder} was made with torch {made['torch']}, and torch {torch.__version__} is here: "
            f"{error}"
        ) from None
    except (OSError, LookupError, TypeError, SyntaxError, UnicodeError, TextError) as error:
        raise ArtefactError(f"{folder} is damaged: {error}") from error
    given = [n for n, i in enumerate(graph.inputs) if i.value.name not in held]
    return Artefact(graph, lambda args: call(*(args[n] for n in given)), state)
