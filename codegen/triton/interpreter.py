"""What Triton's interpreter lacks: libdevice, rounding to bf16, products of bf16, bounds of loops.

It calls kernels as Python functions, where libdevice's functions are empty; it cuts bf16 off
instead of rounding to the nearest, and multiplies the bits of bf16 as integers. Torch does it all
here.
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
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder

    for name in LIBDEVICE:
        setattr(libdevice, name, _elementwise(getattr(torch, name)))
    libdevice.rint = _elementwise(torch.round)
    libdevice.fmod = lambda x, y: x % y  # torch's is not exact
    InterpreterBuilder.cast_impl = _rounding(InterpreterBuilder.cast_impl)
    InterpreterBuilder.create_dot = _multiplying(InterpreterBuilder.create_dot)
    interpreter._patch_lang_tensor = _counting(interpreter._patch_lang_tensor)


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


def _counting(patch: Callable[..., None]) -> Callable[..., None]:
    """Scalars, which are blocks of one element here, bound loops: Triton 3.6 makes an integer of
    the block, which NumPy 2.4 no longer does."""

    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.reshape(-1)[0])

    return patched


def _multiplying(dot: Callable[..., Any]) -> Callable[..., Any]:
    """Products of halves are exact in f32, where they are added up."""

    def multiplied(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(builder, _single(a), _single(b), *rest)

    return multiplied


def _single(block: Any) -> Any:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    data = torch.from_numpy(block.data.copy())
    if block.dtype.scalar == tl.bfloat16:
        data = data.view(torch.bfloat16)
    elif block.dtype.scalar != tl.float16:
        return block
    return TensorHandle(data.float().numpy(), tl.float32)
