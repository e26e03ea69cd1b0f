"""What each level allows, rule by rule: a graph that breaks one is refused by a sentence.

And what passes make of sound graphs is sound at the level they promise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from textwrap import dedent

import pytest
import torch
from hypothesis import given, settings

from rewright.costmodel import Roofline
from rewright.ir import CheckError, Dim, Graph, Input, Node, OptionError, Symbol, TensorType, Value
from rewright.ir import op as operator
from rewright.ir.check import LEVELS, check, check_effects
from rewright.ir.parse import parse
from rewright.ir.target import Target
from rewright.passes import Env
from rewright.passes.fuse import Fuse
from rewright.passes.memory import PlanMemory
from strategies import graphs

F4 = TensorType(torch.float32, (4,))
F8 = TensorType(torch.float32, (8,))


def graph_of(text: str) -> Graph:
    return parse(dedent(text))


# --- rules of every level -----------------------------------------------------------------------

SOUND = graph_of("""
    graph f(%x: f32[4], %y: f32[4] mutable) {
      %a = aten.add.Tensor(%x, %y) : f32[4]
      %b = aten.relu.default(%a) : f32[4]
      update %y <- %a
      return %b
    }""")
X, Y = (i.value for i in SOUND.inputs)
A, B = (node.result for node in SOUND.nodes)
ADD, RELU = SOUND.nodes


def reading(value: Value) -> Graph:
    """The sound graph, its second node reading `value`."""
    return SOUND.with_nodes([ADD, dataclasses.replace(RELU, args=(value,))])


def returning(value: Value) -> Graph:
    return dataclasses.replace(SOUND, outputs=(value,))


def sized(symbol: Symbol, *, shown: Symbol) -> Graph:
    """A graph whose input shows one symbol, and whose node makes a tensor of the size another."""
    x = Value("x", TensorType(torch.float32, (Dim.of(shown),)))
    a = Value("a", TensorType(torch.float32, (Dim.of(symbol),)))
    node = Node(operator("aten.full.default"), ((Dim.of(symbol),), 1.0), (), (a,))
    return Graph("f", (Input(x),), (node,), (a,))


# Built by hand: the parser refuses them earlier.
NOT_SSA: dict[str, tuple[Graph, str]] = {
    "undefined": (
        reading(Value("z", F4)),
        "%b (aten.relu.default) reads %z, which is not defined in the graph",
    ),
    "too early": (
        SOUND.with_nodes([RELU, ADD]),
        "%b (aten.relu.default) reads %a, which is only defined after it",
    ),
    "another type": (
        reading(Value("a", F8)),
        "%b (aten.relu.default) reads %a as f32[8], but it is defined as f32[4]",
    ),
    "twice": (
        SOUND.with_nodes([ADD, dataclasses.replace(RELU, results=(A,))]),
        "%a is defined twice",
    ),
    "two inputs": (
        dataclasses.replace(SOUND, inputs=(Input(X), Input(X))),
        "%x is defined twice",
    ),
    "output": (
        returning(Value("z", F4)),
        "the graph returns %z, which is not defined in the graph",
    ),
    "output of another type": (
        returning(Value("b", F8)),
        "the graph returns %b as f32[8], but it is defined as f32[4]",
    ),
    "update of what is no input": (
        dataclasses.replace(SOUND, updates=((A, B),)),
        "%a is updated, but it is not an input",
    ),
    "update with the undefined": (
        dataclasses.replace(SOUND, updates=((Y, Value("z", F4)),)),
        "the update of %y reads %z, which is not defined in the graph",
    ),
    "size from nowhere": (
        sized(Symbol("B1", 4), shown=Symbol("B0", 4)),
        "%a (aten.full.default) has a size B1 that no input shows and no node defines",
    ),
    "size with other facts": (
        sized(Symbol("B0", 4, 0, 64), shown=Symbol("B0", 4, 2, None, 2)),
        "%a (aten.full.default) knows other facts about the size B0 than the rest of the graph: "
        "in [0, 64] hint 4, not in [2, inf] hint 4 divisor 2",
    ),
}


@pytest.mark.parametrize("name", NOT_SSA)
@pytest.mark.parametrize("level", LEVELS)
def test_values_are_defined_once_and_before_use(name: str, level: str) -> None:
    graph, message = NOT_SSA[name]
    with pytest.raises(CheckError) as refusal:
        check(graph, level)
    assert refusal.value.message == message


@pytest.mark.parametrize("level", LEVELS)
def test_a_sound_graph_passes_every_level(level: str) -> None:
    check(SOUND, level)


def test_sizes_unknown_at_compile_time_are_defined_by_what_shows_them() -> None:
    check(
        graph_of("""
            graph f(%x: f32[4], %n: int(B0)) where B0 in [0, 9] hint 3, u0 in [0, inf],
                u1 in [-8, 8] hint 2 {
              %i = aten.nonzero.default(%x) : i64[u0, 1]
              %k = py.floordiv(%n, 2) : int(u1)
              %v = aten.view.default(%i, [u0]) : i64[u0]
              return %v, u1
            }"""),
        "aten",
    )


# --- calls --------------------------------------------------------------------------------------

# A line that must be refused, and how. `%x` and `%y` are f32[4].
CALLS: dict[str, tuple[str, str]] = {
    "mutation": (
        "%a = aten.add_.Tensor(%x, %y) : f32[4]",
        "%a (aten.add_.Tensor) writes one of its arguments; graphs are functional",
    ),
    "argument missing": (
        "%a = aten.add.Tensor(%x) : f32[4]",
        "%a (aten.add.Tensor) is called without its argument 'other'",
    ),
    "too many arguments": (
        "%a = aten.relu.default(%x, %y) : f32[4]",
        "%a (aten.relu.default) has 2 arguments by position, and takes at most 1",
    ),
    "unknown keyword": (
        "%a = aten.relu.default(%x, alpha=2) : f32[4]",
        "%a (aten.relu.default) has no argument 'alpha' left to give by name",
    ),
    "keyword given by position": (
        "%a = aten.add.Tensor(%x, %y, other=%y) : f32[4]",
        "%a (aten.add.Tensor) has no argument 'other' left to give by name",
    ),
    "buffer before the kernel level": (
        "%a = aten.add.Tensor(%x, %y, out=[%y]) : f32[4]",
        "%a (aten.add.Tensor) has no argument 'out' left to give by name",
    ),
    "one result too many": (
        "%a, %b = aten.relu.default(%x) : f32[4], f32[4]",
        "%a (aten.relu.default) has 2 results, and returns 1",
    ),
    "one result too few": (
        "%a, %b = aten.native_layer_norm.default(%x, [4], %y, %y, 1e-05) : f32[4], f32[1]",
        "%a (aten.native_layer_norm.default) has 2 results, and returns 3",
    ),
    "region at the aten level": (
        "%a = rw.fused(%x) body(%x: f32[4]) {\n  return %x\n} : f32[4]",
        "%a (rw.fused) belongs to the fused level, but the graph is at the aten level",
    ),
    "allocation at the aten level": (
        "%a = rw.alloc(offset=0) : f32[4]",
        "%a (rw.alloc) belongs to the kernel level, but the graph is at the aten level",
    ),
    "arithmetic with two results": (
        "%a, %b = py.add(1, 2) : int, int",
        "%a (py.add) has 2 results, and returns 1",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_operators_are_called_as_their_schema_says(name: str) -> None:
    line, message = CALLS[name]
    graph = parse(f"graph f(%x: f32[4], %y: f32[4]) {{\n{line}\nreturn %a\n}}")
    with pytest.raises(CheckError) as refusal:
        check(graph, "aten")
    assert refusal.value.message == message


def test_lists_may_have_any_length() -> None:
    check(
        graph_of("""
            graph f(%x: f32[6]) {
              %a, %b, %c = aten.split.Tensor(%x, 2) : f32[2], f32[2], f32[2]
              return %a, %b, %c
            }"""),
        "aten",
    )


# --- updates ------------------------------------------------------------------------------------

UPDATES: dict[str, tuple[str, str]] = {
    "not mutable": (
        "%x: f32[4]",
        "%x is updated, but it is not a mutable input",
    ),
    "another shape": (
        "%x: f32[8] mutable",
        "%x is f32[8] and is updated with %y, which is f32[4]: shape, dtype and device must be "
        "the same",
    ),
    "another dtype": (
        "%x: f16[4] mutable",
        "%x is f16[4] and is updated with %y, which is f32[4]: shape, dtype and device must be "
        "the same",
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_fits_its_input(name: str) -> None:
    input, message = UPDATES[name]
    graph = parse(f"graph f({input}, %y: f32[4]) {{\nupdate %x <- %y\nreturn\n}}")
    with pytest.raises(CheckError) as refusal:
        check(graph, "aten")
    assert refusal.value.message == message


def test_an_input_is_updated_once() -> None:
    graph = dataclasses.replace(SOUND, updates=((Y, A), (Y, B)))
    with pytest.raises(CheckError, match="%y is updated twice"):
        check(graph, "aten")


def test_an_update_may_have_other_strides() -> None:
    check(
        graph_of("""
            graph f(%x: f32[2, 3] mutable, %y: f32[2, 3] strides [1, 2]) {
              update %x <- %y
              return
            }"""),
        "aten",
    )


# --- regions ------------------------------------------------------------------------------------


def region(body: str, type: str = "f32[4]", operands: str = "%x") -> Graph:
    return parse(
        f"graph f(%x: f32[4], %y: f32[8]) {{\n%r = rw.fused({operands}) body({body}\n}} : {type}\n"
        "return %r\n}"
    )


REGIONS: dict[str, tuple[Graph, str]] = {
    "operand missing": (
        region("%a: f32[4], %b: f32[4]) {\n return %a"),
        "%r (rw.fused) has 1 operands, and its body 2",
    ),
    "operand of another type": (
        region("%a: f32[8]) {\n return %a", "f32[8]"),
        "among the operands of %r (rw.fused), %x is f32[4], but in its body %a is f32[8]",
    ),
    "result missing": (
        region("%a: f32[4]) {\n return"),
        "%r (rw.fused) has 1 results, and its body 0",
    ),
    "result of another type": (
        region("%a: f32[4]) {\n return %a", "f16[4]"),
        "among the results of %r (rw.fused), %r is f16[4], but in its body %a is f32[4]",
    ),
    "number as a result": (
        region("%a: f32[4]) {\n return 1"),
        "the results of %r (rw.fused) and of its body must be values",
    ),
    "random operator": (
        region(
            "%a: f32[4]) {\n %b = aten.bernoulli.p(%a, 0.5) : f32[4]\n return %b",
        ),
        "%r (rw.fused) holds %b (aten.bernoulli.p), which has an effect (rng)",
    ),
    "update": (
        region("%a: f32[4] mutable) {\n update %a <- %a\n return %a"),
        "the body of %r (rw.fused) updates %a",
    ),
    "region in a region": (
        region(
            "%a: f32[4]) {\n %b = rw.fused(%a) body(%c: f32[4]) {\n  return %c\n } : f32[4]\n"
            " return %b"
        ),
        "%b (rw.fused) belongs to the fused level, but the graph is at the aten level",
    ),
    "no body": (
        parse("graph f(%x: f32[4]) {\n%r = rw.fused(%x) : f32[4]\nreturn %r\n}"),
        "%r (rw.fused) has no graph 'body' that says what it computes",
    ),
}


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("level", ["fused", "kernel"])
def test_a_region_is_what_its_body_is(name: str, level: str) -> None:
    graph, message = REGIONS[name]
    with pytest.raises(CheckError) as refusal:
        check(graph, level)
    assert refusal.value.message == message


def test_bodies_are_checked_like_graphs() -> None:
    graph = region("%a: f32[4]) {\n %b = aten.relu.default(%a, %a) : f32[4]\n return %b")
    with pytest.raises(CheckError, match="takes at most 1"):
        check(graph, "fused")


# --- messages -----------------------------------------------------------------------------------


def test_a_refusal_points_into_the_text() -> None:
    with pytest.raises(CheckError) as refusal:
        check(reading(Value("y", F8)), "aten")
    assert str(refusal.value) == (
        "%b (aten.relu.default) reads %y as f32[8], but it is defined as f32[4]\n"
        " --> f:4:26\n"
        "  |\n"
        "4 |   %b = aten.relu.default(%y) : f32[4]\n"
        "  |                          ^^"
    )


def test_a_refusal_inside_a_body_points_there() -> None:
    graph, _ = REGIONS["region in a region"]
    with pytest.raises(CheckError) as refusal:
        check(graph, "fused")
    assert refusal.value.excerpt is not None
    assert refusal.value.excerpt.text == "    %b = rw.fused(%a) body(%c: f32[4]) {"


def test_a_level_nobody_knows_is_refused() -> None:
    with pytest.raises(OptionError, match="no level 'fuse'; did you mean 'fused'"):
        check(SOUND, "fuse")


# --- effects from graph to graph ----------------------------------------------------------------

RANDOM = graph_of("""
    graph f(%x: f32[4]) {
      %a = aten.bernoulli.p(%x, 0.5) : f32[4]
      %b = aten.rand_like.default(%a) : f32[4]
      %c = aten.neg.default(%b) : f32[4]
      return %c
    }""")


@pytest.mark.parametrize(
    ("change", "now"),
    [
        (lambda nodes: nodes[:1], "aten.bernoulli.p"),
        (lambda nodes: nodes[::-1], "aten.rand_like.default, aten.bernoulli.p"),
        (lambda nodes: (), "none"),
        (
            lambda nodes: (*nodes, nodes[0]),
            "aten.bernoulli.p, aten.rand_like.default, aten.bernoulli.p",
        ),
    ],
    ids=["dropped", "reordered", "all dropped", "repeated"],
)
def test_nodes_of_one_effect_keep_number_and_order(
    change: Callable[[tuple[Node, ...]], tuple[Node, ...]], now: str
) -> None:
    with pytest.raises(CheckError) as refusal:
        check_effects(RANDOM, RANDOM.with_nodes(change(RANDOM.nodes)))
    assert refusal.value.message == (
        "nodes with the effect rng keep their number and order: they were aten.bernoulli.p, "
        f"aten.rand_like.default, and are {now}"
    )


def test_nodes_without_effects_may_come_and_go() -> None:
    check_effects(RANDOM, RANDOM.with_nodes(RANDOM.nodes[:2]))


# --- what passes make ---------------------------------------------------------------------------


def lowered(graph: Graph) -> tuple[Graph, Graph]:
    """The graph at the fused and at the kernel level."""
    target = Target.parse("cpu:avx2")
    env = Env(Roofline(target), target)
    fused = Fuse().run(graph, env)
    return fused, PlanMemory().run(fused, env)


@settings(max_examples=30)
@given(graph=graphs(regions=False))
def test_drawn_graphs_are_sound_at_every_level(graph: Graph) -> None:
    check(graph, "aten")
    fused, planned = lowered(graph)
    check(fused, "fused")
    check_effects(graph, fused)
    check(planned, "kernel")
    check_effects(fused, planned)


@settings(max_examples=30)
@given(graph=graphs())
def test_drawn_regions_are_sound(graph: Graph) -> None:
    check(graph, "fused")
    target = Target.parse("cpu:avx2")
    check(PlanMemory().run(graph, Env(Roofline(target), target)), "kernel")


def test_effects_regions_and_updates_come_through_the_passes() -> None:
    graph = graph_of("""
        graph step(%x: f32[B0, 8], %w: f32[8, 8] param, %m: f32[B0, 8] mutable)
            where B0 in [1, 64] hint 16 {
          %h = aten.mm.default(%x, %w) : f32[B0, 8]
          %n = aten.rand_like.default(%h) : f32[B0, 8]
          %d = aten.mul.Tensor(%h, %n) : f32[B0, 8]
          %s = aten._softmax.default(%d, -1, false) : f32[B0, 8]
          %o = aten.mm.default(%s, %w) : f32[B0, 8]
          %t = aten.t.default(%o) : f32[8, B0] strides [1, 8]
          update %m <- %s
          return %t
        }""")
    fused, planned = lowered(graph)
    assert any(node.op.name == "rw.fused" for node in fused.nodes)
    assert any(node.op.name == "rw.free" for node in planned.nodes)
    for made, level in ((graph, "aten"), (fused, "fused"), (planned, "kernel")):
        check(made, level)
    check_effects(graph, planned)
    with pytest.raises(CheckError, match="belongs to the kernel level"):
        check(planned, "fused")
