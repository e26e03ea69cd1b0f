"""Processes that search: each with numbers of its own, until the time is up."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final

BUILD: Final = Path(__file__).resolve().parents[2] / "build" / "fuzz"
# Of the graphs every so many-th goes through torch.compile too, which takes longer.
THROUGH_TORCH: Final = 5
# A worker that says nothing for so long is stuck outside a check.
SILENT_SECONDS: Final = 900.0
# How long to look for a smaller graph that fails; it may go on after the time is up.
SHRINK_SECONDS: Final = 200.0


@dataclass(frozen=True)
class Task:
    """What a worker does: the numbers `first`, `first + step` ..., to the end (monotonic clock)."""

    worker: int
    first: int
    step: int
    end: float


@dataclass(frozen=True)
class News:
    """From a worker: the next number, graphs examined so far, and a failure's file and seed."""

    number: int
    examined: int
    text: str | None = None
    again: bool = False


def run_all(seed: int, workers: int, seconds: float) -> Iterator[tuple[int, News]]:
    """News from all workers as they come. One that ends too early, or says nothing, is news of a
    failure, and another takes over after the number that it was at."""
    end = time.monotonic() + seconds
    running = [_Worker(Task(i, seed + i, workers, end)) for i in range(workers)]
    while running:
        wait([w.connection for w in running], timeout=10)
        for worker in list(running):
            for news in worker.news():
                yield worker.task.worker, news
            if worker.alive:
                continue
            running.remove(worker)
            if not worker.finished and worker.started and time.monotonic() < end:
                running.append(worker.successor())


class _Worker:
    """One process and what is known of it."""

    def __init__(self, task: Task, examined: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self.task, self.before, self.last = task, examined, News(task.first, examined)
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(task, theirs))
        self.process.start()
        theirs.close()
        self.alive, self.started, self.finished = True, False, False
        self.heard = time.monotonic()

    def news(self) -> Iterator[News]:
        try:
            while self.connection.poll():
                said: News | None = self.connection.recv()
                self.heard, self.started = time.monotonic(), True
                if said is None:
                    self.finished = True
                    continue
                self.last = News(said.number, self.before + said.examined, said.text, said.again)
                yield self.last
        except (EOFError, ConnectionResetError):
            self.alive = False
        if self.alive and time.monotonic() > self.heard + SILENT_SECONDS:
            self.process.kill()
            self.alive = False
        if not self.alive:
            self.process.join()
            if not self.finished:
                yield self._ended()

    def _ended(self) -> News:
        """What to say of a process that did not come to its end."""
        current = current_file(self.task.worker)
        how = f"the worker ended with {self.process.exitcode} at seed {self.last.number}"
        graph = current.read_text() if current.exists() else "# before its first graph\n"
        return News(self.last.number, self.last.examined, f"# {how}; last it ran\n{graph}")

    def successor(self) -> _Worker:
        task = self.task
        following = Task(task.worker, self.last.number + task.step, task.step, task.end)
        return _Worker(following, self.last.examined)


def current_file(worker: int) -> Path:
    """Where a worker writes what it is about to run."""
    return BUILD / f"current-{worker}.rw"


def serve(task: Task, connection: Connection) -> None:
    """Search until the end, and say what comes of it."""
    os.environ.update(REWRIGHT_CHECK="1", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    # What ATen and the compiler grumble about belongs into a file.
    log = os.open(BUILD / f"log-{task.worker}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, sys.stderr.fileno())
    from fuzz.hunt import hunt

    os.environ["REWRIGHT_CACHE_DIR"] += f"/{task.worker}"
    current_file(task.worker).unlink(missing_ok=True)
    for news in hunt(task):
        connection.send(news)
    connection.send(None)
