"""Annealing of schedules with recomputation: the door to `ir/native/remat.c`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rewright.ir.native import native

from .problem import Order, Problem
from .twin import anneal_slowly

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Settings:
    """How to anneal: `moves` tried, from temperature `hot` to `cold` in relative worth; a schedule
    over `budget` bytes is worse by `stiff` times what it is over."""

    budget: int
    moves: int
    seed: int = 0
    hot: float = 1e-3
    cold: float = 1e-7
    stiff: float = 2.0
    room: int = 4  # slots for each run


class _Problem(ctypes.Structure):
    _fields_ = [
        ("steps", ctypes.c_int32),
        ("values", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("reads_at", "reads", "makes_at", "makes", "maker")),
        *((name, ctypes.c_void_p) for name in ("bytes", "workspace", "seconds", "again", "kept")),
    ]


class _Settings(ctypes.Structure):
    _fields_ = [
        ("moves", ctypes.c_int64),
        ("budget", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("hot", ctypes.c_double),
        ("cold", ctypes.c_double),
        ("stiff", ctypes.c_double),
        ("slots", ctypes.c_int32),
    ]


SHARED: Final = ("moves", "budget", "seed", "hot", "cold", "stiff")


class Annealer:
    """A problem as flat arrays."""

    def __init__(self, problem: Problem) -> None:
        steps = problem.steps
        reads_at, reads = _flat(dict.fromkeys(step.reads) for step in steps)
        makes_at, makes = _flat(step.makes for step in steps)
        self.problem = problem
        self.arrays: dict[str, NDArray[Any]] = {
            "reads_at": reads_at,
            "reads": reads,
            "makes_at": makes_at,
            "makes": makes,
            "maker": np.array(problem.maker, np.int32),
            "bytes": np.array(problem.sizes, np.int64),
            "workspace": np.array([step.workspace for step in steps], np.int64),
            "seconds": np.array([step.seconds for step in steps], np.float64),
            "again": np.array([step.again for step in steps], np.uint8),
            "kept": np.array([v in problem.kept for v in range(len(problem.sizes))], np.uint8),
        }

    def anneal(self, order: Order, settings: Settings) -> list[int]:
        """A better order, by the settings' measure, or the same."""
        slots = 128
        while slots < settings.room * len(order):
            slots *= 2
        library = native("remat")
        if library is None:
            return anneal_slowly(self.problem, order, settings, slots)
        best, given = np.empty(slots, np.int32), np.array(order, np.int32)
        pointers = {name: array.ctypes.data for name, array in self.arrays.items()}
        problem = _Problem(len(self.problem.steps), len(self.problem.sizes), **pointers)
        chosen = _Settings(**{name: getattr(settings, name) for name in SHARED}, slots=slots)
        places = (ctypes.c_void_p(array.ctypes.data) for array in (given, best))
        start, found = places
        count = library.rw_anneal(
            ctypes.byref(problem), ctypes.byref(chosen), start, ctypes.c_int32(len(given)), found
        )
        return [int(step) for step in best[:count]]


def _flat(rows: Iterable[Iterable[int]]) -> tuple[Ints, Ints]:
    """Where each row begins (and the last ends), and all of them in one."""
    listed: Sequence[list[int]] = [list(row) for row in rows]
    starts = accumulate((len(row) for row in listed), initial=0)
    return np.array(list(starts), np.int32), np.array(list(chain.from_iterable(listed)), np.int32)
