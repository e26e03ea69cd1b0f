"""A check in a process of its own, so that a crash or a hang is a result and not the end."""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from fuzz.compare import Mismatch
from rewright.ir import Graph

SECONDS: Final = 120.0
_MOST: Final = 4000


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a graph, in a sentence; `kind` tells one fault from another."""

    kind: str
    what: str


def isolated(
    check: Callable[[Graph], None], graph: Graph, seconds: float = SECONDS
) -> Trouble | None:
    """What came of `check(graph)` in a copy of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(check, graph, writer)
    os.close(writer)
    said = _read(reader, time.monotonic() + seconds)
    if said is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if said is None:
        return Trouble("hang", f"it does not end within {seconds:.0f} s")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return Trouble(f"crash {name}", f"it ends the process by {name}")
    kind, _, what = said.partition("\n")
    return Trouble(kind, what) if os.WEXITSTATUS(status) else None


def _run(check: Callable[[Graph], None], graph: Graph, writer: int) -> None:
    """In the child: never returns. Kernels run on two threads, so that a race can show."""
    torch.set_num_threads(2)
    try:
        check(graph)
    except BaseException as error:
        os.write(writer, f"{_kind(error)}\n{_sentence(error)}".encode()[:_MOST])
        os._exit(1)
    os._exit(0)


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


def _read(reader: int, deadline: float) -> str | None:
    """All that the child says; None when it takes too long."""
    said = b""
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            more = os.read(reader, _MOST)
            if not more:
                return said.decode(errors="replace")
            said += more
    finally:
        os.close(reader)
