"""Cases in processes of their own, so that a crash or a hang is a result and not the end."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Final

from sweep.cases import Case

START_SECONDS: Final = 120
# A process is replaced after so many cases: what torch remembers of them adds up.
CASES_EACH: Final = 400


def run_all(cases: Sequence[Case], workers: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The result of each case, as they come. A case that takes longer than `seconds` hangs."""
    todo = list(reversed(cases))
    running: list[_Worker] = []
    while todo or running:
        while todo and len(running) < workers:
            running.append(_Worker(todo.pop(), seconds))
        soonest = min(worker.deadline for worker in running)
        wait([w.connection for w in running], timeout=max(0.0, soonest - time.monotonic()))
        for worker in list(running):
            result = worker.result()
            if result is None:
                continue
            yield result
            if not (todo and worker.take_on(todo)):
                worker.stop()
                running.remove(worker)


class _Worker:
    """One process, and the case that it is at."""

    def __init__(self, case: Case, seconds: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.seconds, self.served, self.alive = seconds, 0, True
        self.give(case, START_SECONDS)

    def give(self, case: Case, extra: float = 0.0) -> None:
        self.case, self.served = case, self.served + 1
        self.deadline = time.monotonic() + self.seconds + extra
        self.connection.send(case)

    def take_on(self, todo: list[Case]) -> bool:
        """Start the next case, if this process can do one more."""
        if not self.alive or self.served >= CASES_EACH:
            return False
        self.give(todo.pop())
        return True

    def result(self) -> dict[str, Any] | None:
        """What came of the case, once something did."""
        try:
            if self.connection.poll():
                found: dict[str, Any] = self.connection.recv()
                return found
        except (EOFError, ConnectionResetError):
            self.alive = False
            self.process.join()
            return self._ended("crash", f"the process ended with {self.process.exitcode}")
        if time.monotonic() > self.deadline:
            self.alive = False
            return self._ended("hang", f"no end after {self.seconds:.0f} s")
        return None

    def _ended(self, status: str, detail: str) -> dict[str, Any]:
        from sweep.examine import Result

        return Result(str(self.case), status, detail).as_json()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def serve(connection: Connection) -> None:
    """Examine what comes, until nothing more does."""
    os.environ.setdefault("REWRIGHT_CHECK", "1")
    import torch

    from sweep.examine import examine

    torch.set_num_threads(1)
    while True:
        connection.send(examine(connection.recv()).as_json())
