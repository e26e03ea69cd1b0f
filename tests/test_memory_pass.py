"""The memory pass: a schedule run byte by byte in its arena, where freed bytes are poisoned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from region_graphs import region_graphs
from rewright.ir import CheckError, Graph, Input, Kind, Node, Value, hint, storage_roots
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.storage import may_share_input_storage, shares_input_storage
from rewright.passes import Pipeline, PlanMemory, peak_bytes
from rewright.passes.memory.lifetimes import lifetimes
from rewright.passes.memory.problem import MemoryPlan, MemoryProblem
from rewright.passes.memory.solve import solve
from run_case import assert_equal, case_env
from strategies import graphs, values_for

# Small regions leave many values to place.
TO_FUSED = Pipeline.parse("fuse{max-ops=1,horizontal=false}")
TO_KERNELS = Pipeline((*TO_FUSED, PlanMemory()))
POISON = 0xFF  # NaN as a float of any width, -1 as an integer


class Machine:
    """Runs a kernel-level graph as it says: in one arena, with tensors of its own beside it.

    Bytes that no live buffer holds are poison; `live` counts what is alive beside the arena.
    """

    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        self.graph = graph
        self.values: dict[Value, Tensor] = {
            i.value: x for i, x in zip(graph.inputs, inputs, strict=True)
        }
        ends = [_end(n) for n in graph.nodes if n.op.name == "rw.alloc"]
        self.arena = torch.full((max(ends, default=0),), POISON, dtype=torch.uint8)
        self.windows: dict[Value, tuple[int, int]] = {}
        self.live: dict[Value, int] = {}
        self.peak = 0

    def run(self) -> list[Tensor]:
        for node in self.graph.nodes:
            match node.op.name:
                case "rw.alloc":
                    self._alloc(node)
                case "rw.free":
                    self._free(node.operands[0])
                case _:
                    self._call(node)
        # An update writes what was computed before any of them.
        written = [self.values[value].clone() for _, value in self.graph.updates]
        outputs = [self.values[v] for v in self.graph.outputs if isinstance(v, Value)]
        for (target, _), value in zip(self.graph.updates, written, strict=True):
            self.values[target].copy_(value)
        return outputs

    def _alloc(self, node: Node) -> None:
        type, offset = node.result.tensor, node.kwarg("offset")
        assert isinstance(offset, int)
        stop = offset + type.nbytes_hint
        assert bool((self.arena[offset:stop] == POISON).all()), f"%{node.result.name} is not alone"
        elements = self.arena[offset:stop].view(type.dtype)
        shape, strides = ([hint(s) for s in sizes] for sizes in (type.shape, type.layout))
        self.values[node.result] = elements.as_strided(shape, strides)
        self.windows[node.result] = (offset, stop)

    def _free(self, value: Value) -> None:
        if value in self.windows:
            start, stop = self.windows[value]
            self.arena[start:stop] = POISON
        else:
            del self.live[value]
        del self.values[value]

    def _call(self, node: Node) -> None:
        """By the interpreter, one node at a time; views stay windows, so that poison shows."""
        inner = _without_buffers(node)
        # The graph's own inputs show what its symbols are.
        given = dict.fromkeys((*(i.value for i in self.graph.inputs), *inner.operands))
        alone = Graph("alone", tuple(map(Input, given)), (inner,), inner.results)
        results = interpret(alone, [self.values[v] for v in given])
        buffers = node.kwarg("out")
        told = buffers if isinstance(buffers, tuple) else (None,) * len(results)
        for value, result, buffer in zip(node.results, results, told, strict=True):
            if isinstance(buffer, Value):
                self.values[value] = self.values[buffer].copy_(result)
                self.windows[value] = self.windows[buffer]
                continue
            self.values[value] = result
            if node.op.name != "rw.constant" and not shares_input_storage(node):
                self.live[value] = value.tensor.nbytes_hint
        self.peak = max(self.peak, sum(self.live.values()))


def _without_buffers(node: Node) -> Node:
    return dataclasses.replace(node, kwargs=tuple(k for k in node.kwargs if k[0] != "out"))


def _end(alloc: Node) -> int:
    offset = alloc.kwarg("offset")
    assert isinstance(offset, int)
    return offset + alloc.result.tensor.nbytes_hint


# --- random graphs --------------------------------------------------------------------------------


@settings(max_examples=200)
@given(graphs(max_nodes=14, regions=False) | region_graphs(max_nodes=14))
def test_a_schedule_reads_nothing_that_is_freed(graph: Graph) -> None:
    planned = TO_KERNELS.run(graph, case_env(), check=True).graph
    inputs = values_for(graph)
    kept = [x.clone() for x in inputs]
    machine = Machine(planned, inputs)
    found = machine.run()
    expected = interpret(graph, kept)
    assert_equal(found, expected, rtol=0)
    assert_equal(inputs, kept, rtol=0)
    assert peak_bytes(planned) == machine.arena.numel() + machine.peak


@settings(max_examples=100)
@given(graphs(max_nodes=14, regions=False))
def test_only_what_leaves_the_graph_outlives_it(graph: Graph) -> None:
    planned = TO_KERNELS.run(graph, case_env()).graph
    machine = Machine(planned, values_for(graph))
    machine.run()
    assert bool((machine.arena == POISON).all())
    roots = storage_roots(planned)
    assert set(machine.live) <= {roots[v] for v in planned.returned}


@settings(max_examples=100)
@given(graphs(max_nodes=14, regions=False))
def test_lifetimes_reach_from_the_first_to_the_last_touch(graph: Graph) -> None:
    """Step by step: a value is alive while anything that shows it is read at this step or later."""
    fused = TO_FUSED.run(graph, case_env()).graph
    found = {f.value: f for f in lifetimes(fused)}
    roots = storage_roots(fused)
    for step, node in enumerate(fused.nodes):
        later = [v for n in fused.nodes[step + 1 :] for v in n.operands]
        alive = {roots[v] for v in (*node.operands, *node.results, *later, *fused.returned)}
        for value, lifetime in found.items():
            made = lifetime.start <= step
            assert (value in alive and made) == (lifetime.start <= step <= lifetime.last)


def test_a_wrong_plan_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge knows nothing of how a plan was found; one that puts all at 0 does not pass."""

    def careless(problem: MemoryProblem) -> MemoryPlan:
        return dataclasses.replace(solve(problem), offsets=(0,) * len(problem.buffers))

    graph = parse(
        """graph f(%x: f32[4, 4]) {
          %a = aten.mm.default(%x, %x) : f32[4, 4]
          %b = aten.mm.default(%a, %x) : f32[4, 4]
          %c = aten.mm.default(%a, %b) : f32[4, 4]
          return %c
        }"""
    )
    monkeypatch.setattr("rewright.passes.memory.plan.solve", careless)
    with pytest.raises(CheckError, match=r"overlap: a .* and b .* are both live at step 1"):
        PlanMemory().run(graph, case_env())


# --- views ----------------------------------------------------------------------------------------

# Calls on %x: f32[2, 3], and on its transpose %t: whether they share its memory (None: perhaps).
SHARING: Mapping[str, bool | None] = {
    "aten.view.default(%x, [3, 2]) : f32[3, 2]": True,
    "aten._unsafe_view.default(%x, [6]) : f32[6]": True,
    "aten.clone.default(%x) : f32[2, 3]": False,
    "aten.reshape.default(%x, [6]) : f32[6]": True,
    "aten.reshape.default(%t, [6]) : f32[6]": None,
    "aten.flatten.using_ints(%x) : f32[6]": True,
    "aten.contiguous.default(%x) : f32[2, 3]": True,
    "aten.contiguous.default(%t) : f32[3, 2]": None,
    "aten.to.dtype(%x, f32) : f32[2, 3]": True,
    "aten.to.dtype(%x, f32, false, true) : f32[2, 3]": False,
    "aten.to.dtype(%x, f64) : f64[2, 3]": False,
    "aten.to.dtype(%t, f32) : f32[3, 2] strides [1, 3]": True,
    "aten.pin_memory.default(%x) : f32[2, 3]": None,
    "aten.resolve_conj.default(%x) : f32[2, 3]": None,
}


@pytest.mark.parametrize(("call", "shares"), SHARING.items(), ids=SHARING)
def test_a_view_that_may_copy_counts_as_both(call: str, shares: bool | None) -> None:
    graph = parse(
        f"""graph f(%x: f32[2, 3]) {{
          %t = aten.t.default(%x) : f32[3, 2] strides [1, 3]
          %y = {call}
          return %t, %y
        }}"""
    )
    node, x = graph.nodes[1], graph.inputs[0].value
    assert shares_input_storage(node) == (shares is True)
    assert may_share_input_storage(node) == (shares is not False)
    assert (storage_roots(graph)[node.result] == x) == (shares is not False)


def test_what_may_be_a_view_keeps_what_it_may_show() -> None:
    """A reshape that copies at one size and not at another; in between the slot is wanted."""
    graph = parse(
        """graph f(%x: f32[B0, 4], %y: f32[4, 4]) where B0 in [1, inf] hint 3 {
          %a = aten.mm.default(%x, %y) : f32[B0, 4]
          %t = aten.t.default(%a) : f32[4, B0] strides [1, 4]
          %c = aten.reshape.default(%t, [-1]) : f32[4*B0]
          %b = aten.mm.default(%x, %y) : f32[B0, 4]
          %d = aten.mm.default(%b, %y) : f32[B0, 4]
          %s, %i = aten.sort.default(%c) : f32[4*B0], i64[4*B0]
          return %d, %s
        }"""
    )
    planned = PlanMemory().run(graph, case_env())
    places = [n.kwarg("offset") for n in planned.nodes if n.op.name == "rw.alloc"]
    assert len(places) == len(set(places)) == 2
    names = [n.operands[0].name for n in planned.nodes if n.op.name == "rw.free"]
    assert names == ["b", "a", "i"]


def test_regions_are_told_where_to_write() -> None:
    graph = parse(
        """graph f(%x: f32[4]) {
          %a = aten.sin.default(%x) : f32[4]
          %s, %i = aten.sort.default(%a) : f32[4], i64[4]
          %b = aten.cos.default(%s) : f32[4]
          return %b
        }"""
    )
    planned = Pipeline.parse("fuse,memory").run(graph, case_env()).graph
    first, last = (n for n in planned.nodes if n.op.kind is Kind.REGION)
    assert first.kwarg("out") is not None and last.kwarg("out") is None
