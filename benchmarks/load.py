"""How busy the machine is with anything but the benchmark.

A kernel that joins its threads several times can look a thousand times slower while another
process holds a core, steadily so: the spread of its timings does not give that away.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from time import perf_counter, process_time

STAT = Path("/proc/stat")

QUIET = 0.1
"""Up to this share of the cores, other processes are taken not to matter."""


def watch_others(ours: Collection[int] = ()) -> Callable[[], float | None]:
    """Start watching; the answer tells the share of all cores that processes other than this one
    and `ours` have used since, or None where the system does not say."""
    if not STAT.exists():
        return lambda: None
    start, busy, own = perf_counter(), busy_seconds(), own_seconds(ours)

    def others() -> float:
        capacity = (perf_counter() - start) * (os.cpu_count() or 1)
        used = (busy_seconds() - busy) - (own_seconds(ours) - own)
        return min(max(used / capacity, 0.0), 1.0)

    return others


def own_seconds(ours: Collection[int]) -> float:
    """CPU seconds of this process and of `ours`."""
    ticks = 0
    for process in ours:
        # The name, which may hold blanks, is in brackets; utime and stime follow eleven fields on.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return process_time() + ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """CPU seconds since boot, over all cores, that were not idle; stolen ones count as busy."""
    ticks = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def percent(share: float | None) -> str:
    return "?" if share is None else f"{share:.0%}"


def warning(shares: list[float | None]) -> str | None:
    """What to tell the user about the loads seen, if they were too high."""
    busy = [share for share in shares if share is not None and share > QUIET]
    if not busy:
        return None
    return (
        f"warning: in {len(busy)} of {len(shares)} measurements other processes used over "
        f"{QUIET:.0%} of the cores; their figures say little"
    )
