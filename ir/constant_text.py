"""How a constant prints: its values when they are few and read back to the same bits, else not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewright.ir.constant import Constant, digest
from rewright.ir.errors import TextError
from rewright.ir.types import DTYPE_NAMES, TensorType, Type

Number = bool | int | float | complex

# torch warns whenever it makes one of these from values.
_BY_DIGEST = (torch.complex32,)

# numpy prints these with no more digits than it takes to read them back.
_SHORT = (torch.float32, torch.float16)


def values_text(constant: Constant, type: Type) -> str | None:
    """The values in row-major order, or None when the constant has to lie beside the text.

    That is so for large ones, and for those whose bits the values do not give (payloads of NaN).
    """
    if not constant.is_inline or not isinstance(type, TensorType):
        return None
    data = constant.tensor.cpu()
    if data.dtype in _BY_DIGEST or (data.dtype, tuple(data.shape)) != (type.dtype, type.shape):
        return None
    flat = data.reshape(-1)
    if data.dtype in _SHORT:
        words = [str(number) for number in flat.numpy()]
        values: Sequence[Number] = [float(word) for word in words]
    else:
        values = flat.tolist()
        words = [number_text(value) for value in values]
    if digest(tensor_of(values, type)) != constant.sha256:
        return None
    return f"[{', '.join(words)}]"


def number_text(value: Number) -> str:
    """A Python number; what kind it is can be read off the text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, complex):
        return f"complex({value.real!r}, {value.imag!r})"
    return repr(value)


def tensor_of(values: Sequence[Number], type: TensorType) -> torch.Tensor:
    """The tensor that `values_text` describes, on the CPU. Raises TextError when they don't fit."""
    name = DTYPE_NAMES[type.dtype]
    shape = [size for size in type.shape if isinstance(size, int)]
    if len(shape) != type.rank:
        raise TextError("a constant has no symbolic sizes")
    wrong = next((v for v in values if not _fits(v, type.dtype)), None)
    if wrong is not None:
        raise TextError(f"{number_text(wrong)} is not an element of {name}")
    try:
        flat = torch.tensor(values, dtype=type.dtype)
    except (RuntimeError, OverflowError) as error:
        raise TextError(f"the values do not fit {name}") from error
    if flat.numel() != type.numel:
        sizes = ", ".join(map(str, shape))
        raise TextError(f"{flat.numel()} values for {name}[{sizes}], which holds {type.numel}")
    return flat.reshape(shape)


def _fits(value: Number, dtype: torch.dtype) -> bool:
    if dtype == torch.bool or isinstance(value, bool):
        return dtype == torch.bool and isinstance(value, bool)
    if dtype.is_complex:
        return True
    return isinstance(value, int) or (dtype.is_floating_point and isinstance(value, float))
