"""Random graphs for hypothesis: well typed, of ATen operators that run, small.

`graphs()` draws them; `values_for(graph)` makes inputs to run one on; `literals()` draws any
argument that the text form can hold. Types come from running each operator, so that a drawn graph
says of dtypes, sizes and strides what torch does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from drawn_types import SYMBOLS, result_types
from rewright.ir.constant import Constant
from rewright.ir.dims import Dim, Size, hint
from rewright.ir.graph import Arg, Graph, Input, Node, Value
from rewright.ir.ops import op
from rewright.ir.types import DTYPES, TensorType

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_UNARY: Final = ("relu", "neg", "sigmoid", "tanh", "abs", "sin", "silu", "gelu", "exp")
_BINARY: Final = ("add.Tensor", "sub.Tensor", "mul.Tensor", "maximum.default", "minimum.default")
_COMPARE: Final = ("lt.Tensor", "ge.Tensor", "eq.Tensor")
_REDUCE: Final = ("sum.dim_IntList", "mean.dim", "amax.default")


@dataclass
class Sketch:
    """A graph being drawn."""

    draw: DrawFn
    dtypes: Sequence[torch.dtype]
    inputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    prefix: str = ""

    @property
    def values(self) -> list[Value]:
        return [*self.inputs, *(v for node in self.nodes for v in node.results)]

    def pick(self, *, floating: bool = True, rank: int = 0) -> Value | None:
        """Some value with at least `rank` dimensions; None when there is none."""
        fit = [
            v
            for v in self.values
            if v.tensor.rank >= rank and (v.tensor.dtype.is_floating_point or not floating)
        ]
        return self.draw(st.sampled_from(fit)) if fit else None

    def axis(self, value: Value) -> int:
        return self.draw(st.integers(0, value.tensor.rank - 1))

    def add(self, name: str, *args: Arg, **kwargs: Arg) -> list[Value]:
        """Append a call when torch accepts it; its results."""
        keywords = tuple(sorted(kwargs.items()))
        types = result_types(name, args, keywords)
        start = len(self.values)
        results = [Value(f"{self.prefix}v{start + i}", t) for i, t in enumerate(types or ())]
        if results:
            self.nodes.append(Node(op(name), args, keywords, tuple(results)))
        return results


@st.composite
def graphs(
    draw: DrawFn,
    *,
    max_nodes: int = 8,
    dtypes: Sequence[torch.dtype] = FLOATS,
    symbolic: bool | None = None,
    regions: bool = True,
) -> Graph:
    """A well-typed graph of a few inputs and up to about `max_nodes` nodes.

    `symbolic`: some sizes are symbols (None: draw whether); `regions`: some nodes are `rw.fused`.
    """
    sketch = Sketch(draw, dtypes)
    with_symbols = draw(st.booleans()) if symbolic is None else symbolic
    first = draw(_shapes(with_symbols))
    for index in range(draw(st.integers(1, 3))):
        shape = first if draw(st.booleans()) else draw(_shapes(with_symbols))
        sketch.inputs.append(Value(f"x{index}", draw(_input_types(shape, dtypes))))
    steps = _STEPS if regions else _STEPS[:-1]
    for _ in range(draw(st.integers(0, max_nodes))):
        draw(st.sampled_from(steps))(sketch)
    return _finish(sketch)


def values_for(graph: Graph, *, seed: int = 0) -> list[torch.Tensor]:
    """Inputs to run `graph` on, at the hints of its symbols, with the strides of its signature."""
    generator = torch.Generator().manual_seed(seed)
    return [_random(i.value.tensor, generator) for i in graph.inputs]


def literals() -> SearchStrategy[Arg]:
    """Any argument but values and constants. NaN is `math.nan`, as everywhere in the IR."""
    numbers = st.floats(allow_nan=False) | st.just(math.nan)
    atoms: SearchStrategy[Arg] = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        numbers,
        st.complex_numbers(allow_nan=False),
        st.text(max_size=8),
        st.sampled_from(list(DTYPES.values())),
        st.sampled_from([torch.device("cpu"), torch.device("cuda", 1), torch.device("meta")]),
        st.sampled_from([torch.strided, torch.sparse_coo]),
        st.sampled_from([torch.preserve_format, torch.channels_last]),
        sizes(),
    )
    return st.recursive(atoms, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


def sizes() -> SearchStrategy[Size]:
    """Size expressions over `SYMBOLS`: any that arithmetic on sizes makes."""
    atoms: SearchStrategy[Size] = st.sampled_from([Dim.of(s) for s in SYMBOLS]) | st.integers(1, 9)
    return st.recursive(
        atoms,
        lambda inner: st.builds(_arithmetic, st.sampled_from("+-*/%"), inner, inner),
        max_leaves=5,
    )


def _arithmetic(sign: str, a: Size, b: Size) -> Size:
    if sign in "+-*":
        return a + b if sign == "+" else a - b if sign == "-" else a * b
    if isinstance(a, int) or not isinstance(b, int) or b <= 0:
        return a
    return a // b if sign == "/" else a % b


# --- steps --------------------------------------------------------------------------------------


def _unary(sketch: Sketch) -> None:
    value = sketch.pick()
    if value is None:
        return
    name = sketch.draw(st.sampled_from(_UNARY))
    extra = {"approximate": "tanh"} if name == "gelu" and sketch.draw(st.booleans()) else {}
    sketch.add(f"aten.{name}.default", value, **extra)


def _binary(sketch: Sketch) -> None:
    a, b = sketch.pick(), sketch.pick()
    if a is None or b is None:
        return
    number = sketch.draw(st.sampled_from([2, 0.5, -1.5]))
    names = _BINARY[:3] if sketch.draw(st.booleans()) else _BINARY + _COMPARE
    name = sketch.draw(st.sampled_from(names))
    scalar = name in _BINARY[:3] and sketch.draw(st.booleans())
    sketch.add(f"aten.{name}", a, number if scalar else b)


def _choose(sketch: Sketch) -> None:
    masks = [v for v in sketch.values if v.tensor.dtype == torch.bool]
    a, b = sketch.pick(), sketch.pick()
    if masks and a is not None and b is not None:
        sketch.add("aten.where.self", sketch.draw(st.sampled_from(masks)), a, b)


def _cast(sketch: Sketch) -> None:
    value = sketch.pick(floating=False)
    if value is not None:
        dtype = sketch.draw(st.sampled_from(list(sketch.dtypes)))
        sketch.add("aten._to_copy.default", value, dtype=dtype)


def _reduce(sketch: Sketch) -> None:
    value = sketch.pick(rank=1)
    if value is None:
        return
    axis, keep = sketch.axis(value), sketch.draw(st.booleans())
    sketch.add(f"aten.{sketch.draw(st.sampled_from(_REDUCE))}", value, (axis,), keep)


def _normalize(sketch: Sketch) -> None:
    value = sketch.pick(rank=1)
    if value is None:
        return
    if sketch.draw(st.booleans()):
        sketch.add("aten._softmax.default", value, sketch.axis(value), False)
    elif isinstance(value.tensor.shape[-1], int):
        sizes = value.tensor.shape[-1:]
        sketch.add("aten.native_layer_norm.default", value, sizes, None, None, 1e-5)


def _view(sketch: Sketch) -> None:
    value = sketch.pick(floating=False, rank=1)
    if value is None:
        return
    rank, shape = value.tensor.rank, value.tensor.shape
    match sketch.draw(st.sampled_from(["permute", "unsqueeze", "flatten", "slice", "expand"])):
        case "permute":
            order = sketch.draw(st.permutations(range(rank)))
            sketch.add("aten.permute.default", value, tuple(order))
        case "unsqueeze":
            sketch.add("aten.unsqueeze.default", value, sketch.draw(st.integers(0, rank)))
        case "flatten":
            sketch.add("aten.view.default", value, (value.tensor.numel,))
        case "slice":
            sketch.add("aten.slice.Tensor", value, sketch.axis(value), 1)
        case _:
            wider = tuple(3 if size == 1 else size for size in shape)
            sketch.add("aten.expand.default", value, wider)


def _contract(sketch: Sketch) -> None:
    value = sketch.pick(rank=2)
    if value is None:
        return
    shape = value.tensor.shape
    weight = Value(f"w{len(sketch.values)}", TensorType(value.tensor.dtype, (4, shape[-1])))
    if isinstance(shape[-1], int):
        sketch.inputs.append(weight)
        sketch.add("aten.linear.default", value, weight)


def _create(sketch: Sketch) -> None:
    value = sketch.pick()
    if value is None:
        return
    if sketch.draw(st.booleans()):
        dtype = value.tensor.dtype
        sketch.add("aten.full.default", value.tensor.shape, 1.5, dtype=dtype)
        return
    numbers = st.floats(-4, 4, width=16)
    data = torch.tensor(sketch.draw(st.lists(numbers, min_size=1, max_size=3)))
    type = TensorType(data.dtype, tuple(data.shape))
    result = Value(f"{sketch.prefix}v{len(sketch.values)}", type)
    sketch.nodes.append(Node(op("rw.constant"), (), (("value", Constant.of(data)),), (result,)))


def _fuse(sketch: Sketch) -> None:
    """A region of pointwise operators over values already there."""
    count = sketch.draw(st.integers(1, 2))
    operands = [v for v in (sketch.pick() for _ in range(count)) if v is not None]
    inner = Sketch(sketch.draw, sketch.dtypes, prefix="t")
    inner.inputs = [Value(f"p{i}", v.type) for i, v in enumerate(operands)]
    for _ in range(sketch.draw(st.integers(1, 3))):
        sketch.draw(st.sampled_from([_unary, _binary]))(inner)
    if not inner.nodes:
        return
    returned = [inner.nodes[-1].result]
    body = Graph("body", tuple(map(Input, inner.inputs)), tuple(inner.nodes), tuple(returned))
    start = len(sketch.values)
    results = tuple(Value(f"{sketch.prefix}v{start + i}", v.type) for i, v in enumerate(returned))
    sketch.nodes.append(Node(op("rw.fused"), tuple(operands), (), results, (("body", body),)))


# Regions come last, so that they can be left out.
_STEPS: Final = (
    *(_unary, _unary, _binary, _binary, _choose, _cast),
    *(_reduce, _normalize, _view, _view, _contract, _create, _fuse),
)


# --- ends ---------------------------------------------------------------------------------------


def _shapes(symbolic: bool) -> SearchStrategy[tuple[Size, ...]]:
    numbers: SearchStrategy[Size] = st.sampled_from([1, 2, 3, 4])
    if symbolic:
        numbers = numbers | st.sampled_from([Dim.of(s) for s in SYMBOLS])
    return st.lists(numbers, max_size=3).map(tuple)


@st.composite
def _input_types(
    draw: DrawFn, shape: tuple[Size, ...], dtypes: Sequence[torch.dtype]
) -> TensorType:
    """Contiguous, or contiguous in another order of the dimensions."""
    dtype = draw(st.sampled_from(list(dtypes)))
    order = draw(st.permutations(range(len(shape)))) if draw(st.booleans()) else range(len(shape))
    strides: list[Size] = [1] * len(shape)
    step: Size = 1
    for axis in reversed(order):
        strides[axis] = step
        step = step * shape[axis]
    return TensorType(dtype, shape, tuple(strides))


def _finish(sketch: Sketch) -> Graph:
    """Return the last value and some others, and write some into a mutable input that fits."""
    results = [v for node in sketch.nodes for v in node.results]
    others = st.lists(st.sampled_from(results), max_size=2, unique=True) if results else None
    last = results[-1:] or sketch.inputs[:1]
    outputs = dict.fromkeys((*last, *(sketch.draw(others) if others is not None else [])))
    pairs = [(i, v) for i, v in itertools.product(sketch.inputs, results) if i.type == v.type]
    updates: tuple[tuple[Value, Value], ...] = ()
    if sketch.draw(st.booleans()) and pairs:
        updates = (sketch.draw(st.sampled_from(pairs)),)
    written = {target for target, _ in updates}
    inputs = [
        Input(v, "param" if v.name.startswith("w") else "input", v in written)
        for v in sketch.inputs
    ]
    return Graph("drawn", tuple(inputs), tuple(sketch.nodes), tuple(outputs), updates)


def _random(type: TensorType, generator: torch.Generator) -> torch.Tensor:
    elements = hint(type.storage_elements)
    data = torch.randn(elements, generator=generator).to(type.dtype)
    shape, strides = ([hint(size) for size in sizes] for sizes in (type.shape, type.layout))
    return data.as_strided(shape, strides)
