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
from collections.abc import Callable
from typing import Any, Final

import torch

SECONDS: Final = 120.0
_CHUNK: Final = 1 << 20


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
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
        child = os.fork()
    if child == 0:
        os.close(reader)
        _serve(call, writer, threads)
    os.close(writer)
    said = _read(reader, time.monotonic() + seconds)
    if said is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if said is None:
        raise Died(None, seconds)
    if os.WIFSIGNALED(status):
        raise Died(signal.Signals(os.WTERMSIG(status)).name, seconds)
    if os.WEXITSTATUS(status):
        raise Died("an exception", seconds)
    return said


def _serve(call: Callable[[], bytes], writer: int, threads: int) -> None:
    """In the child: never returns."""
    try:
        faulthandler.disable()  # whoever asked knows what to say of a crash
        torch.set_num_threads(threads)
        said = memoryview(call())
        while said:
            said = said[os.write(writer, said) :]
        os._exit(0)
    finally:
        os._exit(1)


def _read(reader: int, deadline: float) -> bytes | None:
    """All that the child says; None when it takes too long."""
    said = bytearray()
    try:
        while True:
            ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            more = os.read(reader, _CHUNK)
            if not more:
                return bytes(said)
            said += more
    finally:
        os.close(reader)


def packed(results: Any) -> bytes:
    """Tensors and numbers as bytes."""
    file = io.BytesIO()
    torch.save(results, file)
    return file.getvalue()


def unpacked(said: bytes) -> Any:
    return torch.load(io.BytesIO(said), weights_only=True)
