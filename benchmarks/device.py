"""Timing on a GPU: CUDA events around single calls, caches flushed before each, candidates in turn.

The CPU stands in for one, so that everything but the figures can be tried anywhere.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch

from benchmarks.load import watch_others
from benchmarks.report import machine
from benchmarks.timing import Comparison, rotated
from rewright.quiet import without_collection

# Cycles that the GPU waits before a call, so that the host has queued all of it by then: about a
# millisecond, more than a compiled call takes to launch.
AHEAD: Final = 2_000_000
WARM_UP: Final = 3

Call = Callable[[], Any]


@dataclass
class Device:
    """Where calls run. `clock` times one, in seconds."""

    name: str
    _flushed: torch.Tensor | None = field(default=None, init=False)

    @property
    def is_gpu(self) -> bool:
        return self.name == "cuda"

    def clock(self, call: Call) -> float:
        return self._by_events(call) if self.is_gpu else _by_the_host(call)

    def _by_events(self, call: Call) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush()
        torch.cuda._sleep(AHEAD)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def flush(self) -> None:
        """Nothing of what a call reads is left in the L2 cache."""
        if self._flushed is None:
            nbytes = 4 * torch.cuda.get_device_properties().L2_cache_size
            self._flushed = torch.empty(nbytes, dtype=torch.uint8, device=self.name)
        self._flushed.zero_()

    def compare(self, calls: Mapping[str, Call], rounds: int) -> Comparison:
        """Seconds of each candidate, one call a round, after some calls that are not counted."""
        for call in calls.values():
            for _ in range(WARM_UP):
                call()
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        gc.collect()
        others = watch_others()
        with without_collection():
            for turn in range(rounds):
                for name in rotated(list(calls), turn):
                    seconds[name].append(self.clock(calls[name]))
        return Comparison(seconds, others())

    def copy_bandwidth(self, nbytes: int, rounds: int) -> float:
        """Bytes/s of a copy, what is read and what is written counted."""
        x = torch.randn(nbytes // 4, device=self.name)
        y = torch.empty_like(x)
        copying = self.compare({"copy": lambda: y.copy_(x)}, rounds)
        return 2 * 4 * x.numel() / median(copying.seconds["copy"])

    def described(self) -> dict[str, Any]:
        """The machine that results are from."""
        found = machine()
        if self.is_gpu:
            properties = torch.cuda.get_device_properties()
            found |= {
                "gpu": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "multiprocessors": properties.multi_processor_count,
                "gpu_bytes": properties.total_memory,
                "cuda": torch.version.cuda,
                "triton": _triton(),
            }
        return found


def _by_the_host(call: Call) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


def _triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)
