"""Calls of libraries against each other, in turn, for as long as it takes to tell them apart.

Each runs as a program of one call. What it took is remembered for the machine: a later compile
chooses alike. On a machine that is busy with other things it is remembered for this process alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import torch

from rewright.calibrate.host import VERSION, fingerprint
from rewright.calibrate.programs import executables
from rewright.codegen import Executable
from rewright.codegen.cpp import all_headers
from rewright.costmodel import Roofline
from rewright.costmodel.timings import Timings
from rewright.ir import Graph
from rewright.ir.cache import default_cache, digest
from rewright.ir.target import Target
from rewright.passes import Env
from rewright.quiet import without_collection
from rewright.sources import random_inputs

# Every call has this many turns, then more until all together took so long. A turn repeats a call
# that is too short for the clock.
ROUNDS, MOST_ROUNDS = 4, 40
SECONDS: Final = 0.015
LONG_ENOUGH: Final = 5e-5
# Programs that want to run, for each core: with more, threads wait for each other's time slices,
# and what is measured says little of the calls.
BUSY: Final = 1.5

_here: dict[str, list[float]] = {}


def race(calls: Sequence[Graph], target: Target) -> list[float] | None:
    """Seconds that each takes when little disturbs; None when one of them does not run."""
    return races([calls], target)[0]


def races(groups: Sequence[Sequence[Graph]], target: Target) -> list[list[float] | None]:
    """The same of several groups, each raced by itself; what is new is built together."""
    names = [_name(calls) for calls in groups]
    found = {name: _remembered(name) for name in names}
    new = {name: calls for name, calls in zip(names, groups, strict=True) if found[name] is None}
    for name, programs in _built(new, target).items():
        with suppress(RuntimeError, NotImplementedError):  # torch has no such operator
            found[name] = seconds = _timed(programs)
            _remember(name, seconds)
    return [found[name] for name in names]


def _built(new: Mapping[str, Sequence[Graph]], target: Target) -> dict[str, list[Executable]]:
    """Programs of groups of calls: built together, or one by one where some cannot be built."""
    env = Env(cost=Roofline(target), target=target)
    with suppress(RuntimeError, NotImplementedError):
        programs = executables([call for calls in new.values() for call in calls], env)
        return {name: [programs.pop(0) for _ in calls] for name, calls in new.items()}
    built = {}
    for name, calls in new.items():
        with suppress(RuntimeError, NotImplementedError):
            built[name] = executables(list(calls), env)
    return built


def _name(calls: Sequence[Graph]) -> str:
    """Kernels of ours are as quick as the headers that they are built from."""
    texts = [str(call) for call in calls]
    is_ours = any(node.op.namespace == "rw" for call in calls for node in call.nodes)
    headers = [all_headers()] if is_ours else []
    known = (*texts, *headers, *fingerprint(torch.get_num_threads()))
    return digest("race", VERSION, *known) + ".race"


def _remembered(name: str) -> list[float] | None:
    record = default_cache().read(name)
    if record is not None:
        return [float(seconds) for seconds in json.loads(record)]
    return _here.get(name)


def _remember(name: str, found: list[float]) -> None:
    if _is_busy():
        _here[name] = found
        return
    with suppress(OSError):
        default_cache().write(name, json.dumps(found).encode())


def _is_busy() -> bool:
    try:
        return os.getloadavg()[0] > BUSY * (os.cpu_count() or 1)
    except (OSError, AttributeError):  # not on every system
        return False


def _timed(programs: Sequence[Executable]) -> list[float]:
    inputs = [random_inputs(program.graph) for program in programs]
    turns: list[Callable[[], object]] = [
        lambda p=program, given=given: p(list(given))  # type: ignore[misc]
        for program, given in zip(programs, inputs, strict=True)
    ]
    rounds: list[tuple[float, ...]] = []
    with without_collection(), torch.no_grad():
        times = [_times(turn) for turn in turns]
        started = time.perf_counter()
        while len(rounds) < ROUNDS or (
            len(rounds) < MOST_ROUNDS and time.perf_counter() - started < SECONDS
        ):
            rounds.append(tuple(map(_turn, turns, times)))
    timings = Timings(tuple(rounds))
    return [timings.quiet(place) for place in range(len(turns))]


def _times(turn: Callable[[], object]) -> int:
    """How often a call runs in a turn; it has run before then."""
    turn()
    return max(1, round(LONG_ENOUGH / max(_turn(turn, 1), 1e-7)))


def _turn(turn: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        turn()
    return (time.perf_counter() - started) / times
