"""The host as a target: measured once in some tenths of a second, then read from the cache.

Other programs on the machine can only slow a benchmark down, so the best of some repeats counts. On
a busy machine threads wait for each other by time slices; so one core is measured and counted as
many times as there are threads. Only main memory, which they share, all of them also measure
together. Two digits are kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from rewright.ir import DTYPE_NAMES, DTYPES
from rewright.ir.cache import default_cache, digest
from rewright.ir.target import PORTABLE_ISAS, Cache, Target

# Raised whenever numbers measured by an older version must not be used.
VERSION: Final = "1"
# One benchmark's repeats: at least the first number, then up to the second while there is time.
REPEATS: Final = (3, 50)
SECONDS: Final = 8e-3
# A product that takes longer is large enough to show the peak.
LONG_ENOUGH: Final = 1.5e-3
LARGEST_PRODUCT: Final = 1024
MULTIPLIED: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8)
# Source and copy together: twice the last cache, within these bounds.
LEAST_COPIED: Final = 32 << 20
MOST_COPIED: Final = 64 << 20


def host() -> Target:
    """This machine's CPU with the threads that torch uses now.

    Measured when the cache has no sound record of it; determined by the record otherwise.
    """
    return _host(torch.get_num_threads())


def renewed_host() -> Target:
    """The same, measured anew in any case."""
    _renew(torch.get_num_threads())
    _host.cache_clear()
    return host()


@cache
def _host(cores: int) -> Target:
    record = default_cache().read(_record_name(cores))
    return from_record(json.loads(record), cores) if record is not None else _renew(cores)


def _renew(cores: int) -> Target:
    with ThreadPoolExecutor(max_workers=1) as pool:
        measured = pool.submit(measure, cores).result()
    record = json.dumps(to_record(measured), indent=1).encode()
    with contextlib.suppress(OSError):  # measured anew by the next process
        default_cache().write(_record_name(cores), record)
    return measured


def fingerprint(cores: int) -> tuple[str, ...]:
    """What figures of this machine depend on."""
    return cpu_model(), isa(), str(cores), torch.__version__


def _record_name(cores: int) -> str:
    return digest(VERSION, *fingerprint(cores)) + ".host"


def measure(cores: int) -> Target:
    """The host's figures, measured anew for `cores` threads.

    Wants a Python thread of its own: there is no fake tensor mode and no default device there, and
    torch keeps the number of threads, which changes meanwhile, for each caller.
    """
    sizes = cache_sizes()
    last = max((size.nbytes for size in sizes), default=0)
    beyond = min(max(2 * last, LEAST_COPIED), MOST_COPIED)
    source, copy = torch.ones(beyond // 8), torch.ones(beyond // 8)
    torch.set_num_threads(1)
    try:
        core = _measure_core(sizes, source, copy)
    finally:
        torch.set_num_threads(cores)
    return dataclasses.replace(
        Target.parse(f"cpu:{isa()}"),
        cores=cores,
        flops=tuple((dtype, _two_digits(cores * rate)) for dtype, rate in core.flops),
        bandwidth=_two_digits(max(core.bandwidth, copy_bandwidth(source, copy))),
        caches=tuple(
            Cache(size.name, size.of_cores(cores), _two_digits(cores * rate))
            for size, rate in zip(sizes, core.cache_bandwidths, strict=True)
        ),
        launch_seconds=_two_digits(launch_seconds()),
        dispatch_seconds=_two_digits(dispatch_seconds()),
        source=f"measured on {cpu_model()}, {cores} threads, torch {torch.__version__}",
    )


@dataclass(frozen=True)
class Core:
    """What one core does alone."""

    flops: tuple[tuple[torch.dtype, float], ...]
    cache_bandwidths: tuple[float, ...]
    bandwidth: float


def _measure_core(sizes: Sequence[CacheSize], source: Tensor, copy: Tensor) -> Core:
    flops = ((dtype, multiply_peak(dtype)) for dtype in MULTIPLIED)
    within = [size.nbytes // size.cores // 2 // 8 for size in sizes]
    return Core(
        flops=tuple((dtype, rate) for dtype, rate in flops if rate > 0),
        cache_bandwidths=tuple(copy_bandwidth(source[:n], copy[:n]) for n in within),
        bandwidth=copy_bandwidth(source, copy),
    )


# --- what the machine says about itself ---------------------------------------------------------


def isa() -> str:
    """The vector instructions that kernels are built for."""
    flags = set(_cpuinfo("flags").split())
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        return "avx512"
    if flags:
        return "avx2" if {"avx2", "fma"} <= flags else "generic"
    return PORTABLE_ISAS.get(platform.machine().lower(), "generic")


def cpu_model() -> str:
    """What the system calls the CPU; several models may share a vague name, and then differ in
    what they can do."""
    named = [_cpuinfo(k) for k in ("model name", "cpu family", "model", "CPU implementer")]
    parts = [*named, _cpuinfo("CPU part"), platform.machine()]
    return " ".join(p for p in parts if p)


def _cpuinfo(key: str) -> str:
    try:
        with open("/proc/cpuinfo") as file:
            lines = file.read(1 << 14).splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == key), "")


@dataclass(frozen=True)
class CacheSize:
    """A data cache and the number of CPUs that share it."""

    name: str
    nbytes: int
    cores: int

    def of_cores(self, cores: int) -> int:
        """Bytes of all such caches that `cores` threads work with."""
        return self.nbytes * math.ceil(cores / self.cores)


def cache_sizes() -> list[CacheSize]:
    """The caches beyond the first level, smallest first; none where the system does not tell."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size, sharing = (
                (folder / name).read_text().strip()
                for name in ("level", "type", "size", "shared_cpu_list")
            )
        except OSError:
            continue
        if kind != "Instruction" and level != "1" and size.endswith("K"):
            found.append(CacheSize(f"L{level}", int(size[:-1]) * 1024, _cpus(sharing)))
    return found


def _cpus(listed: str) -> int:
    """How many CPUs `0-3,8` names."""
    spans = (part.partition("-") for part in listed.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in spans)


# --- measuring ----------------------------------------------------------------------------------


def copy_bandwidth(source: Tensor, copy: Tensor) -> float:
    """Bytes/s, read and written, of copying one tensor into another."""
    return 2 * source.nbytes / _best(lambda: copy.copy_(source))


def multiply_peak(dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products, the best size counts; 0 where torch has none."""
    best, size = 0.0, 128
    while size <= LARGEST_PRODUCT:
        try:
            seconds = _multiply(dtype, size)
        except RuntimeError:
            return best
        best = max(best, 2 * size**3 / seconds)
        if seconds > LONG_ENOUGH:
            break
        size *= 2
    return best


def _multiply(dtype: torch.dtype, size: int) -> float:
    matrix = torch.ones(size, size, dtype=dtype)
    multiply = torch._int_mm if dtype is torch.int8 else torch.mm
    return _best(lambda: multiply(matrix, matrix))


def dispatch_seconds() -> float:
    """An ATen call with nothing to do but find its kernel."""
    x, out = torch.ones(1), torch.ones(1)
    add = torch.ops.aten.add.out
    return _best(lambda: add(x, x, out=out))


def launch_seconds() -> float:
    """A call through ctypes into the OpenMP runtime, the call alone where torch has no libgomp.

    On one thread: how long it takes to wake more depends on what else runs, on an idle machine a
    fraction of this. The work is `free(NULL)`, which is none.
    """
    free = ctypes.CDLL(None).free
    free.argtypes, free.restype = (ctypes.c_void_p,), None
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if not found:
        return _best(lambda: free(None))
    start = ctypes.CDLL(str(found[0])).GOMP_parallel
    start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start.restype = None
    work = ctypes.cast(free, ctypes.c_void_p)
    return _best(lambda: start(work, None, 1, 0))


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest call; what the first does only once cannot be the fastest."""
    least, most = REPEATS
    seconds: list[float] = []
    while len(seconds) < least or (len(seconds) < most and sum(seconds) < SECONDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}")


# --- the record ---------------------------------------------------------------------------------


def to_record(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "flops": {DTYPE_NAMES[dtype]: rate for dtype, rate in target.flops},
        "bandwidth": target.bandwidth,
        "caches": [dataclasses.astuple(c) for c in target.caches],
        "launch_seconds": target.launch_seconds,
        "dispatch_seconds": target.dispatch_seconds,
        "source": target.source,
    }


def from_record(record: dict[str, Any], cores: int) -> Target:
    return dataclasses.replace(
        Target.parse(record["name"]),
        cores=cores,
        flops=tuple((DTYPES[name], rate) for name, rate in record["flops"].items()),
        bandwidth=record["bandwidth"],
        caches=tuple(Cache(*c) for c in record["caches"]),
        launch_seconds=record["launch_seconds"],
        dispatch_seconds=record["dispatch_seconds"],
        source=record["source"],
    )
