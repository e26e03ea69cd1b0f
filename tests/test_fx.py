"""Import from torch.fx and export to it, on graphs that torch itself makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from recorded import Recorder, assert_same
from rewright.ir.dims import Dim
from rewright.ir.effects import effect_of
from rewright.ir.errors import ImportFailure, UnsupportedError
from rewright.ir.expand import expand
from rewright.ir.fx_export import to_fx
from rewright.ir.fx_import import attributes, from_fx
from rewright.ir.graph import Graph, Node, Value
from rewright.ir.interpret import interpret
from rewright.ir.ops import Effect
from rewright.ir.parse import parse
from rewright.ir.types import OtherType, ScalarType
from zoo import ZOO, loss

Function = Callable[..., Any]
Mode = Literal["real", "fake", "symbolic"]


def nodes_of(graph: Graph, name: str) -> list[Node]:
    return [node for node in graph.nodes if node.op.name == name]


def traced(function: Function, *inputs: Any, mode: Mode = "fake") -> Graph:
    return from_fx(make_fx(function, tracing_mode=mode)(*inputs))


# --- whole models ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "decompose"),
    [("gpt2", True), ("llama", False), ("resnet", True), ("vae", False), ("mlp", True)],
)
def test_a_training_step_runs_the_same_in_every_form(name: str, decompose: bool) -> None:
    module, inputs = ZOO[name]()
    recorder = Recorder(decompose)
    loss(recorder.compile(module.train())(*inputs)).backward()
    assert [graph.name for graph in recorder.graphs] == ["forward", "backward"]
    assert recorder.calls == 2


@pytest.mark.parametrize("name", ["bert", "vit", "t5_encoder", "convnext"])
def test_inference_runs_the_same_in_every_form(name: str) -> None:
    module, inputs = ZOO[name]()
    recorder = Recorder(decompose=True)
    with torch.no_grad():
        recorder.compile(module)(*inputs)
    assert recorder.calls == 1


def test_a_dynamic_graph_runs_at_other_sizes() -> None:
    module, (tokens,) = ZOO["bert"]()
    recorder = Recorder(decompose=True)
    compiled = recorder.compile(module, dynamic=True)
    with torch.no_grad():
        for batch, length in ((2, 16), (3, 7), (5, 31)):
            compiled(tokens.new_ones(batch, length))
    assert len(recorder.graphs) == 1 and recorder.calls == 3
    assert [(s.name, s.hint) for s in recorder.graphs[0].symbols] == [("B0", 2), ("B1", 16)]


def test_a_dynamic_training_step_runs_at_other_sizes() -> None:
    module, (x,) = ZOO["transformer"]()
    recorder = Recorder()
    compiled = recorder.compile(module.train(), dynamic=True)
    for batch, length in ((2, 16), (3, 9)):
        loss(compiled(torch.randn(batch, length, *x.shape[2:]))).backward()
    assert len(recorder.graphs) == 2 and recorder.calls == 4


# --- sizes ----------------------------------------------------------------------------------------


def test_size_arithmetic_becomes_expressions() -> None:
    graph = traced(
        lambda x: x.new_zeros(x.shape[0] * 2 + 1, math.ceil(x.shape[1] / 2)),
        torch.ones(4, 6),
        mode="symbolic",
    )
    (zeros,) = graph.nodes
    assert [str(size) for size in zeros.result.tensor.shape] == ["2*B0 + 1", "(B1 + 1)//2"]
    assert zeros.args[1] == zeros.result.tensor.shape


def test_a_size_made_by_way_of_floats_is_a_symbol_that_its_node_defines() -> None:
    recorder = Recorder()
    compiled = recorder.compile(lambda x: x.new_ones(int(x.shape[0] * 1.5)) * 2, dynamic=True)
    with torch.no_grad():
        for rows in (10, 7):
            compiled(torch.ones(rows, 3))
    (graph,) = recorder.graphs
    (trunc,) = nodes_of(graph, "py.trunc")
    assert isinstance(trunc.result.type, ScalarType)
    assert str(trunc.result.type.dim) == "u0"
    assert recorder.calls == 2


def test_integer_inputs_are_scalars_that_the_graph_reads_as_sizes() -> None:
    recorder = Recorder()
    compiled = recorder.compile(lambda x, n: x[:, :n] * n, dynamic=True)
    with torch.no_grad():
        compiled(torch.randn(4, 8), 3)
        compiled(torch.randn(4, 9), 5)
    (graph,) = recorder.graphs
    (mul,) = nodes_of(graph, "aten.mul.Tensor")
    assert isinstance(mul.args[1], Dim)
    scalars = [i for i in graph.inputs if isinstance(i.value.type, ScalarType)]
    assert len(scalars) == len(graph.inputs) - 1


@pytest.mark.usefixtures("data_dependent")
def test_data_dependent_sizes_are_defined_by_the_nodes_that_make_them() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        rows = torch.nonzero(x[:, 0] > 0)
        count = x.argmax().item()
        return x[rows[:, 0]] * count, x.new_zeros(int(count) + 1)

    recorder = Recorder()
    with torch.no_grad():
        recorder.compile(function, dynamic=True)(torch.randn(10, 3))
    (graph,) = recorder.graphs
    (item,) = nodes_of(graph, "aten._local_scalar_dense.default")
    (nonzero,) = nodes_of(graph, "aten.nonzero.default")
    unknown = [s.name for s in graph.symbols if s.hint is None]
    assert unknown == ["u0", "u1"]
    assert str(nonzero.result.tensor.shape[0]) == "u0"
    assert item.result.type == ScalarType("int", Dim.of(graph.symbols[-1]))
    assert effect_of(item) is Effect.HOST


def test_what_torch_guards_about_a_size_is_known() -> None:
    batch = torch.export.Dim("batch", min=3, max=40)
    program = torch.export.export(
        nn.Linear(4, 2), (torch.ones(6, 4),), dynamic_shapes=({0: batch},)
    )
    (symbol,) = from_fx(program.graph_module).symbols
    assert (symbol.hint, symbol.low, symbol.high) == (6, 3, 40)


# --- results, arguments, outputs ------------------------------------------------------------------


def test_getitem_is_absorbed_and_unread_results_are_kept() -> None:
    recorder = Recorder()
    with torch.no_grad():
        recorder.compile(lambda x: (x.max(1).indices, x.split(2)[2]))(torch.randn(6, 4))
    (graph,) = recorder.graphs
    (maximum,), (split,) = nodes_of(graph, "aten.max.dim"), nodes_of(graph, "aten.split.Tensor")
    assert [v.name for v in maximum.results] == ["max_1", "max_1.1"]
    assert [v.name for v in split.results] == ["split", "split.1", "split.2"]
    assert graph.outputs == (maximum.results[1], split.results[2])


def test_calls_are_written_in_the_schema_s_order_without_defaults() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        ops = torch.ops.aten
        return (
            ops.sum.dim_IntList(x, dim=[1], keepdim=False),
            ops.sum.dim_IntList(x, keepdim=True, dim=[0]),
            ops.add.Tensor(x, 1, alpha=1),
            ops.add.Tensor(x, 1, alpha=1.0),
            ops.gelu.default(x, approximate="tanh"),
        )

    plain, kept, one, float_one, tanh = traced(function, torch.randn(3, 4)).nodes
    assert (plain.args[1:], plain.kwargs) == (((1,),), ())
    assert (kept.args[1:], kept.kwargs) == (((0,), True), ())
    assert (one.args[1:], one.kwargs) == ((1,), ())
    assert float_one.kwargs == (("alpha", 1.0),)
    assert tanh.kwargs == (("approximate", "tanh"),)


def test_outputs_may_be_none_repeated_sizes_or_inputs() -> None:
    recorder = Recorder()
    with torch.no_grad():
        got = recorder.compile(lambda x: (None, x * 2, x, x.shape[0], 3), dynamic=True)(
            torch.ones(4)
        )
    assert got[0] is None and got[3:] == (4, 3)
    graph = traced(lambda x: [x * 2, None, x], torch.ones(2))
    again = to_fx(graph)(torch.ones(2))
    assert again[1] is None and graph.outputs[2] == graph.inputs[0].value
    doubled = make_fx(lambda x: (y := x * 2, y))(torch.ones(2))
    twice = from_fx(doubled)
    assert twice.outputs[0] == twice.outputs[1]
    assert_same(to_fx(twice)(torch.ones(2)), doubled(torch.ones(2)))


def test_gradients_that_a_mask_leaves_out_are_none() -> None:
    recorder = Recorder()
    layer = nn.BatchNorm1d(4)
    loss(recorder.compile(layer.train())(torch.randn(8, 4))).backward()
    (backward,) = nodes_of(recorder.graphs[1], "aten.native_batch_norm_backward.default")
    assert [isinstance(v.type, OtherType) for v in backward.results] == [True, False, False]


# --- where a node comes from ----------------------------------------------------------------------


def test_nodes_keep_line_number_and_phase() -> None:
    recorder = Recorder()
    recorder.compile(lambda x: (x.sin() * 2).sum())(torch.ones(3, requires_grad=True)).backward()
    forward, backward = recorder.graphs
    (sine,), (cosine,) = (
        nodes_of(forward, "aten.sin.default"),
        nodes_of(backward, "aten.cos.default"),
    )
    assert sine.loc is not None and sine.loc.file == "test_fx.py"
    assert (sine.phase, cosine.phase) == ("forward", "backward")
    assert sine.seq_nr == cosine.seq_nr is not None
    inference = traced(lambda x: x.sin(), torch.ones(3)).nodes[0]
    assert inference.phase is None and inference.seq_nr is None


def test_export_keeps_where_nodes_come_from() -> None:
    recorder = Recorder()
    recorder.compile(lambda x: x.sin().sum())(torch.ones(3, requires_grad=True)).backward()
    for graph in recorder.graphs:
        assert from_fx(to_fx(graph), name=graph.name) == graph


# --- updates --------------------------------------------------------------------------------------


def test_the_final_copies_become_updates() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        x.add_(y)
        y.mul_(2)
        return x * 2

    recorder = Recorder()
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    with torch.no_grad():
        recorder.compile(function)(x, y)
    (graph,) = recorder.graphs
    assert [(target.name, value.name) for target, value in graph.updates] == [
        ("arg0_1", "add"),
        ("arg1_1", "mul"),
    ]
    assert all(i.mutable for i in graph.inputs)
    assert not nodes_of(graph, "aten.copy_.default")


def test_updates_happen_at_once() -> None:
    graph = parse(
        """graph swap(%x: f32[2, 2] mutable, %y: f32[2, 2] mutable) {
          %t = aten.t.default(%y) : f32[2, 2] strides [1, 2]
          update %x <- %t
          update %y <- %x
          return
        }"""
    )
    for run in (to_fx(graph), lambda *args: interpret(graph, args)):
        x, y = torch.arange(4.0).reshape(2, 2), torch.ones(2, 2)
        run(x, y)
        assert torch.equal(x, torch.ones(2, 2)) and torch.equal(y, torch.arange(4.0).reshape(2, 2))


def test_a_read_after_an_update_reads_the_new_value() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        torch.ops.aten.copy_.default(x, y)
        return x + 1

    graph = from_fx(make_fx(function)(torch.zeros(3), torch.ones(3)))
    (add,) = graph.nodes
    assert [v.name for v in add.operands] == ["y_1"] == [v.name for _, v in graph.updates]


def test_a_view_read_after_its_input_was_written_is_refused() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        view = x.t()
        torch.ops.aten.copy_.default(x, y)
        return view + 1

    gm = make_fx(function)(torch.zeros(3, 3), torch.ones(3, 3))
    with pytest.raises(ImportFailure, match=r"%add reads %t, a view of %x_1, after 'copy_'"):
        from_fx(gm)


# --- attributes and constants ---------------------------------------------------------------------


def test_parameters_and_buffers_that_a_module_holds_become_inputs() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    program = torch.export.export(module, (torch.randn(2, 3),)).run_decompositions()
    gm = program.module()
    assert isinstance(gm, fx.GraphModule)
    graph, held = from_fx(gm), attributes(gm)
    roles = {i.value.name: i.role for i in graph.inputs}
    assert [roles[name] for name in held] == ["param"] * 4 + ["buffer"] * 3
    x = torch.randn(2, 3)
    named = {graph.inputs[0].value.name: x, **held}
    (got,) = interpret(graph, [named[i.value.name] for i in graph.inputs])
    torch.testing.assert_close(got, module(x))


def test_tensors_in_the_user_s_code_become_constants() -> None:
    recorder = Recorder()
    with torch.no_grad():
        recorder.compile(lambda x: x * torch.tensor([1.0, 2.0, 3.0]))(torch.ones(2, 3))
    (constant,) = nodes_of(recorder.graphs[0], "rw.constant")
    assert len(recorder.graphs[0].inputs) == 1
    again = from_fx(to_fx(recorder.graphs[0]))
    assert nodes_of(again, "rw.constant")[0].kwargs == constant.kwargs


# --- higher-order operators -----------------------------------------------------------------------


def test_branches_of_cond_are_nested_graphs_over_the_same_symbols() -> None:
    def function(x: Tensor, y: Tensor) -> Any:
        return torch.cond(
            x.sum() > 0, lambda a, b: (a.sin() * b.shape[0],), lambda a, b: (a - b,), (x, y)
        )

    recorder = Recorder()
    compiled = recorder.compile(function, dynamic=True)
    with torch.no_grad():
        for x in (torch.ones(4, 3), -torch.ones(5, 3)):
            compiled(x, torch.randn_like(x))
    (graph,) = recorder.graphs
    (cond,) = nodes_of(graph, "hop.cond")
    assert [name for name, _ in cond.graphs] == ["true_graph_0", "false_graph_0"]
    assert cond.args[1:3] == ("@true_graph_0", "@false_graph_0")
    assert {s for _, g in cond.graphs for s in g.symbols} <= set(graph.symbols)


def test_loops_scans_and_repeated_regions_run() -> None:
    from torch._higher_order_ops.scan import scan

    @torch.compiler.nested_compile_region
    def region(x: Tensor) -> Tensor:
        return x.sin() * x.shape[0]

    def loop(x: Tensor) -> Any:
        return torch.while_loop(
            lambda i, _: i < 3, lambda i, a: (i + 1, a * 2), (torch.tensor(0), x)
        )

    def scanned(x: Tensor) -> Any:
        return scan(lambda total, a: (total + a, total * a), torch.zeros(3), x)

    for function in (loop, scanned, lambda x: region(region(x)) + 1):
        recorder = Recorder()
        with torch.no_grad():
            recorder.compile(function)(torch.randn(3, 3))
        assert recorder.calls == 1
        assert any(node.graphs for node in recorder.graphs[0].nodes)


def test_flex_attention_keeps_its_score_function() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    recorder = Recorder()
    query = torch.randn(1, 2, 16, 8)
    with torch.no_grad():
        recorder.compile(lambda q: flex_attention(q, q, q, lambda s, b, h, i, j: s + i - j))(query)
    (flex,) = nodes_of(recorder.graphs[0], "hop.flex_attention")
    assert [name for name, _ in flex.graphs] == ["sdpa_score0", "sdpa_mask0"]


@torch.library.custom_op("rewright_tests::accumulate", mutates_args={"total"})
def accumulate(total: Tensor, x: Tensor) -> Tensor:
    total.add_(x)
    return x.clone()


@accumulate.register_fake
def _(total: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_custom_operator_that_writes_is_kept_as_torch_functionalizes_it() -> None:
    def function(x: Tensor, y: Tensor) -> Tensor:
        total = x.clone()
        copied: Tensor = accumulate(total, y)
        return total * copied

    recorder = Recorder()
    with torch.no_grad():
        recorder.compile(function)(torch.randn(4), torch.randn(4))
    (call,) = nodes_of(recorder.graphs[0], "hop.auto_functionalized_v2")
    assert call.args == ("@rewright_tests.accumulate.default",)


def test_random_numbers_of_checkpointed_regions_are_drawn_twice_alike() -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    recorder = Recorder()
    x = torch.randn(2, 4, requires_grad=True)
    compiled = recorder.compile(lambda x: checkpoint(layers, x, use_reentrant=False))
    compiled(x).sum().backward()
    forward, backward = recorder.graphs
    (saved,) = nodes_of(forward, "hop.run_and_save_rng_state")
    assert saved.kwarg("_returns") == ("one", ("one", "one"))
    assert nodes_of(backward, "hop.run_with_rng_state")


# --- regions --------------------------------------------------------------------------------------

FUSED = """graph outer(%x: f32[4, B0], %w: f32[B0]) where B0 in [1, inf] hint 3, B1 in [1, inf] {
  %m = aten.neg.default(%w) : f32[B0]
  %y, %z = rw.fused(%x, %m) body inner(%a: f32[4, B1], %m: f32[B1]) {
    %t = aten.mul.Tensor(%a, %m) : f32[4, B1]
    %s = aten.mul.Tensor(%t, B1) : f32[4, B1]
    return %s, %a
  } : f32[4, B0], f32[4, B0]
  return %y, %z
}"""


def test_expand_inlines_regions_under_the_outer_names_and_sizes() -> None:
    assert str(expand(parse(FUSED))).splitlines()[2:] == [
        "  %m = aten.neg.default(%w) : f32[B0]",
        "  %t = aten.mul.Tensor(%x, %m) : f32[4, B0]",
        "  %y = aten.mul.Tensor(%t, B0) : f32[4, B0]",
        "  return %y, %x",
        "}",
    ]


def test_regions_compute_what_they_hold() -> None:
    graph = parse(FUSED)
    x, w = torch.randn(4, 5), torch.randn(5)
    wanted = (x * -w * 5, x)
    for outputs in (interpret(graph, (x, w)), to_fx(graph)(x, w), interpret(expand(graph), (x, w))):
        assert_same(outputs, wanted)


def test_a_region_that_writes_into_buffers_cannot_be_expanded() -> None:
    kernel = """graph k(%x: f32[3]) {
      %b = rw.alloc() : f32[3]
      %y = rw.fused(%x, out=%b) body inner(%a: f32[3]) {
        %t = aten.neg.default(%a) : f32[3]
        return %t
      } : f32[3]
      return %y
    }"""
    with pytest.raises(UnsupportedError, match="%y writes into given buffers"):
        expand(parse(kernel))


# --- refusals -------------------------------------------------------------------------------------


def test_a_write_is_refused_by_operator_node_and_line() -> None:
    gm = make_fx(lambda x: x.clone().add_(1))(torch.ones(3))
    with pytest.raises(ImportFailure) as failure:
        from_fx(gm)
    assert "node 'add_' (aten.add_.Tensor)" in str(failure.value)
    assert "writes one of its arguments" in str(failure.value)
    assert "functionalize" in str(failure.value)


def test_running_statistics_written_behind_the_schema_are_refused() -> None:
    def function(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, mean, var, training=True)

    gm = make_fx(function)(torch.randn(4, 3), torch.zeros(3), torch.ones(3))
    with pytest.raises(ImportFailure, match=r"batch_norm.* writes its running statistics"):
        from_fx(gm)


def test_a_graph_of_modules_or_untraced_calls_is_refused() -> None:
    with pytest.raises(ImportFailure, match=r"(?s)no 'val' in its meta.*make_fx"):
        from_fx(fx.symbolic_trace(nn.Sequential(nn.ReLU())))
    gm = make_fx(lambda x: x + 1)(torch.ones(3))
    (add,) = [node for node in gm.graph.nodes if node.op == "call_function"]
    add.target = torch.add
    with pytest.raises(ImportFailure, match=r"node 'add' \(add\).*calls add, which is no ATen"):
        from_fx(gm)


def test_import_reads_no_data() -> None:
    """Fake tensors have none."""
    gm = make_fx(lambda x: x.softmax(-1), tracing_mode="fake")(
        torch.ones(2**10, 2**20, device="meta")
    )
    (softmax,) = from_fx(gm).nodes
    assert softmax.result == Value(softmax.name, softmax.operands[0].type)
