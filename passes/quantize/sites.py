"""Where a graph can be quantized: linear layers, whose weights are parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from rewright.ir import Graph, Node, Value, fresh_names, hint
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.freeze import frozen_values
from rewright.passes.libraries.products import PLACES, factors
from rewright.passes.quantize.formats import (
    Format,
    in_single,
    quantized_linear,
    quantized_weight,
)

_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
# Smaller weights are not worth the call.
LEAST_WEIGHTS: Final = 4096


@dataclass(frozen=True)
class Site:
    """A product of what comes, x [M, K], with a parameter [K, N]."""

    node: Node

    @property
    def x(self) -> Value:
        return _value(factors(self.node)[0])

    @property
    def weight(self) -> Value:
        """[K, N]."""
        return _value(factors(self.node)[1])

    @property
    def bias(self) -> Value | None:
        bias = factors(self.node)[2]
        return bias if isinstance(bias, Value) else None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """M, N, K; M at its hint."""
        rows, columns = self.x.tensor.shape
        return hint(rows), hint(self.weight.tensor.shape[1]), hint(columns)

    def packed(self, format: Format, emit: Emitter) -> tuple[Value, ...]:
        """The weight in a format."""
        turned = emit("aten.permute.default", self.weight, (1, 0))
        return quantized_weight(format, turned, emit)

    def on(self, weight: tuple[Value, ...], format: Format, emit: Emitter) -> list[Node]:
        """Nodes that make the same result from the weight in a format."""
        bias = None if self.bias is None else in_single(self.bias, emit)
        rows = self.weight.tensor.shape[1]
        quantized_linear(format, self.x, weight, rows, bias, emit)
        emit.end_in(self.node.result)
        return emit.nodes

    def quantized(self, format: Format, fresh: Callable[[str], str]) -> list[Node]:
        """The same from the weight as it is."""
        emit = Emitter(fresh, self.node)
        return self.on(self.packed(format, emit), format, emit)


def sites(graph: Graph) -> list[Site]:
    """Every linear layer whose weight is a parameter, or computed of parameters alone."""
    lasting = frozen_values(graph)
    return [Site(n) for n in graph.nodes if n.op.name in PLACES and _is_linear(n, lasting)]


def _is_linear(node: Node, lasting: set[Value]) -> bool:
    if node.kwargs:
        return False
    left, right, bias = factors(node)
    if not isinstance(left, Value) or not isinstance(right, Value):
        return False
    types = left.tensor, right.tensor
    if right not in lasting or left in lasting or any(t.device.type != "cpu" for t in types):
        return False
    if isinstance(bias, Value) and bias.tensor.rank != 1:
        return False
    same = types[0].dtype == types[1].dtype and types[0].dtype in _DTYPES
    fixed = all(isinstance(size, int) for size in types[1].shape)
    return same and fixed and hint(types[1].numel) >= LEAST_WEIGHTS and types[0].is_contiguous


def _value(arg: object) -> Value:
    assert isinstance(arg, Value)
    return arg


def names_beside(graph: Graph) -> Callable[[str], str]:
    return fresh_names(v.name for v in graph.values)
