"""A loop nest as a CUDA kernel, written to be read.

Elementwise kernels give each thread as many neighbours as 16 bytes hold, where sizes prove that
they lie together. A reduction along rows has a warp or a block for each row; what a row needs
again stays in registers where its length is known and there are enough of them, else it is read
again. A reduction across rows has a block of 32 columns and 8 threads to each.

The order of a reduction is the threads' (each adds up what it has, in order; then warps, then the
block, in a tree): the same in every run, and decided by the shape alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rewright.codegen.cuda.columns import Columns
from rewright.codegen.cuda.elements import Elements
from rewright.codegen.cuda.kernel import CudaKernel
from rewright.codegen.cuda.rows import Rows
from rewright.codegen.cuda.writer import Writer
from rewright.ir.loops import Nest

STYLES: Final[dict[str, type[Writer]]] = {"elements": Elements, "lanes": Rows, "columns": Columns}


def emit(nest: Nest, symbols: Sequence[str] = ()) -> CudaKernel:
    """The kernel of a nest; `symbols` names the run-time sizes in the order they are passed.

    Raises UnsupportedError for element types that the emitter does not know.
    """
    writer = STYLES["elements" if nest.order is None else nest.order.style](nest)
    body = writer.write()
    sizes = [f"i64 {name}" for name in symbols]
    across, down = writer.threads
    lines = [
        f"// {', '.join(nest.origins()) or 'a copy'}",
        f'extern "C" __global__ void __launch_bounds__({across * down})',
        f"{nest.name}({', '.join([*writer.parameters(), *sizes])}) {{",
        *(f"  {line}" for line in body),
        "}",
        "",
    ]
    return CudaKernel(nest.name, "\n".join(lines), tuple(symbols), writer.blocks, writer.threads)
