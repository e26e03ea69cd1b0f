"""Sizes, numbers, types and names as C++ text."""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Container, Iterable, Mapping
from typing import Final

import torch

from rewright.ir import DTYPE_NAMES, Dim, Size, UnsupportedError
from rewright.ir.expr import PRIMITIVES

# What an element of each dtype is in memory, as a type of simd.h. That of a compute type is also
# what a lane holds.
STORAGE: Final[dict[torch.dtype, str]] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "f8e4m3fn",
    torch.float8_e5m2: "f8e5m2",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint32: "u32",
    torch.uint16: "u16",
    torch.uint8: "u8",
    torch.bool: "bool",
}

# What 16 elements are in registers, by compute type.
VECTOR: Final[dict[torch.dtype, str]] = {
    torch.float64: "f64v",
    torch.float32: "f32v",
    torch.int64: "i64v",
    torch.int32: "i32v",
    torch.bool: "mask",
}

# What a kernel's text means by these words: C++'s keywords and the vocabulary of emitters.
_WORDS: Final = """
alignas alignof and asm auto bool break case catch char class compl const constexpr continue
decltype default delete do double else enum explicit export extern false float for friend goto if
inline int long mutable namespace new noexcept not nullptr operator or private protected public
register return short signed sizeof static struct switch template this throw true try typedef
typeid typename union unsigned using virtual void volatile while xor
p s r u l n rw matrix block known along attend exactly truth either anything verdict range_of real
whole any_score hull certain sure checked rounded begin end width main load load_part load_strided
load_each load_across load_window
load_where store store_part store_strided store_each store_across broadcast splat cast round_to
positions positions_each window mask_each within parallel parallel_rows serial serial_rows steps
strips reduce parallel_reduce sequence parallel_sequence transpose transpose_strip size_div
size_mod size_pow size_max size_min gather scatter iota lane all fma isfinite first bits first_bits
hsum hprod hmax hmin hany hall bitwise_and bitwise_or bitwise_xor bitwise_not
"""
_TYPES: Final = (*STORAGE.values(), *VECTOR.values())
_RESERVED: Final = frozenset((*_WORDS.split(), *_TYPES, *PRIMITIVES))

# Names that emitters make: scalars t0, axes a0 a1oi, offsets o0 (i8 is a type),
# and what is built on them.
_MADE: Final = re.compile(r"([taco]\d+[oi]*(_.*)?|.*__.*|_.*|[A-Z].*)")


def storage_text(dtype: torch.dtype) -> str:
    """The type of an element in memory. Raises UnsupportedError for dtypes kernels don't know."""
    if dtype not in STORAGE:
        raise UnsupportedError(
            f"C++ kernels have no elements of {DTYPE_NAMES.get(dtype, dtype)}", who="cpp"
        )
    return STORAGE[dtype]


def identifiers(names: Iterable[str], taken: Container[str] = ()) -> dict[str, str]:
    """A C++ identifier for each name: itself, unless that means something else in a kernel, as
    what is `taken` does in one kind of kernel."""
    found: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"_+", "_", re.sub(r"\W", "_", name))
        if stem in _RESERVED or stem in taken or _MADE.fullmatch(stem) or not stem[:1].isalpha():
            stem = f"in_{stem.lstrip('_')}"
        candidate, n = stem, 0
        while candidate in found.values():
            n += 1
            candidate = f"{stem}_{n}"
        found[name] = candidate
    return found


# --- sizes --------------------------------------------------------------------------------------


def size_text(size: Size) -> str:
    """An i64 expression, ready to stand in a sum. Symbols are variables of the kernel."""
    if isinstance(size, int):
        return str(size) if abs(size) < 1 << 31 else f"{size}L"
    return _size(ast.parse(size.text, mode="eval").body)


def factor_text(size: Size) -> str:
    """The same, ready to stand in a product."""
    text = size_text(size)
    return text if re.fullmatch(r"\w+|\w+\([^()]*\)", text) else f"({text})"


_SIZE_OPERATORS: Final[Mapping[type[ast.operator], str]] = {
    ast.Add: " + ",
    ast.Sub: " - ",
    ast.Mult: " * ",
}
_SIZE_FUNCTIONS: Final[Mapping[type[ast.operator], str]] = {
    ast.FloorDiv: "size_div",
    ast.Mod: "size_mod",
    ast.Pow: "size_pow",
}


def _size(tree: ast.expr) -> str:
    """C++ for the text of a `Dim`: Python's operators over names and integers."""
    match tree:
        case ast.Constant(value=value):
            return size_text(value) if isinstance(value, int) else str(value)
        case ast.Name(id=name):
            return name
        case ast.UnaryOp(operand=operand):
            return f"-{_atom(operand)}"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIZE_FUNCTIONS:
            return f"{_SIZE_FUNCTIONS[type(op)]}({_size(left)}, {_size(right)})"
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return f"{_atom(left)} * {_atom(right)}"
        case ast.BinOp(left=left, op=op, right=right):
            return f"{_size(left)}{_SIZE_OPERATORS[type(op)]}{_atom(right)}"
        case ast.Call(func=ast.Name(id=name), args=[first, *rest]):
            text = _size(first)
            for arg in rest:
                text = f"{'size_max' if name == 'max' else 'size_min'}({text}, {_size(arg)})"
            return text
    raise AssertionError(f"no size is written like {ast.dump(tree)}")


def _atom(tree: ast.expr) -> str:
    text = _size(tree)
    return f"({text})" if isinstance(tree, (ast.UnaryOp, ast.BinOp)) else text


# --- numbers ------------------------------------------------------------------------------------


def number_text(value: bool | int | float | Size, dtype: torch.dtype) -> str:
    """A literal of a compute type, exactly as torch converts the number to it."""
    if isinstance(value, Dim):
        return size_text(value)
    if dtype == torch.bool:
        return "true" if value else "false"
    if dtype == torch.float64:
        return _float_text(float(value), "")
    if dtype == torch.float32:
        return _float_text(_to_float32(float(value)), "f")
    return _int_text(int(value), dtype)


def _to_float32(value: float) -> float:
    try:
        rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return rounded


def _float_text(value: float, suffix: str) -> str:
    if math.isnan(value):
        return f'__builtin_nan{suffix}("")'
    if math.isinf(value):
        return f"{'-' if value < 0 else ''}__builtin_inf{suffix}()"
    return (_shortest32(value) if suffix else repr(value)) + suffix


def _shortest32(value: float) -> str:
    """The shortest decimal that reads as this float32."""
    texts = (f"{value:.{digits}g}" for digits in range(1, 10))
    text = next(t for t in texts if _to_float32(float(t)) == value)
    return text if re.search(r"[.e]", text) else f"{text}.0"


def _int_text(value: int, dtype: torch.dtype) -> str:
    bits = 8 * dtype.itemsize
    wrapped = (value + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))
    if wrapped == -(1 << (bits - 1)):
        return f"({wrapped + 1}{'L' if bits == 64 else ''} - 1)"
    return size_text(wrapped)
