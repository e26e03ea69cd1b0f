"""`rw.attention`: its operands in four dimensions, and its body, which says what it computes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from rewright.ir import (
    Graph,
    Input,
    Kind,
    Node,
    Size,
    UnsupportedError,
    Value,
    equal,
    op,
    product,
)
from rewright.ir.infer_rules import view_strides
from rewright.passes.attention.site import Site
from rewright.passes.emitter import Emitter


@dataclass(frozen=True)
class Operands:
    """Queries [B, H, T, D], keys [B, H, S, D], values [B, H, S, E] of a site, and which of the
    probabilities [B, H, T, S] a dropout keeps."""

    site: Site
    emit: Emitter
    query: Value
    key: Value
    value: Value
    kept: tuple[Value, ...] = ()

    @staticmethod
    def of(site: Site, emit: Emitter) -> Operands:
        batch = (product(site.batch[:-1]), site.batch[-1] if site.batch else 1)

        def four(x: Value) -> Value:
            return shaped(x, (*batch, *x.tensor.shape[-2:]), emit)

        rank = site.key.tensor.rank
        turned = (*range(rank - 2), rank - 1, rank - 2)
        key = emit("aten.permute.default", site.key, turned)
        kept = () if site.dropout is None else (four(site.dropout.results[1]),)
        return Operands(site, emit, four(site.query), four(key), four(site.value), kept)

    @property
    def three(self) -> tuple[Value, Value, Value]:
        return self.query, self.key, self.value

    @property
    def batch(self) -> tuple[Size, ...]:
        return self.query.tensor.shape[:2]

    def every_score(self, x: Value) -> Value:
        """[B, H, T, S] of what broadcasts to the scores as the site has them; what is repeated
        takes no memory, where the site's batch has two dimensions."""
        shape = (*self.site.batch, *self.site.score_shape[-2:])
        whole = (*self.batch, *shape[-2:])
        if len(shape) == 4:
            missing = (1,) * (4 - x.tensor.rank)
            four = shaped(x, (*missing, *x.tensor.shape), self.emit)
            return self.emit("aten.expand.default", four, whole)
        spread = self.emit("aten.expand.default", x, shape)
        return shaped(spread, whole, self.emit)

    def with_sinks(self, sinks: Value, extra: list[Value]) -> tuple[Operands, list[Value]]:
        """One more key, whose score is the sink and whose value is zero."""
        column = shaped(sinks, (*self.batch, self.rows, 1), self.emit)
        column = self.row_major(column)
        if extra:
            bias = self.row_major(extra[0])
        else:
            bias = self.zeros((*self.batch, self.rows, self.key.tensor.shape[2]))
        bias = self.emit("aten.cat.default", (bias, column), -1)
        key, value = (
            self.emit(
                "aten.cat.default",
                (self.row_major(x), self.zeros((*self.batch, 1, x.tensor.shape[3]))),
                2,
            )
            for x in (self.key, self.value)
        )
        kept = tuple(self.with_column(x) for x in self.kept)
        return replace(self, key=key, value=value, kept=kept), [bias]

    def with_column(self, kept: Value) -> Value:
        """Which probabilities are kept, that of the sink too; what becomes of it is no matter."""
        if not equal(kept.tensor.shape[-1], self.key.tensor.shape[2]):
            return kept
        like, shape = kept.tensor, (*self.batch, self.rows, 1)
        column = self.emit("aten.full.default", shape, True, dtype=like.dtype, device=like.device)
        return self.emit("aten.cat.default", (kept, column), -1)

    def row_major(self, x: Value) -> Value:
        if x.tensor.is_contiguous:
            return x
        return self.emit("aten.clone.default", x, memory_format=torch.contiguous_format)

    @property
    def rows(self) -> Size:
        return self.query.tensor.shape[2]

    def zeros(self, shape: tuple[Size, ...]) -> Value:
        like = self.query.tensor
        return self.emit("aten.full.default", shape, 0.0, dtype=like.dtype, device=like.device)


def shaped(x: Value, shape: tuple[Size, ...], emit: Emitter) -> Value:
    """`x` in another shape of as many elements: itself, a view, or a copy where no view has it."""
    if x.tensor.shape == shape:
        return x
    is_view = view_strides(x.tensor, shape) is not None
    return emit(f"aten.{'view' if is_view else 'reshape'}.default", x, shape)


# --- bodies -------------------------------------------------------------------------------------


def affine_body(operands: Operands, extra: list[Value], scale: float) -> Graph:
    """softmax(scale q k^T + bias) v."""
    body = _Body(operands)
    scores = body.product_of_queries_and_keys()
    if scale != 1:
        scores = body.emit("aten.mul.Tensor", scores, scale)
    for value in extra:
        scores = body.emit("aten.add.Tensor", scores, body.input("bias", value))
    return body.ended(scores)


def stepwise_body(operands: Operands) -> tuple[Graph, list[Value]]:
    """softmax(steps(q k^T)) v, the steps as the site has them; and the tensors that they read."""
    body, extra = _Body(operands), list[Value]()
    scores = body.product_of_queries_and_keys()
    site = operands.site
    if site.scores.op.name == "aten.baddbmm.default":
        raise UnsupportedError("a sum with a product, and more done to it")
    for step in site.steps:
        if step.node.op.kind is Kind.VIEW or step.node.op.name == "aten.clone.default":
            continue
        args = list(step.node.args)
        for place, arg in enumerate(args):
            if place == step.place:
                args[place] = scores
            elif isinstance(arg, Value):
                extra.append(operands.every_score(arg))
                args[place] = body.input(f"x{len(extra)}", extra[-1])
        scores = body.emit(step.node.op.name, *args, **dict(step.node.kwargs))
    return body.ended(scores), extra


class _Body:
    """A body while it is built: names in it are its own."""

    def __init__(self, operands: Operands) -> None:
        self.emit = operands.emit.inside()
        self.operands = operands
        self.site = operands.site
        self.inputs = [
            Value(name, value.type) for name, value in zip("qkv", operands.three, strict=True)
        ]
        self.batch = operands.batch

    def input(self, name: str, like: Value) -> Value:
        value = Value(name, like.type)
        self.inputs.append(value)
        return value

    def product_of_queries_and_keys(self) -> Value:
        query, key, _ = self.inputs[:3]
        left = self.flat(query)
        right = self.emit("aten.permute.default", self.flat(key), (0, 2, 1))
        return self.four(self.emit("aten.bmm.default", left, right))

    def ended(self, scores: Value) -> Graph:
        value = self.inputs[2]
        dtype = self.site.softmax.result.tensor.dtype
        if scores.tensor.dtype != dtype:
            scores = self.emit("aten._to_copy.default", scores, dtype=dtype)
        weights = self.emit("aten._softmax.default", scores, -1, False)
        if self.site.zeros is not None:
            none = self.emit("aten.eq.Scalar", scores, -math.inf)
            none = self.emit("aten.all.dim", none, -1, True)
            type = weights.tensor
            zero = self.emit("aten.full.default", (), 0.0, dtype=type.dtype, device=type.device)
            weights = self.emit("aten.where.self", none, zero, weights)
        for kept in self.operands.kept:
            weights = self.thinned(weights, self.input("kept", kept))
        if weights.tensor.dtype != value.tensor.dtype:
            weights = self.emit("aten._to_copy.default", weights, dtype=value.tensor.dtype)
        product = self.emit("aten.bmm.default", self.flat(weights), self.flat(value))
        inputs = tuple(Input(v) for v in self.inputs)
        result = self.four(product)
        return Graph("body", inputs, tuple(self.emit.nodes), (result,))

    def thinned(self, weights: Value, kept: Value) -> Value:
        """The probabilities after dropout."""
        assert self.site.dropout is not None
        dtype, p = self.site.dropout.results[0].tensor.dtype, self.site.dropout.args[1]
        assert isinstance(p, float)
        if weights.tensor.dtype != dtype:
            weights = self.emit("aten._to_copy.default", weights, dtype=dtype)
        weights = self.emit("aten.mul.Tensor", weights, kept)
        return self.emit("aten.mul.Tensor", weights, 0.0 if p == 1 else 1 / (1 - p))

    def flat(self, x: Value) -> Value:
        return shaped(x, (product(self.batch), *x.tensor.shape[2:]), self.emit)

    def four(self, x: Value) -> Value:
        return self.emit("aten.view.default", x, (*self.batch, *x.tensor.shape[1:]))


def has_dropout(node: Node) -> bool:
    names = [n.op.name for n in node.graph("body").nodes]
    return "aten.mul.Tensor" in names[names.index("aten._softmax.default") :]


def scale_and_bias(node: Node) -> tuple[float, Value | None] | None:
    """What an `rw.attention` does to its scores, when that is scaling and one addition."""
    body = node.graph("body")
    names = [n.op.name for n in body.nodes]
    first, softmax = names.index("aten.bmm.default"), names.index("aten._softmax.default")
    scale, bias = 1.0, None
    for step in body.nodes[first + 2 : softmax]:
        other = step.args[1] if len(step.args) > 1 else None
        if step.op is op("aten.mul.Tensor") and isinstance(other, float) and bias is None:
            scale *= other
        elif step.op is op("aten.add.Tensor") and isinstance(other, Value) and bias is None:
            bias = node.operands[[i.value for i in body.inputs].index(other)]
        elif step.op is not op("aten._to_copy.default"):
            return None
    return scale, bias
