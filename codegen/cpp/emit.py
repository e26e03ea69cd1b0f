"""Loop nests as one C++ translation unit, a function a kernel, written to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from rewright.codegen.cpp.attention import attention, attention_backward
from rewright.codegen.cpp.columns import columns
from rewright.codegen.cpp.convolution import convolution
from rewright.codegen.cpp.elements import elements
from rewright.codegen.cpp.kernel import Kernel
from rewright.codegen.cpp.lanes import lanes
from rewright.codegen.cpp.quantized import quantized
from rewright.ir.loops import (
    AnyNest,
    AttentionBackwardNest,
    AttentionNest,
    Axis,
    ConvolutionNest,
    QuantizedNest,
)
from rewright.ir.loops.schedule import schedule

LINE: Final = 100

# A unit is paragraphs: its heading is two, then each kernel is one.
BETWEEN: Final = "\n\n"
KERNEL: Final = "KERNEL"
STYLES: Final = {"elements": elements, "lanes": lanes, "columns": columns}


def emit(nests: Sequence[AnyNest], symbols: Sequence[str] = (), *, graph: str = "") -> str:
    """The source of a unit in which `nest.name` is a function of C for each of `nests`:

    `void name(void* const* p, const i64* s)`, where `p` points to the nest's inputs, then its
    outputs, and `s` holds the sizes of `symbols`, in order. `graph` is for the heading only.
    """
    head = [
        f"// {len(nests)} kernels{f' of graph {graph}' if graph else ''}.",
        *(f'#include "{header}"' for header in _headers(nests)),
        "",
        "using namespace rw;",
    ]
    return _joined("\n".join(head), [_kernel(nest, symbols) for nest in nests])


def _headers(nests: Sequence[AnyNest]) -> list[str]:
    special = {
        AttentionNest: "attention_parts.h",
        AttentionBackwardNest: "attention_backward.h",
        ConvolutionNest: "convolution.h",
        QuantizedNest: "quantized.h",
    }
    found = {special[type(nest)] for nest in nests if type(nest) in special}
    return sorted(found) or ["loops.h"]


def _joined(head: str, kernels: Sequence[str]) -> str:
    return BETWEEN.join((head, *kernels)) + "\n"


def kernel_count(unit: str) -> int:
    return unit.count(f"\n{KERNEL} ")


def split(unit: str, parts: int) -> list[str]:
    """The kernels of a unit dealt out to several."""
    head, first, *rest = unit.removesuffix("\n").split(BETWEEN)
    head += BETWEEN + first
    return [_joined(head, rest[i::parts]) for i in range(parts)]


def _kernel(nest: AnyNest, symbols: Sequence[str]) -> str:
    if isinstance(nest, AttentionNest):
        body = attention(nest)
    elif isinstance(nest, AttentionBackwardNest):
        body = attention_backward(nest)
    elif isinstance(nest, ConvolutionNest):
        body = convolution(nest)
    elif isinstance(nest, QuantizedNest):
        body = quantized(nest)
    else:
        plan = schedule(nest)
        kernel = Kernel.of(nest, plan)
        body = [*kernel.pointers(), *STYLES[plan.style](kernel)]
    lines = [*_sizes(symbols, body), *body]
    signature = f"{KERNEL} void {nest.name}(void* const* p, const i64* s) {{"
    return "\n".join([*_heading(nest), signature, *(f"  {line}" for line in lines), "}"])


def _sizes(symbols: Sequence[str], body: Iterable[str]) -> list[str]:
    """The symbols that the body reads."""
    import re

    words = set(re.findall(r"\w+", "\n".join(body)))
    return [
        f"const i64 {name} = s[{place}];" for place, name in enumerate(symbols) if name in words
    ]


def _heading(nest: AnyNest) -> list[str]:
    """What the kernel computes: its nodes and the space it runs over."""
    names = _wrapped(", ".join(nest.origins()) or "a copy")
    if isinstance(nest, (AttentionNest, AttentionBackwardNest)):
        axes = (nest.row, nest.key, nest.inner, nest.width)
        return [*names, f"// attention, heads [{_extent(nest.batch)}], [{_extent(axes)}]"]
    if isinstance(nest, ConvolutionNest):
        by = ", ".join(map(str, (nest.results.shape[1], *nest.window)))
        shape = ", ".join(map(str, nest.images.shape))
        return [*names, f"// images [{shape}] by filters [{by}]"]
    if isinstance(nest, QuantizedNest):
        return [*names, f"// {nest.format}, [{nest.rows}, {nest.depth}] x [{nest.columns}, ...]"]
    space = f"rows [{_extent(nest.rows)}]"
    if nest.order is not None:
        space += f", reduced [{_extent(nest.cols)}] in {nest.order.style}"
    return [*names, f"// {space}"]


def _extent(axes: Sequence[Axis]) -> str:
    return ", ".join(f"{a.name}: {a.size}" for a in axes)


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, LINE, initial_indent="// ", subsequent_indent="// ")
