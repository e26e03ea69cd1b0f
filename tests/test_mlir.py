"""MLIR out and in: graphs survive the way through torch-mlir's dialect; its own files run."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlir_cases import DYNAMIC, DYNAMIC_GRAPH, FACTS, NUMBERS
from rewright.api import export
from rewright.ir.check import check
from rewright.ir.check_types import check_types
from rewright.ir.constant import Constant
from rewright.ir.errors import ImportFailure
from rewright.ir.expand import expand
from rewright.ir.fx_export import to_fx
from rewright.ir.graph import Graph, Input, Node, Value
from rewright.ir.interpret import interpret
from rewright.ir.mlir_context import inside, lower_to_linalg, make_context, parse_module
from rewright.ir.mlir_export import save_mlir, to_bytecode, to_linalg, to_mlir
from rewright.ir.mlir_import import from_mlir, load_mlir, load_state
from rewright.ir.ops import op
from rewright.ir.parse import parse
from rewright.ir.pt2 import load
from rewright.ir.show import show
from rewright.ir.types import DTYPES, TensorType
from run_case import read_case
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


def cases() -> list[Graph]:
    """The graphs that passes are tested on."""
    found = sorted((Path(__file__).parent / "cases").rglob("*.rw"))
    return [parse(case.before) for case in map(read_case, found) if not case.error]


@pytest.mark.parametrize("text", [FACTS, NUMBERS], ids=["facts", "numbers"])
def test_everything_a_graph_says_survives(text: str) -> None:
    graph = parse(text)
    assert from_mlir(to_mlir(graph)) == graph
    assert from_mlir(to_bytecode(graph)) == graph


def test_every_graph_of_the_case_files_survives() -> None:
    graphs = cases()
    assert len(graphs) > 50
    for graph in graphs:
        assert from_mlir(to_mlir(graph)) == expand(graph), graph.name


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


class Writes(nn.Module):
    def forward(self, x: Tensor, n: int, f: float) -> tuple[Any, ...]:
        x.mul_(2)
        return x * (x.shape[0] / 2) + f, x.repeat(2, 1)[: x.shape[0] * 2 - 1], n + 1, 3


def test_a_file_of_torch_mlir_may_write_its_inputs_and_take_numbers() -> None:
    from torch_mlir.fx import export_and_import

    auto = torch.export.Dim.AUTO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = export_and_import(
            Writes(),
            *(torch.randn(5, 4), 3, 2.5),  # the last becomes a constant
            dynamic_shapes={"x": {0: auto}, "n": auto, "f": None},
            experimental_support_mutation=True,
        )
    graph = from_mlir(f"{module}\n")
    check(graph, "aten")
    check_types(graph)
    assert from_mlir(to_mlir(graph)) == graph
    assert [i.mutable for i in graph.inputs] == [True, False]
    x = torch.randn(7, 4)
    ours, theirs = x.clone(), x.clone()
    got, wanted = interpret(graph, [ours, -4]), Writes()(theirs, -4, 2.5)
    torch.testing.assert_close(got, list(wanted))
    assert torch.equal(ours, theirs) and not torch.equal(ours, x)


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
    turned = {name: t.t().contiguous().t() for name, t in bindings.state.items() if t.dim() == 2}
    types = {n: TensorType(t.dtype, tuple(t.shape), tuple(t.stride())) for n, t in turned.items()}
    strided = Graph("f", tuple(Input(Value(n, type)) for n, type in types.items()), (), ())
    save_mlir(strided, path, turned)
    again = load_state(path, strided)
    assert all(torch.equal(again[name], tensor) for name, tensor in turned.items())
    assert [t.stride() for t in again.values()] == [turned[name].stride() for name in again]
    # A file without parameters must not be read with those of another.
    save_mlir(graph, path)
    assert [p.name for p in tmp_path.iterdir()] == ["mlp.mlir"]
    assert load_state(path, graph) == {}
