"""What bisection is made of: the shrinker, sizes, the judge, fuel, processes of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import torch

from rewright.bisect.child import Ask, Died, explored, in_child, packed, unpacked
from rewright.bisect.judge import Reference
from rewright.bisect.resize import plainer, retyped, smaller_sizes
from rewright.bisect.running import crash_of
from rewright.bisect.shrink import part, shrunk, size
from rewright.bisect.within import first_rewrite, surroundings, values_of
from rewright.costmodel import Roofline
from rewright.ir import Graph, Target
from rewright.ir.check import check
from rewright.ir.check_types import check_types
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.passes import Canonicalize, DecisionLog, Env
from rewright.passes.fuel import Application, Fuel
from rewright.sources import random_inputs

CHAIN = """
graph chain(%x: f32[4, 6], %w: f32[6, 6], %m: f32[4, 6] mutable) {
  %a = aten.sin.default(%x) : f32[4, 6]
  %b = aten.mm.default(%a, %w) : f32[4, 6]
  %c = aten.cos.default(%b) : f32[4, 6]
  %d = aten.add.Tensor(%c, %a) : f32[4, 6]
  %e = aten.exp.default(%d) : f32[4, 6]
  %f, %g = aten.sort.default(%e, -1, true) : f32[4, 6], i64[4, 6]
  update %m <- %d
  return %f, %c
}
"""


def ops(graph: Graph) -> list[str]:
    return [node.op.name.split(".")[1] for node in graph.nodes]


def holds(*names: str) -> Callable[[Graph], bool]:
    return lambda graph: set(names) <= set(ops(graph))


# --- shrinking ----------------------------------------------------------------------------------


def test_a_part_reads_inputs_where_others_made_values() -> None:
    graph = parse(CHAIN)
    made = part(graph, [n for n in graph.nodes if n.name in ("c", "d")])
    check(made, "aten")
    assert [i.value.name for i in made.inputs] == ["m", "b", "a"]
    assert [v.name for v in made.outputs if v is not None] == ["c"]  # type: ignore[union-attr]
    assert [(a.name, b.name) for a, b in made.updates] == [("m", "d")]
    without = part(graph, [n for n in graph.nodes if n.name == "e"])
    assert not without.updates and not any(i.mutable for i in without.inputs)
    assert str(without.outputs[0].name) == "e"  # type: ignore[union-attr]


def test_the_least_graph_is_found() -> None:
    least = shrunk(parse(CHAIN), holds("sin", "exp"), 20)
    check_types(least)
    assert sorted(ops(least)) == ["exp", "sin"]
    assert all(v.tensor.numel == 1 for v in least.values)
    assert len(least.inputs) == 1


def test_what_must_not_be_returned_is_read() -> None:
    """A negative takes the place of all that reads a value."""

    def fails(graph: Graph) -> bool:
        return any(
            n.op.name == "aten.sin.default" and n.result not in graph.returned for n in graph.nodes
        )

    assert ops(shrunk(parse(CHAIN), fails, 20)) == ["sin", "neg"]


def test_arguments_go_too() -> None:
    least = shrunk(parse(CHAIN), holds("sort"), 20)
    assert len(least.nodes[0].args) == 1


def test_graphs_come_with_names_of_the_asker() -> None:
    graph = shrunk(parse(CHAIN), holds("exp"), 20, naming=lambda value, graph: f"of_{value.name}")
    assert [i.value.name for i in graph.inputs] == ["of_d"]


def test_symbols_become_numbers() -> None:
    graph = parse("""graph f(%x: f32[B0, 4]) where B0 in [1, 64] hint 8 {
      %a = aten.sin.default(%x) : f32[B0, 4]
      %b = aten.view.default(%a, [4*B0]) : f32[4*B0]
      return %b
    }""")
    least = shrunk(graph, holds("view"), 20)
    assert not least.symbols and len(least.nodes) == 1


def test_nothing_fails_when_the_time_is_up() -> None:
    graph = parse(CHAIN)
    assert shrunk(graph, lambda graph: True, 0.0) == graph


def test_every_graph_that_is_tried_is_right() -> None:
    def fails(graph: Graph) -> bool:
        check(graph, "aten")
        check_types(graph)
        interpret(graph, random_inputs(graph))
        return holds("mm", "sort")(graph)

    assert sorted(ops(shrunk(parse(CHAIN), fails, 30))) == ["mm", "sort"]


def test_sizes_change_together() -> None:
    graph = parse("""graph f(%x: f32[6, 4] strides [1, 6], %y: f32[6, 4] strides [0, 1]) {
      %a = aten.add.Tensor(%x, %y) : f32[6, 4] strides [1, 6]
      %b = aten.reshape.default(%a, [24]) : f32[24]
      %c = rw.constant(data=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) : f32[6]
      return %b, %c
    }""")
    small = next(g for g in smaller_sizes(graph) if g.inputs[0].value.tensor.shape == (2, 4))
    check_types(small)
    assert small.inputs[0].value.tensor.strides == (1, 2)
    assert small.inputs[1].value.tensor.strides == (0, 1)
    assert interpret(small, random_inputs(small))[1].tolist() == [1.0, 2.0]
    assert size(small) < size(graph)


def test_what_nobody_can_say_is_no_graph() -> None:
    graph = parse("""graph f(%x: f32[4, 6] strides [8, 1]) {
      %a = aten.sin.default(%x) : f32[4, 6] strides [6, 1]
      return %a
    }""")
    assert retyped(graph, {4: 2}) is None  # strides with gaps
    assert list(plainer(parse("graph f(%x: f32[2]) { return %x }"))) == []


# --- places -------------------------------------------------------------------------------------


def test_surroundings_grow() -> None:
    found = list(surroundings(parse(CHAIN), ["c"]))
    assert found[0] == ["c"] and found[-1] == ["a", "b", "c", "d", "e", "f"]
    assert all("c" in names and names not in found[:i] for i, names in enumerate(found))


def test_the_first_of_several_rewrites_is_found() -> None:
    made = [Application(rule, f"n{i}") for i, rule in enumerate("aabbab")]
    found = first_rewrite(made, lambda limit: limit >= 5)
    assert found is not None
    assert (found.rule, found.node, found.number, found.count, found.of_rule) == (
        "a",
        "n4",
        5,
        6,
        3,
    )
    assert first_rewrite(made, lambda limit: True) is None
    assert first_rewrite(made, lambda limit: False) is None
    assert first_rewrite([], lambda limit: True) is None


def test_fuel_stops_a_pass_after_so_many_rules() -> None:
    target = Target.parse("cpu:avx2")
    graph = parse("""graph f(%x: f32[4]) {
      %a = aten.clone.default(%x) : f32[4]
      %b = aten.sin.default(%a) : f32[4]
      %c = aten.clone.default(%b) : f32[4]
      %d = aten.cos.default(%c) : f32[4]
      return %d
    }""")

    def after(limit: float) -> tuple[list[str], list[Application]]:
        fuel = Fuel(limit)
        env = Env(Roofline(target), target, log=DecisionLog(), fuel=fuel)
        return ops(Canonicalize().run(graph, env)), fuel.spent

    everything, made = after(float("inf"))
    assert everything == ["sin", "cos"] and [a.node for a in made] == ["a", "c"]
    assert after(0) == (ops(graph), [])
    assert after(1) == (["sin", "clone", "cos"], made[:1])
    assert after(2) == after(9)


# --- the judge ----------------------------------------------------------------------------------


def judge(text: str, *inputs: torch.Tensor) -> Reference:
    return Reference.of(parse(text), list(inputs))


TWO = """
graph f(%x: f32[8], %y: f32[8], %n: i64[8]) {
  %a = aten.mul.Tensor(%x, 1e6) : f32[8]
  %b = aten.sin.default(%y) : f32[8]
  %c = aten.add.Tensor(%n, 1) : i64[8]
  return %a, %b, %c
}
"""


@pytest.fixture
def two() -> Reference:
    return judge(TWO, torch.randn(8), torch.randn(8), torch.arange(8))


def test_what_eager_says_holds(two: Reference) -> None:
    assert two.verdict(two.eager).holds
    assert two.verdict(two.exact[:1]).error == float("inf")


def test_a_small_result_beside_a_large_one_counts(two: Reference) -> None:
    a, b, c = two.eager
    verdict = two.verdict([a, b * 1.001, c])
    assert not verdict.holds and verdict.which == "%b"
    assert "relative error 1.0e-03 of %b where" in str(verdict)


def test_integers_dtypes_and_shapes_count(two: Reference) -> None:
    a, b, c = two.eager
    assert two.verdict([a, b, c + 1]).which == "%c"
    assert "which is torch.float64[8], not torch.float32[8]" in str(two.verdict([a, b.double(), c]))
    assert "[4]" in str(two.verdict([a, b[:4], c]))


def test_no_number_where_there_is_one(two: Reference) -> None:
    a, b, c = two.eager
    assert not two.verdict([a, torch.where(b == b[0], float("nan"), b), c]).holds


def test_infinities_that_the_graph_makes_are_not_compared() -> None:
    reference = judge(
        "graph f(%x: f32[2]) { %a = aten.log.default(%x) : f32[2] return %a }",
        torch.tensor([0.0, 2.0]),
    )
    assert reference.verdict(reference.eager).holds
    assert not reference.verdict([torch.tensor([float("-inf"), 1.0])]).holds


def test_updates_count() -> None:
    reference = judge(
        """graph f(%x: f32[4], %m: f32[4] mutable) {
          %a = aten.add.Tensor(%m, %x) : f32[4]
          update %m <- %a
          return %x
        }""",
        torch.ones(4),
        torch.ones(4),
    )
    x, m = reference.eager
    assert m.tolist() == [2.0] * 4
    assert reference.verdict([x, torch.ones(4)]).which == ""
    assert not reference.verdict([x, torch.ones(4)]).holds


def test_what_rounding_does_is_no_fault() -> None:
    """A sum that cancels: its last digits are anybody's."""
    x = torch.randn(4096)
    reference = judge(
        """graph f(%x: f32[8192]) {
          %e = aten.exp.default(%x) : f32[8192]
          %a = aten.sum.default(%e) : f32[]
          %b = aten.sub.Tensor(%a, 13485.0) : f32[]
          return %b
        }""",
        torch.cat([x, x]),
    )
    off = reference.exact[0].abs() * 3e-6 + reference.eager[0]
    verdict = reference.verdict([off.float()])
    assert verdict.holds
    assert not reference.verdict([reference.eager[0] * 1.5]).holds


# --- running ------------------------------------------------------------------------------------


def test_values_are_seen_as_they_are_made() -> None:
    graph = parse(CHAIN)
    inputs = random_inputs(graph)
    seen = values_of(graph, inputs)
    assert set(seen) == {v.name for v in graph.values}
    assert torch.equal(seen["a"], inputs[0].sin())
    assert values_of(graph, inputs, torch.float64)["c"].dtype == torch.float64


ARENA = """
graph f(%x: f32[16]) {{
  %a_buffer = rw.alloc(offset=0) : f32[16]
  %a = aten.sin.default(%x, out=[%a_buffer]) : f32[16]
  %b_buffer = rw.alloc(offset={offset}) : f32[16]
  %b = aten.cos.default(%x, out=[%b_buffer]) : f32[16]
  %c = aten.add.Tensor(%a, %b) : f32[16]
  return %c
}}
"""


@pytest.mark.parametrize(("offset", "right"), [(64, True), (32, False), (0, False)])
def test_buffers_lie_where_their_offsets_say(offset: int, right: bool) -> None:
    graph, x = parse(ARENA.format(offset=offset)), torch.randn(16)
    assert torch.equal(interpret(graph, [x])[0], x.sin() + x.cos())
    assert torch.equal(interpret(graph, [x], arena=True)[0], x.sin() + x.cos()) is right


def test_what_is_written_is_not_read_any_more() -> None:
    graph = parse("""graph f(%x: i64[4]) {
      %a_buffer = rw.alloc(offset=0) : i64[4]
      %a = aten.neg.default(%x, out=[%a_buffer]) : i64[4]
      %b = aten.abs.default(%a, out=[%a_buffer]) : i64[4]
      return %b
    }""")
    x = torch.arange(4)
    assert torch.equal(interpret(graph, [x])[0], x)
    assert not torch.equal(interpret(graph, [x], arena=True)[0], x)


def test_a_child_answers_or_dies() -> None:
    x = torch.randn(3)
    assert torch.equal(unpacked(in_child(lambda: packed([x + 1])))[0], x + 1)
    with pytest.raises(Died, match="ends by SIGSEGV"):
        in_child(lambda: os.kill(os.getpid(), signal.SIGSEGV) or b"")  # type: ignore[func-returns-value]
    with pytest.raises(Died, match="does not end within"):
        in_child(lambda: time.sleep(60) or b"", 0.2)  # type: ignore[func-returns-value]


def test_a_search_goes_on_after_a_question_that_kills() -> None:
    asked: list[str] = []

    def search(ask: Ask) -> None:
        asked.append("here")  # in a copy, of which nothing is seen
        for name in ("right", "wrong", "deadly", "endless", "last"):
            ask(name, lambda name=name: answer(name))  # type: ignore[misc]

    def answer(name: str) -> bool:
        if name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "endless":
            time.sleep(60)
        return name != "wrong"

    known = {"right": True, "wrong": False, "deadly": False, "endless": False, "last": True}
    assert explored(search, 0.5) == known and not asked


def test_a_search_that_fails_by_itself_ends() -> None:
    assert explored(lambda ask: ask("a", lambda: True) and os._exit(3)) == {"a": True}


def test_the_same_crash_of_another_graph_is_told() -> None:
    def raised(name: str) -> tuple[str, str, str]:
        with pytest.raises(ValueError, match="no") as caught:
            raise ValueError(f"%{name} has no size 12 in [3, 4]")
        return crash_of(caught.value).signature

    assert raised("a") == raised("other")
    assert str(crash_of(ValueError("one:\n  two"))) == "one: two"
