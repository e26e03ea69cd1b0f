"""Tensors known at compile time, compared by digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import torch

from rewright.ir.errors import CheckError

# Constants up to this many elements print their values; larger ones lie beside the text.
INLINE_ELEMENTS = 16


@dataclass(frozen=True)
class Constant:
    """A constant tensor. `data` is None when only the text, not the `.safetensors`, is at hand."""

    sha256: str
    data: torch.Tensor | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(tensor: torch.Tensor) -> Constant:
        """The constant holding a private, contiguous copy of `tensor`."""
        data = tensor.detach().clone(memory_format=torch.contiguous_format)
        return Constant(digest(data), data)

    @property
    def tensor(self) -> torch.Tensor:
        """The data. Raises CheckError when it was not loaded."""
        if self.data is None:
            raise CheckError(
                f"the data of constant {self.sha256[:12]} is not loaded",
                help="keep the .safetensors file beside the .rw file",
            )
        return self.data

    @cached_property
    def is_inline(self) -> bool:
        return self.data is not None and self.data.numel() <= INLINE_ELEMENTS


def digest(tensor: torch.Tensor) -> str:
    """sha256 over dtype, shape and little-endian bytes."""
    data = tensor.detach().cpu().contiguous()
    head = f"{data.dtype} {tuple(data.shape)} ".encode()
    payload = data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b""
    return hashlib.sha256(head + payload).hexdigest()
