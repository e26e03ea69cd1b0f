"""A CUDA kernel as data: its text, and what is needed to build and to launch it."""

from __future__ import annotations

from dataclasses import dataclass

from rewright.ir import Size


@dataclass(frozen=True)
class CudaKernel:
    """`source` is the kernel `name`, of C linkage, for a unit that includes kernels.cuh.

    It takes a pointer for each input of the nest, then for each output, all multiples of 16 bytes,
    then the sizes of `symbols` as 64-bit integers, and wants `blocks` blocks of `threads` threads
    (x, y).
    """

    name: str
    source: str
    symbols: tuple[str, ...]
    blocks: Size
    threads: tuple[int, int]
