"""Kernels of convolutions: calls of what convolution.h has, told what is done to each sum."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from rewright.codegen.cpp.index import Block, Place
from rewright.codegen.cpp.kernel import indented, pointers
from rewright.codegen.cpp.terms import Printer
from rewright.codegen.cpp.text import identifiers, size_text
from rewright.ir import Size, product
from rewright.ir.loops import SUM, ConvolutionNest, Load, filter_steps, loads

# The parameters of the function that ends a sum, and what it returns when nothing is done to it.
PLACE, FILTER, COUNT = "place", "filter", "n"
PARAMETERS = (
    f"f32v {SUM}, [[maybe_unused]] i64 {PLACE}, [[maybe_unused]] i64 {FILTER}, auto {COUNT}"
)


def convolution(nest: ConvolutionNest) -> list[str]:
    """The body of the kernel."""
    names = identifiers((*(b.name for b in nest.inputs), "y"))
    images, packed = (names[b.name] for b in nest.inputs[:2])
    function = "depthwise" if nest.depthwise else "sparse" if _is_sparse(nest) else "dense"
    window = ", ".join(map(str, (*nest.window, *nest.stride, *nest.padding)))
    sizes = _sizes(nest)
    types = f"Window<{window}>, {_tiling(nest, sizes[5])}"
    told = f"{images}, {packed}, {_other(nest, names)}{names['y']}"
    return [
        *pointers(nest, names),
        "using namespace convolution;",
        f"const convolution::Sizes sizes{{{', '.join(map(size_text, sizes))}}};",
        f"{function}<{types}>(sizes, {told}, [=]({PARAMETERS}) {{",
        *indented(_finish(nest, names)),
        "});",
    ]


def _other(nest: ConvolutionNest, names: Mapping[str, str]) -> str:
    """The image that the epilogue reads, as an argument."""
    if nest.depthwise:
        return ""
    read = (names[b.name] for b in nest.inputs if b.type == nest.results and b.name in _reads(nest))
    return f"{next(read, 'nullptr')}, "


def _reads(nest: ConvolutionNest) -> set[str]:
    return {load.buffer for load in loads(nest.epilogue)}


def _is_sparse(nest: ConvolutionNest) -> bool:
    """True where filters of all channels see one pixel in several."""
    sees_one = nest.window == (1, 1) and nest.padding == (0, 0)
    return sees_one and nest.stride != (1, 1) and not nest.depthwise


def _sizes(nest: ConvolutionNest) -> tuple[Size, ...]:
    """Batch, height, width, channels; rows, columns, filters. Where a filter sees one pixel, all
    pixels are one row."""
    batch, channels, height, width = nest.images.shape
    _, filters, rows, columns = nest.results.shape
    if nest.window == nest.stride == (1, 1) and nest.padding == (0, 0) and not nest.depthwise:
        known = isinstance(batch, int)
        pixels = product((batch, height, width)) if known else product((height, width))
        return 1 if known else batch, 1, pixels, channels, 1, pixels, filters
    return batch, height, width, channels, rows, columns, filters


def _tiling(nest: ConvolutionNest, columns: Size) -> str:
    batch, filters, rows, width = nest.results.shape
    channels = nest.images.shape[1]
    if _is_sparse(nest):
        columns = product((batch if isinstance(batch, int) else 1, rows, width))
    cut = f"{size_text(columns)}, {filter_steps(filters)}"
    if nest.depthwise:
        return f"DepthwiseTiling<{cut}>"
    return f"Tiling<{cut}, {size_text(product((*nest.window, channels)))}>"


def _finish(nest: ConvolutionNest, names: Mapping[str, str]) -> list[str]:
    """What is done to a step of sums."""
    lines = []
    if nest.bias is not None:
        lines.append(f"{SUM} = add({SUM}, load({names[nest.bias]} + {FILTER}, {COUNT}));")
    printer = Printer(Place(Block(None, None, count())), names, str)
    for statement in nest.epilogue:
        if not isinstance(statement.term, Load):
            lines.append(printer.let(statement))
            continue
        buffer = statement.term.buffer
        read = SUM if buffer == SUM else f"load({names[buffer]} + {PLACE}, {COUNT})"
        lines.append(f"const f32v {statement.name} = {read};")
    return [*lines, f"return {nest.result.name};"]
