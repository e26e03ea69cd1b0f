"""Random graphs of what regions may hold: views, joins, pads, scatters, norms and reductions.

Denser in these than `strategies.graphs`, and of few sizes, so that nodes often fit together.
"""

from __future__ import annotations

from typing import Final

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from rewright.ir import Graph, Input, TensorType, Value, hint
from strategies import Sketch

SHAPES: Final = ((4,), (2, 4), (4, 4), (4, 2), (2, 2, 4), (4, 1), (1, 4), (2, 1, 4), (8,), (16,))
_WINDOWS: Final = ("slice", "select", "split", "unbind", "expand", "unsqueeze")
_FILLS: Final = ("pad", "tril", "triu", "slice", "backward", "arange")
_REDUCTIONS: Final = ("sum", "mean", "amax", "softmax", "norm", "var", "gradient")


@st.composite
def region_graphs(draw: DrawFn, *, max_nodes: int = 8) -> Graph:
    """A graph of up to `max_nodes` nodes that returns its last value and up to two others."""
    sketch = Sketch(draw, (torch.float32,))
    shapes = st.sampled_from(SHAPES)
    for number in range(draw(st.integers(1, 2))):
        sketch.inputs.append(Value(f"x{number}", TensorType(torch.float32, draw(shapes))))
    for _ in range(draw(st.integers(2, max_nodes))):
        draw(st.sampled_from(_STEPS))(sketch)
    made = [v for node in sketch.nodes for v in node.results if _is_full(v)]
    others = draw(st.lists(st.sampled_from(made), max_size=2, unique=True)) if made else []
    outputs = tuple(dict.fromkeys((*(made or sketch.inputs)[-1:], *others)))
    return Graph("drawn", tuple(map(Input, sketch.inputs)), tuple(sketch.nodes), outputs)


def _pick(sketch: Sketch, rank: int = 1) -> Value:
    """Some value that is not empty; the first input when none has so many dimensions."""
    fit = [v for v in sketch.values if v.tensor.rank >= rank and _is_full(v)]
    return sketch.draw(st.sampled_from(fit or sketch.inputs[:1]))


def _is_full(value: Value) -> bool:
    return value.tensor.dtype == torch.float32 and hint(value.tensor.numel) > 0


def _pointwise(sketch: Sketch) -> None:
    a, b = _pick(sketch, 0), _pick(sketch, 0)
    name = sketch.draw(st.sampled_from(("add.Tensor", "mul.Tensor", "maximum.default")))
    sketch.add(f"aten.{name}", a, b)


def _unary(sketch: Sketch) -> None:
    name = sketch.draw(st.sampled_from(("sin", "tanh", "neg", "clone")))
    sketch.add(f"aten.{name}.default", _pick(sketch, 0))


def _reshape(sketch: Sketch) -> None:
    value = _pick(sketch)
    shape = sketch.draw(st.sampled_from((*SHAPES, (2, 8), (2, 2, 2, 2), (-1, 2))))
    sketch.add("aten.view.default", value, shape)


def _permute(sketch: Sketch) -> None:
    value = _pick(sketch)
    order = sketch.draw(st.permutations(range(value.tensor.rank)))
    sketch.add("aten.permute.default", value, tuple(order))


def _window(sketch: Sketch) -> None:
    value = _pick(sketch)
    dim = sketch.axis(value)
    start, end = (sketch.draw(st.integers(-5, 5)) for _ in range(2))
    step = sketch.draw(st.sampled_from((1, 1, 2)))
    match sketch.draw(
        st.sampled_from(("slice", "select", "split", "unbind", "expand", "unsqueeze"))
    ):
        case "slice":
            sketch.add("aten.slice.Tensor", value, dim, start, end, step)
        case "select":
            sketch.add("aten.select.int", value, dim, start)
        case "split":
            sketch.add("aten.split.Tensor", value, abs(start) or 1, dim)
        case "unbind":
            sketch.add("aten.unbind.int", value, dim)
        case "expand":
            wider = tuple(4 if size == 1 else size for size in value.tensor.shape)
            sketch.add("aten.expand.default", value, wider)
        case _:
            sketch.add("aten.unsqueeze.default", value, dim)


def _join(sketch: Sketch) -> None:
    value = _pick(sketch)
    dim = sketch.axis(value)
    same = value.tensor.shape[:dim], value.tensor.shape[dim + 1 :]
    fit = [
        v
        for v in sketch.values
        if _is_full(v) and v.tensor.rank == value.tensor.rank
        if (v.tensor.shape[:dim], v.tensor.shape[dim + 1 :]) == same
    ]
    parts = sketch.draw(st.lists(st.sampled_from(fit), min_size=2, max_size=3))
    sketch.add("aten.cat.default", tuple(parts), dim)


def _fill(sketch: Sketch) -> None:
    value = _pick(sketch)
    dim, at = sketch.axis(value), sketch.draw(st.integers(-3, 2))
    match sketch.draw(st.sampled_from(_FILLS)):
        case "pad":
            pads = sketch.draw(st.lists(st.integers(-1, 2), min_size=2, max_size=2))
            sketch.add("aten.constant_pad_nd.default", value, tuple(pads), 1.5)
        case "tril" | "triu" as name:
            sketch.add(f"aten.{name}.default", value, at)
        case "slice":
            sketch.add("aten.slice_scatter.default", value, _pick(sketch), dim, at, at + 2)
        case "backward":
            shape = list(value.tensor.shape)
            shape[dim] = shape[dim] + 2
            whole = tuple(shape)
            sketch.add("aten.slice_backward.default", value, whole, dim, 1, shape[dim] - 1, 1)
        case _:
            counted = sketch.add("aten.arange.default", value.tensor.shape[-1])
            if counted:
                sketch.add("aten.add.Tensor", value, counted[0])


def _reduce(sketch: Sketch) -> None:
    value = _pick(sketch)
    dim, keep = sketch.axis(value), sketch.draw(st.booleans())
    match sketch.draw(
        st.sampled_from(("sum", "mean", "amax", "softmax", "norm", "var", "gradient"))
    ):
        case "sum" | "mean" | "amax" as name:
            overload = {"sum": "dim_IntList", "mean": "dim", "amax": "default"}[name]
            sketch.add(f"aten.{name}.{overload}", value, (dim,), keep)
        case "softmax":
            sketch.add("aten._softmax.default", value, dim, False)
        case "norm":
            shape = value.tensor.shape[dim:]
            sketch.add("aten.native_layer_norm.default", value, shape, None, None, 1e-5)
        case "var":
            sketch.add("aten.var_mean.correction", value, (dim,), correction=0, keepdim=keep)
        case _:
            sketch.add("aten._softmax_backward_data.default", value, value, dim, torch.float32)


_STEPS: Final = (
    *(_pointwise, _pointwise, _unary, _reshape, _permute),
    *(_window, _join, _fill, _reduce, _reduce),
)
