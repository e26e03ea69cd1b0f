"""Measuring calls: how they are named, chained and drawn, and that figures say what is slower."""

from __future__ import annotations

from random import Random
from textwrap import dedent

import pytest
import torch

from rewright.calibrate.bench import ANCHORS, Bench
from rewright.calibrate.capture import inference_graph, training_graphs
from rewright.calibrate.chain import chain
from rewright.calibrate.corpus import Call, calls_of, prepared
from rewright.calibrate.host import host
from rewright.costmodel import Timings
from rewright.ir import Graph, Kind
from rewright.ir.alone import alone, obstacle
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from zoo import ZOO


def graph_of(text: str) -> Graph:
    return parse(dedent(text))


REGION = graph_of("""
    graph f(%x: f32[8, 16], %y: f32[8, 16]) {
      %b, %c = rw.fused(%y, %x) body(%y: f32[8, 16], %x: f32[8, 16]) {
        %a = aten.mul.Tensor(%y, %x) : f32[8, 16]
        %b = aten.exp.default(%a) : f32[8, 16]
        %c = aten.add.Tensor(%a, %y) : f32[8, 16]
        return %c, %b
      } : f32[8, 16], f32[8, 16]
      return %b, %c
    }
""")


def test_a_call_alone_computes_what_it_did() -> None:
    inputs = [torch.randn(8, 16), torch.randn(8, 16)]
    call = alone(REGION.nodes[0])
    assert [i.value.name for i in call.inputs] == ["a0", "a1"]
    for ours, expected in zip(
        interpret(call, inputs[::-1]), interpret(REGION, inputs), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_equal_calls_have_equal_texts_whatever_their_names() -> None:
    text = str(REGION)
    for old, new in (("%x", "%a0"), ("%y", "%a1"), ("%a:", "%t:"), ("%a =", "%r7 =")):
        text = text.replace(old, new)
    text = text.replace("(%a)", "(%r7)").replace("(%a, ", "(%r7, ")
    assert str(alone(parse(text).nodes[0])) == str(alone(REGION.nodes[0]))


def test_a_chain_repeats_a_call_and_reads_cold_inputs_anew() -> None:
    (node,) = REGION.nodes
    warm, cold = chain(alone(node), 5), chain(alone(node), 5, cold=(1,))
    assert len(warm.nodes) == len(cold.nodes) == 5
    assert len(warm.inputs) == 2
    assert [i.value.name for i in cold.inputs].count("a0") == 1
    assert len(cold.inputs) == 6
    assert len({v for n in cold.nodes for v in n.results}) == 10


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("%y = aten.view.default(%x, [4]) : f32[4]", "it calls nothing"),
        ("%y = aten.bernoulli.p(%x, 0.5) : f32[2, 2]", "it has an effect"),
    ],
)
def test_what_cannot_be_timed_alone_is_refused(line: str, why: str) -> None:
    graph = parse(f"graph f(%x: f32[2, 2]) {{\n  {line}\n  return %y\n}}")
    assert obstacle(graph.nodes[0]) == why


def test_the_calls_of_a_model_are_drawn_fused_and_apart() -> None:
    graph = prepared(inference_graph(*ZOO["transformer"]()), host())
    calls = list(calls_of(graph, host(), seed=0))
    kinds = {c.graph.nodes[0].op.kind for c in calls}
    assert {Kind.REGION, Kind.CONTRACTION, Kind.POINTWISE} <= kinds
    sizes = {len(c.graph.nodes[0].graph("body").nodes) for c in calls if c.graph.nodes[0].graphs}
    assert min(sizes) == 1 and max(sizes) > 2
    assert len({str(c.graph) for c in calls}) == len({(str(c.graph), c.cold) for c in calls})
    assert list(map(str, calls)) == list(map(str, calls_of(graph, host(), seed=0)))


def test_a_step_of_training_is_two_graphs() -> None:
    module, args = ZOO["mlp"]()
    forward, backward = training_graphs(module.train(), args)
    assert {n.op.name for n in forward.nodes} >= {"aten.addmm.default"}
    assert any(n.op.name == "aten.mm.default" for n in backward.nodes)


@pytest.mark.cpu
def test_a_bench_tells_a_long_call_from_a_short_one() -> None:
    bench = Bench(host())
    texts = [
        ANCHORS["stream"],
        ANCHORS["stream"].replace("[96, 256]", "[1536, 256]"),
        ANCHORS["product"],
        "graph call(%a0: f32[3, 4], %a1: f32[5, 6]) {\n  %r0 = aten.mm.default(%a0, %a1) : "
        "f32[3, 6]\n  return %r0\n}",
    ]
    found = {str(c.graph): s for c, s in bench.measure([Call(parse(t), ()) for t in texts])}
    short, long, product, wrong = (found[str(parse(t))] for t in texts)
    assert isinstance(wrong, RuntimeError)
    assert not isinstance(short, Exception) and not isinstance(long, Exception)
    assert not isinstance(product, Exception)
    assert long.seconds > 4 * short.seconds
    assert short.low <= short.seconds <= short.high
    assert short.anchor == "stream" and product.anchor == "product"
    assert short.seconds == pytest.approx(bench.pace["stream"], rel=0.5)


def test_what_disturbs_now_and_then_does_not_count() -> None:
    """A third of the rounds takes half as long again, of one call or of both."""
    draw = Random(0)
    rounds = []
    for i in range(60):
        slow = 1.5 if i % 3 == 0 else 1.0
        rounds.append((slow * draw.uniform(2.0, 2.06), draw.uniform(1.0, 1.03)))
    timings = Timings(tuple(rounds))
    low, high = timings.quiet_interval(0, 1)
    assert low <= timings.quiet_ratio(0, 1) <= high
    assert timings.quiet_ratio(0, 1) == pytest.approx(2.0, rel=0.02)
    assert timings.quiet(1) == pytest.approx(1.006, rel=0.004)
    assert Timings(((3.0, 1.0),)).quiet_interval(0, 1) == (3.0, 3.0)
