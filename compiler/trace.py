"""What `trace=` leaves on disk: one folder a compile, with every stage as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rewright.ir import ArtefactError
from rewright.ir.text_files import save_text

if TYPE_CHECKING:
    from rewright.driver import Plan, Program


def write_trace(program: Program, folder: Path) -> Path:
    """Write the graph after every pass, the kernels, the call sequence and the report into a new
    folder below `folder`, which several compiles may share. Raises ArtefactError."""
    try:
        made = _new_folder(folder, program.source.name)
        _write(program.plan, made)
        report = json.dumps(program.report.as_json(), indent=1)
        (made / "report.json").write_text(report + "\n")
    except OSError as error:
        raise ArtefactError(f"cannot write {folder}: {error.strerror or error}") from None
    return made


def _write(plan: Plan, folder: Path) -> None:
    save_text(plan.source, folder / "00-import.rw")
    for number, stage in enumerate(plan.stages.stages, 1):
        if stage.snapshot is not None:
            save_text(stage.snapshot, folder / f"{number:02}-{stage.spec.split('{')[0]}.rw")
    if plan.kernel_source:
        (folder / "kernels.cpp").write_text(plan.kernel_source)
    (folder / "calls.py").write_text(plan.calls)


def _new_folder(folder: Path, name: str) -> Path:
    """`000-forward`, `001-backward` ... in the order of compilation."""
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("[0-9][0-9][0-9]-*")))
    while True:
        made = folder / f"{number:03}-{name}"
        try:
            made.mkdir()
        except FileExistsError:
            number += 1  # another process, or another thread
            continue
        return made
