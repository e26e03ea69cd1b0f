"""Tensors as a `.safetensors` file that is mapped, not read: in the memory order they have.

Every piece of memory is stored once, however many tensors look at it. `rewright.codegen.loading`
reads these files with torch alone; other readers of safetensors see each piece under the name of
the first tensor in it, which is the tensor itself where that is contiguous.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from rewright.codegen.loading import DTYPES
from rewright.ir import UnsupportedError

# Where memory begins, when sizes allow: a cache line.
ALIGNMENT: Final = 64
WIDEST: Final = 16  # bytes of the widest element, a complex128
_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_BYTES: Final = 1 << 26  # written at once


@dataclass(frozen=True)
class _Window:
    """A tensor and the bytes of its storage that it reaches."""

    name: str
    tensor: Tensor
    first: int
    end: int


@dataclass(frozen=True)
class _Piece:
    """Bytes of one storage, and the tensors in them. `dtype` and `shape` are what other readers are
    told; `windows` that are not just that have a view."""

    windows: tuple[_Window, ...]
    first: int
    end: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.windows[0].name

    @property
    def nbytes(self) -> int:
        return self.end - self.first

    def views(self) -> Iterator[tuple[str, dict[str, object]]]:
        for window in self.windows:
            tensor = window.tensor
            plain = window.name == self.name and tensor.is_contiguous()
            if plain and self.dtype == _NAMES.get(tensor.dtype) and self.shape == tensor.shape:
                continue
            yield (
                window.name,
                {
                    "in": self.name,
                    "dtype": str(tensor.dtype).removeprefix("torch."),
                    "shape": list(tensor.shape),
                    "strides": list(tensor.stride()),
                    "offset": (window.first - self.first) // tensor.dtype.itemsize,
                },
            )


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name. Raises OSError, and UnsupportedError for what is not strided."""
    pieces = sorted(_pieces(tensors), key=lambda p: -_alignment(p.nbytes))
    header: dict[str, object] = {}
    views = {name: view for piece in pieces for name, view in piece.views()}
    if views:
        header["__metadata__"] = {"views": json.dumps(views)}
    end = 0
    for piece in pieces:
        place = [end, end + piece.nbytes]
        header[piece.name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": place}
        end += piece.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            for part in _parts(piece):
                file.write(part.numpy().data)


def _alignment(nbytes: int) -> int:
    """The largest power of two, up to ours, that divides a size: when pieces lie in falling order
    of it, each begins at a multiple of it. Empty pieces come last."""
    return min(nbytes & -nbytes, ALIGNMENT)


def _parts(piece: _Piece) -> Iterable[Tensor]:
    """Its bytes; what a storage does not have, because it ends before, as zeros."""
    storage = piece.windows[0].tensor.untyped_storage()
    held = min(piece.end, storage.nbytes())
    empty = torch.empty(0, dtype=torch.uint8)
    yield from empty.set_(storage, piece.first, (held - piece.first,), (1,)).split(_BYTES)
    if held < piece.end:
        yield torch.zeros(piece.end - held, dtype=torch.uint8)


# --- pieces -------------------------------------------------------------------------------------


def _pieces(tensors: Mapping[str, Tensor]) -> Iterator[_Piece]:
    """Tensors of one storage whose bytes overlap lie in one piece."""
    of_storage: dict[int, list[_Window]] = {}
    for name, tensor in _on_cpu(tensors):
        window = _window(name, tensor)
        if window.first == window.end:
            yield _Piece((window,), 0, 0, *_told(tensor))
        else:
            of_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(window)
    for windows in of_storage.values():
        yield from map(_piece, _overlapping(windows))


def _on_cpu(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors as plain memory of the CPU; what shares memory on a device still does."""
    copies: dict[int, torch.UntypedStorage] = {}
    for name, given in tensors.items():
        tensor = given.detach()
        if tensor.layout != torch.strided or tensor.is_mkldnn or tensor.is_quantized:
            raise UnsupportedError(f"an artefact cannot hold %{name}, a {_kind(tensor)} tensor")
        tensor = tensor.resolve_conj().resolve_neg()
        if tensor.device.type != "cpu":
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in copies:
                copies[storage.data_ptr()] = storage.cpu()
            place = tensor.storage_offset(), tensor.shape, tensor.stride()
            empty = torch.empty(0, dtype=tensor.dtype)
            tensor = empty.set_(copies[storage.data_ptr()], *place)
        yield name, tensor


def _kind(tensor: Tensor) -> str:
    return "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")


def _window(name: str, tensor: Tensor) -> _Window:
    if tensor.numel() == 0:
        return _Window(name, tensor, 0, 0)
    size, first = tensor.dtype.itemsize, int(tensor.storage_offset())
    steps = (n - 1 for n in tensor.shape)
    last = first + sum(n * stride for n, stride in zip(steps, tensor.stride(), strict=True))
    return _Window(name, tensor, first * size, (last + 1) * size)


def _overlapping(windows: Iterable[_Window]) -> Iterator[list[_Window]]:
    """Those that share bytes, directly or by way of others; in the order they were given."""
    groups: list[list[_Window]] = []
    reached = -1
    places = {window.name: place for place, window in enumerate(windows)}
    for window in sorted(windows, key=lambda w: w.first):
        if window.first >= reached:
            groups.append([])
        groups[-1].append(window)
        reached = max(reached, window.end)
    for group in groups:
        yield sorted(group, key=lambda w: places[w.name])


def _piece(windows: list[_Window]) -> _Piece:
    first, end = min(w.first for w in windows), max(w.end for w in windows)
    head = windows[0]
    dense = head.tensor.numel() * head.tensor.dtype.itemsize == end - first
    if dense and all(w.tensor.dtype == head.tensor.dtype for w in windows):
        return _Piece(tuple(windows), first, end, *_told(_in_memory_order(head.tensor)))
    first, end = first // WIDEST * WIDEST, -(-end // WIDEST) * WIDEST
    return _Piece(tuple(windows), first, end, "U8", (end - first,))


def _in_memory_order(tensor: Tensor) -> Tensor:
    """With its dimensions in the order in which they lie; bytes, when no order makes it dense."""
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda d: (-strides[d], -tensor.shape[d]))
    return tensor if tensor.is_contiguous() else tensor.permute(order)


def _told(tensor: Tensor) -> tuple[str, tuple[int, ...]]:
    """Type and shape for other readers; bytes, where the format has no name for the type."""
    if tensor.dtype in _NAMES:
        return _NAMES[tensor.dtype], tuple(tensor.shape)
    return "U8", (tensor.numel() * tensor.dtype.itemsize,)
