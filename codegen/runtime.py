"""What a compiled program needs while it runs: frames of buffers over one arena.

Depends on torch and ctypes alone: an artefact carries a copy of this file beside its call sequence.
"""

from __future__ import annotations

import ctypes
import mmap
import operator
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

KEPT_BYTES = (32 << 20) - (64 << 10)  # with malloc's own bytes not over 32 MiB

Interval = tuple[int, int, int, int]  # first step, last step, bytes, planned offset


class Frame:
    """The buffers of one call in flight. Its attributes are the tensors that the call sequence
    names; they are windows of `arena` and stay valid while it lives. `tables` are the kernels'
    pointers by node, `symbols` and `sizes` the sizes that the frame is for, the latter for C."""

    nbytes: int
    arena: torch.Tensor
    symbols: tuple[int, ...]
    sizes: ctypes.Array[ctypes.c_int64]
    tables: dict[str, ctypes.Array[ctypes.c_void_p]]
    _addresses: list[tuple[ctypes.Array[ctypes.c_void_p], int, int]]

    def __init__(self, nbytes: int, device: torch.device, sizes: tuple[int, ...]) -> None:
        self.nbytes = nbytes
        self.arena = torch.empty(nbytes, dtype=torch.uint8, device=device)
        on_huge_pages(self.arena)
        self.symbols = sizes
        self.sizes = (ctypes.c_int64 * max(1, len(sizes)))(*sizes)
        self.tables = {}
        self._addresses = []

    def place(
        self, offset: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """A tensor at `offset` bytes of the arena."""
        empty = torch.empty(0, dtype=dtype, device=self.arena.device)
        storage = self.arena.untyped_storage()
        return empty.set_(storage, offset // dtype.itemsize, tuple(shape), tuple(strides))

    def pointers(self, *buffers: torch.Tensor | None) -> ctypes.Array[ctypes.c_void_p]:
        """A kernel's pointer table; None stands for tensors that differ from call to call."""
        table = (ctypes.c_void_p * len(buffers))()
        base = self.arena.data_ptr()
        for i, buffer in enumerate(buffers):
            if buffer is None:
                continue
            table[i] = buffer.data_ptr()
            if buffer.untyped_storage().data_ptr() == base and self.nbytes:
                self._addresses.append((table, i, buffer.data_ptr() - base))
        return table

    def release(self) -> None:
        """Give the arena's memory back; `acquire` takes it again, maybe at another address."""
        self.arena.untyped_storage().resize_(0)

    def acquire(self) -> None:
        storage = self.arena.untyped_storage()
        if storage.nbytes() == self.nbytes:
            return
        storage.resize_(self.nbytes)
        on_huge_pages(self.arena)
        base = storage.data_ptr()
        for table, i, offset in self._addresses:
            table[i] = base + offset


class Frames:
    """Frames by the sizes they are made for: each call takes one and puts it back.

    Calls on several threads, or within each other, have frames of their own. With `retain` the
    arenas of the sizes used last keep their memory between calls, all others give it back.
    """

    MOST = 16  # size tuples remembered

    def __init__(self, make: Callable[[tuple[int, ...]], Frame], *, retain: bool) -> None:
        self._make = make
        self._retain = retain
        self._idle: dict[tuple[int, ...], list[Frame]] = {}
        self._lock = threading.Lock()
        keep_freed_memory()

    def take(self, sizes: tuple[int, ...]) -> Frame:
        with self._lock:
            idle = self._idle.get(sizes)
            frame = idle.pop() if idle else None
        if frame is None:
            return self._make(sizes)
        frame.acquire()
        return frame

    def put(self, sizes: tuple[int, ...], frame: Frame) -> None:
        if not self._retain:
            frame.release()
        with self._lock:
            self._forget_others(sizes)
            self._idle.setdefault(sizes, []).append(frame)

    def _forget_others(self, sizes: tuple[int, ...]) -> None:
        """Free what idle frames of other sizes hold; drop the sizes not used for longest."""
        used = self._idle.pop(sizes, [])
        for frames in self._idle.values():
            for frame in frames:
                frame.release()
        while len(self._idle) >= self.MOST:
            del self._idle[next(iter(self._idle))]
        self._idle[sizes] = used


@cache
def keep_freed_memory() -> None:
    """Have malloc keep what is freed for the next call, instead of giving it back to the system,
    which clears every page that it hands out again.

    glibc takes a block that is mapped and freed as a sign of the sizes to expect: up to 32 MiB it
    serves them from its heap from then on, and keeps twice as much there (mallopt(3),
    M_MMAP_THRESHOLD). Without this a ResNet-50 takes a sixth longer for its convolutions' results,
    which oneDNN allocates. No page of the block is touched.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


def on_huge_pages(made: torch.Tensor) -> None:
    """Ask Linux for large pages where memory of the CPU is so large that malloc maps it anew: each
    page is cleared when it is first touched, and 512 small ones take three times as long as one of
    2 MiB.

    Systems that give them to everybody, or nobody, do as they do (madvise(2), MADV_HUGEPAGE).
    """
    if made.nbytes <= KEPT_BYTES or made.device.type != "cpu":
        return
    advise = _madvise()
    if advise is None:
        return
    begin = -(-made.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (made.data_ptr() + made.nbytes - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    advise(begin, length, mmap.MADV_HUGEPAGE)


@cache
def _madvise() -> Any:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


def place_again(intervals: Sequence[Interval], alignment: int) -> tuple[list[int], int]:
    """Offsets and arena size for sizes other than those that were planned for.

    Largest first, each at the lowest address that is free during its life.
    """
    offsets = [0] * len(intervals)
    placed: list[int] = []
    top = 0
    for i in sorted(range(len(intervals)), key=lambda i: (-intervals[i][2], i)):
        first, last, nbytes, _ = intervals[i]
        size = -(-nbytes // alignment) * alignment
        offset = 0
        for j in sorted(placed, key=lambda j: offsets[j]):
            other_first, other_last, other_bytes, _ = intervals[j]
            if other_last < first or last < other_first:
                continue
            if offset + size <= offsets[j]:
                break
            offset = max(offset, offsets[j] + -(-other_bytes // alignment) * alignment)
        offsets[i] = offset
        placed.append(i)
        top = max(top, offset + size)
    return offsets, top


def new(
    shape: Sequence[int],
    strides: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """A tensor of its own."""
    made = torch.empty_strided(shape, strides, dtype=dtype, device=device)
    on_huge_pages(made)
    return made


def laid_out(x: torch.Tensor, strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """`x` itself when it has this dtype, and these strides wherever they matter; else a copy that
    has."""
    if x.dtype == dtype:
        if x.stride() == strides or x.numel() == 0:
            return x
        steps = zip(x.shape, x.stride(), strides, strict=True)
        if all(size == 1 or step == wanted for size, step, wanted in steps):
            return x
    return torch.empty_strided(x.shape, strides, dtype=dtype, device=x.device).copy_(x)


def own(
    window: torch.Tensor, owned: dict[str, torch.UntypedStorage], constant: str
) -> torch.Tensor:
    """The same tensor, strides and all, over a copy of its storage: the one in `owned`, where what
    is returned already has one of this constant."""
    if constant not in owned:
        owned[constant] = window.untyped_storage().clone()
    copy = torch.empty(0, dtype=window.dtype, device=window.device)
    return copy.set_(owned[constant], window.storage_offset(), window.shape, window.stride())


class Frozen:
    """What is computed of parameters, kept until one of them is another tensor or was written to.

    Held to their storages, so that no other tensor comes to lie at an address that is remembered.
    Writes that torch's version counters do not count (through `.data`, by other libraries, into
    tensors made under inference mode) are not noticed.
    """

    def __init__(self, compute: Callable[..., Sequence[torch.Tensor]]) -> None:
        self._compute = compute
        self._seen: list[int] = []
        self._held: list[torch.Tensor] = []
        self._kept: list[torch.Tensor] = []
        self._lock = threading.Lock()

    def __call__(self, *parameters: torch.Tensor) -> list[torch.Tensor]:
        seen = [*map(torch.Tensor.data_ptr, parameters), *_versions(parameters)]
        with self._lock:
            if seen != self._seen:
                with torch.inference_mode(False), torch.no_grad():
                    self._kept = list(self._compute(*parameters))
                    self._held = [p.detach() for p in parameters]
                self._seen = seen
            return self._kept


def _versions(tensors: Sequence[torch.Tensor]) -> list[int]:
    """How often each was written to, asked at every call: in C, unless there are inference tensors,
    which have no counter."""
    try:
        return [*map(_version, tensors)]
    except RuntimeError:
        return [0 if t.is_inference() else t._version for t in tensors]


_version = operator.attrgetter("_version")
