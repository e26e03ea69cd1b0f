"""Convolutions in kernels of ours: numbers against float64, over shapes, windows and machines."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_kernels import nest_of
from rewright.calibrate.host import host
from rewright.calibrate.programs import executables
from rewright.codegen.cpp import build, emit
from rewright.costmodel import Roofline
from rewright.ir import Graph
from rewright.ir.loops import FILTER_STEP, ConvolutionNest, lower_convolution
from rewright.ir.loops.show import show_nest
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.ir.target import Target
from rewright.ir.types import channels_last_strides
from rewright.passes import Convolutions, Env
from run_case import LastWins, NoTools

FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "relu": torch.relu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
}


@dataclass(frozen=True)
class Shape:
    """Images, filters, what these see, strides, margins; `deep`: a filter for each channel;
    `dynamic`: the batch is a symbol, of which `batch` is the hint."""

    batch: int
    channels: int
    height: int
    width: int
    filters: int
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    deep: bool = False
    bias: bool = True
    summed: bool = False
    function: str = "none"
    dynamic: bool = False

    def graph(self) -> Graph:
        """A call of oneDNN's on a frozen weight."""
        n, c, h, w = self.batch, self.channels, self.height, self.width
        groups = c if self.deep else 1
        weight = f"f32[{self.filters}, {c // groups}, {self.window[0]}, {self.window[1]}]"
        rows, columns = (
            (size + 2 * margin - seen) // step + 1
            for size, margin, seen, step in zip(
                (h, w), self.padding, self.window, self.stride, strict=True
            )
        )
        batch = "B0" if self.dynamic else str(n)
        result = _image(batch, self.filters, rows, columns)
        how = f"{list(self.padding)}, {list(self.stride)}, [1, 1], {groups}"
        pack = f"%d, {how}, [{n}, {c}, {h}, {w}]"
        variant = '"none"' if self.function == "gelu" else '""'
        tail = f'"{self.function}", [], {variant}'
        operands, name = f"%x, %p, {'%b' if self.bias else 'none'}", "default"
        if self.summed:
            operands, name = f"%x, %z, {operands[4:]}", "binary"
            tail = f'"add", none, {tail if self.function != "none" else "none, [], " + variant}'
        return parse(
            f"""
            graph f(%x: {_image(batch, c, h, w)}, %w: {weight} param, %b: f32[{self.filters}],
                    %z: {result}) {f"where B0 in [0, 64] hint {n} " if self.dynamic else ""}{{
              %p = rw.frozen(%w) body(%w: {weight}) {{
                %d = aten.to_mkldnn.default(%w) : {weight}
                %p = aten.mkldnn_reorder_conv2d_weight.default({pack}) : {weight}
                return %p
              }} : {weight}
              %y = mkldnn._convolution_pointwise.{name}({operands}, {how}, {tail}) : {result}
              return %y
            }}
            """
        )

    def inputs(self, batch: int) -> list[Tensor]:
        return _inputs(self.graph(), batch)

    def wanted(self, x: Tensor, w: Tensor, b: Tensor, z: Tensor) -> Tensor:
        groups = self.channels if self.deep else 1
        bias = b if self.bias else None
        y = F.conv2d(x, w, bias, self.stride, self.padding, groups=groups)
        return FUNCTIONS[self.function](y + z if self.summed else y)


def _image(batch: str, *sizes: int) -> str:
    strides = list(channels_last_strides((1, *sizes)))
    return f"f32[{batch}, {', '.join(map(str, sizes))}] strides {strides}"


SHAPES = [
    Shape(2, 16, 7, 7, 32),
    Shape(1, 5, 3, 4, 37, function="hardswish"),
    Shape(2, 24, 9, 5, 72, summed=True, function="relu"),
    Shape(2, 40, 1, 1, 10, function="relu"),
    Shape(3, 300, 5, 6, 48, bias=False),
    Shape(2, 20, 9, 9, 33, stride=(2, 2), summed=True),
    Shape(2, 3, 31, 30, 17, (7, 7), (2, 2), (3, 3), function="relu"),
    Shape(2, 12, 8, 17, 64, (3, 3), (1, 1), (1, 1), summed=True, function="gelu"),
    Shape(1, 8, 6, 9, 19, (1, 3), (1, 2), (0, 1)),
    Shape(1, 8, 9, 6, 19, (3, 2), (2, 1)),
    Shape(2, 512, 4, 4, 160, (3, 3), (1, 1), (1, 1)),
    Shape(2, 33, 11, 13, 33, (3, 3), (1, 1), (1, 1), deep=True, function="hardswish"),
    Shape(1, 64, 12, 9, 64, (5, 5), (2, 2), (2, 2), deep=True, bias=False),
    Shape(2, 16, 6, 6, 16, (3, 3), (1, 1), (0, 0), deep=True, summed=True),
    Shape(1, 48, 5, 5, 48, (1, 1), deep=True, function="relu"),
    Shape(2, 64, 9, 9, 64, (1, 1), (2, 2), deep=True),
]
# Those whose batch is a symbol.
DYNAMIC = [
    Shape(2, 32, 17, 17, 64, stride=(2, 2), dynamic=True),
    Shape(2, 24, 5, 5, 40, function="relu", dynamic=True),
    Shape(2, 16, 9, 9, 32, (3, 3), (2, 2), (1, 1), summed=True, dynamic=True),
    Shape(2, 512, 4, 4, 160, (3, 3), (1, 1), (1, 1), dynamic=True),
    Shape(2, 33, 9, 9, 33, (3, 3), (1, 1), (1, 1), deep=True, dynamic=True),
    Shape(2, 16, 9, 9, 16, (1, 1), (2, 2), deep=True, dynamic=True),
]


def ours(graph: Graph) -> Graph:
    target = host()
    made = Convolutions().run(graph, Env(Roofline(target), target, LastWins()))
    assert [n.op.name for n in made.nodes] == ["rw.frozen", "rw.convolution"]
    return made


@pytest.mark.parametrize("isa", ["", "avx2"])
def test_numbers(isa: str) -> None:
    if isa and host().isa not in ("avx2", "avx512"):
        pytest.skip("this machine has no AVX2")
    graphs = [ours(shape.graph()) for shape in SHAPES]
    target = Target.parse(f"cpu:{isa}") if isa else host()
    programs = executables(graphs, Env(Roofline(target), target))
    for shape, graph, program in zip(SHAPES, graphs, programs, strict=True):
        inputs = _inputs(graph)
        exact = shape.wanted(*(x.double() for x in inputs))
        (found,) = program(list(inputs))
        off, eagers = (relative_l2(y, exact) for y in (found, shape.wanted(*inputs)))
        assert off <= 2 * eagers + 1e-6, (shape, off, eagers)


def test_batches_that_are_not_known_and_that_nothing_else_is_written() -> None:
    for shape, kernel in zip(DYNAMIC, kernels(DYNAMIC), strict=True):
        for batch in (2, 0, 1, 3, 7):
            inputs = shape.inputs(batch)
            wanted = shape.wanted(*(x.double() for x in inputs))
            torch.testing.assert_close(kernel(*inputs).double(), wanted, rtol=1e-4, atol=1e-4)


def test_long_sums_of_positive_numbers_are_as_exact_as_atens() -> None:
    shape = Shape(1, 2048, 4, 4, 16, (3, 3), (1, 1), (1, 1))
    graph = ours(shape.graph())
    (program,) = executables([graph], Env(Roofline(host()), host()))
    inputs = [x.abs() for x in _inputs(graph)]
    exact = shape.wanted(*(x.double() for x in inputs))
    (found,) = program(list(inputs))
    off, eagers = (relative_l2(y, exact) for y in (found, shape.wanted(*inputs)))
    assert off <= 2 * eagers + 1e-6 and off <= 5e-7, (off, eagers)


def relative_l2(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


MARGIN = 64  # numbers on either side of a result that a kernel must leave alone


def kernels(shapes: Sequence[Shape]) -> list[Callable[..., Tensor]]:
    """The kernels of `shapes`, of one library, called on storage of their own."""
    bodies = [ours(shape.graph()).nodes[-1].graph("body") for shape in shapes]
    nests = [lower_convolution(body, f"k{k}") for k, body in enumerate(bodies)]
    library = build(emit(nests, ("B0",)))
    return [partial(_called, library.function(nest.name), nest) for nest in nests]


def _called(
    function: Callable[..., None], nest: ConvolutionNest, x: Tensor, w: Tensor, b: Tensor, z: Tensor
) -> Tensor:
    padded = F.pad(w, (*(0,) * 7, -len(w) % FILTER_STEP)).unflatten(0, (-1, FILTER_STEP))
    packed = padded.permute(0, 3, 4, 2, 1).contiguous()
    memory = torch.full((z.numel() + 2 * MARGIN,), float("nan"))
    y = memory[MARGIN:].as_strided(z.shape, z.stride())
    given = {"x": x, "packed": packed, "bias": b, "other": z}
    tensors = [*(given[buffer.name] for buffer in nest.inputs), y]
    table = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
    function(table, (ctypes.c_int64 * 1)(len(x)))
    assert memory[:MARGIN].isnan().all() and memory[MARGIN + z.numel() :].isnan().all(), nest
    return y


def _inputs(graph: Graph, batch: int = 0) -> list[Tensor]:
    torch.manual_seed(0)
    made = []
    for i in graph.inputs:
        sizes = [batch if str(s) == "B0" else int(str(s)) for s in i.value.tensor.shape]
        x = torch.randn(sizes)
        made.append(x.contiguous(memory_format=torch.channels_last) if len(sizes) == 4 else x)
    made[1] = made[1].contiguous()
    return made


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_are_the_same_however_the_work_is_cut(threads: int) -> None:
    shapes = [SHAPES[7], SHAPES[10], SHAPES[11]]
    graphs = [ours(shape.graph()) for shape in shapes]
    programs = executables(graphs, Env(Roofline(host()), host()))
    before = torch.get_num_threads()
    for graph, program in zip(graphs, programs, strict=True):
        inputs = _inputs(graph)
        try:
            torch.set_num_threads(1)
            (alone,) = program(list(inputs))
            alone = alone.clone()
            torch.set_num_threads(threads)
            (found,) = program(list(inputs))
        finally:
            torch.set_num_threads(before)
        assert torch.equal(alone, found)


@pytest.mark.parametrize("deep", [True, False])
def test_nan_stays_where_a_filter_sees_it(deep: bool) -> None:
    shape = Shape(1, 16, 5, 5, 16, (3, 3), (1, 1), (1, 1), deep=deep)
    graph = ours(shape.graph())
    (program,) = executables([graph], Env(Roofline(host()), host()))
    inputs = _inputs(graph)
    inputs[0][0, 3, 0, 0] = float("nan")
    (found,) = program(list(inputs))
    assert torch.equal(found.isnan(), shape.wanted(*inputs).isnan())


class Loses(NoTools):
    """Kernels of ours take twice as long."""

    def race(self, calls: Sequence[Graph]) -> list[float]:
        return [1.0, 2.0]


def test_what_is_no_quicker_stays_with_onednn() -> None:
    graph = SHAPES[0].graph()
    env = Env(Roofline(host()), host(), Loses())
    assert Convolutions().run(graph, env) is graph
    assert "a kernel of ours takes 2 s, oneDNN 1 s" in str(env.log.about("%y")[0])
    assert Convolutions().run(graph, Env(Roofline(host()), host(), NoTools())) is graph


def test_a_nest_says_what_it_computes() -> None:
    node = ours(SHAPES[7].graph()).nodes[-1]
    text = show_nest(lower_convolution(node.graph("body"), "k0"))
    assert "filters see 3 by 3 of all channels, 1 by 1 apart, margins 1 by 1" in text
    assert re.search(r"give %t\d+", text)


def test_convolutions_and_attention_are_built_in_one_library() -> None:
    convolution = ours(SHAPES[0].graph()).nodes[-1].graph("body")
    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    attention = nest_of(lambda scores, i, j: scores, (q, k, v), "k1")
    library = build(emit([lower_convolution(convolution, "k0"), attention]))
    assert all(callable(library.function(name)) for name in ("k0", "k1"))


def test_text_round_trip() -> None:
    made = ours(SHAPES[11].graph())
    assert parse(show(made)) == made
