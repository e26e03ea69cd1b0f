"""Types of values: tensors (dtype, shape, strides, device) and Python scalars."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import torch

from rewright.ir.dims import Dim, Size, equal, hint, product, substitute, symbols_of

DTYPE_NAMES: Final[dict[torch.dtype, str]] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3fn",
    torch.float8_e5m2: "f8e5m2",
    torch.float8_e4m3fnuz: "f8e4m3fnuz",
    torch.float8_e5m2fnuz: "f8e5m2fnuz",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint64: "u64",
    torch.uint32: "u32",
    torch.uint16: "u16",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex32: "c32",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
DTYPES: Final[dict[str, torch.dtype]] = {name: dtype for dtype, name in DTYPE_NAMES.items()}

CPU: Final = torch.device("cpu")


@dataclass(frozen=True)
class TensorType:
    """A dense tensor. `strides` is None when the layout is contiguous (row-major)."""

    dtype: torch.dtype
    shape: tuple[Size, ...]
    strides: tuple[Size, ...] | None = None
    device: torch.device = CPU

    def __post_init__(self) -> None:
        if self.strides is not None and self.strides == contiguous_strides(self.shape):
            object.__setattr__(self, "strides", None)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @cached_property
    def numel(self) -> Size:
        return product(self.shape)

    @cached_property
    def is_contiguous(self) -> bool:
        """Row-major, whatever the strides of dimensions of size one (torch's `is_contiguous`)."""
        return self.strides is None or _is_row_major(self.shape, self.strides)

    @cached_property
    def layout(self) -> tuple[Size, ...]:
        """Strides in elements, also for contiguous tensors."""
        return contiguous_strides(self.shape) if self.strides is None else self.strides

    @cached_property
    def storage_elements(self) -> Size:
        """Elements from the first to one past the last that the strides can reach."""
        if self.strides is None:
            return self.numel
        if any(size == 0 for size in self.shape):
            return 0
        last: Size = 0
        for size, stride in zip(self.shape, self.strides, strict=True):
            last = last + (size - 1) * stride
        return last + 1

    @cached_property
    def nbytes(self) -> Size:
        """Bytes of storage that a fresh tensor of this type takes."""
        return self.storage_elements * self.dtype.itemsize

    @property
    def nbytes_hint(self) -> int:
        return hint(self.nbytes)

    def with_dtype(self, dtype: torch.dtype) -> TensorType:
        return TensorType(dtype, self.shape, self.strides, self.device)


SCALAR_KINDS: Final = ("int", "float", "bool")
OTHER_KINDS: Final = ("none", "token", "generator", "object")


@dataclass(frozen=True)
class ScalarType:
    """A Python number at run time: `kind` of `SCALAR_KINDS`; `dim` its size when it has one."""

    kind: str
    dim: Size | None = None


@dataclass(frozen=True)
class OtherType:
    """Anything else that flows through a graph unread: None results, effect tokens, generators.
    `kind` is one of `OTHER_KINDS`."""

    kind: str = "none"


Type = TensorType | ScalarType | OtherType


def contiguous_strides(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    """Row-major strides; like torch, a zero-sized dimension counts as one."""
    strides: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * (1 if size == 0 else size)
    return tuple(reversed(strides))


def channels_last_strides(shape: tuple[Size, ...]) -> tuple[Size, ...]:
    """Strides of a tensor [N, C, *sizes] that lies as [N, *sizes, C]."""
    images, channels, *sizes = shape
    first, *rest, last = contiguous_strides((images, *sizes, channels))
    return (first, last, *rest)


def is_channels_last(type: TensorType) -> bool:
    """True when a tensor [N, C, H, W] lies as [N, H, W, C]; of those that lie as both, those too
    that say so in their strides."""
    if type.rank != 4:
        return False
    moved = [(type.layout[d], type.shape[d]) for d in (1, 3, 2, 0)]
    return not any(size == 0 for size in type.shape) and _chain(moved)


def _is_row_major(shape: tuple[Size, ...], strides: tuple[Size, ...]) -> bool:
    if any(size == 0 for size in shape):
        return True
    axes = list(zip(strides, shape, strict=True))[::-1]
    return _chain(axes) or _chain(_not_empty(axes))


def _not_empty(axes: list[tuple[Size, Size]]) -> list[tuple[Size, Size]]:
    """Strides and sizes where there are elements: without any, all strides are as good."""
    count = product(size for _, size in axes)
    least = {
        s.name: Dim.of(replace(s, low=1))
        for s in symbols_of([count])
        if s.low == 0 and substitute(count, {s.name: 0}) == 0
    }
    return [(substitute(stride, least), substitute(size, least)) for stride, size in axes]


def is_dense(type: TensorType) -> bool:
    """True when distinct indices reach distinct elements without gaps, in some order of axes."""
    axes = zip(type.layout, type.shape, strict=True)
    return _chain(sorted(axes, key=lambda axis: (hint(axis[0]), hint(axis[1]))))


def _chain(axes: list[tuple[Size, Size]]) -> bool:
    """True when each (stride, size), innermost first, starts where the one before ends."""
    expected: Size = 1
    for stride, size in axes:
        if size == 1:
            continue
        if not equal(stride, expected):
            return False
        expected = expected * size
    return True
