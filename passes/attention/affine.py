"""The steps of a score as one scale and one bias, where they are no more than that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from rewright.ir import Arg, Graph, Value
from rewright.ir.numbers import number_of
from rewright.passes.attention.site import Site, Step
from rewright.passes.emitter import Emitter

_ADD: Final = ("aten.add.Tensor", "aten.add.Scalar")
_SUB: Final = ("aten.sub.Tensor", "aten.sub.Scalar")
_MUL: Final = ("aten.mul.Tensor", "aten.mul.Scalar")
_DIV: Final = ("aten.div.Tensor", "aten.div.Scalar")
_FILL: Final = ("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
_SHAPES: Final = (
    *("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"),
    *("aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.default", "aten.expand.default"),
)
# Scores are sums of products of normalized numbers; ones beyond this are not seen in practice.
_DROWNS: Final = 16.0
_NOTHING: Final = ("aten.clone.default", "aten.alias.default", "aten.detach.default")


class NotAffine(Exception):
    """A step does more than scaling the score and adding to it. The message says which."""


@dataclass(frozen=True)
class Affine:
    """softmax input = scale * score + bias. The bias broadcasts to the scores; None: nothing."""

    scale: float
    bias: Value | None


def affine_of(site: Site, graph: Graph, emit: Emitter) -> Affine:
    """The nodes that compute the bias go to `emit`. Raises NotAffine."""
    found = _Steps(site, graph, emit)
    if site.scores.op.name == "aten.baddbmm.default":
        found.start_with(site)
    for step in site.steps:
        found.take(step)
    return Affine(found.scale, found.bias)


class _Steps:
    def __init__(self, site: Site, graph: Graph, emit: Emitter) -> None:
        self.graph, self.emit = graph, emit
        self.type = site.scores.result.tensor
        self.has_sinks = site.sinks is not None
        self.scale = 1.0
        self.bias: Value | None = None

    def start_with(self, site: Site) -> None:
        """baddbmm adds beta * its first operand to alpha * the product."""
        node = site.scores
        added, beta, alpha = node.args[0], node.arg("beta"), node.arg("alpha")
        if not isinstance(alpha, (int, float)) or not isinstance(beta, (int, float)):
            raise NotAffine(f"%{node.name} is scaled by what is no number")
        assert isinstance(added, Value)
        self.scale = float(alpha)
        # With a beta of zero what is added is not even read.
        if beta != 0:
            self.bias = added if beta == 1 else self.emit("aten.mul.Tensor", added, beta)

    def take(self, step: Step) -> None:
        node, name = step.node, step.node.op.name
        if name in _MUL or name in _DIV:
            self.multiply(step)
        elif name in _ADD or name in _SUB:
            self.add(step)
        elif name in _FILL and step.place == 0:
            self.fill(node.args[1], node.args[2])
        elif name == "aten.where.self":
            self.choose(step)
        elif name in _SHAPES:
            self.reshape(step)
        elif name == "aten._to_copy.default":
            self.bias = self.cast(self.bias, node.result)
        elif name not in _NOTHING:
            raise NotAffine(f"%{node.name} ({node.op}) does more than scale and add")

    def multiply(self, step: Step) -> None:
        other = self.number(step.node.args[1 - step.place])
        divides = step.node.op.name in _DIV
        if other is None or (divides and step.place != 0) or (divides and other == 0):
            raise NotAffine(f"%{step.node.name} scales by what is no number")
        self.scale *= 1 / other if divides else other
        if self.bias is not None:
            operator = "aten.div.Tensor" if divides else "aten.mul.Tensor"
            self.bias = self.emit(operator, self.bias, other)

    def add(self, step: Step) -> None:
        node = step.node
        if node.arg("alpha") != 1:
            raise NotAffine(f"%{node.name} scales what it adds")
        other = node.args[1 - step.place]
        if node.op.name in _SUB:
            if step.place == 1:
                self.scale = -self.scale
                self.bias = None if self.bias is None else self.emit("aten.neg.default", self.bias)
            else:
                other = self.negative(other)
        if isinstance(other, (int, float)) and self.bias is None:
            if not self.has_sinks:
                return  # the same for every key, so the softmax does not see it
            other = self.full(other)
        if self.bias is None:
            assert isinstance(other, Value)
            self.bias = self.cast(other, node.result)
        else:
            self.bias = self.emit("aten.add.Tensor", self.bias, other)

    def negative(self, other: Arg) -> Arg:
        if isinstance(other, (int, float)):
            return -other
        assert isinstance(other, Value)
        return self.emit("aten.neg.default", other)

    def fill(self, mask: Arg, value: Arg) -> None:
        """Where the mask holds, the score is no more than `value`."""
        number = self.number(value)
        if number is None or not isinstance(mask, Value):
            raise NotAffine("a score is filled with what is no number")
        self.forbid(number)
        if self.bias is None:
            self.bias = self.emit("aten.where.self", mask, self.full(number), self.full(0.0))
        else:
            self.bias = self.emit("aten.masked_fill.Scalar", self.bias, mask, number)

    def choose(self, step: Step) -> None:
        mask, yes, no = step.node.args
        if step.place == 0 or not isinstance(mask, Value):
            raise NotAffine(f"%{step.node.name} chooses by a score")
        number = self.number(no if step.place == 1 else yes)
        if number is None:
            raise NotAffine(f"%{step.node.name} chooses between scores and what is no number")
        self.forbid(number)
        kept = self.full(0.0) if self.bias is None else self.bias
        sides = (kept, self.full(number)) if step.place == 1 else (self.full(number), kept)
        self.bias = self.emit("aten.where.self", mask, *sides)

    def forbid(self, number: float) -> None:
        """A number that replaces a score becomes one that is added to it. That is the same where
        the number is so large that no score changes it: then a row that is masked as a whole comes
        out even, as it did."""
        dtype = self.type.dtype
        if number > 0 or abs(number) * torch.finfo(dtype).eps < _DROWNS:
            raise NotAffine(f"scores are replaced by {number}, which some may change when added")

    def reshape(self, step: Step) -> None:
        if self.bias is None:
            return
        source = step.node.args[0]
        assert isinstance(source, Value)
        whole = self.emit("aten.expand.default", self.bias, source.tensor.shape)
        self.bias = self.emit("aten.reshape.default", whole, step.node.result.tensor.shape)

    # --- parts --------------------------------------------------------------------------------

    def cast(self, value: Value | None, like: Value) -> Value | None:
        if value is None or value.tensor.dtype == like.tensor.dtype:
            return value
        return self.emit("aten._to_copy.default", value, dtype=like.tensor.dtype)

    def full(self, number: float) -> Value:
        type = self.type
        return self.emit("aten.full.default", (), number, dtype=type.dtype, device=type.device)

    def number(self, arg: Arg) -> float | None:
        """A number, also as a tensor that holds nothing else."""
        if isinstance(arg, (int, float)) and not isinstance(arg, bool):
            return float(arg)
        node = self.graph.producers.get(arg) if isinstance(arg, Value) else None
        found = None if node is None else number_of(node)
        if not isinstance(found, (int, float)) or not (math.isfinite(found) or found < 0):
            return None
        return float(found)
