"""Processes that are the ranks of one gloo group on this machine, what they tell of what they
compiled, and the laws that hold for it."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import re
import shutil
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

import rewright
from rewright.ir import Graph, Value, map_leaves

# Of operators that talk to other processes.
NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "_dtensor", "c10d_functional")
# The last argument of a functional collective.
GROUP = re.compile(r'(= _c10d_functional\.(?!wait).*, )"\w+"\)')
# What belongs to a collective that is issued already.
NO_ISSUE = ("wait_tensor.default", "_wrap_tensor_autograd.default")

START_SECONDS = 120
# How long other ranks may take to report after one has failed.
GRACE_SECONDS = 5


class RankFailure(AssertionError):
    """What went wrong on which rank, with tracebacks."""


class Answer(NamedTuple):
    """What a rank sends back: what its function returned, or the traceback of what it raised."""

    value: Any
    error: str | None


class Ranks:
    """`count` processes, started at the first call; after a failure the next call starts new ones.

    Processes are spawned: they share nothing with the test process but its environment.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._meeting = Path()

    def run(self, function: Callable[..., Any], *args: object, seconds: float = 120) -> list[Any]:
        """What `function(*args)` returns on each rank.

        The function is one that a fresh process can import. Raises RankFailure when a rank raises,
        dies, or takes longer than `seconds`.
        """
        if not self._processes:
            self._start()
        request = pickle.dumps((function, args))
        for pipe in self._pipes:
            # A rank that is gone is found out by its missing answer.
            with contextlib.suppress(OSError):
                pipe.send((request, seconds))
        # A rank that hangs prints where, and ends itself, a little earlier.
        return [pickle.loads(value) for value in self._answers(seconds + GRACE_SECONDS)]

    def close(self) -> None:
        """End the processes: those that wait for a request end by themselves."""
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._processes:
            process.join(max(0, deadline - time.monotonic()))
            process.kill()
            process.join()
        if self._processes:
            shutil.rmtree(self._meeting.parent, ignore_errors=True)
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._meeting = Path(tempfile.mkdtemp(prefix="rewright-ranks-")) / "store"
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            args = (rank, self.count, self._meeting.as_uri(), theirs)
            process = context.Process(target=_rank, args=args, daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
        self._answers(START_SECONDS + GRACE_SECONDS)

    def _answers(self, seconds: float) -> list[Any]:
        """One answer of each rank."""
        found: dict[int, Answer] = {}
        deadline = time.monotonic() + seconds
        while len(found) < self.count:
            waiting = [p for i, p in enumerate(self._pipes) if i not in found]
            ready = wait(waiting, timeout=max(0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                rank = self._pipes.index(pipe)  # type: ignore[arg-type]
                found[rank] = self._received(rank)
            if any(answer.error for answer in found.values()):
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        silent = Answer(None, "no answer in time")
        answers = [found.get(rank, silent) for rank in range(self.count)]
        errors = [f"rank {i}: {a.error}" for i, a in enumerate(answers) if a.error is not None]
        if errors:
            self.close()
            raise RankFailure("\n".join(errors))
        return [answer.value for answer in answers]

    def _received(self, rank: int) -> Answer:
        try:
            answer: Answer = self._pipes[rank].recv()
        except (EOFError, OSError):
            self._processes[rank].join(GRACE_SECONDS)
            return Answer(
                None, f"it ended, with exit code {self._processes[rank].exitcode}: see stderr"
            )
        return answer


# --- in the processes -----------------------------------------------------------------------------


def _rank(rank: int, count: int, meeting: str, pipe: Connection) -> None:
    """Join the group, then do what is asked until nobody asks any more."""
    # At the end Python would take all of torch apart, which lasts seconds.
    atexit.register(os._exit, 0)
    warnings.simplefilter("ignore")
    pipe.send(_attempt(_join, (rank, count, meeting), START_SECONDS))
    while True:
        try:
            request, seconds = pipe.recv()
        except EOFError:
            break
        pipe.send(_attempt(_step, (request,), seconds))


def _join(rank: int, count: int, meeting: str) -> None:
    # gloo would ask the network for the address of this machine's name.
    names = [name for _, name in socket.if_nameindex()]
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=meeting,
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=START_SECONDS),
    )


def _step(request: bytes) -> bytes:
    """Call what is asked for as a fresh process would, and meet the other ranks after it."""
    function, args = pickle.loads(request)
    torch.manual_seed(0)
    try:
        # By value, tensors too: this process may be gone before anybody looks at them.
        value = pickle.dumps(function(*args))
    finally:
        torch._dynamo.reset()
    # A rank that issued one collective more or less than the others does not come through.
    dist.barrier()
    return value


def _attempt(function: Callable[..., Any], args: tuple[object, ...], seconds: float) -> Answer:
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        return Answer(function(*args), None)
    except BaseException:
        return Answer(None, traceback.format_exc())
    finally:
        faulthandler.cancel_dump_traceback_later()


# --- what a rank tells of a program ---------------------------------------------------------------


class Compiled(NamedTuple):
    """A program: the graph it came from, the schedule that runs, and its calls in Python."""

    source: Graph
    schedule: Graph
    calls: str


class Outcome(NamedTuple):
    """One rank's numbers, in eager and compiled, the collectives that eager issued, and all
    programs."""

    eager: list[Tensor]
    ours: list[Tensor]
    issued: list[str]
    programs: list[Compiled]


def compiled_programs() -> list[Compiled]:
    return [Compiled(p.source, p.graph, p.plan.calls) for p in rewright.programs()]


class Issued(TorchDispatchMode):
    """The functional collectives that are issued, with the shape of what they read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # These take themselves apart first, into what they hold.
        if any(issubclass(type, (DTensor, AsyncCollectiveTensor)) for type in types):
            return NotImplemented
        if func.namespace == "_c10d_functional" and func.__name__ not in NO_ISSUE:
            self.found.append(issue(func.__name__, args[0]))
        return func(*args, **(kwargs or {}))


def issue(name: str, given: Any) -> str:
    """`all_reduce[4, 6]`; with several shapes when it is given several tensors."""
    tensors = given if isinstance(given, list | tuple) else [given]
    shapes = (t.tensor.shape if isinstance(t, Value) else t.shape for t in tensors)
    return name.removesuffix(".default") + "".join(str([*shape]) for shape in shapes)


# --- the laws -------------------------------------------------------------------------------------


def collectives(graph: Graph) -> list[tuple[object, ...]]:
    """The collectives in the order in which they run, each with all that it is called with: the
    types of tensors, and the names of those that collectives made."""
    made: set[Value] = set()
    found: list[tuple[object, ...]] = []

    def shown(arg: object) -> object:
        if not isinstance(arg, Value):
            return arg
        return arg.type, arg.name if arg in made else None

    for node in graph.nodes:
        if node.op.namespace in NAMESPACES:
            args = tuple(map_leaves(arg, shown) for arg in node.args)
            found.append((node.name, node.op.name, args, node.kwargs))
            made.update(node.results)
    return found


def issues(graph: Graph) -> list[str]:
    """The collectives of a graph as `Issued` tells them."""
    named = [(n.op.name.removeprefix("_c10d_functional."), n) for n in graph.nodes]
    return [
        issue(name, node.args[0])
        for name, node in named
        if name != node.op.name and name not in NO_ISSUE
    ]


def called(program: Compiled) -> list[str]:
    """The collectives in the Python text of the calls."""
    return re.findall(r"= _c10d_functional_(\w+)\(", program.calls)


def lawful(outcomes: Sequence[Outcome]) -> None:
    """Every collective runs once, where it ran before, by itself; all ranks decided the same."""
    for outcome in outcomes:
        assert outcome.programs
        for program in outcome.programs:
            found = collectives(program.schedule)
            assert found == collectives(program.source)
            assert called(program) == [str(name).split(".")[1] for _, name, *_ in found]
            for node in program.schedule.nodes:
                assert not [c for _, body in node.graphs for c in collectives(body)]
    # Groups have other names on other ranks.
    texts = [[GROUP.sub(r"\1group)", str(p.schedule)) for p in o.programs] for o in outcomes]
    for text in texts:
        assert text == texts[0]


def issued_as_in_eager(outcomes: Sequence[Outcome]) -> None:
    """All programs together, forward before backward, issue what eager issues in one step."""
    for outcome in outcomes:
        ours = [i for program in outcome.programs for i in issues(program.schedule)]
        assert ours == outcome.issued != []


def equal_to_eager(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        torch.testing.assert_close(outcome.ours, outcome.eager, rtol=1e-5, atol=1e-6)
