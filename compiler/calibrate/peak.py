"""What a call allocates at most, by what torch's allocator says."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def measured_peak(call: Callable[[], object]) -> int:
    """The most bytes that were given out, and not given back, at one time while `call` ran, beyond
    what was before: of the CPU's allocator, or of the GPU's where there is one. What is given back
    at the beginning (old gradients) makes no room."""
    gc.collect()  # old garbage would make room
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    results = found.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    live = least = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        least = min(least, live)
        peak = max(peak, live - least)
    return peak
