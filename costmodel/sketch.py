"""Sketches: what one kernel of some nodes would do, in numbers, without building it.

Fusion asks about thousands of candidates, so a sketch is folded from facts about single nodes, each
of which is looked at once; nothing is lowered. Sizes are taken at their hints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from rewright.ir import Kind, Node, TensorType, UnsupportedError, Value, hint
from rewright.ir.expr import Call, Scalar
from rewright.ir.loops import OPERATORS, is_view, order_of, reduced_count, reduced_dims, view_roots
from rewright.ir.pointwise import scalar_expr

# How often a reduction goes over its elements; others do so once.
SWEEPS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("aten._softmax.default", "aten._log_softmax.default"), 3),
    **dict.fromkeys(("aten.native_layer_norm.default", "aten.var_mean.correction"), 3),
    **dict.fromkeys(("aten.var.correction", "aten.std.correction"), 2),
    **dict.fromkeys(("aten._softmax_backward_data.default", "aten._fused_rms_norm.default"), 2),
    "aten._log_softmax_backward_data.default": 2,
    "aten.logsumexp.default": 2,
}
# Primitives by what they cost: a division or root, an exponential, a tangent or power.
_DIVISIONS: Final = ("div", "reciprocal", "sqrt", "rsqrt", "div_floor", "div_trunc", "fmod")
_EXPONENTIALS: Final = ("exp", "exp2", "log", "log2", "log10", "erf", "expm1", "log1p", "sigmoid")
CLASSES: Final[Mapping[str, int]] = {
    **dict.fromkeys((*_DIVISIONS, "remainder"), 1),
    **dict.fromkeys((*_EXPONENTIALS, "sin", "cos", "erfc"), 2),
    **dict.fromkeys(("tanh", "sinh", "cosh", "tan", "asin", "acos", "atan", "atan2"), 3),
    **dict.fromkeys(("asinh", "acosh", "atanh", "erfinv", "hypot", "pow", "lgamma"), 3),
}
# For each reduced element: simple operations, divisions and roots, exponentials.
_REDUCTIONS: Final[Mapping[str, tuple[int, int, int, int]]] = {
    **dict.fromkeys(("aten.var.correction", "aten.var_mean.correction"), (4, 0, 0, 0)),
    "aten.std.correction": (4, 0, 0, 0),
    "aten.linalg_vector_norm.default": (2, 0, 0, 0),
    "aten.logsumexp.default": (2, 0, 1, 0),
    **dict.fromkeys(("aten._softmax.default", "aten._log_softmax.default"), (4, 0, 1, 0)),
    "aten._softmax_backward_data.default": (4, 0, 0, 0),
    "aten._log_softmax_backward_data.default": (3, 0, 1, 0),
    **dict.fromkeys(
        ("aten.native_layer_norm.default", "aten.native_group_norm.default"), (8, 0, 0, 0)
    ),
    "aten._fused_rms_norm.default": (5, 0, 0, 0),
}

# How a kernel goes through memory for an operand, next to the order in which it runs.
CONTIGUOUS, SMALL, STRIDED, GATHERED = range(4)


@dataclass(frozen=True, slots=True)
class Facts:
    """One node: its space, its operations by class, and what it reads and writes.

    A read is (number, way, bytes, width): of the value behind views, how memory is gone through,
    the bytes that are seen of it, and the class of its type. A write is (number, bytes, width).
    """

    elements: int
    rows: int
    columns: bool
    inner: int
    work: tuple[int, int, int, int]
    sweeps: int
    reads: tuple[tuple[int, int, int, int], ...]
    writes: tuple[tuple[int, int, int], ...]
    strided_writes: int
    guarded: bool


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a kernel does. Counts are of one run; bytes are of distinct memory.

    `rows` is 0 without reductions; `columns` is true when lanes run along rows. `work` counts
    simple operations, divisions and roots, exponentials, tangents and powers; `again` is how much
    of it, in simple operations, is done again. `read` are bytes by way: contiguous, small
    (broadcast), strided, gathered. `kept` are bytes of values that stay inside; `live` is about how
    many values are alive at once, which registers must hold. `halves`, `doubles` and `integers` are
    bytes read or written of such types.
    """

    elements: int
    rows: int
    columns: bool
    inner: int
    nodes: int
    reductions: int
    sweeps: int
    work: tuple[int, int, int, int]
    again: int
    reads: int
    writes: int
    read: tuple[int, int, int, int]
    written: int
    strided: int
    kept: int
    live: int
    halves: int
    doubles: int
    integers: int
    guarded: int

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return sum(self.read) + self.written


class Sketcher:
    """Sketches of nodes of one graph; `root_of` gives the value behind a chain of views."""

    def __init__(self, root_of: Callable[[Value], Value]) -> None:
        self._root_of = root_of
        self._numbers: dict[Value, int] = {}
        self._facts: dict[int, tuple[Node, Facts]] = {}

    def sketch(self, nodes: Iterable[Node], leaving: Iterable[Value]) -> Sketch:
        """One kernel of `nodes`, in an order that runs, that gives the values `leaving`."""
        numbers = self._numbers
        return _folded([self._of(node) for node in nodes], {numbers[value] for value in leaving})

    def _of(self, node: Node) -> Facts:
        found = self._facts.get(id(node))
        if found is None:
            found = self._facts[id(node)] = node, facts(node, self._number)
        return found[1]

    def _number(self, value: Value) -> int:
        root = self._root_of(value)
        return self._numbers.setdefault(root, len(self._numbers))


def sketch_region(region: Node) -> Sketch:
    """What the kernel of a region does."""
    body = region.graph("body")
    roots = view_roots(body)
    nodes = [node for node in body.nodes if not is_view(node)]
    leaving = [roots[v] for v in body.returned]
    return Sketcher(roots.__getitem__).sketch(nodes, leaving)


# --- one node -----------------------------------------------------------------------------------


def facts(node: Node, number: Callable[[Value], int]) -> Facts:
    """What a node that is no view does by itself."""
    result = max((v.tensor for v in node.results), key=lambda t: t.nbytes_hint)
    space, elements, rows, columns = result, hint(result.numel), 0, False
    if node.op.kind is Kind.REDUCTION and hint(reduced_count(node)) > 1:
        space = node.operands[0].tensor
        dims = reduced_dims(node)
        elements = hint(space.numel)
        rows = max(1, elements // max(1, hint(reduced_count(node))))
        columns = order_of(node).style == "columns"
        inner = _last([d for d in range(len(space.shape)) if (d in dims) != columns], space)
    else:
        inner = _last(list(range(len(space.shape))), space)
    fast, along = inner
    reads = tuple(_reads(node, space, fast, number))
    strided = sum(
        hint(v.tensor.numel) for v in node.results if _way(v.tensor, space, fast) == STRIDED
    )
    return Facts(
        elements,
        rows,
        columns,
        along,
        tuple(n * elements for n in _work(node)),  # type: ignore[arg-type]
        SWEEPS.get(node.op.name, 1),
        reads,
        tuple((number(v), v.tensor.nbytes_hint, _width(v.tensor.dtype)) for v in node.results),
        strided,
        node.op.kind is Kind.INDEX
        or (node.op.name in OPERATORS and node.op.kind is not Kind.REDUCTION),
    )


def _is_guarded(node: Node) -> bool:
    """True for padding, concatenation and the like, whose reads stand behind conditions."""
    return node.op.name in OPERATORS and node.op.kind is not Kind.REDUCTION


def _last(dims: Sequence[int], space: TensorType) -> tuple[int | None, int]:
    """(the dimension along which neighbours lie, counted from the end; its length)."""
    rank = len(space.shape)
    moving = [d for d in dims if hint(space.shape[d]) != 1]
    if not moving:
        return None, 1
    fast = min(moving, key=lambda d: (hint(space.layout[d]) or 1 << 60, -d))
    return rank - fast, hint(space.shape[fast])


def _reads(
    node: Node, space: TensorType, fast: int | None, number: Callable[[Value], int]
) -> Iterator[tuple[int, int, int, int]]:
    for value in dict.fromkeys(node.operands):
        type = value.type
        if not isinstance(type, TensorType):
            continue
        seen, way = _distinct(type), _way(type, space, fast)
        if node.op.kind is Kind.INDEX and value == node.args[0]:
            seen, way = min(seen, hint(node.results[0].tensor.numel)), GATHERED
        yield number(value), way, seen * type.dtype.itemsize, _width(type.dtype)


def _distinct(type: TensorType) -> int:
    seen = 1
    for size, stride in zip(type.shape, type.layout, strict=True):
        if stride != 0:
            seen *= hint(size)
    return seen


def _way(type: TensorType, space: TensorType, fast: int | None) -> int:
    """How memory of `type` is gone through by a kernel that runs along `fast` of `space`."""
    if 2 * _distinct(type) <= hint(space.numel):
        return SMALL
    if fast is None or fast > len(type.shape) or hint(type.shape[-fast]) == 1:
        return CONTIGUOUS
    return CONTIGUOUS if hint(type.layout[-fast]) <= 1 else STRIDED


def _work(node: Node) -> tuple[int, int, int, int]:
    """Operations for each element, by class."""
    if node.op.kind is Kind.REDUCTION:
        return _REDUCTIONS.get(node.op.name, (1, 0, 0, 0))
    if node.op.kind is not Kind.POINTWISE:
        return (1, 0, 0, 0)
    try:
        expr = scalar_expr(node).expr
    except UnsupportedError:
        return (1, 0, 0, 0)
    counts = [0, 0, 0, 0]
    _count(expr, counts)
    return (counts[0], counts[1], counts[2], counts[3])


def _count(expr: Scalar, counts: list[int]) -> None:
    if isinstance(expr, Call):
        counts[CLASSES.get(expr.name, 0)] += 1
        for arg in expr.args:
            _count(arg, counts)


# --- many nodes ---------------------------------------------------------------------------------


_WIDTHS: Final = {2: 0, 1: 0, 8: 1}
_BYTES_OF_WIDTH: Final = (2, 8, 4, 4)


@cache
def _width(dtype: torch.dtype) -> int:
    """0: half types and narrower floats, 1: double, 2: integers and truth, 3: f32."""
    return _WIDTHS.get(dtype.itemsize, 3) if dtype.is_floating_point else 2


def _folded(parts: Sequence[Facts], leaving: set[int]) -> Sketch:
    space = max([p.elements for p in parts])
    rows = max([p.rows for p in parts])
    columns = any(p.columns for p in parts)
    sweeps = max([p.sweeps for p in parts])
    work, again = _work_of(parts, space, rows, sweeps if columns else 1)
    made: dict[int, tuple[int, int]] = {}
    last: dict[int, int] = {}
    read: dict[tuple[int, int], tuple[int, int]] = {}
    for place, part in enumerate(parts):
        for root, way, nbytes, width in part.reads:
            last[root] = place
            if root not in made and nbytes > read.get((root, way), _NOTHING)[0]:
                read[root, way] = nbytes, width
        for number, nbytes, width in part.writes:
            made[number] = nbytes, width
            last[number] = place
    ways, widths = [0, 0, 0, 0], [0, 0, 0, 0]
    for (_, way), (nbytes, width) in read.items():
        ways[way] += nbytes
        widths[width] += nbytes
    written = kept = outs = 0
    for number, (nbytes, width) in made.items():
        if number in leaving:
            written += nbytes
            outs += 1
            widths[width] += nbytes
        else:
            kept += nbytes
    largest = max(parts, key=_size_of)
    return Sketch(
        elements=space,
        rows=rows,
        columns=columns,
        inner=largest.inner,
        nodes=len(parts),
        reductions=sum([p.rows > 0 for p in parts]),
        sweeps=sweeps,
        work=work,
        again=again,
        reads=len(read),
        writes=outs,
        read=(ways[0], ways[1], ways[2], ways[3]),
        written=written,
        strided=sum([p.strided_writes for p in parts]),
        kept=kept,
        live=_live(last, len(parts)),
        halves=widths[0],
        doubles=widths[1],
        integers=widths[2],
        guarded=sum([p.guarded for p in parts]),
    )


_NOTHING: Final = (0, 0)


def _size_of(part: Facts) -> int:
    return part.elements + part.rows


def _work_of(
    parts: Sequence[Facts], space: int, rows: int, sweeps: int
) -> tuple[tuple[int, int, int, int], int]:
    """Operations by class, and how many of them are done again: what is small and moves into a
    larger space, and what feeds a reduction that goes over its columns several times."""
    simple = divisions = exponentials = powers = again = 0
    for part in parts:
        a, b, c, d = part.work
        times = sweeps if not part.rows else 1
        if not rows and 0 < part.elements < space:
            times = space // part.elements
        simple += times * a
        divisions += times * b
        exponentials += times * c
        powers += times * d
        if times > 1:
            again += (times - 1) * (a + 4 * b + 8 * c + 16 * d)
    return (simple, divisions, exponentials, powers), again


def _live(last: Mapping[int, int], count: int) -> int:
    """About how many values are alive at once: all but those that the first half has done with."""
    half = count // 2
    return sum([place >= half for place in last.values()])
