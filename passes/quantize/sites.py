"""Where a graph can be quantized: linear layers and embeddings, whose weights are parameters."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from rewright.ir import Graph, Node, TensorType, Value, fresh_names, hint
from rewright.ir.onednn import multiplies
from rewright.passes.budget import FLOAT, Plan
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.freeze import frozen_values
from rewright.passes.libraries.products import PLACES, factors
from rewright.passes.quantize.formats import (
    FORMAT_OF,
    Format,
    in_single,
    quantized_linear,
    quantized_rows,
    quantized_weight,
)

EMBEDDING: Final = "aten.embedding.default"
_TURN: Final = "aten.permute.default"
_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
# Smaller weights are not worth the call.
LEAST_WEIGHTS: Final = 4096


@dataclass(frozen=True)
class Site(abc.ABC):
    """A node that reads a weight. `rows` is the value that has it as [N, K], when `is_turned`, or
    its transpose."""

    node: Node
    rows: Value
    is_turned: bool

    @property
    @abc.abstractmethod
    def read(self) -> Value:
        """What is read besides parameters."""

    @property
    def reads(self) -> tuple[Value, ...]:
        return (self.read,)

    @property
    @abc.abstractmethod
    def weight(self) -> Value:
        """The weight as the node reads it."""

    @abc.abstractmethod
    def admits(self, format: Format) -> bool:
        """True for a format that the node can be computed in."""

    @abc.abstractmethod
    def made(self, read: Value, weight: tuple[Value, ...], format: Format, emit: Emitter) -> Value:
        """The result for what is read from the weight in a format."""

    def type_of(self, read: Value) -> TensorType:
        """The type of the result for other rows of what is read."""
        rows = read.tensor.shape[: self.node.result.tensor.rank - 1]
        return TensorType(self.node.result.tensor.dtype, (*rows, self.node.result.tensor.shape[-1]))

    def on(
        self, read: Value, weight: tuple[Value, ...], format: Format, emit: Emitter
    ) -> list[Node]:
        """Nodes that make the same result from the weight in a format."""
        self.made(read, weight, format, emit)
        emit.end_in(self.node.result)
        return emit.nodes

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        sizes = [hint(s) for s in self.rows.tensor.shape]
        return (sizes[0], sizes[1]) if self.is_turned else (sizes[1], sizes[0])

    def packed(
        self,
        format: Format,
        emit: Emitter,
        moved: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> tuple[Value, ...]:
        """The weight in a format, multiplied by the `factors` of its columns, some of its integers
        `moved` steps from the nearest."""
        rows = self.rows if self.is_turned else emit(_TURN, self.rows, (1, 0))
        rows = rows if factors is None else times(rows, factors, emit)
        return quantized_weight(format, rows, emit, moved)

    def key(self, format: Format) -> tuple[object, ...]:
        """What a packed weight depends on: sites may share one."""
        balanced_for = self.read.name if format.balanced else None
        return self.rows.name, self.is_turned, format.group, format.dtype, balanced_for


class LinearSite(Site):
    """A product of what comes, x [M, K], with a parameter [K, N]."""

    @property
    def read(self) -> Value:
        return _value(factors(self.node)[0])

    @property
    def weight(self) -> Value:
        return _value(factors(self.node)[1])

    @property
    def bias(self) -> Value | None:
        bias = factors(self.node)[2]
        return bias if isinstance(bias, Value) else None

    def admits(self, format: Format) -> bool:
        if format.dtype is not None:
            return self.rows.tensor.dtype == torch.float32 and multiplies(format.dtype)
        return not format.group or self.shape[1] % format.group == 0

    def made(self, read: Value, weight: tuple[Value, ...], format: Format, emit: Emitter) -> Value:
        bias = None if self.bias is None else in_single(self.bias, emit)
        return quantized_linear(format, read, weight, self.shape[0], bias, emit)


class EmbeddingSite(Site):
    """Rows of a parameter [N, K] by their numbers."""

    @property
    def read(self) -> Value:
        return _value(self.node.args[1])

    @property
    def weight(self) -> Value:
        return _value(self.node.args[0])

    def admits(self, format: Format) -> bool:
        if format.dtype is not None:
            return self.rows.tensor.dtype == torch.float32
        return not format.group and not format.quantizes_activations

    def made(self, read: Value, weight: tuple[Value, ...], format: Format, emit: Emitter) -> Value:
        return quantized_rows(format, weight, read, self.node.result.tensor, emit)


def sites(graph: Graph) -> list[Site]:
    """Every linear layer and embedding whose weight is a parameter, or computed of parameters."""
    lasting = frozen_values(graph)
    found: list[Site] = []
    for node in graph.nodes:
        if _is_layer(node, lasting) and _is_large(_value(factors(node)[1]).tensor):
            weight = _value(factors(node)[1])
            rows = _before_a_turn(weight, graph, lasting)
            found.append(LinearSite(node, rows, rows is not weight))
        elif node.op.name == EMBEDDING and _is_embedding(node, lasting):
            found.append(EmbeddingSite(node, _value(node.args[0]), is_turned=True))
    return found


def _before_a_turn(weight: Value, graph: Graph, lasting: set[Value]) -> Value:
    made = graph.producers.get(weight)
    if made is None or made.op.name != _TURN or tuple(made.args[1]) != (1, 0):  # type: ignore[arg-type]
        return weight
    return made.operands[0] if made.operands[0] in lasting else weight


def small_layers(graph: Graph) -> list[str]:
    """Linear layers that have too few weights for a format to gain anything."""
    lasting = frozen_values(graph)
    layers = (node for node in graph.nodes if _is_layer(node, lasting))
    weights = ((node.name, _value(factors(node)[1]).tensor) for node in layers)
    return [name for name, weight in weights if hint(weight.numel) < LEAST_WEIGHTS]


def _is_layer(node: Node, lasting: set[Value]) -> bool:
    """Whether a node multiplies by parameters, or by what is computed of them."""
    if node.op.name not in PLACES:
        return False
    left, right, bias = factors(node)
    if node.kwargs or not isinstance(left, Value) or not isinstance(right, Value):
        return False
    if isinstance(bias, Value) and bias.tensor.rank != 1:
        return False
    same = left.tensor.dtype == right.tensor.dtype and left.tensor.is_contiguous
    return same and left not in lasting and right in lasting


def _is_embedding(node: Node, lasting: set[Value]) -> bool:
    weight = node.args[0]
    return isinstance(weight, Value) and weight in lasting and _is_large(weight.tensor)


def _is_large(weight: TensorType) -> bool:
    fixed = all(isinstance(size, int) for size in weight.shape)
    here = weight.device.type == "cpu" and weight.dtype in _DTYPES
    return fixed and here and weight.rank == 2 and hint(weight.numel) >= LEAST_WEIGHTS


def _value(arg: object) -> Value:
    assert isinstance(arg, Value)
    return arg


def in_formats(
    graph: Graph,
    found: Mapping[str, Site],
    plan: Plan,
    fresh: Callable[[str], str],
    packed: Callable[[Site, Format, Emitter], tuple[Value, ...]],
    factors: Callable[[Site, Format], Tensor | None],
) -> list[Node]:
    """The graph's nodes with the formats of a plan; `packed` gives the weight of a site in a
    format, whose nodes, if any, come before it, `factors` those of a balanced one."""
    nodes: list[Node] = []
    divided: dict[Value, Value] = {}
    for node in graph.nodes:
        bid = plan.get(node.name)
        if bid is None or bid.choice == FLOAT:
            nodes.append(node)
            continue
        site, format, emit = found[node.name], FORMAT_OF[bid.choice], Emitter(fresh, node)
        weight, read = packed(site, format, emit), site.read
        by = factors(site, format)
        if by is not None:
            if read not in divided:
                divided[read] = times(read, 1 / by, emit)
            read = divided[read]
        nodes += site.on(read, weight, format, emit)
    return nodes


def times(x: Value, factors: Tensor, emit: Emitter) -> Value:
    """Columns of x [M, K] by factors f32[K] that are powers of two."""
    return emit("aten.mul.Tensor", x, emit.constant(factors.to(x.tensor.dtype)))


def names_beside(graph: Graph) -> Callable[[str], str]:
    return fresh_names(v.name for v in graph.values)


def shares(found: Mapping[str, Site]) -> Mapping[str, int]:
    """How many sites read the same weight, by site."""
    names = [site.rows.name for site in found.values()]
    return {name: names.count(site.rows.name) for name, site in found.items()}
