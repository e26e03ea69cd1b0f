"""Matrix products, and the calls that can compute them: torch's own (MKL on x86) and oneDNN's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch

from rewright.costmodel import Tools
from rewright.ir import Arg, Graph, Node, Op, TensorType, Value, fresh_names, hint, op
from rewright.ir.alone import alone
from rewright.ir.infer_args import tensor_at
from rewright.ir.onednn import LINEAR, PLAIN, is_available, multiplies
from rewright.passes.emitter import Emitter

# Where a product's bias and its factors stand among the arguments.
PLACES: Final[Mapping[str, tuple[int | None, int, int]]] = {
    "aten.mm.default": (None, 0, 1),
    "aten.addmm.default": (0, 1, 2),
}
# What makes the transpose of a matrix.
_TURNS: Final = ("aten.permute.default", "aten.t.default", "aten.transpose.int")
# Below so many operations a call is mostly its overhead, which torch's own has less of.
LEAST_WORK: Final = 2e6
# A race is run over at most so many; the largest size of a larger product is cut.
MOST_WORK: Final = 4e9


@dataclass(frozen=True)
class Product:
    """Sizes and layout of `[m, k] x [k, n]`; a factor is transposed when neighbours in memory are
    neighbours in a column."""

    m: int
    k: int
    n: int
    left_transposed: bool
    right_transposed: bool
    bias: bool
    dtype: torch.dtype = torch.float32

    @property
    def work(self) -> int:
        return 2 * self.m * self.k * self.n

    def cut(self) -> Product:
        """One of `MOST_WORK` at most, in place of a larger."""
        sizes = [self.m, self.k, self.n]
        while 2 * math.prod(sizes) > MOST_WORK:
            largest = sizes.index(max(sizes))
            sizes[largest] = (sizes[largest] + 1) // 2
        m, k, n = sizes
        return replace(self, m=m, k=k, n=n)


def product_of(node: Node) -> Product | None:
    """What a node multiplies, when oneDNN can too; sizes at their hints."""
    if node.op.name not in PLACES or node.kwargs:
        return None
    types = [v.tensor for v in (*node.operands, *node.results)]
    dtype = types[0].dtype
    if any(t.dtype != dtype or t.device.type != "cpu" for t in types) or not multiplies(dtype):
        return None
    bias_at, left_at, right_at = PLACES[node.op.name]
    left, right = tensor_at(node, left_at), tensor_at(node, right_at)
    if bias_at is not None and tensor_at(node, bias_at).rank != 1:
        return None
    if not (_is_plain(left) and _is_plain(right)):
        return None
    m, k, n = hint(left.shape[0]), hint(left.shape[1]), hint(right.shape[1])
    turned = not left.is_contiguous, not right.is_contiguous
    return Product(m, k, n, *turned, bias_at is not None, dtype)


def factors(node: Node) -> tuple[Arg, Arg, Arg]:
    """The left factor, the right one, the bias."""
    bias, left, right = PLACES[node.op.name]
    return node.args[left], node.args[right], None if bias is None else node.args[bias]


def torchs_call(left: Arg, right: Arg, bias: Arg) -> tuple[Op, tuple[Arg, ...]]:
    """The operator that multiplies, and its arguments."""
    if bias is None:
        return op("aten.mm.default"), (left, right)
    return op("aten.addmm.default"), (bias, left, right)


def _is_plain(type: TensorType) -> bool:
    """A matrix without gaps, by rows or by columns."""
    return type.is_contiguous or transposed(type).is_contiguous


def transposed(type: TensorType) -> TensorType:
    """The type of a matrix's transpose, in the same memory."""
    layout = tuple(reversed(type.layout))
    return TensorType(type.dtype, tuple(reversed(type.shape)), layout, type.device)


def turned(matrix: Arg, graph: Graph, emit: Emitter) -> Value:
    """The transpose of a matrix, which may itself be one."""
    assert isinstance(matrix, Value)
    made = graph.producers.get(matrix)
    if made is not None and made.op.name in _TURNS:
        source = made.operands[0]
        if source.tensor == transposed(matrix.tensor):
            return source
    return emit("aten.permute.default", matrix, (1, 0))


def race(product: Product, tools: Tools) -> list[float] | None:
    """Seconds of torch's own call and of oneDNN's; of a large product from a part of it. None where
    they cannot be told, or there is no oneDNN."""
    if not is_available():
        return None
    part = product.cut()
    found = tools.race(contestants(part))
    return None if found is None else [s * product.work / part.work for s in found]


def contestants(product: Product) -> tuple[Graph, Graph]:
    """Torch's own call and oneDNN's, each alone."""
    m, k, n = product.m, product.k, product.n
    typed = partial(TensorType, product.dtype)
    left, right = typed((m, k)), typed((k, n))
    if product.left_transposed:
        left = typed((m, k), (1, m))
    if product.right_transposed:
        right = typed((k, n), (1, k))
    a, b, w = Value("a", left), Value("b", right), Value("w", transposed(right))
    bias = Value("bias", typed((n,))) if product.bias else None
    result = Value("y", typed((m, n)))
    usual = Node(*torchs_call(a, b, bias), (), (result,))
    emit = Emitter(fresh_names(()), usual)
    emit(LINEAR, a, w, bias, *PLAIN)
    return alone(usual), alone(emit.nodes[-1])
