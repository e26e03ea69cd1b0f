"""From an `rw.attention` to the pair that training takes: one that also gives the logarithms of its
sums, and an `rw.attention_backward`, whose body is the gradient of the other's, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

import torch

from rewright.ir import (
    Graph,
    Input,
    Kind,
    Node,
    TensorType,
    UnsupportedError,
    Value,
    exact_div,
    fresh_names,
)
from rewright.ir.loops import needed_nodes
from rewright.ir.loops.attention_backward import LIVE
from rewright.passes.attention.region import shaped
from rewright.passes.attention.site import SOFTMAX
from rewright.passes.emitter import Emitter

PRODUCT: Final = "aten.bmm.default"
BACKWARD: Final = "rw.attention_backward"


def with_sums(attention: Node, sums: Value) -> Node:
    """The same attention, of [B, H, T, E], which also gives [B, H, T]: the logarithm of each row's
    sum of exponentials.

    Raises UnsupportedError when `sums` is of another type.
    """
    body = attention.graph("body")
    (softmax,) = (n for n in body.nodes if n.op.name == SOFTMAX)
    emit = Emitter(fresh_names(v.name for v in body.values), softmax)
    taken, dtype = softmax.operands[0], sums.tensor.dtype
    if taken.tensor.dtype != dtype:
        taken = emit("aten._to_copy.default", taken, dtype=dtype)
    made = emit("aten.logsumexp.default", taken, (-1,))
    made = lying(made, sums.tensor, (0, 2, 1), emit)
    if made.type != sums.type:
        raise UnsupportedError(f"its sums are {made.type}, not {sums.type}")
    (output,) = body.outputs
    new = dataclasses.replace(body, nodes=(*body.nodes, *emit.nodes), outputs=(output, made))
    results = (attention.result, sums)
    return dataclasses.replace(attention, results=results, graphs=(("body", new),))


def backward_of(
    attention: Node, given: Value, results: tuple[TensorType, ...], emit: Emitter
) -> tuple[Value, ...]:
    """Gradients of queries, keys and values, of the types `results`, from that of the result of
    `attention`, which gives its sums.

    Raises UnsupportedError for scores that something is done to whose gradient is not known here.
    """
    body = _Gradient(attention, given, results).body()
    read = (given, *attention.operands, *attention.results)
    return emit.region(BACKWARD, read, body)


def gradient_of_call(attention: Node, back: Node, emit: Emitter) -> Node:
    """What makes the results of a call of ATen's gradient, of an attention that gives the results
    and sums that it reads."""
    backward_of(attention, back.operands[0], tuple(v.tensor for v in back.results), emit)
    return dataclasses.replace(emit.nodes[-1], results=back.results)


def lying(x: Value, wanted: TensorType, order: tuple[int, ...], emit: Emitter) -> Value:
    """The same tensor, in memory as `wanted` lies: as it is, or with its dimensions in `order`,
    which is its own inverse."""
    if x.tensor == wanted:
        return x
    turned = emit("aten.permute.default", x, order)
    turned = emit("aten.clone.default", turned, memory_format=torch.contiguous_format)
    return emit("aten.permute.default", turned, order)


class _Gradient:
    """The body of a gradient, while it is built on that of an attention."""

    def __init__(self, attention: Node, given: Value, results: tuple[TensorType, ...]) -> None:
        body = attention.graph("body")
        self.forward, self.results = body, results
        names = fresh_names(v.name for v in body.values)
        self.given = Value(names("g"), given.type)
        result, sums = body.outputs
        assert isinstance(result, Value) and isinstance(sums, Value)
        self.result, self.sums = Value(names("o"), result.type), Value(names("s"), sums.type)
        self.emit = Emitter(names, attention)

    def body(self) -> Graph:
        (softmax,) = (n for n in self.forward.nodes if n.op.name == SOFTMAX)
        scores, values = (n for n in self.forward.nodes if n.op.name == PRODUCT)
        emit = self.emit
        # What makes the probabilities, and the values that they meet.
        read = softmax.result, values.operands[1]
        emit.nodes += needed_nodes(self.forward.nodes, read)
        query, key = scores.operands
        value = values.operands[1]
        weights = self._weights(softmax)
        outer = self._flat(self._as(self.given, value.tensor.dtype))
        carried = self._flat(self._as(weights, value.tensor.dtype))
        to_value = emit(PRODUCT, self._turned(carried), outer)
        grads = emit(PRODUCT, outer, self._turned(value))
        grads = shaped(grads, softmax.result.tensor.shape, emit)
        grads = self._of_softmax(softmax, weights, grads)
        slope = self._through(softmax, scores, grads)
        to_query = emit(PRODUCT, slope, self._turned(key))
        to_key = emit(PRODUCT, self._turned(slope), query)
        made = zip((to_query, to_key, to_value), self.results, strict=True)
        outputs = tuple(self._result(x, wanted) for x, wanted in made)
        inputs = (self.given, *(i.value for i in self.forward.inputs), self.result, self.sums)
        return Graph("body", tuple(Input(v) for v in inputs), tuple(emit.nodes), outputs)

    # --- what the forward computed --------------------------------------------------------------

    def _weights(self, softmax: Node) -> Value:
        """Probabilities, from what the forward says of each row; where that is a large finite mask,
        beside which it says nothing else, from the scores alone."""
        emit, dtype = self.emit, self.sums.tensor.dtype
        sums = emit("aten.unsqueeze.default", self.sums, -1)
        taken = self._as(softmax.operands[0], dtype)
        told = emit("aten.exp.default", emit("aten.sub.Tensor", taken, sums))
        is_told = emit("aten.gt.Scalar", sums, LIVE)
        return emit("aten.where.self", is_told, told, self._as(softmax.result, dtype))

    # --- steps back -----------------------------------------------------------------------------

    def _of_softmax(self, softmax: Node, weights: Value, grads: Value) -> Value:
        """The gradient of what a softmax is taken of, from that of its probabilities: each less
        their mean, which is the sum of each result times its gradient."""
        emit, dtype = self.emit, weights.tensor.dtype
        pair = (self._as(x, dtype) for x in (self.given, self.result))
        mean = emit("aten.sum.dim_IntList", emit("aten.mul.Tensor", *pair), (-1,), True)
        less = emit("aten.sub.Tensor", self._as(grads, dtype), mean)
        made = emit("aten.mul.Tensor", weights, less)
        return self._as(made, softmax.operands[0].tensor.dtype)

    def _through(self, softmax: Node, scores: Node, grad: Value) -> Value:
        """Back through what is done to the scores, to the gradient of their product."""
        value = softmax.operands[0]
        while value != scores.result:
            node = self.forward.producers[value]
            place = self._score(node, scores)
            if node.op.kind is Kind.VIEW:
                grad = shaped(grad, node.operands[0].tensor.shape, self.emit)
            else:
                rule = _RULES.get(node.op.name)
                if rule is None:
                    raise UnsupportedError(f"the gradient of {node.op} is not known")
                grad = rule(node, place, grad, self.emit)
            value = node.args[place]  # type: ignore[assignment]
        return grad

    def _score(self, node: Node, scores: Node) -> int:
        """Which argument of a step is the score."""
        places = [
            p for p, a in enumerate(node.args) if isinstance(a, Value) and self._reads(a, scores)
        ]
        if len(places) != 1:
            raise UnsupportedError(f"{node.op} reads the scores {len(places)} times")
        return places[0]

    def _reads(self, value: Value, scores: Node) -> bool:
        if value == scores.result:
            return True
        node = self.forward.producers.get(value)
        return node is not None and any(self._reads(v, scores) for v in node.operands)

    # --- parts ----------------------------------------------------------------------------------

    def _as(self, x: Value, dtype: torch.dtype) -> Value:
        return x if x.tensor.dtype == dtype else self.emit("aten._to_copy.default", x, dtype=dtype)

    def _flat(self, x: Value) -> Value:
        batch, heads, *rest = x.tensor.shape
        return shaped(x, (batch * heads, *rest), self.emit)

    def _turned(self, x: Value) -> Value:
        return self.emit("aten.permute.default", x, (0, 2, 1))

    def _result(self, x: Value, wanted: TensorType) -> Value:
        """A gradient [N, L, D] as one of [B, H, L, D], or the sum over the heads that share it."""
        batch, own = wanted.shape[:2]
        every, *rest = x.tensor.shape
        times = exact_div(every, batch * own)
        if times is None:
            raise UnsupportedError(f"{every} heads share {own} of keys")
        if times != 1:
            x = shaped(x, (batch, own, times, *rest), self.emit)
            x = self.emit("aten.sum.dim_IntList", x, (2,))
        else:
            x = shaped(x, (batch, own, *rest), self.emit)
        if x.tensor.dtype != wanted.dtype:
            x = self.emit("aten._to_copy.default", x, dtype=wanted.dtype)
        return lying(x, wanted, (0, 2, 1, 3), self.emit)


# --- the gradient of a step: of the score, from that of the result ------------------------------

Rule = Callable[[Node, int, Value, Emitter], Value]


def _scaled(node: Node, place: int, grad: Value, emit: Emitter) -> Value:
    if "div" in node.op.name and place != 0:
        raise UnsupportedError(f"the gradient of {node.op} by what it divides by is not known")
    return emit(node.op.name, grad, node.args[1 - place])


def _added(node: Node, place: int, grad: Value, emit: Emitter) -> Value:
    alpha = node.arg("alpha")
    if place == 1 and alpha != 1:
        raise UnsupportedError(f"the gradient of {node.op} with a factor is not known")
    return emit("aten.neg.default", grad) if place == 1 and "sub" in node.op.name else grad


def _chosen(node: Node, place: int, grad: Value, emit: Emitter) -> Value:
    if place == 0:
        raise UnsupportedError("it chooses by a score")
    like = grad.tensor
    zero = emit("aten.full.default", (), 0.0, dtype=like.dtype, device=like.device)
    return emit("aten.where.self", node.args[0], *((grad, zero) if place == 1 else (zero, grad)))


def _filled(node: Node, place: int, grad: Value, emit: Emitter) -> Value:
    if place != 0:
        raise UnsupportedError("it fills with a score")
    return emit("aten.masked_fill.Scalar", grad, node.args[1], 0.0)


def _tanh(node: Node, place: int, grad: Value, emit: Emitter) -> Value:
    return emit("aten.tanh_backward.default", grad, node.result)


def _cast(node: Node, place: int, grad: Value, emit: Emitter) -> Value:
    return emit("aten._to_copy.default", grad, dtype=node.operands[0].tensor.dtype)


_RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("aten.mul.Tensor", "aten.mul.Scalar"), _scaled),
    **dict.fromkeys(("aten.div.Tensor", "aten.div.Scalar"), _scaled),
    **dict.fromkeys(("aten.add.Tensor", "aten.add.Scalar"), _added),
    **dict.fromkeys(("aten.sub.Tensor", "aten.sub.Scalar"), _added),
    "aten.neg.default": lambda node, place, grad, emit: emit("aten.neg.default", grad),
    "aten.where.self": _chosen,
    "aten.masked_fill.Scalar": _filled,
    "aten.masked_fill.Tensor": _filled,
    "aten.tanh.default": _tanh,
    "aten._to_copy.default": _cast,
    "aten.clone.default": lambda node, place, grad, emit: grad,
}
