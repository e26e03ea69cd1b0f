"""What Triton's interpreter lacks: libdevice, and the rounding of f32 to bf16.

It calls kernels as Python functions, where libdevice's functions are empty, and it cuts bf16 off
instead of rounding to the nearest. Both are done by torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from rewright.codegen.triton.primitives import LIBDEVICE


@cache
def complete_interpreter() -> None:
    """Once a process, and only where Triton interprets."""
    from triton.language.extra import libdevice
    from triton.runtime.interpreter import InterpreterBuilder

    for name in LIBDEVICE:
        setattr(libdevice, name, _elementwise(getattr(torch, name)))
    libdevice.rint = _elementwise(torch.round)
    libdevice.fmod = lambda x, y: x % y  # torch's is not exact
    InterpreterBuilder.cast_impl = _rounding(InterpreterBuilder.cast_impl)


def _elementwise(function: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """A torch function on blocks of the interpreter."""

    def apply(*blocks: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        alike = tl.broadcast(*blocks) if len(blocks) == 2 else blocks
        result = function(*(torch.from_numpy(block.handle.data.copy()) for block in alike))
        return tl.tensor(TensorHandle(result.numpy(), alike[0].handle.dtype), alike[0].type)

    return apply


def _rounding(cast: Callable[..., Any]) -> Callable[..., Any]:
    def rounded(builder: Any, source: Any, dtype: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        if (source.dtype.scalar, dtype.scalar) != (tl.float32, tl.bfloat16):
            return cast(builder, source, dtype)
        bits = torch.from_numpy(source.data.copy()).to(torch.bfloat16).view(torch.uint16)
        return TensorHandle(bits.numpy(), tl.bfloat16)

    return rounded
