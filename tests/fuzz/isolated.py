"""A check in a process of its own, so that a crash or a hang is a result and not the end."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fuzz.compare import Mismatch
from rewright.bisect.child import Died, in_child
from rewright.ir import Graph

SECONDS: Final = 120.0
# Kernels run on two threads, so that a race can show.
THREADS: Final = 2


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a graph, in a sentence; `kind` tells one fault from another."""

    kind: str
    what: str


def isolated(
    check: Callable[[Graph], None], graph: Graph, seconds: float = SECONDS
) -> Trouble | None:
    """What came of `check(graph)` in a copy of this process."""
    try:
        said = in_child(lambda: _said(check, graph), seconds, threads=THREADS).decode()
    except Died as died:
        if died.signal is None:
            return Trouble("hang", f"it does not end within {seconds:.0f} s")
        return Trouble(f"crash {died.signal}", f"it ends the process by {died.signal}")
    kind, _, what = said.partition("\n")
    return Trouble(kind, what) if said else None


def _said(check: Callable[[Graph], None], graph: Graph) -> bytes:
    """Nothing, or the kind of the error and a sentence."""
    try:
        check(graph)
    except BaseException as error:
        return f"{_kind(error)}\n{_sentence(error)}".encode()
    return b""


def _kind(error: BaseException) -> str:
    """The error and where it comes from; of a mismatch its words, without numbers."""
    if isinstance(error, Mismatch):
        words = str(error).partition(":")[0].split()
        return " ".join(w for w in words if w.isalpha() and w != "by")[:60]
    places = traceback.extract_tb(error.__traceback__)
    where = f"{os.path.basename(places[-1].filename)}:{places[-1].lineno}" if places else ""
    return f"{type(error).__name__} {where}"


def _sentence(error: BaseException) -> str:
    if isinstance(error, Mismatch):
        return str(error)
    kind = _kind(error).replace(" ", " at ")
    return f"{kind}: {str(error).strip() or 'nothing said'}"
