"""Kernels of quantized linear layers: calls of what quantized.h has, one a format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rewright.codegen.cpp.kernel import pointers
from rewright.codegen.cpp.text import identifiers, size_text
from rewright.ir.loops import QuantizedNest

# What computes a format: a function of quantized.h, what it is told besides sizes, and what it
# reads besides a weight and scales.
_FUNCTIONS: Final[Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]]] = {
    "int8": ("linear_int8", (), ("sums",)),
    "int8-weight": ("linear_int8_weight", (), ()),
    "int4-g64": ("linear_int4", ("64",), ("zeros",)),
    "int4-g128": ("linear_int4", ("128",), ("zeros",)),
}
_NOTHING: Final = "nullptr"


def quantized(nest: QuantizedNest) -> list[str]:
    """The body of the kernel."""
    names = identifiers(b.name for b in (*nest.inputs, *nest.outputs))
    given = {b.name: names[b.name] for b in nest.inputs}
    function, told, read = _FUNCTIONS[nest.format]
    sizes = [size_text(s) for s in (nest.rows, nest.columns, nest.depth)]
    operands = [given.get(name, _NOTHING) for name in ("packed", "scales", *read, "bias")]
    y = names[nest.outputs[0].name]
    x = [given["x"], size_text(nest.depth)]
    args = [*sizes, *told, *x, *operands, y, size_text(nest.columns)]
    return [*pointers(nest, names), f"{function}({', '.join(args)});"]
