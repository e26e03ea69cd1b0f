"""The roofline model against roofs computed by hand, its laws, and estimates as values."""

from __future__ import annotations

import dataclasses
import importlib
import math
from random import Random
from textwrap import dedent

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rewright.costmodel import (
    NOTHING,
    CostModel,
    Estimate,
    Roofline,
    Sketcher,
    Timings,
    graph_estimate,
    show_bytes,
    show_flops,
    show_seconds,
    sketch_region,
    total,
)
from rewright.ir import Graph, Node, Value
from rewright.ir.loops import is_view, view_roots
from rewright.ir.parse import parse
from rewright.ir.target import Cache, Target, known_targets
from rewright.ir.work import is_call
from rewright.passes import Env
from rewright.passes.fuse import Fuse
from rewright.passes.memory import PlanMemory
from strategies import graphs

# One FLOP a nanosecond, memory of one byte a nanosecond, a cache four times as fast.
SIMPLE = dataclasses.replace(
    Target.parse("cpu:generic"),
    flops=((torch.float32, 1e9), (torch.float64, 0.5e9)),
    bandwidth=1e9,
    caches=(Cache("L2", 4096, 4e9),),
    launch_seconds=1e-6,
    dispatch_seconds=2e-6,
)


def graph_of(text: str) -> Graph:
    return parse(dedent(text))


def node_of(inputs: str, line: str) -> Node:
    return parse(f"graph f({inputs}) {{\n{line}\nreturn\n}}").nodes[-1]


# --- roofs by hand ------------------------------------------------------------------------------


def estimate(node: Node, target: Target = SIMPLE) -> Estimate:
    (found,) = Roofline(target).estimate([node])
    return found


def test_a_large_copy_is_bound_by_main_memory() -> None:
    node = node_of("%x: f32[1000000]", "%a = aten.clone.default(%x) : f32[1000000]")
    found = estimate(node)
    roof = 8e6 / 1e9
    assert found.seconds == pytest.approx(1.2 * roof + 2e-6)
    assert found.low == pytest.approx(0.6 * roof + 0.8e-6)
    assert found.high == pytest.approx(4 * roof + 8e-6)
    assert found.because == ("memory bound: 7.63 MiB at 954 MiB/s (main memory)",)


def test_what_fits_a_cache_may_be_there_and_may_not() -> None:
    """The estimate moves 4 KiB at the cache's speed, the upper bound at that of main memory."""
    target = dataclasses.replace(SIMPLE, dispatch_seconds=0.0)
    node = node_of("%x: f32[512]", "%a = aten.clone.default(%x) : f32[512]")
    found = estimate(node, target)
    assert found.seconds == pytest.approx(1.2 * 4096 / 4e9)
    assert found.high == pytest.approx(4 * 4096 / 1e9)
    assert found.because == ("memory bound: 4 KiB at 3.73 GiB/s (L2)",)


def test_a_large_product_is_bound_by_arithmetic() -> None:
    node = node_of(
        "%x: f32[100, 100], %y: f32[100, 100]", "%a = aten.mm.default(%x, %y) : f32[100, 100]"
    )
    found = estimate(node)
    assert found.seconds == pytest.approx(1.3 * 2e6 / 1e9 + 2e-6)
    assert found.because == ("compute bound: 2 MFLOP at 1 GFLOP/s (f32)",)


def test_each_dtype_has_its_own_peak() -> None:
    def product(dtype: str) -> Estimate:
        matrix = f"{dtype}[100, 100]"
        line = f"%a = aten.mm.default(%x, %x) : {matrix}"
        return estimate(node_of(f"%x: {matrix}", line), Target.parse("cuda:h200"))

    times = [product(dtype).seconds for dtype in ("f32", "bf16", "i8")]
    assert times == sorted(times, reverse=True)
    assert estimate(
        node_of("%x: f64[100, 100]", "%a = aten.mm.default(%x, %x) : f64[100, 100]")
    ).because == ("compute bound: 2 MFLOP at 500 MFLOP/s (f64)",)


def test_elementwise_work_reaches_a_quarter_of_the_peak() -> None:
    node = node_of("%x: f32[1000]", "%a = aten.exp.default(%x) : f32[1000]")
    found = estimate(node, dataclasses.replace(SIMPLE, caches=(Cache("L2", 1 << 20, 1e12),)))
    assert found.because == ("compute bound: 8 kFLOP at 250 MFLOP/s (elementwise, f32)",)
    assert found.seconds == pytest.approx(1.2 * 8000 / 0.25e9 + 2e-6)


def test_a_small_call_costs_a_call_and_a_region_a_launch() -> None:
    call = node_of("%x: f32[4]", "%a = aten.neg.default(%x) : f32[4]")
    region = node_of(
        "%x: f32[4]",
        "%a = rw.fused(%x) body(%x: f32[4]) {\n"
        "%a = aten.neg.default(%x) : f32[4]\nreturn %a\n} : f32[4]",
    )
    assert estimate(call).because == ("launch bound: 2 us a call, 0.016 us of work",)
    assert estimate(call).seconds - estimate(region).seconds == pytest.approx(1e-6)


@pytest.mark.parametrize(
    "line",
    [
        "%a = aten.view.default(%x, [2, 2]) : f32[2, 2]",
        "%a = rw.constant(data=[1.0]) : f32[1]",
        "%a = rw.alloc(offset=0) : f32[4]",
        "%a = py.add(1, 2) : int",
    ],
)
def test_what_calls_nothing_costs_nothing(line: str) -> None:
    assert estimate(node_of("%x: f32[4]", line)) == NOTHING


# Seconds that one bf16 GEMM takes on an H200 with vLLM 0.22: a dozen drawn at random from the
# 35,742 of aiconfigurator 0.12 (NVIDIA, Apache-2.0).
H200_GEMMS = [
    (7, 3072, 32, 2.51e-6),
    (225, 512, 64, 2.58e-6),
    (14, 12288, 32, 2.84e-6),
    (12, 64, 5120, 5.87e-6),
    (97, 16384, 1024, 11.94e-6),
    (3328, 32, 7168, 13.13e-6),
    (2305, 32, 16384, 24.75e-6),
    (4097, 2560, 3584, 105.77e-6),
    (16384, 10240, 64, 109.3e-6),
    (2048, 512, 51200, 171.18e-6),
    (96, 51200, 8192, 216.24e-6),
    (4353, 65536, 768, 732.26e-6),
]


@pytest.mark.parametrize(("m", "n", "k", "measured"), H200_GEMMS)
def test_measured_products_lie_between_the_bounds(m: int, n: int, k: int, measured: float) -> None:
    node = node_of(
        f"%x: bf16[{m}, {k}], %y: bf16[{k}, {n}]", f"%a = aten.mm.default(%x, %y) : bf16[{m}, {n}]"
    )
    found = estimate(node, Target.parse("cuda:h200"))
    assert found.low <= measured <= found.high


# --- laws ---------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    rows=st.integers(0, 5000),
    more=st.integers(0, 5000),
    name=st.sampled_from(sorted(known_targets())),
    op=st.sampled_from(["exp.default(%x)", "_softmax.default(%x, 1, false)", "mm.default(%x, %w)"]),
)
def test_more_rows_never_take_less_time(rows: int, more: int, name: str, op: str) -> None:
    def of(count: int) -> Estimate:
        node = node_of(
            f"%x: f32[{count}, 48], %w: f32[48, 48]", f"%a = aten.{op} : f32[{count}, 48]"
        )
        return estimate(node, Target.parse(name))

    less, greater = of(rows), of(rows + more)
    assert less.seconds <= greater.seconds
    assert less.low <= greater.low and less.high <= greater.high


@settings(max_examples=40)
@given(graph=graphs(), name=st.sampled_from(sorted(known_targets())))
def test_every_node_has_an_estimate_within_its_bounds(graph: Graph, name: str) -> None:
    cost = Roofline(Target.parse(name))
    for node, found in zip(graph.nodes, cost.estimate(graph.nodes), strict=True):
        assert 0 <= found.low <= found.seconds <= found.high < math.inf
        assert bool(found.because) == is_call(node)
    whole = graph_estimate(cost, graph)
    assert whole.seconds == pytest.approx(total(cost.estimate(graph.nodes)).seconds)


def test_sizes_are_taken_at_their_hints() -> None:
    def of(size: str, where: str) -> Estimate:
        text = f"graph f(%x: f32[{size}, 9]) {where} {{\n%a = aten.exp.default(%x) : "
        return estimate(parse(f"{text}f32[{size}, 9]\nreturn %a\n}}").nodes[0])

    assert of("B0", "where B0 in [1, 9999] hint 777") == of("777", "")


def test_a_size_known_only_at_run_time_makes_the_interval_wide() -> None:
    line = "%a = aten.exp.default(%x) : f32[u0]"
    graph = parse(f"graph f(%x: f32[u0]) where u0 in [0, inf] {{\n{line}\nreturn %a\n}}")
    found = estimate(graph.nodes[0])
    known = estimate(node_of("%x: f32[1024]", "%a = aten.exp.default(%x) : f32[1024]"))
    assert found.seconds == known.seconds
    assert found.high == pytest.approx(10 * known.high)
    assert found.low == pytest.approx(known.low / 10)
    assert found.because[1] == "u0 taken as 1024, known only at run time"


def test_an_operator_without_figures_says_so() -> None:
    node = node_of("%x: f32[4096]", "%a, %b = aten.sort.default(%x) : f32[4096], i64[4096]")
    found = estimate(node)
    assert found.because[-1] == "no figures for aten.sort.default"
    assert found.high > 8 * found.seconds


CHAIN = graph_of("""
    graph f(%x: f32[B0, 1000], %w: f32[1000, 1000]) where B0 in [1, 900] hint 300 {
      %h = aten.mm.default(%x, %w) : f32[B0, 1000]
      %a = aten.mul.Tensor(%h, 2.0) : f32[B0, 1000]
      %b = aten.add.Tensor(%a, %x) : f32[B0, 1000]
      %c = aten.relu.default(%b) : f32[B0, 1000]
      %v = aten.view.default(%c, [1000*B0]) : f32[1000*B0]
      return %v
    }""")


def test_fusion_pays_and_planning_changes_nothing() -> None:
    cost = Roofline(SIMPLE)
    env = Env(cost, SIMPLE)
    fused = Fuse().run(CHAIN, env)
    planned = PlanMemory().run(fused, env)
    before, after = graph_estimate(cost, CHAIN), graph_estimate(cost, fused)
    assert after.seconds < before.seconds
    assert graph_estimate(cost, planned) == after
    gain = cost.compare(CHAIN.nodes, fused.nodes)
    assert gain.seconds == pytest.approx(before.seconds - after.seconds)
    assert gain.because[0] == (
        f"{show_seconds(before.seconds)} against {show_seconds(after.seconds)}"
    )


def test_the_time_of_a_graph_names_the_longest_calls() -> None:
    found = graph_estimate(Roofline(SIMPLE), CHAIN)
    assert found.because == (
        "4 calls",
        "%h 780 ms, compute bound: 600 MFLOP at 1 GFLOP/s (f32)",
        "%b 4.32 ms, memory bound: 3.43 MiB at 954 MiB/s (main memory)",
        "%a 2.88 ms, memory bound: 2.29 MiB at 954 MiB/s (main memory)",
    )


# --- memory of the model ------------------------------------------------------------------------


def test_equal_calls_are_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("rewright.costmodel.roofline")
    computed: list[str] = []

    def roofline(node: Node, target: Target) -> Estimate:
        computed.append(node.name)
        return NOTHING

    monkeypatch.setattr(module, "roofline", roofline)
    graph = graph_of("""
        graph f(%x: f32[4], %y: f32[4], %z: f32[8]) {
          %a = aten.mul.Tensor(%x, %y) : f32[4]
          %b = aten.mul.Tensor(%a, %x) : f32[4]
          %c = aten.mul.Tensor(%x, %x) : f32[4]
          %d = aten.mul.Tensor(%z, 2.0) : f32[8]
          %e = aten.mul.Tensor(%z, 3.0) : f32[8]
          return %a, %b, %c, %d, %e
        }""")
    cost = Roofline(SIMPLE)
    cost.estimate(graph.nodes)
    cost.estimate(graph_of(str(graph)).nodes)
    assert computed == ["a", "c", "d", "e"]


def test_a_roofline_is_a_cost_model() -> None:
    cost: CostModel = Roofline(SIMPLE)
    assert cost.target is SIMPLE
    assert cost.estimate([]) == []


# --- estimates as values ------------------------------------------------------------------------

SHORT = Estimate(2e-6, 1e-6, 4e-6, ("memory bound",))
LONG = Estimate(5e-3, 3e-3, 9e-3, ("compute bound", "memory bound"))


def test_estimates_add_up_with_their_bounds_and_reasons() -> None:
    both = SHORT + LONG
    assert (both.seconds, both.low, both.high) == (5.002e-3, 3.001e-3, 9.004e-3)
    assert both.because == ("memory bound", "compute bound")
    assert total([]) == NOTHING


def test_a_difference_is_as_uncertain_as_both_together() -> None:
    gain = LONG - SHORT
    assert gain.seconds == pytest.approx(4.998e-3)
    assert gain.low == pytest.approx(3e-3 - 4e-6)
    assert gain.high == pytest.approx(9e-3 - 1e-6)
    assert (SHORT - LONG).seconds == -gain.seconds


def test_estimates_read_well() -> None:
    assert str(SHORT) == "2 us (1 us to 4 us): memory bound"
    assert str(NOTHING) == "0 us (0 us to 0 us)"
    assert str(LONG - SHORT).startswith("5 ms (3 ms to 9 ms): compute bound")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (show_bytes(12), "12 B"),
        (show_bytes(1 << 10), "1 KiB"),
        (show_bytes(1023.6 * (1 << 20)), "1024 MiB"),
        (show_bytes(4.8e12), "4.37 TiB"),
        (show_flops(950), "950 FLOP"),
        (show_flops(1.2e9), "1.2 GFLOP"),
        (show_flops(989.4e12), "989 TFLOP"),
        (show_seconds(41.7e-6), "41.7 us"),
        (show_seconds(-2.5), "-2.5 s"),
        (show_seconds(999.9e-6), "1000 us"),
    ],
)
def test_numbers_carry_units(shown: str, text: str) -> None:
    assert shown == text


# --- timings ------------------------------------------------------------------------------------


def test_ratios_are_taken_within_rounds() -> None:
    """The machine was ten times slower in two of three rounds; the ratio does not mind."""
    timings = Timings(((1.0, 2.0), (10.0, 20.0), (10.0, 21.0)))
    assert timings.seconds(0) == 10.0
    assert timings.ratio(1, 0) == 2.0


@pytest.mark.parametrize("rounds", [(), ((1.0, 2.0), (1.0,))])
def test_timings_want_every_alternative_in_each_round(
    rounds: tuple[tuple[float, ...], ...],
) -> None:
    with pytest.raises(ValueError, match="timings want"):
        Timings(rounds)


# --- sketches -----------------------------------------------------------------------------------


def test_a_sketch_counts_what_its_kernel_moves_and_does() -> None:
    region = parse(
        dedent("""
        graph f(%x: f32[8, 32], %w: f32[32]) {
          %d = rw.fused(%x, %w) body(%x: f32[8, 32], %w: f32[32]) {
            %a = aten.mul.Tensor(%x, %w) : f32[8, 32]
            %b = aten.exp.default(%a) : f32[8, 32]
            %s = aten.sum.dim_IntList(%b, [1]) : f32[8]
            return %s, %b
          } : f32[8]
          return %d
        }
        """)
    ).nodes[0]
    sketch = sketch_region(region)
    assert (sketch.elements, sketch.rows, sketch.columns, sketch.inner) == (256, 8, False, 32)
    assert (sketch.nodes, sketch.reductions, sketch.sweeps) == (3, 1, 1)
    assert sketch.work == (256 + 256, 0, 256, 0) and sketch.again == 0
    assert sketch.read == (8 * 32 * 4, 32 * 4, 0, 0) and sketch.reads == 2
    assert (sketch.written, sketch.writes, sketch.kept) == (8 * 32 * 4 + 8 * 4, 2, 8 * 32 * 4)


@settings(max_examples=40, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_drafts_joined_in_any_order_are_the_draft_of_all(graph: Graph, draw: Random) -> None:
    roots = view_roots(graph)
    nodes = [n for n in graph.nodes if is_call(n) and not is_view(n)]
    readers: dict[Value, set[int]] = {}
    for place, node in enumerate(nodes):
        for value in node.operands:
            readers.setdefault(roots[value], set()).add(place)
    returned = {roots[v] for v in graph.returned}

    def leaving(members: set[int]) -> list[Value]:
        made = (v for place in sorted(members) for v in nodes[place].results)
        return [v for v in made if v in returned or readers.get(v, set()) - members]

    sketcher = Sketcher(roots.__getitem__)
    groups = [({i}, sketcher.draft([n], leaving({i}))) for i, n in enumerate(nodes)]
    while len(groups) > 1:
        draw.shuffle(groups)
        (a, first), (b, second) = groups.pop(), groups.pop()
        both = a | b

        def leaves(number: int, both: set[int] = both) -> bool:
            value = sketcher.values[number]
            return value in returned or bool(readers.get(value, set()) - both)

        parts = first.sketch(), second.sketch()
        joined = first.joined(second, leaves)
        assert (first.sketch(), second.sketch()) == parts
        members = [nodes[i] for i in sorted(both)]
        assert joined.sketch() == sketcher.draft(members, leaving(both)).sketch()
        groups.append((both, joined))
