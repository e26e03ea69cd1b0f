"""Lowering regions to loop nests: what a nest computes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from loop_cases import CASES, DYNAMIC, ORDERS, REFUSED, aten, floats
from region_graphs import region_graphs
from regions import assert_close, check_region, region_of, run_region
from rewright.ir import Graph, Input, Kind, UnsupportedError, Value, hint, product
from rewright.ir.expand import expand
from rewright.ir.interpret import interpret
from rewright.ir.loops import Nest, Reduce, Store, lower, order_of, reduced_dims
from rewright.ir.parse import parse
from strategies import graphs, values_for


@pytest.mark.parametrize(("function", "inputs"), CASES.values(), ids=CASES.keys())
def test_a_nest_computes_what_the_interpreter_does(
    function: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> None:
    check_region(region_of(function, *inputs), inputs)


# --- sizes known only at run time ---------------------------------------------------------------


@pytest.mark.parametrize(("function", "seen", "others"), DYNAMIC.values(), ids=DYNAMIC.keys())
def test_one_nest_serves_every_size(
    function: Callable[..., Any], seen: tuple[tuple[int, ...], ...], others: tuple[Any, ...]
) -> None:
    tried = [tuple(floats(*shape) for shape in shapes) for shapes in (seen, *others)]
    region = region_of(function, *tried[0], dynamic=True)
    assert region.symbols
    check_region(region, *tried)


# --- rounding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_rounded_at_every_node(dtype: torch.dtype) -> None:
    """The same bits as eager, node by node; a chain in one piece would have others."""
    x, y = floats(64, 8).to(dtype), (floats(8) / 3).to(dtype)

    def chain(x: Tensor, y: Tensor) -> Tensor:
        return ((x * 1.7 + y) * y - x).relu() / 3 + (x > y)

    region = region_of(chain, x, y)
    (found,) = run_region(region, lower(region, "kernel"), (x, y))
    assert torch.equal(found, chain(x, y))
    assert not torch.equal(found, chain(x.double(), y.double()).to(dtype))


def test_a_reduction_of_halves_is_rounded_once() -> None:
    x = floats(4, 64).bfloat16()
    region = region_of(lambda x: (x * 1.7).sum(1), x)
    (found,) = run_region(region, lower(region, "kernel"), (x,))
    assert torch.equal(found, (x * 1.7).double().sum(1).bfloat16())


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "inputs", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_say_why(
    function: Callable[..., Any], inputs: tuple[Tensor, ...], why: str
) -> None:
    with pytest.raises(UnsupportedError) as refused:
        lower(region_of(function, *inputs), "kernel")
    assert why in refused.value.message


def test_a_start_of_unknown_sign_is_refused() -> None:
    """Torch counts a negative start from the end, and moves it into the dimension."""
    region = parse(
        """graph r(%x: f32[B0, 4]) where B0 in [2, inf] hint 8 {
          %a = aten.slice.Tensor(%x, 0, -5, 9223372036854775807) : f32[5, 4]
          %b = aten.relu.default(%a) : f32[5, 4]
          return %b
        }"""
    )
    with pytest.raises(UnsupportedError, match="the start of a slice may be negative"):
        lower(region, "kernel")


def test_numbers_known_only_at_run_time_are_refused() -> None:
    region = parse(
        """graph r(%x: f32[4], %s: int) {
          %a = aten.arange.start(%s, 10) : i64[4]
          %b = aten.add.Tensor(%x, %a) : f32[4]
          return %b
        }"""
    )
    with pytest.raises(UnsupportedError, match="known only at run time"):
        lower(region, "kernel")


# --- form ---------------------------------------------------------------------------------------


def test_neighbouring_axes_become_one_loop() -> None:
    region = region_of(lambda x, y: x * 2 + y, floats(2, 3, 4, 5), floats(4, 5))
    nest = lower(region, "kernel")
    assert [axis.size for axis in nest.rows] == [6, 20]
    region = region_of(lambda x: x.view(6, 4, 5).sum((1, 2)), floats(2, 3, 4, 5))
    nest = lower(region, "kernel")
    assert ([a.size for a in nest.rows], [a.size for a in nest.cols]) == ([6], [20])


def test_loops_follow_the_memory_of_the_output() -> None:
    x = floats(2, 3, 4, 4).to(memory_format=torch.channels_last)
    nest = lower(region_of(lambda x: x * 2, x), "kernel")
    assert [axis.size for axis in nest.rows] == [96]


def test_what_is_returned_twice_or_was_an_input_is_stored_all_the_same() -> None:
    x = floats(4)
    region = region_of(lambda x: x * 2, x)
    (double,) = region.outputs
    both = Graph("both", region.inputs, region.nodes, (double, region.inputs[0].value, double))
    nest = check_region(both, (x,))
    names = [b.name for b in (*nest.inputs, *nest.outputs)]
    assert len(set(names)) == len(names) == 4


def _origins(nest: Nest) -> dict[str, str]:
    """Scalars of a nest and the nodes that they belong to."""
    return {s.name: s.origin for s in nest.statements() if not isinstance(s, Store)}


def test_what_no_output_needs_is_left_out() -> None:
    x = floats(4, 5)
    region = region_of(lambda x: (x.sum(1), x * 2), x)
    nest = check_region(replace(region, outputs=region.outputs[1:]), (x,))
    assert nest.cols == () and len(list(nest.statements())) == 3
    with pytest.raises(UnsupportedError, match="without outputs"):
        lower(replace(region, outputs=()), "kernel")


def test_equal_scalars_are_computed_once() -> None:
    region = region_of(lambda x: (x * 2).exp() + (x * 2).exp() * (x * 2), floats(4))
    origins = list(_origins(lower(region, "kernel")).values())
    assert origins == ["x_1", "mul", "exp", "mul_3", "add"]


def test_costly_scalars_are_kept_for_later_stages() -> None:
    def kept(function: Callable[..., Any], *inputs: Tensor) -> list[str]:
        nest = lower(region_of(function, *inputs), "kernel")
        return [_origins(nest)[name] for name in nest.kept]

    x, long = floats(4, 64), floats(2, 4096)
    # Exponentials are; loading one number again is as cheap as loading what was made of it.
    assert kept(lambda x: x.exp().softmax(1), x) == ["exp", "_softmax"]
    assert kept(lambda x: (x * 2).var(1), x) == []
    # Loads of three numbers, three times over; of two only when they come from afar.
    norm = aten.native_layer_norm
    assert kept(lambda x, y: norm(x + y, [64], None, None, 1e-5)[0], x, x + 1) == []
    assert kept(lambda x, y, z: norm(x + y + z, [64], None, None, 1e-5)[0], x, x + 1, x[0]) == [
        "add_1"
    ]
    assert kept(lambda x, y: norm(x + y, [4096], None, None, 1e-5)[0], long, long + 1) == ["add"]
    assert kept(lambda x: norm(x * 2, [64], None, None, 1e-5)[0], x) == []
    # Rows of no length that is known, or whose lanes run across them, have no scratch array.
    assert kept(lambda x: x.exp().softmax(0), x) == []


@pytest.mark.parametrize(("function", "x", "style"), ORDERS.values(), ids=ORDERS.keys())
def test_the_order_of_a_sum_follows_the_memory_of_its_operand(
    function: Callable[[Tensor], Tensor], x: Tensor, style: str
) -> None:
    (node,) = region_of(function, x).nodes
    assert order_of(node).style == style


def test_the_order_of_a_sum_does_not_depend_on_its_region() -> None:
    """Alone, behind a producer and before a reader, with its dimension cut in parts."""
    x = floats(6, 96)
    alone = lower(region_of(lambda x: x.sum(1), x), "kernel")
    y = floats(24)
    among = lower(region_of(lambda x, y: ((x * 2).sum(1), x.view(6, 4, 24) * y), x, y), "kernel")
    assert alone.order == among.order
    assert [a.size for a in alone.cols] == [96] and [a.size for a in among.cols] == [4, 24]


# --- random regions -----------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    graphs(max_nodes=6, dtypes=(torch.float32, torch.float64))
    | region_graphs()
    | region_graphs().map(lambda graph: replace(graph, outputs=graph.outputs[:1]))
)
def test_a_random_region_is_lowered_right_or_refused(graph: Graph) -> None:
    region = expand(graph)
    region = Graph("region", region.inputs, region.nodes, tuple(_returned(region)))
    inputs = values_for(graph)
    try:
        nest = lower(region, "kernel")
    except UnsupportedError:
        return
    expected = interpret(region, inputs, dtype=torch.float64)
    assert_close(run_region(region, nest, inputs, wide=True), expected, rtol=1e-6)


def _returned(region: Graph) -> list[Value]:
    return [v for v in region.outputs if isinstance(v, Value)]


@settings(max_examples=50)
@given(graphs(max_nodes=4, symbolic=False))
def test_reductions_run_over_what_their_node_reduces(graph: Graph) -> None:
    for node in expand(graph).nodes:
        if node.op.kind is not Kind.REDUCTION:
            continue
        inputs = dict.fromkeys(node.operands)
        region = Graph("one", tuple(map(Input, inputs)), (node,), node.results[:1])
        nest = lower(region, "kernel")
        shape = node.operands[0].tensor.shape
        wanted = hint(product(shape[d] for d in reduced_dims(node)))
        assert hint(product(a.size for a in nest.cols)) == wanted
        assert any(isinstance(s, Reduce) for s in nest.statements()) == (wanted != 1)
