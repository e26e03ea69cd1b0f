"""Formats of weights, and what a linear layer in one computes, as ATen nodes.

Weights are quantized symmetrically, a row of outputs at a time: the largest magnitude becomes 127.
Activations are either left as they are or quantized alike, a row at a time, as they come. In a half
type the product is ATen's, of both rounded to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from rewright.ir import Arg, Graph, Input, Size, TensorType, Value, op
from rewright.passes.emitter import Emitter

LINEAR: Final = "rw.quantized_linear"
# Kernels read weights in blocks of so many rows and columns (codegen/cpp/quantized.h).
ROWS: Final = 16
COLUMNS: Final = 4
_LARGEST: Final = 127.0
FOUR_BITS: Final = 7.0
BALANCED: Final = "-balanced"


@dataclass(frozen=True)
class Format:
    """How a linear layer is computed. `bits` are those of a weight, without its scale, of which
    there is one for each output, or for each `group` of its weights, or none for a half `dtype`.
    When it is `balanced`, outliers of activations are moved into weights first."""

    name: str
    bits: int
    quantizes_activations: bool
    group: int = 0
    dtype: torch.dtype | None = None
    balanced: bool = False

    @property
    def kernel(self) -> str:
        """The format as its kernel knows it."""
        return self.name.removesuffix(BALANCED) if self.balanced else self.name

    def nbytes(self, rows: int, columns: int) -> int:
        """What a weight [rows, columns] takes, scales and all."""
        if self.dtype is not None:
            return rows * columns * self.bits // 8
        padded = _blocks(rows, ROWS) * ROWS
        if self.group:
            return padded * columns * self.bits // 8 + 4 * padded * columns // self.group
        return padded * _blocks(columns, COLUMNS) * COLUMNS + 8 * rows


FORMATS: Final = (
    Format("int8", 8, quantizes_activations=True),
    Format(f"int8{BALANCED}", 8, quantizes_activations=True, balanced=True),
    Format("int8-weight", 8, quantizes_activations=False),
    Format("int4-g64", 4, quantizes_activations=True, group=64),
    Format("int4-g128", 4, quantizes_activations=True, group=128),
    Format("bf16", 16, quantizes_activations=True, dtype=torch.bfloat16),
    Format("fp16", 16, quantizes_activations=True, dtype=torch.float16),
)
FORMAT_OF: Final = {format.name: format for format in FORMATS}


def quantized_weight(
    format: Format, weight: Value, emit: Emitter, moved: Tensor | None = None
) -> tuple[Value, ...]:
    """Of a weight [N, K], what is read: it in a half type; or it, packed; scales; and for int8 the
    sums of each row's integers i32[N]. `moved` i8[N, K] are steps beyond the nearest integers, for
    formats with groups."""
    if format.dtype is not None:
        return (_as(weight, format.dtype, emit),)
    return _nibbles(format, weight, emit, moved) if format.group else _bytes(weight, emit)


def _bytes(weight: Value, emit: Emitter) -> tuple[Value, Value, Value]:
    """int8 [N / 16, K / 4, 16, 4], padded with zeros; scales f32[N]; sums i32[N]."""
    rows, columns = weight.tensor.shape
    exact = in_single(weight, emit)
    quantized, scales = _quantized(exact, emit)
    scales = emit("aten.view.default", scales, (rows,))
    integers = _as(quantized, torch.int32, emit)
    counted = TensorType(torch.int32, (rows,))
    sums = _made("aten.sum.dim_IntList", counted, emit, integers, (1,), dtype=torch.int32)
    small = _as(quantized, torch.int8, emit)
    high, wide = _blocks(rows, ROWS), _blocks(columns, COLUMNS)
    padding = (0, wide * COLUMNS - columns, 0, high * ROWS - rows)
    if any(amount != 0 for amount in padding):
        whole = TensorType(torch.int8, (high * ROWS, wide * COLUMNS))
        small = _made("aten.constant_pad_nd.default", whole, emit, small, padding, 0)
    small = emit("aten.view.default", small, (high, ROWS, wide, COLUMNS))
    small = emit("aten.permute.default", small, (0, 2, 1, 3))
    packed = emit("aten.clone.default", small, memory_format=torch.contiguous_format)
    return packed, scales, sums


def _nibbles(
    format: Format, weight: Value, emit: Emitter, moved: Tensor | None
) -> tuple[Value, Value]:
    """u8 [N / 16, K / 8, 16, 4], each w + 8 for k and, above, for k + 4; scales f32[N / 16,
    K / group, 16]."""
    rows, columns = weight.tensor.shape
    high, groups = _blocks(rows, ROWS), columns // format.group
    exact = in_single(weight, emit)
    if high * ROWS != rows:
        whole = TensorType(torch.float32, (high * ROWS, columns))
        padding = (0, 0, 0, high * ROWS - rows)
        exact = _made("aten.constant_pad_nd.default", whole, emit, exact, padding, 0.0)
    parts = emit("aten.view.default", exact, (high * ROWS * groups, format.group))
    quantized, scales = _quantized(parts, emit, largest=FOUR_BITS)
    if moved is not None:
        steps = pad(moved, (0, 0, 0, high * ROWS - len(moved))).reshape(-1, format.group)
        beyond = in_single(emit.constant(steps), emit)
        quantized = emit("aten.add.Tensor", quantized, beyond)
        quantized = emit("aten.clamp.default", quantized, -FOUR_BITS, FOUR_BITS)
    scales = emit("aten.view.default", scales, (high, ROWS, groups))
    scales = emit("aten.permute.default", scales, (0, 2, 1))
    scales = emit("aten.clone.default", scales, memory_format=torch.contiguous_format)
    shifted = _as(emit("aten.add.Scalar", quantized, 8.0), torch.int32, emit)
    halves = emit("aten.view.default", shifted, (high, ROWS, columns // 8, 2, COLUMNS))
    halves = emit("aten.permute.default", halves, (3, 0, 2, 1, 4))
    low, above = (emit("aten.select.int", halves, 0, i) for i in (0, 1))
    joined = emit("aten.add.Tensor", low, emit("aten.mul.Scalar", above, 16))
    packed = _as(joined, torch.uint8, emit)
    return emit("aten.clone.default", packed, memory_format=torch.contiguous_format), scales


def quantized_linear(
    format: Format,
    x: Value,
    weight: tuple[Value, ...],
    rows: Size,
    bias: Value | None,
    emit: Emitter,
) -> Value:
    """The nodes that compute x [M, K] times a quantized weight [N, K] of N `rows`, and a bias
    f32[N] added."""
    if format.dtype is not None:
        return _in_halves(x, weight[0], bias, emit)
    operands = (x, *weight, *(() if bias is None else (bias,)))
    body = _body(format, operands, rows, emit.inside())
    (result,) = emit.region(LINEAR, operands, body, format=format.kernel)
    return result


def _in_halves(x: Value, weight: Value, bias: Value | None, emit: Emitter) -> Value:
    left = _as(x, weight.tensor.dtype, emit)
    made = emit("aten.mm.default", left, emit("aten.permute.default", weight, (1, 0)))
    made = in_single(made, emit)
    if bias is not None:
        made = emit("aten.add.Tensor", made, bias)
    return _as(made, x.tensor.dtype, emit)


def quantized_rows(
    format: Format, weight: tuple[Value, ...], numbers: Value, like: TensorType, emit: Emitter
) -> Value:
    """Rows of an int8 or half weight by their numbers, [..., K], as `like` has them."""
    if format.dtype is not None:
        taken = TensorType(format.dtype, (*numbers.tensor.shape, like.shape[-1]))
        found = _made("aten.embedding.default", taken, emit, weight[0], numbers)
        return _as(found, like.dtype, emit)
    packed, scales = weight[:2]
    block = emit("aten.div.Scalar_mode", numbers, ROWS, rounding_mode="floor")
    place = emit("aten.sub.Tensor", numbers, emit("aten.mul.Scalar", block, ROWS))
    rows = emit("aten.permute.default", packed, (0, 2, 1, 3))
    shape = (*numbers.tensor.shape, packed.tensor.shape[1], COLUMNS)
    taken = TensorType(torch.int8, shape)
    found = _made("aten.index.Tensor", taken, emit, rows, (block, place))
    columns = packed.tensor.shape[1] * COLUMNS
    found = emit("aten.view.default", found, (*numbers.tensor.shape, columns))
    if columns != like.shape[-1]:
        found = emit("aten.slice.Tensor", found, -1, 0, like.shape[-1])
    scale = TensorType(torch.float32, numbers.tensor.shape)
    factors = _made("aten.index.Tensor", scale, emit, scales, (numbers,))
    factors = emit("aten.unsqueeze.default", factors, -1)
    return _as(emit("aten.mul.Tensor", in_single(found, emit), factors), like.dtype, emit)


def _body(format: Format, operands: tuple[Value, ...], rows: Size, emit: Emitter) -> Graph:
    names = ("x", "packed", "scales", *(() if format.group else ("sums",)), "bias")
    given = [Value(name, v.type) for name, v in zip(names, operands, strict=False)]
    x, packed, scales = given[:3]
    left, factor = in_single(x, emit), None
    if format.quantizes_activations:
        left, factor = _quantized(left, emit)
    if format.group:
        weight = _unpacked_nibbles(format, packed, scales, rows, emit)
    else:
        weight = _unpacked(packed, rows, x.tensor.shape[1], emit)
        factor = scales if factor is None else emit("aten.mul.Tensor", factor, scales)
    made = emit("aten.mm.default", left, emit("aten.permute.default", weight, (1, 0)))
    if factor is not None:
        made = emit("aten.mul.Tensor", made, factor)
    for bias in given[len(names) - 1 :]:
        made = emit("aten.add.Tensor", made, bias)
    made = _as(made, x.tensor.dtype, emit)
    return Graph("body", tuple(map(Input, given)), tuple(emit.nodes), (made,))


def _quantized(x: Value, emit: Emitter, largest: float = _LARGEST) -> tuple[Value, Value]:
    """Whole numbers up to `largest` in f32, and the scale [M, 1] of each row."""
    rows = x.tensor.shape[0]
    magnitude = emit("aten.abs.default", x)
    column = TensorType(torch.float32, (rows, 1))
    most = _made("aten.amax.default", column, emit, magnitude, (1,), True)
    scale = emit("aten.div.Tensor", most, largest)
    inverse = emit("aten.mul.Tensor", emit("aten.reciprocal.default", most), largest)
    is_zero = emit("aten.eq.Scalar", most, 0.0)
    inverse = emit("aten.masked_fill.Scalar", inverse, is_zero, 0.0)
    near = emit("aten.round.default", emit("aten.mul.Tensor", x, inverse))
    return emit("aten.clamp.default", near, -largest, largest), scale


def _unpacked(packed: Value, rows: Size, columns: Size, emit: Emitter) -> Value:
    high, wide = packed.tensor.shape[:2]
    turned = emit("aten.permute.default", packed, (0, 2, 1, 3))
    turned = emit("aten.clone.default", turned, memory_format=torch.contiguous_format)
    whole = emit("aten.view.default", turned, (high * ROWS, wide * COLUMNS))
    for dim, size in ((0, rows), (1, columns)):
        if whole.tensor.shape[dim] != size:
            whole = emit("aten.slice.Tensor", whole, dim, 0, size)
    return in_single(whole, emit)


def _unpacked_nibbles(
    format: Format, packed: Value, scales: Value, rows: Size, emit: Emitter
) -> Value:
    """The weight [N, K] itself, scales multiplied in."""
    high, eighths = packed.tensor.shape[:2]
    columns = eighths * 8
    wide = _as(packed, torch.int32, emit)
    above = emit("aten.div.Scalar_mode", wide, 16, rounding_mode="floor")
    low = emit("aten.sub.Tensor", wide, emit("aten.mul.Scalar", above, 16))
    pair = tuple(emit("aten.unsqueeze.default", half, 2) for half in (low, above))
    halves = emit("aten.cat.default", pair, 2)
    halves = emit("aten.permute.default", halves, (0, 3, 1, 2, 4))
    halves = emit("aten.clone.default", halves, memory_format=torch.contiguous_format)
    grouped = emit(
        "aten.view.default", halves, (high * ROWS, columns // format.group, format.group)
    )
    exact = emit("aten.sub.Scalar", in_single(grouped, emit), 8.0)
    factors = emit("aten.permute.default", scales, (0, 2, 1))
    factors = emit("aten.clone.default", factors, memory_format=torch.contiguous_format)
    factors = emit("aten.view.default", factors, (high * ROWS, columns // format.group, 1))
    whole = emit("aten.mul.Tensor", exact, factors)
    whole = emit("aten.view.default", whole, (high * ROWS, columns))
    return whole if high * ROWS == rows else emit("aten.slice.Tensor", whole, 0, 0, rows)


def in_single(x: Value, emit: Emitter) -> Value:
    """The value in f32."""
    return _as(x, torch.float32, emit)


def _as(x: Value, dtype: torch.dtype, emit: Emitter) -> Value:
    return x if x.tensor.dtype == dtype else emit("aten._to_copy.default", x, dtype=dtype)


def _made(name: str, type: TensorType, emit: Emitter, *args: Arg, **kwargs: Arg) -> Value:
    """The result of an operator whose type no rule tells."""
    (result,) = emit.call(op(name), args, kwargs, [type])
    return result


def _blocks(size: Size, block: int) -> int:
    assert isinstance(size, int), "weights have known sizes"
    return -(-size // block)
