"""Graphs as problems of their schedule, and schedules as graphs that compute the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from rewright.ir import Graph, Value, is_call
from rewright.ir.check import check
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.passes.remat.budget import fitted
from rewright.passes.remat.graphs import Boundary, Scheduled
from rewright.passes.remat.judge import Verdict, judge
from rewright.passes.remat.problem import Order
from rewright.passes.remat.solve import solve

# Three layers and their gradients; views of a weight on both sides, and of an activation.
STEP = parse("""
graph step(%x: f32[8, 16], %w: f32[16, 16], %g: f32[8, 16]) {
  %wt = aten.t.default(%w) : f32[16, 16] strides [1, 16]
  %a = aten.mm.default(%x, %wt) : f32[8, 16]
  %b = aten.tanh.default(%a) : f32[8, 16]
  %c = aten.mm.default(%b, %wt) : f32[8, 16]
  %d = aten.tanh.default(%c) : f32[8, 16]
  %y = aten.mul.Tensor(%d, %x) : f32[8, 16]
  %gd = aten.mul.Tensor(%g, %x) : f32[8, 16]
  %dd = aten.mul.Tensor(%d, %d) : f32[8, 16]
  %gc = aten.mul.Tensor(%gd, %dd) : f32[8, 16]
  %bt = aten.t.default(%b) : f32[16, 8] strides [1, 16]
  %gw = aten.mm.default(%bt, %gc) : f32[16, 16]
  %gb = aten.mm.default(%gc, %w) : f32[8, 16]
  %bb = aten.mul.Tensor(%b, %b) : f32[8, 16]
  %ga = aten.mul.Tensor(%gb, %bb) : f32[8, 16]
  return %y, %gw, %ga
}
""")


def scheduled(graph: Graph, *, parted: bool) -> Scheduled:
    seconds = {node.name: 1.0 for node in graph.nodes}
    (returned, *_), tangent = graph.outputs, graph.inputs[2].value
    assert isinstance(returned, Value)
    boundary = Boundary((returned,), frozenset({tangent})) if parted else None
    return Scheduled(graph, seconds, boundary)


def results(graph: Graph) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [torch.randn(8, 16), torch.randn(16, 16), torch.randn(8, 16)]
    return interpret(graph, inputs)


def test_calls_are_steps_and_views_are_what_they_are_views_of() -> None:
    problem = scheduled(STEP, parted=False).problem
    assert [s.name for s in problem.steps] == [
        *("a", "b", "c", "d", "y", "gd", "dd", "gc", "gw", "gb", "bb", "ga")
    ]
    of = {step.name: step for step in problem.steps}
    assert of["gw"].reads == (*of["b"].makes, *of["gc"].makes)
    assert {problem.sizes[v] for s in problem.steps for v in s.makes} == {512, 1024}
    assert not of["y"].again and of["b"].again


def test_the_boundary_stands_before_what_needs_a_tangent() -> None:
    problem = scheduled(STEP, parted=True).problem
    names = [s.name for s in problem.steps]
    assert names[:7] == ["a", "b", "c", "d", "y", "the boundary", "gd"]
    boundary, gradient = problem.steps[5], problem.steps[6]
    assert boundary.makes == gradient.reads
    assert boundary.reads == problem.steps[4].makes and not boundary.again


def deep(layers: int) -> Graph:
    """Layers of product and tanh, forward and backward, with views of what they keep."""
    lines = ["%wt = aten.t.default(%w) : f32[16, 16] strides [1, 16]"]
    for i in range(layers):
        read = f"%h{i - 1}" if i else "%x"
        lines += [f"%p{i} = aten.mm.default({read}, %wt) : f32[8, 16]"]
        lines += [f"%h{i} = aten.tanh.default(%p{i}) : f32[8, 16]"]
    lines += [f"%y = aten.mul.Tensor(%h{layers - 1}, %x) : f32[8, 16]"]
    lines += [f"%q{layers} = aten.mul.Tensor(%g, %x) : f32[8, 16]"]
    for i in reversed(range(layers)):
        lines += [f"%s{i} = aten.mul.Tensor(%h{i}, %h{i}) : f32[8, 16]"]
        lines += [f"%c{i} = aten.mul.Tensor(%q{i + 1}, %s{i}) : f32[8, 16]"]
        lines += [f"%t{i} = aten.t.default(%h{i}) : f32[16, 8] strides [1, 16]"]
        lines += [f"%w{i} = aten.mm.default(%t{i}, %c{i}) : f32[16, 16]"]
        lines += [f"%q{i} = aten.mm.default(%c{i}, %w) : f32[8, 16]"]
        total = f"%v{i + 1}" if i + 1 < layers else f"%w{i}"
        lines += [f"%v{i} = aten.add.Tensor({total}, %w{i}) : f32[16, 16]"]
    body = "\n".join(f"  {line}" for line in lines)
    inputs = "%x: f32[8, 16], %w: f32[16, 16], %g: f32[8, 16]"
    return parse(f"graph step({inputs}) {{\n{body}\n  return %y, %v0, %q0\n}}")


@pytest.mark.parametrize("parted", [False, True])
def test_every_schedule_of_the_front_computes_the_same(parted: bool) -> None:
    step = scheduled(deep(8), parted=parted)
    front, expected = solve(step.problem), results(step.graph)
    assert len(front.schedules) > 4
    for schedule in front.schedules:
        graph, split, _ = step.rescheduled(schedule.order)
        check(graph, "aten")
        assert all(torch.equal(a, b) for a, b in zip(results(graph), expected, strict=True))
        calls = [node for node in graph.nodes if is_call(node)]
        assert len(calls) == len(schedule.order) - parted
        late = {step.graph.inputs[2].value} | {
            v for node in graph.nodes[split:] for v in node.results
        }
        early = graph.nodes[:split]
        assert not parted or all(late.isdisjoint(node.operands) for node in early)


def test_the_given_order_is_the_graph() -> None:
    step = scheduled(STEP, parted=False)
    assert isinstance(judge(step.problem, step.problem.given_order), Verdict)
    graph, split, _ = step.rescheduled(step.problem.given_order)
    assert {n.name for n in graph.nodes} == {n.name for n in STEP.nodes}
    assert split == len(STEP.nodes)


def test_what_has_an_effect_runs_once_and_in_its_place() -> None:
    graph = parse("""
graph g(%x: f32[4]) {
  %a = aten.bernoulli.p(%x, 0.5) : f32[4]
  %b = aten.bernoulli.p(%x, 0.5) : f32[4]
  %c = aten.add.Tensor(%a, %b) : f32[4]
  %d = aten.mul.Tensor(%c, %a) : f32[4]
  return %d
}
""")
    problem = Scheduled(graph, {node.name: 1.0 for node in graph.nodes}).problem
    first, second, add, _ = problem.steps
    assert not first.again and not second.again and add.again
    assert set(first.makes) & set(second.reads)
    for schedule in solve(problem).schedules:
        assert schedule.order.index(0) < schedule.order.index(1)


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("waste", [1, 257])
def test_less_memory_never_takes_less_time_and_is_never_more(waste: int) -> None:
    """Also where a plan takes some bytes more than its schedule."""
    graph = deep(8)
    seconds = {node.name: 0.1 + 0.01 * i for i, node in enumerate(graph.nodes)}
    step = Scheduled(graph, seconds)
    problem = step.problem

    def planned(order: Order) -> int:
        verdict = judge(problem, order)
        assert isinstance(verdict, Verdict)
        return verdict.peak + sum(order) % waste

    first, least = planned(problem.given_order), fitted(step, None, planned)
    asked = [least.peak + (first - least.peak) * share // 7 for share in range(7, -1, -1)]
    found = [fitted(step, budget, planned) for budget in asked]
    assert all(f.peak <= budget for f, budget in zip(found, asked, strict=True))
    points = [(f.peak, f.schedule.seconds) for f in found]
    assert len(set(points)) > 3
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(points))
