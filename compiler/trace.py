"""What `trace=` leaves on disk: one folder a compile, which holds its record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rewright.ir import ArtefactError
from rewright.record import record_of, write

if TYPE_CHECKING:
    from rewright.driver import Program


def write_trace(program: Program, folder: Path) -> Path:
    """Write the record of a compile into a new folder below `folder`, which several may share.
    Raises ArtefactError."""
    try:
        made = _new_folder(folder, program.source.name)
    except OSError as error:
        raise ArtefactError(f"cannot write {folder}: {error.strerror or error}") from None
    return write(record_of(program), made)


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
