"""Random graphs of all families of operators, with good references in float64.

`wide_graphs()` draws them; `drawn_inputs.inputs_for(graph)` makes what they run on. `strategies`
has smaller ones, for tests that do not compile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from drawn_indexing import INDEXING
from drawn_inputs import OTHERS
from drawn_pointwise import INTEGRAL_DTYPES, POINTWISE, binary, scalar, unary
from drawn_reductions import REDUCTIONS, matmul, reduce
from drawn_sketch import Sketch
from drawn_types import SYMBOLS
from drawn_views import VIEWS
from rewright.ir.dims import Dim, Size, evaluate, hint, product, symbols_of
from rewright.ir.graph import Graph, Input, Node, Value
from rewright.ir.types import TensorType, contiguous_strides

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
Step = Callable[[Sketch], None]
FAMILIES: Final[Mapping[str, Mapping[str, Step]]] = {
    "pointwise": POINTWISE,
    "views": VIEWS,
    "indexing": INDEXING,
    "reductions": REDUCTIONS,
}
_OFTEN: Final = (unary, unary, binary, binary, scalar, reduce, matmul)
# Some in each graph, so that chains of every length come about.
_LENGTHS: Final = (0, 4, 8, 12, 16, 20)
MOST_STEPS: Final = 25
_SIZES: Final = (4, 1, 2, 3, 5, 8, 16, 17, 33, 40, 64, 100, 257, 0)
_KINDS: Final = ("x", "x", "x", "i", "b", "k", "s")


@st.composite
def wide_graphs(
    draw: DrawFn,
    *,
    symbolic: bool | None = None,
    off: Callable[[Node], bool] = lambda node: False,
    families: Sequence[str] = tuple(FAMILIES),
) -> Graph:
    """A well-typed graph of up to about 25 nodes.

    `symbolic`: some sizes are symbols (None: draw whether); `off`: which nodes not to draw.
    """
    dtypes = draw(
        st.sampled_from([(torch.float32,), FLOATS, *((d, torch.float32) for d in FLOATS)])
    )
    with_symbols = draw(st.booleans()) if symbolic is None else symbolic
    sketch = Sketch(draw, dtypes, with_symbols, off)
    _draw_inputs(sketch)
    steps = [step for family in families for step in FAMILIES[family].values()]
    steps += [step for step in _OFTEN if step in steps]
    least = draw(st.sampled_from(_LENGTHS))
    draw(st.lists(_step(sketch, steps), min_size=least, max_size=MOST_STEPS))
    return _finished(sketch)


@st.composite
def _step(draw: DrawFn, sketch: Sketch, steps: Sequence[Step]) -> None:
    """One step of a list: a shrinker knows how to leave out some of those."""
    sketch.draw = draw
    draw(st.sampled_from(steps))(sketch)


# --- inputs -------------------------------------------------------------------------------------


def _draw_inputs(sketch: Sketch) -> None:
    draw = sketch.draw
    first = draw(_shapes(sketch.symbolic, rank=draw(st.sampled_from((1, 2, 2, 3, 0)))))
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.sampled_from([first, first, first[1:], first[-1:], None]))
        shape = draw(_shapes(sketch.symbolic)) if shape is None else shape
        kind = draw(st.sampled_from(_KINDS))
        dtype = _dtype(sketch, kind)
        type = TensorType(dtype, shape, _strides(sketch, shape))
        sketch.input(kind, type, off=draw(st.booleans()))


def _shapes(symbolic: bool, rank: int = 0) -> SearchStrategy[tuple[Size, ...]]:
    """Shapes of at least `rank` dimensions."""
    sizes: SearchStrategy[Size] = st.sampled_from(_SIZES)
    if symbolic:
        sizes = st.sampled_from([Dim.of(s) for s in SYMBOLS]) | sizes
    shapes = st.lists(sizes, min_size=rank, max_size=4).map(tuple)
    return shapes.filter(_is_small)


def _is_small(shape: tuple[Size, ...]) -> bool:
    """Where the graph is traced, and where it runs."""
    count = product(shape)
    return hint(count) <= 2048 and all(evaluate(count, sizes) <= 2**20 for sizes in OTHERS)


def _dtype(sketch: Sketch, kind: str) -> torch.dtype:
    if kind in "xs":
        return sketch.draw(st.sampled_from(list(sketch.dtypes)))
    if kind == "b":
        return torch.bool
    wide: Sequence[torch.dtype] = INTEGRAL_DTYPES[:2]
    return sketch.draw(st.sampled_from(INTEGRAL_DTYPES if kind == "i" else wide))


def _strides(sketch: Sketch, shape: tuple[Size, ...]) -> tuple[Size, ...]:
    """Contiguous; in another order; with gaps between rows; expanded; of windows that overlap."""
    draw = sketch.draw
    rank = len(shape)
    plain = contiguous_strides(shape)
    how = draw(st.sampled_from(["plain", "plain", "order", "gaps", "expanded", "windows"]))
    match how if rank else "plain":
        case "order":
            order = draw(st.permutations(range(rank)))
            moved = contiguous_strides(tuple(shape[d] for d in order))
            return tuple(moved[order.index(d)] for d in range(rank))
        case "gaps":
            first = draw(st.integers(0, rank - 1))  # the innermost dimension that has gaps
            return tuple(s * 2 if d <= first else s for d, s in enumerate(plain))
        case "expanded":
            axis = draw(st.integers(0, rank - 1))
            return tuple(0 if d == axis else stride for d, stride in enumerate(plain))
        case "windows":
            return tuple(1 for _ in shape)
    return plain


# --- ends ---------------------------------------------------------------------------------------


def _finished(sketch: Sketch) -> Graph:
    """Return most of what nobody reads; and some others, inputs and doubles too.

    Shrinking drops outputs one by one, and with them all that only they need.
    """
    draw = sketch.draw
    read = {v for node in sketch.nodes for v in node.operands}
    results = [v for node in sketch.nodes for v in node.results]
    ends = [v for v in results if v not in read and draw(st.integers(0, 4))]
    last = results[-1:] or sketch.inputs[:1]
    more = draw(st.lists(st.sampled_from(list(sketch.held)), max_size=3))
    updates = _updates(sketch, results)
    written = {target for target, _ in updates}
    inputs = [Input(v, mutable=v in written) for v in sketch.inputs]
    graph = Graph("drawn", tuple(inputs), tuple(sketch.nodes), (*(ends or last), *more), updates)
    return graph if draw(st.integers(0, 3)) == 3 else tidy(graph)


def tidy(graph: Graph) -> Graph:
    """Without what no output needs."""
    needed: set[object] = {*graph.outputs, *(v for u in graph.updates for v in u)}
    nodes = []
    for node in reversed(graph.nodes):
        if any(v in needed for v in node.results):
            nodes.append(node)
            needed |= set(node.operands)
    # An input may also be needed for its size.
    sizes = set(Graph("", (), tuple(nodes), graph.outputs).symbols)
    for input in graph.inputs:
        shown = set(symbols_of(input.value.tensor.shape))
        if input.value in needed or sizes & shown:
            needed.add(input.value)
            sizes -= shown
    kept = tuple(i for i in graph.inputs if i.value in needed)
    return replace(graph, inputs=kept, nodes=tuple(reversed(nodes)))


def _updates(sketch: Sketch, results: Sequence[Value]) -> tuple[tuple[Value, Value], ...]:
    """New contents for some inputs, each of whose elements has memory of its own."""
    sources = [*results, *sketch.inputs]
    updates = []
    for target in sketch.inputs:
        fit = [v for v in sources if v != target and _alike(v.tensor, target.tensor)]
        if fit and _is_apart(target.tensor) and sketch.draw(st.integers(0, 3)) == 3:
            updates.append((target, sketch.draw(st.sampled_from(fit))))
    return tuple(updates)


def _alike(one: TensorType, other: TensorType) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape


def _is_apart(type: TensorType) -> bool:
    """Whether no two elements share memory: their places are as many as they are."""
    axes = sorted(zip(type.layout, type.shape, strict=True), key=lambda axis: hint(axis[0]))
    reached = 0
    for stride, size in axes:
        if hint(size) > 1 and hint(stride) <= reached:
            return False
        reached += max(hint(size) - 1, 0) * hint(stride)
    return True
