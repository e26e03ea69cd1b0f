"""Programs while they run: what they do is what the schedule says, and takes the memory it says."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import rewright
from examples.case import Case
from examples.transformer import two_block_transformer
from rewright.codegen.runtime import Frame, Frames, Interval, own, place_again
from rewright.driver import Program, compile_graph
from rewright.ir import (
    Graph,
    Kind,
    Node,
    TensorType,
    Value,
    op_of_target,
    shares_input_storage,
    storage_roots,
)
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.options import Options
from rewright.passes import peak_bytes
from rewright.passes.memory.judge import judge
from rewright.passes.memory.problem import Buffer, MemoryPlan, MemoryProblem, lower_bound
from rewright.sources import random_inputs
from zoo import loss, tiny_gpt2, tiny_mlp, tiny_resnet

pytestmark = pytest.mark.cpu


def graphs_of(make: Callable[[], Case]) -> tuple[Graph, ...]:
    """The inference, forward and backward graphs of a model."""
    torch._dynamo.reset()
    module, inputs = make()
    with torch.no_grad():
        torch.compile(module, backend="rewright")(*inputs)
    loss(torch.compile(module.train(), backend="rewright")(*inputs)).backward()
    graphs = tuple(program.source for program in rewright.programs())
    torch._dynamo.reset()
    return graphs


@cache
def transformer_graphs() -> tuple[Graph, ...]:
    return graphs_of(lambda: two_block_transformer(4, 64, width=256))


# --- the sequence that runs ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_resnet, tiny_mlp])
def test_every_step_of_the_schedule_runs_in_its_order(make: Callable[[], Case]) -> None:
    for graph in graphs_of(make):
        trace: list[tuple[str, str]] = []
        program = compile_graph(graph, Options(), trace=trace)
        program.executable(random_inputs(graph))
        subjects = (n.name or ", ".join(v.name for v in n.operands) for n in program.graph.nodes)
        ops = (node.op.name for node in program.graph.nodes)
        assert trace == list(zip(ops, subjects, strict=True))


Place = tuple[int, int]  # of a tensor: which step made it, which of its results it is


class Watch(TorchDispatchMode):
    """Notes every operator and kernel that runs, and which tensors are alive when it starts.

    It knows nothing of how the call sequence is written.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[str] = []
        self.alive: list[set[Place]] = []
        self.made: list[dict[int, weakref.ref[Tensor]]] = []
        for name in set(program.plan.kernels.of_node.values()):
            namespace = program.executable._namespace
            namespace[name] = self.watched(name, namespace[name])

    def watched(self, name: str, kernel: Callable[..., None]) -> Callable[..., None]:
        def call(pointers: Any, sizes: Any) -> None:
            self.note(name)
            self.made.append({})
            kernel(pointers, sizes)

        return call

    def note(self, name: str) -> None:
        refs = ((i, j, ref) for i, made in enumerate(self.made) for j, ref in made.items())
        self.alive.append({(i, j) for i, j, ref in refs if ref() is not None})
        self.steps.append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note(op_of_target(func).name)
        returned = func(*args, **(kwargs or {}))
        given = {id(a) for a in pytree.tree_leaves((args, kwargs))}
        leaves = enumerate(pytree.tree_leaves(returned))
        tensors = {j: t for j, t in leaves if isinstance(t, Tensor) and id(t) not in given}
        self.made.append({j: weakref.ref(t) for j, t in tensors.items()})
        return returned


def expected_steps(program: Program) -> tuple[list[str], list[set[Place]], set[Place]]:
    """What the schedule says: each call, the results that live when it starts, and all results
    with memory of their own. Inputs live for as long as the caller holds them."""
    graph, kernels = program.graph, program.plan.kernels.of_node
    roots = storage_roots(graph)
    inputs = {i.value for i in graph.inputs}
    in_arena = {v for n in graph.nodes for v in _kept_by_frame(n)}
    steps: list[str] = []
    alive: list[set[Place]] = []
    live: dict[Place, Value] = {}
    owned: set[Place] = set()

    def call(name: str, makes: Sequence[Value] = ()) -> None:
        alive.append(set(live))
        places = {(len(steps), j): roots[v] for j, v in enumerate(makes) if roots[v] not in inputs}
        live.update({p: root for p, root in places.items() if isinstance(root.type, TensorType)})
        owned.update(live)
        steps.append(name)

    for node in graph.nodes:
        if node.op.name == "rw.free":
            freed = roots[node.operands[0]]
            live = {place: root for place, root in live.items() if root != freed}
        elif node.op.kind is Kind.REGION:
            for value in node.results:
                if value not in in_arena:
                    call("aten.empty_strided.default", [value])
            call(kernels[node.name])
        elif not _is_silent(node) and roots[node.results[0]] not in in_arena:
            call(node.op.name, node.results)
        elif not _is_silent(node) and not shares_input_storage(node):
            call(node.op.name.replace(".default", ".out"))
    return steps, alive, owned


def _is_silent(node: Node) -> bool:
    return node.op.name in ("rw.alloc", "rw.constant", "rw.free")


def _kept_by_frame(node: Node) -> Iterator[Any]:
    if node.op.name == "rw.constant":
        yield node.result
    out = node.kwarg("out")
    for value, buffer in zip(node.results, out if isinstance(out, tuple) else (), strict=False):
        if buffer is not None:
            yield value


@pytest.mark.parametrize("which", [0, 1, 2], ids=["inference", "forward", "backward"])
def test_calls_and_frees_are_the_schedules(which: int) -> None:
    graph = transformer_graphs()[which]
    program = compile_graph(graph, Options())
    args = random_inputs(graph)
    program.executable(list(args))  # views of the arena are made once
    watch = Watch(program)
    with watch:
        outputs = program.executable(list(args))
    steps, alive, owned = expected_steps(program)
    assert watch.steps == steps
    assert [found & owned for found in watch.alive] == alive
    assert len(outputs) == len(graph.outputs)


def test_buffers_stand_at_their_offsets() -> None:
    program = compile_graph(transformer_graphs()[0], Options())
    frame = program.executable._make_frame(())
    base = frame.arena.data_ptr()
    checked = 0
    for node in program.graph.nodes:
        if node.op.name != "rw.alloc":
            continue
        name = node.name.removesuffix("_buffer")
        buffer = getattr(frame, name)
        assert buffer.data_ptr() - base == node.kwarg("offset")
        assert buffer.shape == node.result.tensor.shape
        assert buffer.stride() == node.result.tensor.layout
        checked += 1
    assert checked > 10


# --- memory -------------------------------------------------------------------------------------


def measured_peak(run: Callable[[], object]) -> int:
    """Bytes that the CPU allocator has given out at most, beyond what it had before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    assert kept is not None
    results = profiler.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("which", [0, 1, 2], ids=["inference", "forward", "backward"])
def test_a_run_takes_the_memory_that_was_planned(which: int) -> None:
    graph = transformer_graphs()[which]
    args = random_inputs(graph)
    program = compile_graph(graph, Options(), retain=False)
    planned = peak_bytes(program.graph)
    assert planned > 1 << 20
    for _ in range(2):
        measured = measured_peak(lambda: program.executable(list(args)))
        assert measured == pytest.approx(planned, rel=0.02)


def test_a_retained_arena_is_allocated_once() -> None:
    graph = transformer_graphs()[0]
    args = random_inputs(graph)
    program = compile_graph(graph, Options(), retain=True)
    first = measured_peak(lambda: program.executable(list(args)))
    second = measured_peak(lambda: program.executable(list(args)))
    arena = program.executable._namespace["ARENA_BYTES"]
    assert arena > 0
    assert first - second == arena


def test_planning_saves_memory() -> None:
    graph = transformer_graphs()[0]
    program = compile_graph(graph, Options())
    stages = {stage.spec: stage.snapshot for stage in program.plan.stages.stages}
    assert stages["fuse"] is not None
    assert peak_bytes(program.graph) < 0.5 * sum(
        v.tensor.nbytes_hint for n in stages["fuse"].nodes for v in n.results if not _is_view(n)
    )


def _is_view(node: Node) -> bool:
    return shares_input_storage(node)


# --- other sizes --------------------------------------------------------------------------------

DYNAMIC = """
graph f(%x: f32[B0, 8], %w: f32[8, 8], %b: f32[B1])
    where B0 in [1, 4096] hint 16, B1 in [1, 4096] hint 5 {
  %a = aten.mm.default(%x, %w) : f32[B0, 8]
  %c = aten.mm.default(%a, %w) : f32[B0, 8]
  %d = aten.add.Tensor(%a, %c) : f32[B0, 8]
  %e = aten.mm.default(%d, %w) : f32[B0, 8]
  %f = aten.sum.dim_IntList(%e, [1]) : f32[B0]
  %g = aten.outer.default(%f, %b) : f32[B0, B1]
  %h = aten.mm.default(%w, %w) : f32[8, 8]
  %i = aten.mm.default(%c, %h) : f32[B0, 8]
  %j = aten.mul.Tensor(%i, %d) : f32[B0, 8]
  return %g, %j
}
"""


@cache
def dynamic_program() -> Program:
    return compile_graph(parse(DYNAMIC), Options())


@pytest.mark.parametrize("rows", [1, 7, 16, 100, 4096])
def test_a_program_at_other_sizes(rows: int) -> None:
    program = dynamic_program()
    args = [torch.randn(rows, 8), torch.randn(8, 8), torch.randn(rows // 3 + 1)]
    torch.testing.assert_close(
        program.executable(list(args)), interpret(program.source, args), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("sizes", [(16, 5), (1, 1), (7, 4096), (4096, 3)])
def test_plans_for_other_sizes_pass_the_judge(sizes: tuple[int, int]) -> None:
    namespace = dynamic_program().executable._namespace
    frame = dynamic_program().executable._make_frame(sizes)
    intervals = namespace["intervals"](*sizes)
    assert len(intervals) > 3
    offsets, nbytes = place_again(intervals, 64)
    assert judge(problem_of(intervals), MemoryPlan(tuple(offsets), nbytes)) is None
    wanted = namespace["ARENA_BYTES"] if sizes == (16, 5) else nbytes
    assert frame.nbytes == wanted


def problem_of(intervals: Sequence[Interval]) -> MemoryProblem:
    buffers = (Buffer(str(i), a, b + 1, n) for i, (a, b, n, _) in enumerate(intervals))
    return MemoryProblem(tuple(buffers), 64)


lives = st.tuples(st.integers(0, 30), st.integers(0, 12), st.integers(0, 5000))


@given(st.lists(lives, max_size=25))
def test_placing_again_is_always_legal(lives: list[tuple[int, int, int]]) -> None:
    intervals = [(start, start + length, nbytes, 0) for start, length, nbytes in lives]
    problem = problem_of(intervals)
    offsets, nbytes = place_again(intervals, 64)
    assert judge(problem, MemoryPlan(tuple(offsets), nbytes)) is None
    assert nbytes <= sum(-(-n // 64) * 64 for _, _, n, _ in intervals)
    assert nbytes >= lower_bound(problem)


# --- frames -------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def frame_of(sizes: tuple[int, ...] = (), nbytes: int = 4096) -> Frame:
    return Frame(nbytes, CPU, sizes)


def test_windows_and_pointers_survive_release_and_acquire() -> None:
    frame = frame_of()
    window = frame.place(128, (4, 5), (5, 1), torch.float32)
    outside = torch.ones(3)
    table = frame.pointers(window, None, outside)
    assert table[0] == frame.arena.data_ptr() + 128 == window.data_ptr()
    assert table[1] is None and table[2] == outside.data_ptr()
    frame.release()
    assert frame.arena.untyped_storage().nbytes() == 0
    frame.acquire()
    assert table[0] == frame.arena.data_ptr() + 128 == window.data_ptr()
    assert table[2] == outside.data_ptr()
    window.fill_(2.0)
    assert frame.arena[128:132].view(torch.float32).item() == 2.0


def test_an_empty_arena() -> None:
    frame = frame_of(nbytes=0)
    window = frame.place(0, (0, 3), (3, 1), torch.float32)
    frame.release()
    frame.acquire()
    assert window.numel() == 0


def test_frames_are_used_again_and_never_by_two_calls_at_once() -> None:
    made: list[Frame] = []

    def make(sizes: tuple[int, ...]) -> Frame:
        made.append(frame_of(sizes))
        return made[-1]

    frames = Frames(make, retain=True)
    first, second = frames.take((1,)), frames.take((1,))
    assert first is not second
    frames.put((1,), first)
    assert frames.take((1,)) is first
    frames.put((1,), first)
    frames.put((1,), second)
    assert len(made) == 2


def test_only_the_sizes_used_last_keep_their_memory() -> None:
    frames = Frames(frame_of, retain=True)
    held: dict[int, Frame] = {}
    for n in range(Frames.MOST + 4):
        held[n] = frames.take((n,))
        frames.put((n,), held[n])
    resident = [n for n, frame in held.items() if frame.arena.untyped_storage().nbytes()]
    assert resident == [Frames.MOST + 3]
    assert frames.take((Frames.MOST + 2,)) is held[Frames.MOST + 2]
    assert frames.take((0,)) is not held[0]


def test_frames_that_are_not_retained_give_their_memory_back() -> None:
    frames = Frames(frame_of, retain=False)
    frame = frames.take(())
    frames.put((), frame)
    assert frame.arena.untyped_storage().nbytes() == 0


def test_calls_on_several_threads_have_buffers_of_their_own() -> None:
    program = dynamic_program()
    start = threading.Barrier(4)

    def work(seed: int) -> list[tuple[list[Tensor], list[Tensor]]]:
        generator = torch.Generator().manual_seed(seed)
        start.wait()
        pairs = []
        for n in range(20):
            rows = 1 + (seed * 7 + n * 3) % 40
            args = [torch.randn(s, generator=generator) for s in ((rows, 8), (8, 8), (rows,))]
            pairs.append((program.executable(list(args)), interpret(program.source, args)))
        return pairs

    with ThreadPoolExecutor(4) as pool:
        for pairs in pool.map(work, range(4)):
            for found, expected in pairs:
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_frame_comes_back_when_a_call_fails() -> None:
    program = dynamic_program()
    with pytest.raises(RuntimeError):
        program.executable([torch.randn(3, 8), torch.randn(9, 8), torch.randn(2)])
    args = [torch.randn(3, 8), torch.randn(8, 8), torch.randn(2)]
    found = program.executable(list(args))
    torch.testing.assert_close(found, interpret(program.source, args), rtol=1e-4, atol=1e-4)


def test_own_copies_the_storage_and_keeps_the_strides() -> None:
    base = torch.arange(12.0)
    for window in (base[2:].reshape(2, 5), base[:1].expand(3, 4), base.reshape(3, 4).t()):
        owned: dict[str, torch.UntypedStorage] = {}
        copy = own(window, owned, "base")
        assert own(base, owned, "base").data_ptr() == copy.untyped_storage().data_ptr()
        assert torch.equal(copy, window) and copy.stride() == window.stride()
        assert copy.untyped_storage().data_ptr() != base.untyped_storage().data_ptr()


# --- the text -----------------------------------------------------------------------------------


def test_values_may_be_called_anything() -> None:
    """Names that mean something in the call sequence, to a frame or to Python."""
    names = (
        *("frame", "args", "for", "arena", "sizes", "tables", "place", "new", "torch", "p"),
        *("aten_sort", "aten_mm_out", "float", "returned", "trace", "B0", "k0_add", "1x", "a.b"),
    )
    inputs = ", ".join(f"%{name}: f32[4, 4]" for name in names)
    lines = []
    previous = f"%{names[0]}"
    for i, name in enumerate(names):
        lines.append(f"%s{i} = aten.add.Tensor(%{name}, {previous}) : f32[4, 4]")
        lines.append(f"%in_{name} = aten.mm.default(%s{i}, %{name}) : f32[4, 4]")
        previous = f"%in_{name}"
    lines.append(f"%values, %indices = aten.sort.default({previous}) : f32[4, 4], i64[4, 4]")
    text = "\n  ".join(lines)
    graph = parse(f"graph f({inputs}) {{\n  {text}\n  return %values\n}}")
    program = compile_graph(graph, Options())
    args = [torch.randn(4, 4) for _ in names]
    torch.testing.assert_close(program.executable(list(args)), interpret(graph, args))


def test_the_call_sequence_is_the_same_every_time() -> None:
    graph = transformer_graphs()[2]
    first, second = (compile_graph(graph, Options()) for _ in range(2))
    assert first.executable.source == second.executable.source
    assert first.plan.kernel_source == second.plan.kernel_source


def test_the_backward_of_a_step_works_in_memory_of_its_own() -> None:
    """Two backwards of one forward, as for a Jacobian: nothing saved is overwritten."""
    module, (x,) = tiny_mlp()
    x.requires_grad_()
    y = torch.compile(module, backend="rewright")(x)
    rows = [torch.autograd.grad(y[i].sum(), x, retain_graph=True)[0] for i in range(3)]
    expected = [torch.autograd.grad(module(x)[i].sum(), x)[0] for i in range(3)]
    torch.testing.assert_close(rows, expected)


def test_sizes_may_be_shown_by_multiples_alone() -> None:
    graph = parse(
        "graph f(%x: f32[2*B0 + 1, 3]) where B0 in [1, 50] hint 4 {\n"
        "  %y = aten.exp.default(%x) : f32[2*B0 + 1, 3]\n"
        "  %z = aten.view.default(%y, [3, 2*B0 + 1]) : f32[3, 2*B0 + 1]\n"
        "  %w = aten.full.default([B0], 2.0) : f32[B0]\n"
        "  return %z, %w\n"
        "}"
    )
    program = compile_graph(graph, Options())
    for b in (4, 1, 11):
        x = torch.randn(2 * b + 1, 3)
        z, w = program.executable([x])
        torch.testing.assert_close(z, x.exp().view(3, -1))
        assert w.shape == (b,)
