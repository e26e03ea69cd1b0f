"""Running an operator in another floating precision than its graph says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from rewright.ir.attention import ATTENTION
from rewright.ir.effects import effect_of
from rewright.ir.graph import Node, Value
from rewright.ir.onednn import REFERENCES
from rewright.ir.ops import Effect
from rewright.ir.types import TensorType

_COMPLEX: Final = {
    torch.float64: torch.complex128,
    torch.float32: torch.complex64,
    torch.float16: torch.complex32,
}
# Operators whose result depends on how numbers are stored.
_BITWISE: Final = frozenset({"aten.view.dtype"})
# Operators that widen half precision on request, and only half precision.
_WIDENING: Final = frozenset({"aten._softmax.default", "aten._log_softmax.default"})


class Precision:
    """One floating type in place of all."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def dtype_for(self, dtype: torch.dtype) -> torch.dtype:
        if dtype.is_complex:
            return _COMPLEX.get(self._dtype, dtype)
        return self._dtype if dtype.is_floating_point else dtype

    def convert(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return value
        return value.to(self.dtype_for(value.dtype))

    def call(
        self,
        node: Node,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """What `target` returns on converted arguments, in whatever precision it comes out."""
        name = node.op.name
        if name in ATTENTION:
            return ATTENTION[name](node, args, kwargs)
        if name in REFERENCES:
            return REFERENCES[name](*args, **kwargs)
        if name in _WIDENING:
            return target(*args[:2], False)
        if name == "aten.native_dropout.default":
            return self._dropout(node, target, args)
        if name in _BITWISE or effect_of(node) is Effect.RNG:
            args, kwargs = _as_declared(node, args, kwargs)
        return target(*args, **kwargs)

    def _dropout(
        self, node: Node, target: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mask that the declared type draws, applied in this precision."""
        x, p, _ = args
        declared, _ = _as_declared(node, args, {})
        _, mask = target(*declared)
        return x * mask * (0.0 if p == 1 else 1 / (1 - p)), mask


def _as_declared(
    node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensor and dtype arguments as the graph declares them."""
    positional = tuple(_declared(a, b) for a, b in zip(node.args, args, strict=True))
    return positional, {k: _declared(node.kwarg(k), kwargs[k]) for k in kwargs}


def _declared(arg: object, value: Any) -> Any:
    if isinstance(arg, Value) and isinstance(arg.type, TensorType):
        return value.to(arg.type.dtype)
    return arg if isinstance(arg, torch.dtype) else value
