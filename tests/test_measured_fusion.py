"""Decisions that the cost model leaves open: measured within a budget, remembered, said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from rewright.calibrate.host import host
from rewright.calibrate.tools import BenchTools
from rewright.costmodel import Estimate, Kernels, Roofline, Sketch
from rewright.driver import plan_graph
from rewright.ir import Graph, Kind, OptionError
from rewright.ir.parse import parse
from rewright.options import Options
from rewright.passes import Env, Fuse
from run_case import NoTools

GRAPH = parse(
    dedent("""
    graph f(%x: f32[64, 256], %y: f32[64, 256]) {
      %a = aten.add.Tensor(%x, %y) : f32[64, 256]
      %b = aten.exp.default(%a) : f32[64, 256]
      %c = aten.mul.Tensor(%b, %x) : f32[64, 256]
      return %c
    }
    """)
)


class Unsure(Roofline):
    """Thinks that everything is better joined, but is not sure."""

    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        return Estimate(1e-6, -1e-6, 3e-6)


class Stopwatch(NoTools):
    """`Tools` that say what they are told to say, and count."""

    seconds = 1.0

    def __init__(self, takes: Callable[[Graph], float], budget: int = 100) -> None:
        self.takes, self.budget, self.asked = takes, budget, 0

    def measure(self, calls: Sequence[Graph]) -> list[Estimate] | None:
        self.asked += 1
        if self.asked > self.budget:
            return None
        return [Estimate(s, s, s) for s in map(self.takes, calls)]


def nodes_in(call: Graph) -> int:
    return len(call.nodes[0].graph("body").nodes)


def fused(tools: Stopwatch | None) -> tuple[list[int], Env]:
    """The nodes of each kernel."""
    env = Env(cost=Unsure(host()), target=host(), tools=tools)
    graph = Fuse().run(GRAPH, env)
    return [
        nodes_in(Graph("g", (), (n,), ())) for n in graph.nodes if n.op.kind is Kind.REGION
    ], env


def test_without_tools_the_model_decides() -> None:
    assert fused(None)[0] == [3]


def test_what_measures_shorter_is_chosen_and_said() -> None:
    """Kernels that hold the exponential and anything else take long."""
    sizes, env = fused(Stopwatch(lambda call: 1e-5 if nodes_in(call) > 1 else 1e-6))
    assert sizes == [1, 1, 1]
    assert any("measured: this way" in d.sentence for d in env.log)


def test_what_measures_longer_is_left() -> None:
    tools = Stopwatch(lambda call: 1e-6)
    assert fused(tools)[0] == [3]
    assert tools.asked == 2


def test_a_difference_within_the_noise_changes_nothing() -> None:
    assert fused(Stopwatch(lambda call: 1e-6 * nodes_in(call) / 1.01))[0] == [3]


def test_without_budget_the_model_decides_the_rest() -> None:
    slow = Stopwatch(lambda call: 1e-5 if nodes_in(call) > 1 else 1e-6, budget=0)
    assert fused(slow)[0] == [3]
    assert slow.asked == 1


def test_a_model_that_is_sure_is_not_measured() -> None:
    tools = Stopwatch(lambda call: 1e-6)
    Fuse().run(GRAPH, Env(cost=Sure(host()), target=host(), tools=tools))
    assert tools.asked == 0


class Sure(Roofline):
    def gain(
        self, apart: Sequence[Sketch], together: Sketch, kernels: Kernels | None = None
    ) -> Estimate:
        return Estimate(1e-6, 5e-7, 2e-6)


def test_measured_calls_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_CACHE_DIR", str(tmp_path))
    text = (
        "graph call(%a0: f32[50, 60], %a1: f32[60, 70]) {\n"
        "  %r0 = aten.mm.default(%a0, %a1) : f32[50, 70]\n  return %r0\n}"
    )
    calls = [parse(text)]
    model, other = tmp_path / "a.npz", tmp_path / "b.npz"
    other.write_bytes(b"another model")
    found = BenchTools(host(), model, seconds=30).measure(calls)
    assert found is not None and 1e-7 < found[0].low <= found[0].seconds <= found[0].high < 1e-2
    # Without any time left: out of memory.
    assert BenchTools(host(), model, seconds=-1).measure(calls) == found
    assert BenchTools(host(), other, seconds=-1).measure(calls) is None


def test_the_option_is_a_number_of_seconds() -> None:
    with pytest.raises(OptionError, match="number of seconds"):
        Options.of({"measure": "long"})
    for given, seconds in ({"measure": "0.5"}, 0.5), ({}, 0.0):
        tools = plan_graph(GRAPH, Options.of(given)).env.tools
        assert tools is not None and tools.seconds == seconds
    assert plan_graph(GRAPH, Options.of({"target": "cpu:avx2"})).env.tools is None
