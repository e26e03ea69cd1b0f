"""Fusion: what regions compute, that they can run, and how long finding them takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import unset_fake_temporarily

from region_graphs import region_graphs
from regions import assert_close, run_region
from rewright.costmodel import Roofline
from rewright.ir import (
    Graph,
    Input,
    Kind,
    Node,
    TensorType,
    Value,
    hint,
    late_sizes,
    op,
    product,
)
from rewright.ir.decompositions import decomposition_table
from rewright.ir.fx_import import from_fx
from rewright.ir.interpret import interpret
from rewright.ir.loops import OPERATORS, lower
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.ir.target import Target
from rewright.passes import DEFAULT, Env, Fuse, Pipeline
from rewright.passes.fuse.groups import Groups
from rewright.passes.fuse.units import Units
from run_case import assert_equal, case_env, random_inputs, run
from strategies import graphs, values_for
from zoo import ZOO, loss

UP_TO_FUSE = Pipeline.parse("canonicalize,cse,dce,fuse")
WIDE = (torch.float32, torch.float64)
ALL_FLOATS = (*WIDE, torch.bfloat16)


def fused(graph: Graph) -> Graph:
    return UP_TO_FUSE.run(graph, case_env(), check=True).graph


def regions(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op.kind is Kind.REGION]


# --- random graphs ------------------------------------------------------------------------------


@settings(max_examples=150)
@given(graphs(max_nodes=12, dtypes=ALL_FLOATS, regions=False) | region_graphs(max_nodes=12))
def test_fusion_changes_no_bit(graph: Graph) -> None:
    inputs = values_for(graph)
    for dtype in (None, torch.float64):
        copies = [[x.clone() for x in inputs] for _ in range(2)]
        before = [*interpret(graph, copies[0], dtype=dtype), *copies[0]]
        after = [*interpret(fused(graph), copies[1], dtype=dtype), *copies[1]]
        # A constant that was rounded at compile time stays rounded.
        assert_equal(after, before, rtol=0 if dtype is None else 2**-6)


@settings(max_examples=150)
@given(graphs(max_nodes=12, dtypes=WIDE, regions=False) | region_graphs(max_nodes=12))
def test_every_region_has_a_nest_that_computes_it(graph: Graph) -> None:
    for region in regions(fused(graph)):
        body = region.graph("body")
        if late_sizes(body):
            continue  # only the graph around it says how large its results are
        inputs, nest = values_for(body), lower(body, "kernel")
        if hint(product(axis.size for axis in nest.cols)) == 0:
            continue  # the largest of nothing is for emitters to say
        expected = interpret(body, inputs, dtype=torch.float64)
        assert_close(run_region(body, nest, inputs, wide=True), expected, rtol=1e-6)


@settings(max_examples=100)
@given(graphs(max_nodes=12, regions=False))
def test_whatever_has_a_kernel_is_in_one(graph: Graph) -> None:
    for node in fused(graph).nodes:
        assert node.op.kind is not Kind.POINTWISE and node.op.name not in OPERATORS


@settings(max_examples=100)
@given(graphs(max_nodes=12, regions=False), st.integers(1, 4))
def test_no_region_is_larger_than_asked_for(graph: Graph, most: int) -> None:
    limited = Pipeline((*UP_TO_FUSE.passes[:-1], Fuse(max_ops=most))).run(graph, case_env()).graph
    for region in regions(limited):
        assert len(Units.of(region.graph("body")).nodes) <= most


def test_a_sum_of_many_products_is_cut_where_a_kernel_would_wait_for_too_many() -> None:
    lines = [f"%m{i} = aten.mm.default(%x, %y) : f32[8, 8]" for i in range(12)]
    sums = ["%s1 = aten.add.Tensor(%m0, %m1) : f32[8, 8]"]
    sums += [f"%s{i} = aten.add.Tensor(%s{i - 1}, %m{i}) : f32[8, 8]" for i in range(2, 12)]
    inside = "\n".join((*lines, *sums))
    graph = parse(f"graph f(%x: f32[8, 8], %y: f32[8, 8]) {{\n{inside}\nreturn %s11\n}}")
    whole, parted = (Fuse(max_reads=most).run(graph, case_env()).nodes for most in (0, 4))
    assert [len(n.operands) for n in whole if n.op.kind is Kind.REGION] == [12]
    assert [len(n.operands) for n in parted if n.op.kind is Kind.REGION] == [4, 4, 4, 3]


@settings(max_examples=100)
@given(graphs(max_nodes=12, regions=False))
def test_fused_and_kernel_graphs_are_what_they_print(graph: Graph) -> None:
    result = Pipeline(DEFAULT).run(graph, case_env(), check=True, snapshots={"fuse"})
    for stage in result.stages:
        for found in (stage.snapshot, result.graph):
            if found is not None:
                assert parse(show(found)) == found
                assert show(parse(show(found))) == show(found)


@settings(max_examples=100)
@given(graphs(max_nodes=12, regions=False))
def test_values_that_only_regions_hold_are_found_there(graph: Graph) -> None:
    after = fused(graph)
    renamed = dict(after.history[-1].renamed)
    there = {value.name for value in after.values}
    held = {v.name: r.name for r in regions(after) for v in r.graph("body").values}
    for name, into in renamed.items():
        assert name not in there and set(into) <= there
        assert held[name] in into


# --- groups ---------------------------------------------------------------------------------------


@st.composite
def orders(draw: st.DrawFn) -> list[list[int]]:
    """Sources of items that stand in an order that can run."""
    found = []
    for item in range(draw(st.integers(2, 14))):
        sources = st.lists(st.integers(0, item - 1), max_size=3, unique=True)
        found.append(sorted(draw(sources)) if item else [])
    return found


@settings(max_examples=200)
@given(orders(), st.data())
def test_groups_merge_exactly_when_nothing_runs_between_them(
    sources: list[list[int]], data: st.DataObject
) -> None:
    groups = Groups(sources)
    items = st.integers(0, len(sources) - 1)
    for _ in range(8):
        a, b = (groups.group_of[data.draw(items)] for _ in range(2))
        if a == b:
            continue
        edges = edges_of(groups)
        blocked = runs_between(edges, a, b) or runs_between(edges, b, a)
        assert (groups.between(a, b) is not None) == blocked
        if not blocked:
            groups.merge(a, b)
        place = {group: i for i, group in enumerate(groups.schedule())}
        assert sorted(i for g in place for i in groups.members[g]) == list(range(len(sources)))
        assert all(place[one] < place[other] for one, other in edges_of(groups))


def edges_of(groups: Groups) -> set[tuple[int, int]]:
    of = groups.group_of
    edges = {(of[s], of[i]) for i, found in enumerate(groups.sources) for s in found}
    return {(one, other) for one, other in edges if one != other}


def runs_between(edges: set[tuple[int, int]], first: int, last: int) -> bool:
    """Whether a path of more than one edge leads from one to the other."""
    reached = {other for one, other in edges if one == first and other != last}
    while True:
        more = {other for one, other in edges if one in reached} - reached
        if not more:
            return last in reached
        reached |= more


# --- real models ----------------------------------------------------------------------------------


@cache
def captured(name: str) -> tuple[Graph, ...]:
    """The forward and backward graph of one training step of a model of the zoo."""
    found: list[Graph] = []

    def keep(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        with unset_fake_temporarily():
            found.append(from_fx(module, name=name))

        def run_eagerly(args: list[Any]) -> Any:
            return module(*args)

        run_eagerly._boxed_call = True  # type: ignore[attr-defined]
        return run_eagerly

    backend = aot_autograd(
        fw_compiler=keep,
        bw_compiler=keep,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=decomposition_table(),
    )
    module, inputs = ZOO[name]()
    torch._dynamo.reset()
    loss(torch.compile(module.train(), backend=backend)(*inputs)).backward()
    return tuple(found)


models = pytest.mark.parametrize("name", ["gpt2", "llama", "convnext"])

# Attention of ours adds up in another order than ATen's.
EXACT: Final = tuple(p for p in DEFAULT if p.name != "flash-attention")


@models
def test_a_model_runs_as_before(name: str) -> None:
    for graph in captured(name):
        result = Pipeline(EXACT).run(graph, case_env(), check=True, snapshots={"fuse"})
        for after in (*(s.snapshot for s in result.stages if s.snapshot), result.graph):
            assert parse(show(after)) == after
            assert_equal(run(after, None), run(graph, None), rtol=0)


@models
def test_the_kernels_of_a_model_compute_what_their_regions_say(name: str) -> None:
    for graph in captured(name):
        for region in regions(Pipeline(EXACT[:-1]).run(graph, case_env()).graph):
            body = region.graph("body")
            inputs = [x for x in random_inputs(body) if isinstance(x, torch.Tensor)]
            expected = interpret(body, inputs, dtype=torch.float64)
            found = run_region(body, lower(body, "kernel"), inputs, wide=True)
            assert_close(found, expected, rtol=1e-6)


@models
def test_kernels_that_read_each_other_say_why(name: str) -> None:
    for graph in captured(name):
        env = case_env()
        after = Pipeline(EXACT[:-1]).run(graph, env).graph
        said = [d for d in env.log.refusals if d.pass_ == "fuse"]
        for reader, maker, value in handovers(after):
            held = {v.name for r in (reader, maker) for v in r.graph("body").values}
            assert any(d.subject in held for d in said), f"{reader.name} reads {value.name}"


def handovers(graph: Graph) -> Iterator[tuple[Node, Node, Value]]:
    """Regions that read, themselves or through views, what another region makes."""
    roots = Units.of(graph).roots
    for reader in regions(graph):
        for value in dict.fromkeys(roots[v] for v in reader.operands):
            maker = graph.producers.get(value)
            if maker is not None and maker.op.kind is Kind.REGION:
                yield reader, maker, value


def test_norms_and_activations_of_a_block_are_one_kernel_each() -> None:
    """In GPT-2's forward pass each region reads what a library call or dropout has made."""
    forward, _ = captured("gpt2")
    after = Pipeline(EXACT[:-1]).run(forward, case_env()).graph
    gelus = [r for r in regions(after) if any("tanh" in n.op.name for n in r.graph("body").nodes)]
    norms = [r for r in regions(after) if any("norm" in n.op.name for n in r.graph("body").nodes)]
    assert (len(gelus), len(norms)) == (2, 5)
    assert all(len(r.args) == 1 and len(r.results) == 1 for r in gelus)


PRINT_ALL = """
import sys
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.passes import DEFAULT, Pipeline
from run_case import case_env
env = case_env()
result = Pipeline(DEFAULT).run(parse(sys.stdin.read()), env, snapshots={"fuse"})
for stage in result.stages:
    print(stage.spec, stage.snapshot and show(stage.snapshot))
print(show(result.graph), *env.log, sep="\\n")
"""


def test_two_processes_find_the_same_kernels() -> None:
    """Whatever the order of sets is in them."""
    _, backward = captured("llama")
    tests = str(Path(__file__).parent)
    printed = {
        subprocess.run(
            [sys.executable, "-c", PRINT_ALL],
            input=show(backward),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": tests},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1 and "rw.fused" in printed.pop()


# --- targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "dtype", "ours"),
    [
        ("cuda:h100", "f32", True),
        ("cuda:h100", "f8e4m3fn", True),
        ("cuda:a100", "f8e4m3fn", False),
        ("cuda:h100", "f8e4m3fnuz", False),
        ("cpu:avx2", "f32", False),
    ],
)
def test_kernels_are_what_the_target_can_run(target: str, dtype: str, ours: bool) -> None:
    graph = parse(
        f"""graph f(%x: {dtype}[64] on cuda:0) {{
          %a = aten._to_copy.default(%x, dtype=f32) : f32[64] on cuda:0
          return %a
        }}"""
    )
    machine = Target.parse(target)
    env = Env(Roofline(machine), machine)
    assert bool(regions(Fuse().run(graph, env))) == ours
    assert bool(env.log.refusals) != ours


def test_kernels_are_for_one_device_each() -> None:
    graph = parse(
        """graph f(%x: f32[8] on cuda:0, %y: f32[8] on cuda:1) {
          %a = aten.neg.default(%x) : f32[8] on cuda:0
          %b = aten._to_copy.default(%a, device=device("cuda:1")) : f32[8] on cuda:1
          %c = aten.add.Tensor(%b, %y) : f32[8] on cuda:1
          return %c
        }"""
    )
    machine = Target.parse("cuda:h100")
    after = Fuse().run(graph, Env(Roofline(machine), machine))
    assert [node.op.name for node in after.nodes] == [
        "rw.fused",
        "aten._to_copy.default",
        "rw.fused",
    ]


# --- time -----------------------------------------------------------------------------------------

MATRIX = TensorType(torch.float32, (64, 64))


class Builder:
    """A graph in the making."""

    def __init__(self) -> None:
        self.inputs = [Value(name, MATRIX) for name in ("x", "m")]
        self.nodes: list[Node] = []

    def add(self, name: str, *args: Any, type: TensorType = MATRIX) -> Value:
        value = Value(f"v{len(self.nodes)}", type)
        self.nodes.append(Node(op(f"aten.{name}"), args, (), (value,)))
        return value

    def graph(self, returned: Value) -> Graph:
        return Graph("built", tuple(map(Input, self.inputs)), tuple(self.nodes), (returned,))


def chain(count: int) -> Graph:
    """Pointwise nodes, one after the other."""
    made = Builder()
    value = made.inputs[0]
    while len(made.nodes) < count:
        value = made.add(("relu", "sin", "neg", "tanh")[len(made.nodes) % 4] + ".default", value)
    return made.graph(value)


def blocks(count: int) -> Graph:
    """A residual stream with products, a softmax, views, a sum, and a mask that all blocks read."""
    made = Builder()
    stream, mask = made.inputs
    while len(made.nodes) < count:
        scores = made.add("mm.default", stream, mask)
        masked = made.add("mul.Tensor", made.add("tanh.default", scores), mask)
        weights = made.add("_softmax.default", masked, -1, False)
        turned = made.add("t.default", weights, type=TensorType(torch.float32, (64, 64), (1, 64)))
        mixed = made.add("mm.default", made.add("clone.default", turned), mask)
        row = TensorType(torch.float32, (64,))
        bias = made.add("sum.dim_IntList", mixed, (0,), type=row)
        stream = made.add("add.Tensor", made.add("add.Tensor", mixed, bias), stream)
    return made.graph(stream)


@pytest.mark.parametrize(("between", "kernels"), [(1, 1), (50, 2)])
def test_what_runs_much_later_does_not_join(between: int, kernels: int) -> None:
    """Else what the earlier of two readers needs would have to stay in memory until the later."""
    made = Builder()
    x, m = made.inputs
    last, first = m, made.add("sin.default", x)
    for _ in range(between):
        last = made.add("mm.default", last, m)
    joined = made.add("mm.default", first, made.add("mul.Tensor", x, last))
    after = Fuse().run(made.graph(joined), case_env())
    assert len(regions(after)) == kernels


@pytest.mark.parametrize("make", [chain, blocks])
def test_time_grows_with_the_graph(make: Callable[[int], Graph]) -> None:
    """Five times the nodes take about five times as long, not twenty-five times."""
    env = case_env()
    sizes = (1000, 5000)
    for size in sizes:  # what is imported and cached on first use does not count
        Fuse().run(make(size // 50), env)
    seconds = []
    for size in sizes:
        graph, start = make(size), time.process_time()
        Fuse().run(graph, env)
        seconds.append((time.process_time() - start) / size)
    assert seconds[1] < 4 * seconds[0]


def test_a_kernel_may_be_as_long_as_asked_for() -> None:
    """Long chains are no deep recursion."""
    graph = chain(2000)
    (region,) = Fuse(max_ops=2000).run(graph, case_env()).nodes
    assert len(region.graph("body").nodes) == 2000
