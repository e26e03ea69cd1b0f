"""Constant tensors in MLIR: small ones as numbers in the text, large ones as bytes at its end.

Both ways keep every bit. Truth values are never bytes: MLIR packs them, eight to a byte.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, Final

import torch

from rewright.ir.constant import INLINE_ELEMENTS
from rewright.ir.errors import ImportFailure
from rewright.ir.mlir_context import bindings
from rewright.ir.mlir_types import MLIR_DTYPES, declared

# What numpy has no name for goes to MLIR as integers of the same width.
_BITS: Final[dict[int, torch.dtype]] = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_UNNAMED: Final = (
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)
_PARTS: Final = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
# Bytes of a resource begin with its alignment.
_ALIGNMENT: Final = 4

_hexadecimal = re.compile(r'"0x([0-9A-Fa-f]*)"').search
_resource = re.compile(r"dense_resource<(.*)> : ").match
_resources_in = re.compile(r'^\s+(.+): "0x([0-9A-Fa-f]*)",?$', re.MULTILINE).findall
_numbers = re.compile(r"0x[0-9A-Fa-f]+|[-+]?[0-9][-+0-9.eE]*|true|false").findall


def elements(tensor: torch.Tensor, name: str) -> Any:
    """The attribute that holds a tensor's elements. `name` is what large ones go by."""
    ir = bindings()
    data = tensor.detach().cpu().contiguous()
    element = ir.Type.parse(MLIR_DTYPES[data.dtype])
    shape = list(data.shape)
    if data.dtype != torch.bool and (data.numel() > INLINE_ELEMENTS or data.is_complex()):
        held = data.reshape(-1).view(torch.uint8).numpy()
        type = ir.RankedTensorType.get(shape, element)
        return ir.DenseResourceElementsAttr.get_from_buffer(
            held, name, type, alignment=data.dtype.itemsize
        )
    flat = data.reshape(-1)
    if data.dtype in _UNNAMED:
        flat = flat.view(_BITS[data.dtype.itemsize])
    return ir.DenseElementsAttr.get(flat.numpy(), type=element, shape=shape)


class Literals:
    """The constant tensors of one module."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def tensor(self, operation: Any) -> torch.Tensor:
        """That of a `torch.vtensor.literal`. Raises ImportFailure when it cannot be read."""
        type = declared(str(operation.results[0].type))
        if type is None or None in type.shape:
            raise ImportFailure("a literal without its sizes and dtype")
        shape = [size for size in type.shape if size is not None]
        attribute = operation.attributes["value"]
        resource = _resource_name(str(attribute))
        if resource is not None:
            flat = self._from_resource(resource, type.dtype)
        else:
            flat = _from_elements(attribute, type.dtype)
        count = torch.Size(shape).numel()
        if flat.numel() == 1 != count:
            flat = flat.expand(count)
        if flat.numel() != count:
            raise ImportFailure(f"a literal of {flat.numel()} elements for a tensor of {count}")
        return flat.reshape(shape)

    @cached_property
    def _resources(self) -> dict[str, str]:
        """The bytes of each resource in hexadecimal. The bindings write resources but do not read
        them; the module's text shows them."""
        text = self._module.operation.get_asm()
        return dict(_resources_in(text, max(text.rfind("{-#"), 0)))

    def _from_resource(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        found = self._resources.get(name)
        if found is None:
            raise ImportFailure(f"the data of resource {name} is not in the file")
        return _of_bytes(bytes.fromhex(found)[_ALIGNMENT:], dtype)


def _resource_name(attribute: str) -> str | None:
    found = _resource(attribute)
    return None if found is None else found[1]


def _from_elements(attribute: Any, dtype: torch.dtype) -> torch.Tensor:
    try:
        held = memoryview(attribute)
    except (BufferError, TypeError):
        return _from_text(str(attribute), dtype)
    return _of_bytes(held.tobytes(), dtype)


def _from_text(text: str, dtype: torch.dtype) -> torch.Tensor:
    """What the bindings have no buffer for: numbers, bit patterns, or all bytes at once."""
    body = text[text.index("<") + 1 : text.rindex(" : tensor<")]
    whole = _hexadecimal(body)
    if whole is not None:
        return _of_bytes(bytes.fromhex(whole[1]), dtype)
    part = _PARTS.get(dtype, dtype)
    found = [_number(word, part) for word in _numbers(body)]
    flat = torch.stack(found) if found else torch.empty(0, dtype=part)
    return torch.view_as_complex(flat.reshape(-1, 2)) if dtype.is_complex else flat


def _number(word: str, dtype: torch.dtype) -> torch.Tensor:
    if word.startswith("0x"):
        bits = int(word, 16).to_bytes(dtype.itemsize, "little")
        return _of_bytes(bits, dtype)[0]
    return torch.tensor(float(word), dtype=dtype)


def _of_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    if len(data) % dtype.itemsize:
        raise ImportFailure(f"a literal of {len(data)} bytes, which is no number of elements")
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype)
