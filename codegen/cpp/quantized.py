"""Kernels of quantized linear layers: calls of what quantized.h has, one a format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rewright.codegen.cpp.kernel import pointers
from rewright.codegen.cpp.text import identifiers, size_text
from rewright.ir.loops import QuantizedNest

# What computes a format: a function of quantized.h, and what it is told besides sizes.
_FUNCTIONS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "int8": ("linear_int8", ()),
    "int8-weight": ("linear_int8_weight", ()),
    "int4-g64": ("linear_int4", ("64",)),
    "int4-g128": ("linear_int4", ("128",)),
}
_NOTHING: Final = "nullptr"


def quantized(nest: QuantizedNest) -> list[str]:
    """The body of the kernel."""
    names = identifiers(b.name for b in (*nest.inputs, *nest.outputs))
    x, packed, scales, *rest = (names[b.name] for b in nest.inputs)
    function, told = _FUNCTIONS[nest.format]
    weight = [packed, scales]
    if told:
        weight.append(_NOTHING)  # zero points: weights are symmetric
    else:
        sums, *rest = rest
        weight += [sums] if nest.format == "int8" else []
    bias, *_ = (*rest, _NOTHING)
    sizes = [size_text(s) for s in (nest.rows, nest.columns, nest.depth)]
    y = names[nest.outputs[0].name]
    given = [x, size_text(nest.depth), *weight, bias, y, size_text(nest.columns)]
    return [*pointers(nest, names), f"{function}({', '.join([*sizes, *told, *given])});"]
