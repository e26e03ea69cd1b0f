"""A loop nest as a Triton module: one kernel, and the function that launches it.

The module stands alone (it imports triton only), works on Triton 3.6 to 3.9, and uses plain
pointers. One program computes a block of rows with all their columns; `Nest.kept` says nothing
here, since rows either stay in registers whole or are read again.

The order of a reduction is Triton's own: elementwise over steps of `Blocks.cols` columns, then the
tree that Triton makes of a block. It is the same in every run and follows from the node's shape by
way of `blocks_of`, from how Triton lays the block out over threads, and from Triton's version. It
is not the order that `Nest.order` asks of kernels for the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

from rewright.codegen.python_text import python_names
from rewright.codegen.triton.blocks import blocks_of, programs_of
from rewright.codegen.triton.body import Body
from rewright.codegen.triton.kernel import (
    ARITHMETIC,
    LARGEST_NARROW,
    POINTER,
    Parameter,
    TritonKernel,
)
from rewright.codegen.triton.module import module_text
from rewright.codegen.triton.primitives import POINTER_TYPES
from rewright.ir import DTYPE_NAMES, Size, UnsupportedError, product
from rewright.ir.dims import bounds
from rewright.ir.loops import Affine, Buffer, Nest, Position, Store, loads, subterms


def emit(nest: Nest, symbols: Sequence[str]) -> TritonKernel:
    """The kernel of a nest; `symbols` names the run-time sizes in the order they are passed.

    Raises UnsupportedError for element types that Triton does not round as eager does.
    """
    blocks, extents = blocks_of(nest), _far_extents(nest)
    pointers = _pointers(nest, symbols)
    inputs, outputs = pointers[: len(nest.inputs)], pointers[len(nest.inputs) :]
    body = Body(
        nest,
        blocks,
        {b.name: p.name for b, p in zip(nest.inputs, inputs, strict=True)},
        {b.name: p.name for b, p in zip(nest.outputs, outputs, strict=True)},
        _widening(extents),
    )
    body.write()
    sizes = [Parameter(name, size=size) for size, name in body.indices.sizes.items()]
    constants = [("ROWS", blocks.rows), ("COLS", blocks.cols)][: 1 if blocks.style == "line" else 2]
    kernel = TritonKernel(
        name=nest.name,
        source="",
        parameters=(*pointers, *sizes),
        constants=tuple(constants),
        extents=extents if _widening(extents) == OPEN else (),
        options=(("num_warps", blocks.warps), *ARITHMETIC),
        programs=programs_of(blocks),
    )
    return dataclasses.replace(kernel, source=module_text(kernel, blocks, body.lines, symbols))


def _pointers(nest: Nest, symbols: Sequence[str]) -> list[Parameter]:
    """One for each input and output; an output may be the copy of an input, with its name."""
    buffers = (*nest.inputs, *nest.outputs)
    keys = [b.name for b in nest.inputs]
    keys += [f"{b.name}_out" if b.name in keys else b.name for b in nest.outputs]
    names = python_names(keys, taken=(*symbols, nest.name, "triton", "tl"))
    return [
        Parameter(names[key] + POINTER, _pointer_type(buffer))
        for key, buffer in zip(keys, buffers, strict=True)
    ]


def _pointer_type(buffer: Buffer) -> str:
    dtype = buffer.type.dtype
    if dtype not in POINTER_TYPES:
        raise UnsupportedError(
            f"%{buffer.name}: elements of {DTYPE_NAMES.get(dtype, dtype)} have no Triton form"
        )
    return POINTER_TYPES[dtype]


# --- the type of indices --------------------------------------------------------------------------

OPEN: Final = ".to(INDEX)"


def _widening(extents: Sequence[Size]) -> str:
    if any(bounds(extent)[0] > LARGEST_NARROW for extent in extents):
        return ".to(tl.int64)"
    return OPEN if extents else ""


def _far_extents(nest: Nest) -> tuple[Size, ...]:
    """How far indices of the kernel reach, where that may be too far for 32 bits."""
    rows, cols = product(a.size for a in nest.rows), product(a.size for a in nest.cols)
    counts = {a.name: a.size for a in nest.axes}
    terms = [t for s in nest.statements() if not isinstance(s, Store) for t in subterms(s.term)]
    read = {load.buffer for load in loads(nest.statements())}
    buffers = (*(b for b in nest.inputs if b.name in read), *nest.outputs)
    found = [rows * cols, *(b.type.storage_elements for b in buffers)]
    found += [_reach(t.at, counts) for t in terms if isinstance(t, Position)]
    return tuple(e for e in dict.fromkeys(found) if not _is_near(e))


def _reach(at: Affine, counts: Mapping[str, Size]) -> Size:
    total = _magnitude(at.offset)
    for name, factor in at.terms:
        total = total + _magnitude(factor) * counts[name]
    return total


def _magnitude(size: Size) -> Size:
    return abs(size) if isinstance(size, int) else size


def _is_near(extent: Size) -> bool:
    high = bounds(extent)[1]
    return high is not None and high <= LARGEST_NARROW
