"""MLIR out and in: graphs survive the way through torch-mlir's dialect; its own files run."""

from __future__ import annotations

import dataclasses
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlir_cases import DYNAMIC, DYNAMIC_GRAPH, FACTS, NUMBERS, RELU, function
from rewright.api import export
from rewright.ir.check import check
from rewright.ir.check_types import check_types
from rewright.ir.constant import Constant
from rewright.ir.errors import ImportFailure, TextError, ToolchainError, UnsupportedError
from rewright.ir.fx_export import to_fx
from rewright.ir.graph import Graph, Node, Value
from rewright.ir.interpret import interpret
from rewright.ir.mlir_context import inside, lower_to_linalg, make_context, parse_module
from rewright.ir.mlir_export import save_mlir, to_bytecode, to_linalg, to_mlir
from rewright.ir.mlir_import import from_mlir, load_mlir, load_state
from rewright.ir.ops import op
from rewright.ir.parse import parse
from rewright.ir.pt2 import load
from rewright.ir.show import show
from rewright.ir.types import DTYPES, TensorType
from zoo import ZOO

pytest.importorskip("torch_mlir", reason="torch-mlir is not installed")


def stripped(text: str) -> str:
    """The same module as a tool prints it that drops what says where operations come from."""
    printed: str = parse_module(text, "printed").operation.get_asm()
    return printed


def foreign(text: str) -> str:
    """A text as if it were not from us: nothing says more than the dialect does."""
    return re.sub(r"rewright\.version = 1", "made.elsewhere = 1", stripped(text))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the last bit; what is no tensor is equal."""
    if isinstance(theirs, Tensor):
        return ours.dtype == theirs.dtype and torch.equal(bits(ours), bits(theirs))
    return bool(ours == theirs)


def seeded(run: Any, *inputs: Any) -> list[Any]:
    torch.manual_seed(7)
    with torch.no_grad():
        return list(run(*inputs))


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
def test_models_survive_and_compute_the_same_bits(name: str) -> None:
    module, inputs = ZOO[name]()
    graph, bindings = load(export(module, inputs), name=name)
    flat = bindings.flatten(inputs)
    wanted = seeded(lambda: interpret(graph, flat))
    text = to_mlir(graph)
    back = from_mlir(text)
    assert back == graph
    assert from_mlir(to_bytecode(graph)) == graph
    # Without names, without what we wrote about types, and by way of fx: the same numbers still.
    for other in (back, from_mlir(stripped(text)), from_mlir(foreign(text))):
        assert all(map(same, seeded(lambda g=other: interpret(g, flat)), wanted))
    assert all(map(same, seeded(to_fx(back), *flat), wanted))


@pytest.mark.parametrize(("name", "sizes"), [("mlp", (3, 8)), ("transformer", (2, 5))])
def test_models_of_any_batch_survive(name: str, sizes: tuple[int, ...]) -> None:
    module, (example, *rest) = ZOO[name]()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = export(module, (example, *rest), dynamic_shapes=({0: batch},))
    graph, bindings = load(program, name=name)
    assert [s.name for s in graph.symbols] == ["B0"]
    text = to_mlir(graph)
    assert from_mlir(text) == graph
    guessed = from_mlir(foreign(text))
    for size in sizes:
        x = torch.randn(size, *example.shape[1:])
        flat = bindings.flatten((x,))
        wanted = seeded(lambda f=flat: interpret(graph, f))
        for other in (from_mlir(text), guessed):
            assert all(map(same, seeded(lambda g=other, f=flat: interpret(g, f)), wanted))


@pytest.mark.parametrize("text", [FACTS, NUMBERS], ids=["facts", "numbers"])
def test_everything_a_graph_says_survives(text: str) -> None:
    graph = parse(text)
    assert from_mlir(to_mlir(graph)) == graph
    assert from_mlir(to_bytecode(graph)) == graph


def test_regions_are_inlined() -> None:
    graph = parse(
        """graph f(%x: f32[4]) {
          %y = rw.fused(%x) body(%t: f32[4]) {
            %a = aten.exp.default(%t) : f32[4]
            %b = aten.log1p.default(%a) : f32[4]
            return %b
          } : f32[4]
          return %y
        }"""
    )
    assert [n.op.name for n in from_mlir(to_mlir(graph)).nodes] == [
        "aten.exp.default",
        "aten.log1p.default",
    ]


PATTERNS = torch.tensor([0, 1, 0x7FC00001, 0x80000000, 0x7F800000, 0x3FC00000], dtype=torch.int64)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 3), (5, 7)], ids=str)
def test_constants_keep_every_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    count = torch.Size(shape).numel()
    raw = PATTERNS.repeat(count + 2)[: (count * dtype.itemsize + 7) // 8].contiguous()
    data = raw.view(torch.uint8)[: count * dtype.itemsize]
    data = data % 2 if dtype == torch.bool else data
    tensor = data.clone().view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    value = Value("c", TensorType(dtype, shape))
    node = Node(op("rw.constant"), (), (("value", Constant.of(tensor)),), (value,))
    graph = Graph("g", (), (node,), (value,))
    for back in (from_mlir(to_mlir(graph)), from_mlir(to_bytecode(graph))):
        assert back == graph
        (kept,) = interpret(back, [])
        assert same(kept, tensor) and kept.shape == shape


# --- files of torch-mlir --------------------------------------------------------------------------


class Mixed(nn.Module):
    """Literals of three dtypes, a list of results, a size in a view, a transposed output."""

    chosen: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.register_buffer("chosen", torch.tensor([True, False, True]))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        h = torch.nn.functional.gelu(self.linear(x))
        left, _ = torch.split(x, 2, dim=1)
        return h.masked_fill(self.chosen, 0.5) + y, left.reshape(-1) * 2, h.t()


def written_by_torch_mlir(kind: str, dynamic: bool, expressions: bool = False) -> str:
    from torch_mlir.fx import export_and_import

    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "y": {0: batch}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = export_and_import(
            Mixed(),
            *(torch.randn(5, 4), torch.randn(5, 3)),
            output_type=kind,
            dynamic_shapes=shapes,
            import_symbolic_shape_expressions=expressions,
        )
    return f"{module}\n"


@pytest.mark.parametrize(
    ("kind", "dynamic", "expressions"),
    [("raw", False, False), ("raw", True, False), ("raw", True, True), ("torch", True, False)],
)
def test_files_of_torch_mlir_run(kind: str, dynamic: bool, expressions: bool) -> None:
    graph = from_mlir(written_by_torch_mlir(kind, dynamic, expressions), file="made.mlir")
    check(graph, "aten")
    check_types(graph)
    # One batch, not two: the sum of both inputs says so where the file does not.
    bounds = [(2, 64)] if expressions else [(0, None)]
    assert [(s.low, s.high) for s in graph.symbols] == (bounds if dynamic else [])
    assert from_mlir(to_mlir(graph)) == graph
    assert {n.loc.file for n in graph.nodes if n.loc is not None} == {"made.mlir"}
    for rows in (5, 2, 9) if dynamic else (5,):
        inputs = [torch.randn(rows, 4), torch.randn(rows, 3)]
        with torch.no_grad():
            torch.testing.assert_close(interpret(graph, inputs), list(Mixed()(*inputs)))


def test_what_a_file_does_not_say_is_found_out() -> None:
    graph = from_mlir(DYNAMIC, file="made.mlir")
    assert show(graph, header=False) == DYNAMIC_GRAPH
    check(graph, "aten")
    check_types(graph)
    x, y, n = torch.randn(4, 3), torch.randn(4, 3), torch.randn(2)
    turned, flat, last = interpret(graph, [x, y, n])
    assert torch.equal(turned, (x + y).t()) and torch.equal(flat, (x + y).t().reshape(-1))
    assert torch.equal(last, n.relu())


# --- linalg ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_linalg_verifies(name: str) -> None:
    from torch_mlir import ir

    module, inputs = ZOO[name]()
    graph, _ = load(export(module, inputs), name=name)
    text = to_linalg(graph)
    assert "torch." not in "".join(re.findall(r"= ([\w.]+)", text))
    assert "linalg.matmul" in text
    with inside(make_context()) as context:
        lower_to_linalg(ir.Module.create())  # which loads torch-mlir's dialects below its own
        assert ir.Module.parse(text, context).operation.verify()


def test_linalg_returns_what_updates_write() -> None:
    graph = parse(
        """graph f(%x: f32[B0, 3], %n: f32[3] buffer mutable) where B0 in [1, 9] {
          %s = aten.sum.dim_IntList(%x, [0]) : f32[3]
          %m = aten.add.Tensor(%n, %s) : f32[3]
          update %n <- %m
          return %s
        }"""
    )
    assert "-> (tensor<3xf32>, tensor<3xf32>)" in to_linalg(graph)


def test_an_operator_that_torch_mlir_does_not_lower_is_named() -> None:
    graph = parse(
        """graph f(%x: f32[4, 4]) {
          %y, %i = aten.linalg_cholesky_ex.default(%x) : f32[4, 4], i32[] @ model.py:3
          return %y
        }"""
    )
    with pytest.raises(UnsupportedError) as error:
        to_linalg(graph)
    assert str(error.value).startswith(
        "[mlir] torch-mlir cannot lower torch.aten.linalg_cholesky_ex at model.py:3 to linalg: "
    )


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            "%y = aten.mul.Tensor(%x, complex(0.0, 1.0)) : c64[2] @ model.py:9",
            "[mlir] node 'y' (aten.mul.Tensor) at model.py:9: "
            "a complex number as an argument has no form in MLIR",
        ),
        (
            "%y = rw.alloc() : f32[2] @ model.py:9",
            "[mlir] node 'y' (rw.alloc) at model.py:9: it has no form in MLIR",
        ),
        (
            "%y = hop.invoke_subgraph(%x) g(%t: f32[2]) { return %t } : f32[2] @ model.py:9",
            "[mlir] node 'y' (hop.invoke_subgraph) at model.py:9: it has no form in MLIR",
        ),
        (
            "%y = aten.sin.default(%x) : token @ model.py:9",
            "[mlir] node 'y' (aten.sin.default) at model.py:9: "
            "a value of type 'token' has no form in MLIR",
        ),
        (
            "%y = aten.add.Tensor(%x, 9223372036854775808) : f32[2]",
            "[mlir] node 'y' (aten.add.Tensor): 9223372036854775808 does not fit into 64 bits",
        ),
    ],
)
def test_what_mlir_cannot_say_is_refused(node: str, message: str) -> None:
    graph = parse(f"graph f(%x: f32[2]) {{\n  {node}\n  return %y\n}}")
    with pytest.raises(UnsupportedError) as error:
        to_mlir(graph)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ['%0 = torch.operator "torch.aten.relux"(%x) : (!m) -> !m loc("model.py":9:1)'],
            "torch.aten.relux at model.py:9: unknown operator 'aten.relux.default'"
            "; did you mean 'aten.relu.default'?",
        ),
        (
            ['%0 = torch.operator "torch.aten.relu_"(%x) : (!m) -> !m'],
            "torch.aten.relu_ at bad.mlir:4: aten.relu_.default writes one of its arguments",
        ),
        (
            [
                '%s = torch.constant.str "secret"',
                '%0 = torch.operator "torch.aten.from_file"(%s) : (!torch.str) -> !m',
            ],
            "torch.aten.from_file at bad.mlir:5: aten.from_file.default opens files",
        ),
        (
            ['%0 = torch.operator "torch.rw.fused"(%x) : (!m) -> !m'],
            "torch.rw.fused at bad.mlir:4: rw.fused.default has no form in MLIR",
        ),
        (
            ["%0 = torch.aten.relu %x {rewright.op = 7} : !m -> !m"],
            "torch.aten.relu at bad.mlir:4: attribute rewright.op is 7 : i64, which is no text",
        ),
        (
            ['%0 = torch.aten.relu %x {rewright.types = ["f32[2"]} : !m -> !m'],
            "torch.aten.relu at bad.mlir:4: 'f32[2' is no type: "
            "it does not read as f32[2, 3] strides [1, 2], or as int(B0)",
        ),
        (
            ["%0 = torch.aten.mm %x, %y : !m, !m -> !m"],
            "torch.aten.mm at bad.mlir:4: the arguments do not fit: ",
        ),
        (
            [
                "%t = torch.aten.t %x : !m -> !torch.vtensor<[2,3],f32>",
                "%0 = torch.aten.relu %x : !m -> !m",
            ],
            "torch.aten.t at bad.mlir:4: it is declared !torch.vtensor<[2,3],f32>, "
            "and aten.t.default gives f32[3, 2] strides [1, 3]",
        ),
        (
            ["%c = arith.constant 1 : i32", "%0 = torch.aten.relu %x : !m -> !m"],
            "arith.constant at bad.mlir:4: it has no form in the IR",
        ),
    ],
)
def test_what_a_file_says_wrongly_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(ImportFailure) as error:
        from_mlir(function(*lines, RELU[1]), file="folder/bad.mlir")
    assert message in str(error.value).splitlines()[0]


def test_mistakes_in_a_text_are_pointed_at() -> None:
    with pytest.raises(TextError) as error:
        from_mlir(function("%0 = torch.aten.relux %x : !m -> !m", RELU[1]), file="bad.mlir")
    assert str(error.value) == (
        "custom op 'torch.aten.relux' is unknown\n"
        " --> bad.mlir:4:10\n"
        "  |\n"
        "4 |     %0 = torch.aten.relux %x : !m -> !m\n"
        "  |          ^"
    )
    cut = function(*RELU)
    with pytest.raises(TextError, match=r" --> bad\.mlir:4:\d+\n"):
        from_mlir(cut[: cut.index("return")], file="bad.mlir")
    with pytest.raises(TextError, match="operand #0 must be Any Torch tensor type"):
        from_mlir(
            function(
                "%i = torch.constant.int 1", "%0 = torch.aten.relu %i : !torch.int -> !m", RELU[1]
            )
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "<mlir> holds no function with a body"),
        ("func.func private @f()", "<mlir> holds no function with a body"),
        (
            "func.func @f() { return }\nfunc.func @g() { return }",
            "<mlir> holds several functions: f, g",
        ),
        (
            "func.func @f(%x: tensor<2xf32>) { return }",
            "<mlir>: argument %arg0: a value of type tensor<2xf32> has no form in the IR",
        ),
        (
            "func.func @f(%x: !torch.vtensor) { return }",
            "<mlir>: argument %arg0: type !torch.vtensor does not say its sizes and dtype",
        ),
        (
            'func.func @f(%x: !torch.vtensor<[2],f32> {rewright.type = "f32[3]"}) { return }',
            "<mlir>: argument %arg0: it is declared !torch.vtensor<[2],f32>, and f32[3]",
        ),
        (
            'func.func @f(%x: !torch.vtensor<[2],f32> {rewright.role = "king"}) { return }',
            "<mlir>: a role is one of input, param, buffer, saved, tangent, not 'king'",
        ),
    ],
)
def test_files_without_one_readable_function_are_refused(text: str, message: str) -> None:
    with pytest.raises(ImportFailure) as error:
        from_mlir(text)
    assert error.value.message == message


def test_of_several_functions_main_is_taken() -> None:
    graph = from_mlir(f"{function(*RELU)[:-3]}func.func @other() {{ return }}\n}}\n")
    assert (graph.name, len(graph.nodes)) == ("main", 1)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = to_bytecode(parse(NUMBERS))
    for data, message in (
        (whole[: len(whole) // 2], "is truncated or no MLIR bytecode"),
        (b"\xff\xfe\x00", "is neither text in UTF-8 nor MLIR bytecode"),
    ):
        path = tmp_path / "bad.mlirbc"
        path.write_bytes(data)
        with pytest.raises(ImportFailure, match=message):
            load_mlir(path)
    with pytest.raises(ImportFailure, match="there is no file"):
        load_mlir(tmp_path / "none.mlir")


def test_a_missing_torch_mlir_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_mlir", None)
    for use in (lambda: to_mlir(parse(NUMBERS)), lambda: from_mlir(function(*RELU))):
        with pytest.raises(ToolchainError) as error:
            use()
        assert str(error.value) == (
            "[mlir] MLIR is read and written by torch-mlir, which is not installed\n"
            "  = help: pip install torch-mlir"
        )


# --- files ----------------------------------------------------------------------------------------


def test_parameters_lie_beside_a_file(tmp_path: Path) -> None:
    module, inputs = ZOO["mlp"]()
    graph, bindings = load(export(module, inputs), name="mlp")
    path = tmp_path / "mlp.mlir"
    save_mlir(graph, path, bindings.state)
    assert load_mlir(path) == graph
    held = load_state(path, graph)
    assert held.keys() == bindings.state.keys()
    assert all(same(held[name], tensor) for name, tensor in bindings.state.items())
    other = dataclasses.replace(graph, inputs=graph.inputs[1:])
    with pytest.raises(ImportFailure, match=r"takes\s+no such argument"):
        load_state(path, other)
    # A file without parameters must not be read with those of another.
    save_mlir(graph, path)
    assert [p.name for p in tmp_path.iterdir()] == ["mlp.mlir"]
    assert load_state(path, graph) == {}
