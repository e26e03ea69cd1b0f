"""A Triton kernel as data: its text, and what is needed to compile it without running it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rewright.ir import Size

# No contraction of a multiplication and an addition; denormals are numbers in libdevice too.
ARITHMETIC: Final = (("enable_fp_fusion", False), ("enable_reflect_ftz", False))

# Ends the names of pointers: a buffer `x` is the parameter `x_ptr`.
POINTER: Final = "_ptr"

# Where an index may come near 2^31 kernels count in 64 bits; the room is for the last block.
LARGEST_NARROW: Final = 2**31 - 2**20


@dataclass(frozen=True)
class Parameter:
    """A pointer (`type` is Triton's name for it), or a size known only at run time (an integer).
    A pointer with `scratch` is to memory for so many elements of f32, which nobody else knows."""

    name: str
    type: str = ""
    size: Size | None = None
    scratch: Size | None = None


@dataclass(frozen=True)
class TritonKernel:
    """`source` is a module with the kernel `<name>` and `launch_<name>(*tensors, *sizes)`, which
    takes the nest's inputs, then its outputs, then the value of every symbol in the order given to
    `emit`, and runs on the current device and stream.

    The kernel's own parameters are `parameters`, then `constants` (block sizes), then INDEX where
    `extents` is not empty: `tl.int64` when one of these sizes exceeds LARGEST_NARROW, else
    `tl.int32`. `options` are what Triton compiles it with; `programs` are launched. Kernels
    `before`, of the same module, are launched before it, and leave it what they found in scratch
    memory.
    """

    name: str
    source: str
    parameters: tuple[Parameter, ...]
    constants: tuple[tuple[str, int], ...]
    extents: tuple[Size, ...]
    options: tuple[tuple[str, int], ...]
    programs: Size
    before: tuple[TritonKernel, ...] = ()
