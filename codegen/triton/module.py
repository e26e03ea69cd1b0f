"""The text around a Triton kernel: imports, device functions, signature, launch function."""

from __future__ import annotations

from collections.abc import Sequence

from rewright.codegen.python_text import python_size
from rewright.codegen.triton.kernel import LARGEST_NARROW, POINTER, Parameter, TritonKernel
from rewright.codegen.triton.primitives import device_functions
from rewright.ir import Size, product
from rewright.ir.loops import Axis, Nest

LINE = 100


def module_text(
    kernel: TritonKernel, nest: Nest, body: Sequence[str], symbols: Sequence[str]
) -> str:
    functions = device_functions(body)
    uses_libdevice = any("libdevice." in text for text in (*functions, *body))
    blocks = [
        [f'"""{_summary(nest)}"""', "", "import triton", "import triton.language as tl"]
        + ["from triton.language.extra import libdevice"] * uses_libdevice,
        *([function.rstrip()] for function in functions),
        ["@triton.jit", *_called(f"def {kernel.name}", _parameters(kernel), ":"), *_indented(body)],
        _launch(kernel, nest, symbols),
    ]
    return "\n\n\n".join("\n".join(block) for block in blocks) + "\n"


def _summary(nest: Nest) -> str:
    parts = [f"rows {_axes(nest.rows)}"] + [f"columns {_axes(nest.cols)}"] * bool(nest.cols)
    return f"{nest.name}: {', '.join(parts)}."


def _axes(axes: Sequence[Axis]) -> str:
    return " x ".join(str(a.size) for a in axes) or "1"


def _parameters(kernel: TritonKernel) -> list[str]:
    constants = [name for name, _ in kernel.constants] + ["INDEX"] * bool(kernel.extents)
    return [p.name for p in kernel.parameters] + [f"{name}: tl.constexpr" for name in constants]


def _launch(kernel: TritonKernel, nest: Nest, symbols: Sequence[str]) -> list[str]:
    tensors = [p.name.removesuffix(POINTER) for p in kernel.parameters if p.size is None]
    head = _called(f"def launch_{kernel.name}", [*tensors, *symbols], ":")
    rows = product(axis.size for axis in nest.rows)
    if rows == 0:
        return [*head, "    return"]
    check = [] if isinstance(rows, int) else [f"if {python_size(rows)} == 0:", "    return"]
    arguments = [*tensors, *(python_size(p.size) for p in kernel.parameters if p.size is not None)]
    arguments += [f"{name}={value}" for name, value in (*kernel.constants, *kernel.options)]
    arguments += [f"INDEX={_index_type(kernel.extents)}"] * bool(kernel.extents)
    call = _called(f"{kernel.name}[({_programs(rows, dict(kernel.constants)['ROWS'])},)]", arguments)
    return [*head, *_indented([*check, *call])]


def _programs(rows: Size, block: int) -> str:
    if isinstance(rows, int):
        return str(-(-rows // block))
    return f"triton.cdiv({python_size(rows)}, {block})"


def _index_type(extents: Sequence[Size]) -> str:
    far = " or ".join(f"{python_size(e)} > {LARGEST_NARROW}" for e in extents)
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
