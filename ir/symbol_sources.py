"""Where a graph's symbols can be read at run time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rewright.ir.bind import line
from rewright.ir.dims import Dim, Size
from rewright.ir.graph import Graph, Value
from rewright.ir.types import ScalarType, TensorType


class SymbolSource(NamedTuple):
    """Where a symbol can be read: a scalar or a dimension, which is `factor * symbol + rest`."""

    value: Value
    axis: int | None
    size: Dim
    factor: int
    rest: int


def symbol_sources(graph: Graph) -> dict[str, SymbolSource]:
    """Where to read each symbol: best from an input, a scalar, and where it stands alone."""

    def order(source: SymbolSource) -> tuple[bool, bool, bool]:
        derived = not source.size.is_symbol
        return source.value not in inputs, derived, source.axis is not None

    inputs = {input.value for input in graph.inputs}
    found: dict[str, SymbolSource] = {}
    for source in sorted((s for value in graph.values for s in _readable(value)), key=order):
        found.setdefault(source.size.symbols[0].name, source)
    return found


def _readable(value: Value) -> Iterator[SymbolSource]:
    """Sizes of a value that a single symbol decides."""
    if isinstance(value.type, ScalarType):
        sizes: tuple[tuple[int | None, Size | None], ...] = ((None, value.type.dim),)
    elif isinstance(value.type, TensorType):
        sizes = tuple(enumerate(value.type.shape))
    else:
        return
    for axis, size in sizes:
        if isinstance(size, Dim) and len(size.symbols) == 1:
            found = line(size, size.symbols[0].name, {})
            if found is not None:
                yield SymbolSource(value, axis, size, *found)
