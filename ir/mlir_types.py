"""Types in MLIR: `!torch.vtensor<[2,?],f32>` and its like, and the numbers torch gives to dtypes.

A vtensor says dtype and sizes. What it does not say (strides, devices, which sizes are equal) goes
into an attribute, in the words of our own text form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import torch

from rewright.ir.dim_text import parse_size
from rewright.ir.dims import Size
from rewright.ir.errors import ImportFailure, TextError, UnsupportedError
from rewright.ir.types import CPU, DTYPES, OtherType, ScalarType, TensorType, Type

MLIR_DTYPES: Final[dict[torch.dtype, str]] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8E4M3FN",
    torch.float8_e5m2: "f8E5M2",
    torch.float8_e4m3fnuz: "f8E4M3FNUZ",
    torch.float8_e5m2fnuz: "f8E5M2FNUZ",
    torch.int64: "si64",
    torch.int32: "si32",
    torch.int16: "si16",
    torch.int8: "si8",
    torch.uint64: "ui64",
    torch.uint32: "ui32",
    torch.uint16: "ui16",
    torch.uint8: "ui8",
    torch.bool: "i1",
    torch.complex32: "complex<f16>",
    torch.complex64: "complex<f32>",
    torch.complex128: "complex<f64>",
}
_DTYPE_OF: Final = {name: dtype for dtype, name in MLIR_DTYPES.items()}

# In MLIR a dtype, layout or memory format is an integer: its place in torch's own enumeration.
DTYPE_NUMBERS: Final[dict[torch.dtype, int]] = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.complex32: 8,
    torch.complex64: 9,
    torch.complex128: 10,
    torch.bool: 11,
    torch.bfloat16: 15,
    torch.float8_e5m2: 23,
    torch.float8_e4m3fn: 24,
    torch.float8_e5m2fnuz: 25,
    torch.float8_e4m3fnuz: 26,
    torch.uint16: 27,
    torch.uint32: 28,
    torch.uint64: 29,
}
LAYOUT_NUMBERS: Final[dict[torch.layout, int]] = {
    torch.strided: 0,
    torch.sparse_coo: 1,
    torch.sparse_csr: 2,
    torch.sparse_csc: 3,
    torch.sparse_bsr: 4,
    torch.sparse_bsc: 5,
}
FORMAT_NUMBERS: Final[dict[torch.memory_format, int]] = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}

_SCALARS: Final = {"int": "!torch.int", "float": "!torch.float", "bool": "!torch.bool"}
_OTHERS: Final = {"none": "!torch.none"}
_KINDS: Final = {text: kind for kind, text in (*_SCALARS.items(), *_OTHERS.items())}

_tensor = re.compile(r"!torch\.(v?)tensor<\[([^\]]*)\],([\w<>]+)>").fullmatch
_written = re.compile(r"(\w+)\[([^\]]*)\](?: strides \[([^\]]*)\])?(?: on (\S+))?").fullmatch
_counted = re.compile(r"(int|float|bool)(?:\((.*)\))?").fullmatch
_commas = re.compile(r",\s*(?![^(]*\))")  # not those of max(a, b)


class Declared(NamedTuple):
    """What a tensor type of the dialect says: None stands for a `?`."""

    mutable: bool
    shape: tuple[int | None, ...]
    dtype: torch.dtype


def mlir_type(type: Type, *, mutable: bool = False) -> str:
    """The type as the dialect spells it. Raises UnsupportedError where it has no word for it."""
    if isinstance(type, TensorType):
        if type.dtype not in MLIR_DTYPES:
            raise UnsupportedError(f"{type.dtype} has no name in MLIR")
        sizes = ",".join(str(s) if isinstance(s, int) else "?" for s in type.shape)
        return f"!torch.{'' if mutable else 'v'}tensor<[{sizes}],{MLIR_DTYPES[type.dtype]}>"
    known = _SCALARS if isinstance(type, ScalarType) else _OTHERS
    if type.kind not in known:
        raise UnsupportedError(f"a value of type '{type.kind}' has no form in MLIR")
    return known[type.kind]


def is_said(type: Type) -> bool:
    """True when the dialect's type, with the sizes bound to its `?`s, says all there is to say."""
    if isinstance(type, TensorType):
        return type.strides is None and type.device == CPU
    return not isinstance(type, ScalarType) or type.dim is None


def declared(text: str) -> Declared | None:
    """What a tensor type says; None for one without rank or dtype, or that is no tensor's."""
    found = _tensor(text)
    if found is None or found[3] not in _DTYPE_OF:
        return None
    sizes = [s for s in found[2].split(",") if s]
    shape = tuple(None if size == "?" else int(size) for size in sizes)
    return Declared(not found[1], shape, _DTYPE_OF[found[3]])


def agrees(type: Type, said: Declared) -> bool:
    """True when `type` is what the file declares, as far as it does."""
    if not isinstance(type, TensorType) or type.dtype != said.dtype or type.rank != len(said.shape):
        return False
    sizes = zip(said.shape, type.shape, strict=True)
    return all(a is None or not isinstance(b, int) or a == b for a, b in sizes)


def plain_type(text: str) -> Type:
    """The type of a value that is no tensor. Raises ImportFailure for those that we have no
    word for."""
    kind = _KINDS.get(text)
    if kind is None:
        raise ImportFailure(f"a value of type {text} has no form in the IR")
    return ScalarType(kind) if kind in _SCALARS else OtherType(kind)


def read_type(text: str, sizes: Mapping[str, Size]) -> Type:
    """What `show_type` wrote. Raises ImportFailure for anything else."""
    try:
        return _read_type(text, sizes)
    except TextError as error:
        raise ImportFailure(f"'{text}' is no type: {error.message}") from None


def _read_type(text: str, sizes: Mapping[str, Size]) -> Type:
    tensor, counted = _written(text), _counted(text)
    if tensor is not None and tensor[1] in DTYPES:
        shape = tuple(_sizes(tensor[2], sizes))
        strides = None if tensor[3] is None else tuple(_sizes(tensor[3], sizes))
        if strides is None or len(strides) == len(shape):
            return TensorType(DTYPES[tensor[1]], shape, strides, _device(tensor[4]))
    if counted is not None:
        return ScalarType(counted[1], None if counted[2] is None else parse_size(counted[2], sizes))
    if tensor is None and text in _OTHERS:
        return OtherType(text)
    raise TextError("it does not read as f32[2, 3] strides [1, 2], or as int(B0)")


def _sizes(text: str, sizes: Mapping[str, Size]) -> Iterator[Size]:
    return (parse_size(size, sizes) for size in _commas.split(text) if size)


def _device(name: str | None) -> torch.device:
    try:
        return CPU if name is None else torch.device(name)
    except RuntimeError:
        raise TextError(f"there is no device '{name}'") from None
