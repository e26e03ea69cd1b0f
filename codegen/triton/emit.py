"""A loop nest as a Triton module: a kernel, of gradients of attention two, and the function that
launches them.

The module stands alone (it imports triton only), works on Triton 3.6 to 3.9, and uses plain
pointers. One program computes a block of rows with all their columns; `Nest.kept` says nothing
here, since rows either stay in registers whole or are read again.

The order of a reduction is Triton's own: elementwise over steps of `Blocks.cols` columns, then the
tree that Triton makes of a block. It is the same in every run and follows from the node's shape by
way of `blocks_of`, from how Triton lays the block out over threads, and from Triton's version. It
is not the order that `Nest.order` asks of kernels for the CPU. A node that has a row's largest
element and its sum of exponentials, as softmax and log-softmax have, finds both in the same steps
where its rows take several (see `online`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rewright.codegen.python_text import python_names
from rewright.codegen.triton.attention import (
    AttentionBody,
    attention_programs,
    tiles_of,
)
from rewright.codegen.triton.attention_backward import (
    BASE,
    DELTA,
    LOST,
    SHARE,
    KeysBody,
    QueriesBody,
    keys_programs,
    notes,
    queries_programs,
    tiles_of_keys,
    tiles_of_queries,
)
from rewright.codegen.triton.blocks import blocks_of, programs_of
from rewright.codegen.triton.body import Body
from rewright.codegen.triton.decode import MADE, TOP, TOTAL, PartBody, WholeBody, parts_of
from rewright.codegen.triton.decode import scratch as scratch_of_parts
from rewright.codegen.triton.extents import OPEN, far_extents, widening
from rewright.codegen.triton.heads import Buffers, HeadBody, attention_extents
from rewright.codegen.triton.indices import Indices
from rewright.codegen.triton.kernel import ARITHMETIC, POINTER, Parameter, TritonKernel
from rewright.codegen.triton.module import module_text, shown
from rewright.codegen.triton.primitives import POINTER_TYPES
from rewright.ir import DTYPE_NAMES, Size, UnsupportedError, product
from rewright.ir.loops import AttentionBackwardNest, AttentionNest, Buffer, Nest, loads
from rewright.ir.loops.tiles import AnyAttention


def emit(nest: Nest | AnyAttention, symbols: Sequence[str]) -> TritonKernel:
    """The kernel of a nest; `symbols` names the run-time sizes in the order they are passed.

    Raises UnsupportedError for element types that Triton does not round as eager does.
    """
    pointers = _pointers(nest, symbols)
    names = [p.name for p in pointers]
    inputs = {b.name: name for b, name in zip(nest.inputs, names, strict=False)}
    outputs = {b.name: n for b, n in zip(nest.outputs, names[len(inputs) :], strict=True)}
    if isinstance(nest, AttentionNest):
        return _attention(nest, pointers, (inputs, outputs), symbols)
    if isinstance(nest, AttentionBackwardNest):
        return _attention_backward(nest, pointers, (inputs, outputs), symbols)
    blocks, extents = blocks_of(nest), _far_extents(nest)
    body = Body(nest, blocks, inputs, outputs, widening(extents))
    body.write()
    constants = [("ROWS", blocks.rows)]
    constants += [] if blocks.style == "line" else [("COLS", blocks.cols)]
    constants += [("STEP", blocks.step)] if blocks.step else []
    kernel = TritonKernel(
        name=nest.name,
        source="",
        parameters=(*pointers, *_sizes(body.indices)),
        constants=tuple(constants),
        extents=extents if widening(extents) == OPEN else (),
        options=(("num_warps", blocks.warps), *ARITHMETIC),
        programs=programs_of(blocks),
    )
    summary = f"rows {shown(blocks.row_axes)}; {blocks.style}"
    if blocks.col_axes:
        summary = f"rows {shown(blocks.row_axes)}, columns {shown(blocks.col_axes)}; {blocks.style}"
    count = product(a.size for a in blocks.row_axes)
    if blocks.style == "tile":
        count = count * product(a.size for a in blocks.col_axes)
    source = module_text(kernel, summary, count, [body.lines], symbols)
    return dataclasses.replace(kernel, source=source)


def _attention(
    nest: AttentionNest,
    pointers: Sequence[Parameter],
    buffers: Buffers,
    symbols: Sequence[str],
) -> TritonKernel:
    tiles, wide = tiles_of(nest), widening(attention_extents(nest))
    parts, programs = parts_of(nest, tiles), attention_programs(nest, tiles)
    if parts > 1:
        return _attention_in_parts(nest, pointers, buffers, symbols, parts)
    body = AttentionBody(nest, tiles, buffers, wide)
    body.write()
    kernel = _of_heads(nest, nest.name, pointers, body, programs)
    return _with_source(kernel, f"{_shown_heads(nest)}; tiles", [body.lines], symbols)


def _attention_in_parts(
    nest: AttentionNest,
    pointers: Sequence[Parameter],
    buffers: Buffers,
    symbols: Sequence[str],
    parts: int,
) -> TritonKernel:
    tiles, wide = tiles_of(nest), widening(attention_extents(nest))
    programs = attention_programs(nest, tiles)
    given, names = _with_scratch(pointers, scratch_of_parts(nest, tiles, parts))
    first, second = (k(nest, tiles, buffers, wide, parts, names) for k in (PartBody, WholeBody))
    first.write()
    second.write()
    before = _of_heads(nest, f"{nest.name}_parts", given, first, programs * parts)
    kernel = _of_heads(nest, nest.name, given, second, programs)
    kernel = dataclasses.replace(kernel, before=(before,))
    summary = f"{_shown_heads(nest)} in {parts} parts; tiles"
    return _with_source(kernel, summary, [first.lines, second.lines], symbols)


def _with_scratch(
    pointers: Sequence[Parameter], counts: Mapping[str, Size]
) -> tuple[tuple[Parameter, ...], dict[str, str]]:
    """Pointers with those to scratch memory, and the names of these."""
    names = {name: name + POINTER for name in counts}
    scratch = (Parameter(names[n], "*fp32", scratch=count) for n, count in counts.items())
    return (*pointers, *scratch), names


def _attention_backward(
    nest: AttentionBackwardNest,
    pointers: Sequence[Parameter],
    buffers: Buffers,
    symbols: Sequence[str],
) -> TritonKernel:
    tiles = tiles_of_queries(nest), tiles_of_keys(nest)
    wide = widening(attention_extents(nest))
    given, names = _with_scratch(pointers, notes(nest, tiles[0]))
    first, second = (kind(nest, tiles, buffers, wide, names) for kind in (QueriesBody, KeysBody))
    first.write()
    second.write()
    programs = queries_programs(nest, tiles[0]), keys_programs(nest, tiles[1])
    before = _of_heads(nest, f"{nest.name}_queries", given, first, programs[0])
    kernel = _of_heads(nest, nest.name, given, second, programs[1])
    kernel = dataclasses.replace(kernel, before=(before,))
    summary = f"gradients of {_shown_heads(nest)}; tiles"
    return _with_source(kernel, summary, [first.lines, second.lines], symbols)


def _of_heads(
    nest: AnyAttention, name: str, pointers: Sequence[Parameter], body: HeadBody, programs: Size
) -> TritonKernel:
    extents = attention_extents(nest)
    return TritonKernel(
        name=name,
        source="",
        parameters=(*pointers, *_sizes(body.indices)),
        constants=body.tiles.constants,
        extents=extents if widening(extents) == OPEN else (),
        options=body.tiles.options,
        programs=programs,
    )


def _shown_heads(nest: AnyAttention) -> str:
    heads, rows, keys = shown(nest.batch), shown([nest.row]), shown([nest.key])
    return f"{heads} heads of {rows} queries and {keys} keys"


def _with_source(
    kernel: TritonKernel, summary: str, bodies: Sequence[Sequence[str]], symbols: Sequence[str]
) -> TritonKernel:
    source = module_text(kernel, summary, kernel.programs, bodies, symbols)
    before = tuple(dataclasses.replace(k, source=source) for k in kernel.before)
    return dataclasses.replace(kernel, source=source, before=before)


def _sizes(indices: Indices) -> list[Parameter]:
    return [Parameter(name, size=size) for size, name in indices.sizes.items()]


def _far_extents(nest: Nest) -> tuple[Size, ...]:
    rows, cols = product(a.size for a in nest.rows), product(a.size for a in nest.cols)
    read = {load.buffer for load in loads(nest.statements())}
    buffers = (*(b for b in nest.inputs if b.name in read), *nest.outputs)
    counts = {a.name: a.size for a in nest.axes}
    return far_extents([rows * cols], buffers, nest.statements(), counts)


def _pointers(nest: Nest | AnyAttention, symbols: Sequence[str]) -> list[Parameter]:
    """One for each input and output; an output may be the copy of an input, with its name."""
    buffers = (*nest.inputs, *nest.outputs)
    keys = [b.name for b in nest.inputs]
    keys += [f"{b.name}_out" if b.name in keys else b.name for b in nest.outputs]
    taken = (*symbols, nest.name, "triton", "tl", DELTA, BASE, SHARE, LOST, MADE, TOP, TOTAL)
    names = python_names(keys, taken=taken)
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
