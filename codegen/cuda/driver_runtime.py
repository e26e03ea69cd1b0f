"""Launches an artefact's kernels on a GPU, through the CUDA driver's own library.

Depends on torch and ctypes alone: an artefact for GPUs carries a copy of this file. `kernels.json`
says what each kernel is launched with; its expressions are over the sizes of a call.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

ALIGNMENT = 16
ELEMENTS = 64  # of f32, at multiples of which scratch memory of different kinds begins
LARGEST_NARROW = 2**31 - 2**20  # what indices of 32 bits reach
LARGEST_GRID = 2**31 - 1
STATIC_SHARED = 48 << 10  # bytes of shared memory that need not be asked for
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # an attribute of functions, in cuda.h


class DriverError(RuntimeError):
    """What the CUDA driver answered, or a launch that would go wrong."""


class Driver:
    """The driver's functions, and the context on a device that torch works in too."""

    def __init__(self, device: torch.device, library: Any = None) -> None:
        self.device = device
        self._cuda = ctypes.CDLL("libcuda.so.1") if library is None else library
        self._local = threading.local()
        self._context = ctypes.c_void_p()
        number = ctypes.c_int()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(number), device.index or 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), number)

    def call(self, name: str, *arguments: Any) -> None:
        """Raises DriverError with the driver's words."""
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            said = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(said))
            raise DriverError(f"{name} failed with {code}: {(said.value or b'').decode()}")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What is launched inside goes to torch's current stream of the device. A thread in which
        torch has not worked yet has no context."""
        with torch.cuda.device(self.device):
            self.call("cuCtxSetCurrent", self._context)
            self._local.stream = torch.cuda.current_stream(self.device).cuda_stream
            yield

    def functions(self, image: bytes, names: Sequence[str]) -> list[ctypes.c_void_p]:
        """Entries of a cubin, or of PTX, which the driver builds now."""
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), image + b"\0")
        found = [ctypes.c_void_p() for _ in names]
        for function, name in zip(found, names, strict=True):
            self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return found

    def allow_shared(self, function: ctypes.c_void_p, nbytes: int) -> None:
        if nbytes > STATIC_SHARED:
            self.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, nbytes)

    def scratch(self, count: int) -> torch.Tensor | None:
        """Memory for elements of f32 that what is launched now works in: whatever has it next on
        this stream waits for that."""
        if count == 0:
            return None
        return torch.empty(count, dtype=torch.float32, device=self.device)

    def launch(
        self,
        function: ctypes.c_void_p,
        blocks: int,
        threads: Sequence[int],
        shared: int,
        parameters: ctypes.Array[ctypes.c_void_p],
    ) -> None:
        grid = (blocks, 1, 1, *threads, 1)
        stream = ctypes.c_void_p(self._local.stream)
        self.call("cuLaunchKernel", function, *grid, shared, stream, parameters, None)


class Launch:
    """A kernel, called as kernels of the CPU are: with a table of pointers, and the sizes. Kernels
    `before` are launched before it, with the same scratch memory."""

    def __init__(
        self,
        driver: Driver,
        function: ctypes.c_void_p,
        about: Mapping[str, Any],
        shared: int,
        symbols: Sequence[str],
        before: Sequence[Launch] = (),
    ) -> None:
        self._driver, self._function, self._about = driver, function, about
        self._shared, self._before = shared, before
        self._symbols, self._evaluate = len(symbols), _expressions(about, symbols)
        pointers = [a for a in about["arguments"] if a["kind"] == "pointer"]
        self._pointers = len(pointers)
        self._aligned = [place for place, a in enumerate(pointers) if a["aligned"]]
        self._sized = lru_cache(16)(self._at_sizes)
        driver.allow_shared(function, shared)

    def __call__(self, table: ctypes.Array[ctypes.c_void_p], sizes: ctypes.Array[Any]) -> None:
        """Raises DriverError."""
        _, scratch, _ = self._sized(*sizes[: self._symbols])
        memory = self._driver.scratch(sum(scratch))
        for kernel in (*self._before, self):
            kernel._launch(table, sizes, memory)

    def _launch(
        self,
        table: ctypes.Array[ctypes.c_void_p],
        sizes: ctypes.Array[Any],
        memory: torch.Tensor | None,
    ) -> None:
        blocks, scratch, values = self._sized(*sizes[: self._symbols])
        if blocks == 0:
            return
        self._check(table)
        # The driver is given the address of every argument, and reads them before it returns.
        slots: dict[str, Iterator[int]] = {"pointer": iter(range(*_reach(table)))}
        if memory is not None:
            begins = (memory.data_ptr() + 4 * before for before in accumulate((0, *scratch)))
            owned = [ctypes.c_void_p(address) for address in begins]
            slots["scratch"] = map(ctypes.addressof, owned)
        addresses = [next(slots[v]) if isinstance(v, str) else ctypes.addressof(v) for v in values]
        parameters = (ctypes.c_void_p * len(values))(*addresses)
        threads = self._about["threads"]
        self._driver.launch(self._function, blocks, threads, self._shared, parameters)

    def _check(self, table: ctypes.Array[ctypes.c_void_p]) -> None:
        name = self._about["name"]
        if len(table) != self._pointers:
            raise DriverError(f"{name} takes {self._pointers} pointers, not {len(table)}")
        for place in self._aligned:
            if (table[place] or 0) % ALIGNMENT:
                raise DriverError(f"pointer {place} of {name} is no multiple of {ALIGNMENT} bytes")

    def _at_sizes(self, *sizes: int) -> tuple[int, list[int], list[Any]]:
        """Blocks, elements of scratch memory, and what the addresses of arguments are taken of: a
        kind for pointers, which differ from call to call."""
        blocks, narrow, scratch, passed = self._evaluate(*sizes)
        if blocks > LARGEST_GRID or max(narrow, default=0) > LARGEST_NARROW:
            raise DriverError(
                f"{self._about['name']} was built for fewer elements: its indices have 32 bits"
            )
        numbers = iter(passed)
        held = [_held(argument, numbers) for argument in self._about["arguments"]]
        return blocks, [-(-count // ELEMENTS) * ELEMENTS for count in scratch], held


def _reach(table: ctypes.Array[ctypes.c_void_p]) -> tuple[int, int, int]:
    """The range of addresses of a table's elements."""
    first = ctypes.addressof(table)
    return first, first + 8 * len(table), 8


def _held(argument: Mapping[str, Any], sizes: Iterator[int]) -> Any:
    if argument["kind"] in ("pointer", "scratch"):
        return argument["kind"]
    if argument["kind"] == "null":
        return ctypes.c_void_p(0)
    size, type = next(sizes), ctypes.c_int32 if argument["type"] == "i32" else ctypes.c_int64
    if type(size).value != size:
        raise DriverError(f"{argument['name']} is {size}, which {argument['type']} cannot hold")
    return type(size)


def _expressions(
    about: Mapping[str, Any], symbols: Sequence[str]
) -> Callable[..., tuple[int, list[int], list[int], list[int]]]:
    """Blocks, the sizes that must be narrow, those of scratch memory, and those that are passed, at
    sizes of a call."""
    scratch, passed = (
        [a["value"] for a in about["arguments"] if a["kind"] == kind]
        for kind in ("scratch", "size")
    )
    listed = (f"[{', '.join(texts)}]" for texts in (about["narrow"], scratch, passed))
    text = f"lambda {', '.join(symbols)}: ({about['blocks']}, {', '.join(listed)})"
    return eval(text, {"__builtins__": {}, "max": max, "min": min})  # type: ignore[no-any-return]


def kernels_in(
    folder: Path, device: torch.device, library: Any = None
) -> tuple[Driver, dict[str, Launch]]:
    """The kernels of an artefact by name. Raises DriverError."""
    about = json.loads((folder / "kernels.json").read_text())
    kernels, symbols = about["kernels"], about["symbols"]
    arch, kind = image_for(kernels, torch.cuda.get_device_capability(device))
    driver = Driver(device, library)
    every = [k for kernel in kernels for k in (*kernel["before"], kernel)]
    images = {k["name"]: next(i for i in k["images"] if i["arch"] == arch) for k in every}
    entries: dict[str, list[str]] = {}
    for k in every:
        entries.setdefault(images[k["name"]][kind], []).append(k["entry"])

    def launch(k: Mapping[str, Any]) -> Launch:
        image, before = images[k["name"]], [launch(other) for other in k["before"]]
        function = functions[image[kind], k["entry"]]
        return Launch(driver, function, k, image["shared"], symbols, before)

    with driver.entered():
        functions = {
            (file, entry): function
            for file, names in entries.items()
            for entry, function in zip(
                names, driver.functions((folder / file).read_bytes(), names), strict=True
            )
        }
        return driver, {kernel["name"]: launch(kernel) for kernel in kernels}


def image_for(kernels: Sequence[Mapping[str, Any]], capability: tuple[int, int]) -> tuple[int, str]:
    """The architecture of the images to load, and whether as cubin or, for GPUs that came later, as
    ptx; `sm_90a` and its like run on that very one. Raises DriverError."""
    here = 10 * capability[0] + capability[1]
    archs = sorted({image["arch"] for kernel in kernels for image in kernel["images"]})
    if here in archs:
        return here, "cubin"
    special = {
        image["arch"]
        for kernel in kernels
        for image in kernel["images"]
        if not image["ptx_target"][-1:].isdigit()
    }
    older = [arch for arch in archs if arch < here and arch not in special]
    alike = [arch for arch in older if arch // 10 == here // 10]
    if older:
        return (alike[-1], "cubin") if alike else (older[-1], "ptx")
    built = ", ".join(f"sm_{arch}" for arch in archs)
    raise DriverError(
        f"the kernels were built for {built}, and this GPU is sm_{here}: run `rewright optimize` "
        f"with --target cuda:sm_{here}"
    )
