"""Running in a copy of this process, so that one that crashes or hangs is an answer and not the
end."""

from __future__ import annotations

import faulthandler
import io
import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

import torch

SECONDS: Final = 120.0
_CHUNK: Final = 1 << 20

Ask = Callable[[str, Callable[[], bool]], bool]
"""Asks a question by its name: what it calls for the answer, unless that is known."""


class Died(Exception):
    """The process ended by a signal; without a `signal`, it did not end at all."""

    def __init__(self, signal: str | None, seconds: float) -> None:
        how = f"does not end within {seconds:.0f} s" if signal is None else f"ends by {signal}"
        super().__init__(f"the process {how}")
        self.signal = signal


def in_child(call: Callable[[], bytes], seconds: float = SECONDS, *, threads: int = 1) -> bytes:
    """What `call` gives in a copy of this process; it must not raise. Raises Died.

    OpenMP's threads do not survive a fork: a copy may have more than one only of a process that
    never had.
    """

    def serve(writer: int) -> None:
        said = memoryview(call())
        while said:
            said = said[os.write(writer, said) :]

    child, reader = _fork(serve, threads)
    deadline = time.monotonic() + seconds
    said = bytearray()
    for more in _read(child, reader, lambda: deadline - time.monotonic(), seconds):
        said += more
    return bytes(said)


def explored(search: Callable[[Ask], object], seconds: float = SECONDS) -> dict[str, bool]:
    """The answers to all questions that a search asks, which runs in a copy of this process. A
    question whose answer takes the process down, or more than `seconds`, is answered no, and
    another copy goes on."""
    known: dict[str, bool] = {}
    while not _explore(search, known, seconds):
        pass
    return known


def _explore(search: Callable[[Ask], object], known: dict[str, bool], seconds: float) -> bool:
    """Whether the search came to its end, or ended where nothing was asked."""

    def serve(writer: int) -> None:
        def ask(name: str, answer: Callable[[], bool]) -> bool:
            if name not in known:
                os.write(writer, f"{name}\n".encode())
                known[name] = answer()
                os.write(writer, b"yes\n" if known[name] else b"no\n")
            return known[name]

        search(ask)

    child, reader = _fork(serve, 1)
    said, before, ended = b"", len(known), True
    try:
        for more in _read(child, reader, lambda: seconds, seconds):
            said += more
    except Died:
        ended = False
    _note(said, known)
    return ended or len(known) == before


def _note(said: bytes, known: dict[str, bool]) -> None:
    """Questions and answers, one a line; the last may have no answer."""
    lines = said.decode().splitlines()
    answers = (line == "yes" for line in [*lines[1::2], "no"])
    known.update(zip(lines[::2], answers, strict=False))


def _fork(serve: Callable[[int], None], threads: int) -> tuple[int, int]:
    """The number of a copy of this process, and where to read what it says."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
        child = os.fork()
    if child == 0:
        os.close(reader)
        _serve(serve, writer, threads)
    os.close(writer)
    return child, reader


def _serve(serve: Callable[[int], None], writer: int, threads: int) -> NoReturn:
    """In the child."""
    try:
        faulthandler.disable()  # whoever asked knows what to say of a crash
        torch.set_num_threads(threads)
        serve(writer)
        os._exit(0)
    finally:
        os._exit(1)


def _read(
    child: int, reader: int, patience: Callable[[], float], seconds: float
) -> Iterator[bytes]:
    """What a child says, until it ends. Raises Died when it ends otherwise, or says nothing for as
    long as there is `patience`."""
    try:
        while select.select([reader], [], [], max(0.0, patience()))[0]:
            more = os.read(reader, _CHUNK)
            if not more:
                break
            yield more
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Died(None, seconds)
    finally:
        os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise Died(signal.Signals(os.WTERMSIG(status)).name, seconds)
    if os.WEXITSTATUS(status):
        raise Died("an exception", seconds)


def packed(results: Any) -> bytes:
    """Tensors and numbers as bytes."""
    file = io.BytesIO()
    torch.save(results, file)
    return file.getvalue()


def unpacked(said: bytes) -> Any:
    return torch.load(io.BytesIO(said), weights_only=True)
