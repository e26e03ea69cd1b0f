"""Which of several plans the fuse pass takes, by what a model expects of each as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

import pytest

from rewright.costmodel import Estimate, Kernels, Roofline, Sketch, expected_seconds
from rewright.ir import Graph, Kind, Node, Value
from rewright.ir.parse import parse
from rewright.ir.target import Target
from rewright.passes import Env, Fuse
from rewright.passes.fuse.choice import DOUBT, Asking, Cautious, shortest
from run_case import NoTools

TARGET = Target.parse("cpu:avx2")
TEXT = """
graph f(%x: f32[64, 256], %y: f32[64, 256], %w: f32[256, 256]) {
  %a = aten.add.Tensor(%x, %y) : f32[64, 256]
  %b = aten.exp.default(%a) : f32[64, 256]
  %c = aten.mm.default(%b, %w) : f32[64, 256]
  return %c
}
"""
GRAPH = parse(TEXT)
TOGETHER, APART = (
    Fuse(max_ops=most).run(GRAPH, Env(cost=Roofline(TARGET), target=TARGET)) for most in (64, 1)
)


def nodes_in(call: Node) -> int:
    return sum(len(body.nodes) for _, body in call.graphs)


class Says(Asking):
    """A model that says what it is told of each call, and one gain of every join."""

    def __init__(
        self, of_call: Callable[[Node], Estimate], gain: Estimate, target: Target = TARGET
    ) -> None:
        super().__init__(Roofline(target))
        self.of_call, self.of_join = of_call, gain

    def estimate(self, nodes: Sequence[Node], cold: Collection[Value] = ()) -> list[Estimate]:
        return [self.of_call(node) for node in nodes]

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        return self.of_join


def sure(seconds: float) -> Estimate:
    return Estimate(seconds, seconds, seconds)


def regions(graph: Graph) -> list[int]:
    return [nodes_in(node) for node in graph.nodes if node.op.kind is Kind.REGION]


def test_what_may_take_much_longer_is_expected_to_take_longer() -> None:
    assert sure(3.0).mean == pytest.approx(3.0)
    assert Estimate(3.0, 2.0, 4.0).mean == pytest.approx(3.0)
    assert Estimate(3.0, 2.0, 20.0).mean > 5


def test_a_call_that_reads_what_left_the_cache_is_expected_to_take_longer() -> None:
    """x and y are read after 2 x 64 KiB of the run before and w's 256 KiB."""
    cache = dataclasses.replace(TARGET.caches[0], nbytes=3 * 64 * 1024)
    target = dataclasses.replace(TARGET, caches=(cache,))
    model = Says(lambda node: sure(0.0), sure(1.0), target)
    (kernel, far), (product, again) = expected_seconds(model, TOGETHER)
    longer = 1 / target.bandwidth - 1 / cache.bandwidth
    assert nodes_in(kernel) == 2 and product.op.name == "aten.mm.default"
    assert far == pytest.approx(2 * 64 * 1024 * longer)
    assert again == 0  # alone it does not fit the cache either


@pytest.mark.parametrize("saved", [0.5 * DOUBT, 2 * DOUBT])
def test_a_saving_within_the_doubt_changes_nothing(saved: float) -> None:
    """However long the calls take that both plans make."""
    of = {0: 7.0, 1: (1 - saved) / 2, 2: 1.0}
    model = Says(lambda node: sure(of[nodes_in(node)]), sure(1.0))
    assert shortest(model, [TOGETHER, APART]) == (saved > DOUBT)
    assert shortest(model, [APART, TOGETHER]) == 0


def test_cautious_counts_on_what_is_sure() -> None:
    found = Cautious(Says(lambda node: sure(1.0), Estimate(2.0, -1.0, 5.0))).gain((), _sketch())
    assert (found.seconds, found.low, found.high) == (-1.0, -1.0, 5.0)


def test_plans_that_come_to_the_same_are_one_and_not_estimated() -> None:
    def never(node: Node) -> Estimate:
        raise AssertionError(f"{node} is estimated")

    assert regions(Fuse().run(GRAPH, Env(cost=Says(never, sure(1.0)), target=TARGET))) == [2]


class Timer(NoTools):
    """`Tools` whose every measurement says that joined kernels take as long as single ones."""

    seconds = 1.0

    def measure(self, calls: Sequence[Graph]) -> list[Estimate] | None:
        return [sure(1.0) for _ in calls]


def test_measuring_starts_from_the_plan_that_is_chosen_without() -> None:
    """The model is sure that joining saves nothing; what it expects of the whole says otherwise,
    and nothing is left open."""
    model = Says(lambda node: sure(1.0), Estimate(-0.2, -0.3, -0.1))
    plans = [
        Fuse().run(GRAPH, Env(cost=model, target=TARGET, tools=tools)) for tools in (None, Timer())
    ]
    assert [regions(plan) for plan in plans] == [[2], [2]]


def _sketch() -> Sketch:
    zeros = dict.fromkeys(Sketch._fields, 0)
    return Sketch(**{**zeros, "columns": False})  # type: ignore[arg-type]


@pytest.mark.parametrize(("slowest", "sizes"), [(1.1, [2]), (10.0, [1, 1])])
def test_a_kernel_that_may_take_long_is_joined_only_where_that_is_unlikely(
    slowest: float, sizes: list[int]
) -> None:
    """The model finds every join short, but is sure of none."""

    def of_call(node: Node) -> Estimate:
        return Estimate(1.0, 0.9, slowest) if nodes_in(node) == 2 else sure(0.7)

    model = Says(of_call, Estimate(0.4, -1.0, 1.0))
    assert regions(Fuse().run(GRAPH, Env(cost=model, target=TARGET))) == sizes
