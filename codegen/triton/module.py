"""The text around a Triton kernel: imports, device functions, signature, launch function."""

from __future__ import annotations

from collections.abc import Sequence

from rewright.codegen.triton.kernel import LARGEST_NARROW, POINTER, Parameter, TritonKernel
from rewright.codegen.triton.online import ONLINE
from rewright.codegen.triton.primitives import DEVICE_FUNCTIONS, device_functions
from rewright.codegen.triton.ranges import RANGES
from rewright.codegen.triton.weights import ATTENTION
from rewright.ir import Size
from rewright.ir.loops import Axis

LINE = 100


def module_text(
    kernel: TritonKernel,
    summary: str,
    count: Size,
    bodies: Sequence[Sequence[str]],
    symbols: Sequence[str],
) -> str:
    """`bodies` are of the kernels before, and of the kernel. `count` elements are computed: nothing
    is launched for none."""
    lines = [line for body in bodies for line in body]
    functions = device_functions(lines, DEVICE_FUNCTIONS | ONLINE | RANGES | ATTENTION)
    uses_libdevice = any("libdevice." in text for text in (*functions, *lines))
    kernels = zip((*kernel.before, kernel), bodies, strict=True)
    paragraphs = [
        [f'"""{kernel.name}: {summary}."""', "", *["import torch"] * bool(kernel.before)]
        + ["import triton", "import triton.language as tl"]
        + ["from triton.language.extra import libdevice"] * uses_libdevice,
        *([function.rstrip()] for function in functions),
        *(
            ["@triton.jit", *_called(f"def {k.name}", _parameters(k), ":"), *_indented(body)]
            for k, body in kernels
        ),
        _launch(kernel, count, symbols),
    ]
    return "\n\n\n".join("\n".join(lines) for lines in paragraphs) + "\n"


def shown(axes: Sequence[Axis]) -> str:
    """Axes as a summary has them."""
    return " x ".join(str(a.size) for a in axes) or "1"


def _parameters(kernel: TritonKernel) -> list[str]:
    constants = [name for name, _ in kernel.constants] + ["INDEX"] * bool(kernel.extents)
    return [p.name for p in kernel.parameters] + [f"{name}: tl.constexpr" for name in constants]


def _launch(kernel: TritonKernel, count: Size, symbols: Sequence[str]) -> list[str]:
    pointers = [p for p in kernel.parameters if p.size is None]
    tensors = [_tensor(p) for p in pointers if p.scratch is None]
    head = _called(f"def launch_{kernel.name}", [*tensors, *symbols], ":")
    if count == 0:
        return [*head, "    return"]
    check = [] if isinstance(count, int) else [f"if {count} == 0:", "    return"]
    scratch = [
        f"{_tensor(p)} = {tensors[0]}.new_empty(({p.scratch},), dtype=torch.float32)"
        for p in pointers
        if p.scratch is not None
    ]
    calls = [line for k in (*kernel.before, kernel) for line in _call(k)]
    return [*head, *_indented([*check, *scratch, *calls])]


def _tensor(pointer: Parameter) -> str:
    return pointer.name.removesuffix(POINTER)


def _call(kernel: TritonKernel) -> list[str]:
    arguments = [_tensor(p) if p.size is None else str(p.size) for p in kernel.parameters]
    arguments += [f"{name}={value}" for name, value in (*kernel.constants, *kernel.options)]
    arguments += [f"INDEX={_index_type(kernel.extents)}"] * bool(kernel.extents)
    return _called(f"{kernel.name}[({kernel.programs},)]", arguments)


def _index_type(extents: Sequence[Size]) -> str:
    far = " or ".join(f"{e} > {LARGEST_NARROW}" for e in extents)
    return f"tl.int64 if {far} else tl.int32"


def _called(name: str, arguments: Sequence[str], end: str = "") -> list[str]:
    """`name(arguments)end` in lines that are not too long."""
    line = f"{name}({', '.join(arguments)}){end}"
    if len(line) <= LINE:
        return [line]
    rows = [""]
    for argument in arguments:
        if len(rows[-1]) + len(argument) > LINE - 10:
            rows.append("")
        rows[-1] += f" {argument},"
    return [f"{name}(", *(f"   {row}" for row in rows), f"){end}"]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]
