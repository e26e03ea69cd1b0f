"""Programs of torch.export: what becomes of them, and which files are refused."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recorded import twin
from rewright.ir.decompositions import KEPT, decomposition_table
from rewright.ir.errors import ImportFailure, InputError
from rewright.ir.fx_export import to_fx
from rewright.ir.graph import Graph
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.pt2 import Bindings, load
from zoo import ZOO


class Everything(nn.Module):
    """Parameters, buffers of both kinds, a constant; updates of state and of an argument."""

    counter: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("counter", torch.zeros(1))
        self.register_buffer("offset", torch.ones(4), persistent=False)
        self.scale = torch.full((3,), 2.0)

    def forward(self, x: Tensor, k: Tensor, flag: int = 3) -> dict[str, Any]:
        self.counter.add_(1)
        x.add_(self.offset)
        y = self.norm(self.linear(x)).sum() + self.scale.sum() * k
        return {"y": y, "nothing": None, "rows": x.shape[0], "x": x, "pair": (x * 2, flag)}


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    rows = torch.export.Dim("rows", min=2, max=64)
    example = (torch.randn(6, 4), torch.ones(2))
    shapes = {"x": {0: rows}, "k": None, "flag": None}
    module = Everything().train()
    return torch.export.export(module, example, {"flag": 5}, dynamic_shapes=shapes)


@pytest.fixture
def saved(program: torch.export.ExportedProgram, tmp_path: Path) -> Path:
    path = tmp_path / "everything.pt2"
    torch.export.save(program, path)
    return path


def test_a_program_keeps_its_names_roles_updates_and_ranges(saved: Path) -> None:
    graph, bindings = load(saved)
    assert graph.name == "everything" and parse(str(graph)) == graph
    roles = {i.value.name: i.role for i in graph.inputs}
    assert roles["linear.weight"] == "param" and roles["x"] == "input"
    assert all(roles[n] == "buffer" for n in ("counter", "offset", "scale", "norm.running_mean"))
    assert [target.name for target, _ in graph.updates] == [
        "counter",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
        "x",
    ]
    assert [(s.name, s.low, s.high) for s in graph.symbols] == [("B0", 2, 64)]
    assert set(bindings.state) == set(roles) - {"x", "k", "flag"}


@pytest.mark.parametrize("rows", [6, 2, 9])
def test_a_program_runs_as_the_module_at_other_sizes(
    program: torch.export.ExportedProgram, saved: Path, rows: int
) -> None:
    for source in (program, saved):
        graph, found = load(source)
        for run in (partial(interpreted, graph), to_fx(graph)):
            bindings = replace(found, state={n: twin(t) for n, t in found.state.items()})
            module = Everything().train()
            module.load_state_dict(
                {n: t for n, t in bindings.state.items() if n in module.state_dict()}
            )
            ours, theirs = torch.randn(rows, 4), torch.ones(2)
            args = (ours.clone(), theirs)
            wanted = module(ours, theirs, flag=5)
            got = bindings.unflatten(run(*bindings.flatten(args, {"flag": 5})))
            torch.testing.assert_close(got, wanted)
            torch.testing.assert_close(args[0], ours)
            for name, tensor in module.state_dict().items():
                torch.testing.assert_close(bindings.state[name], tensor)


def test_calls_of_another_form_are_refused(program: torch.export.ExportedProgram) -> None:
    graph, bindings = load(program)
    x, k = torch.ones(6, 4), torch.ones(2)
    with pytest.raises(InputError) as error:
        bindings.flatten((x,), {"flag": 5})
    assert str(error.value) == (
        "the program was exported for arguments ((*, *), {'flag': *}), "
        "and is called with ((*,), {'flag': *})"
    )
    with pytest.raises(InputError, match=r"%flag is 4, not 5"):
        interpret(graph, bindings.flatten((x, k), {"flag": 4}))
    with pytest.raises(InputError, match=r"dimension 0 of %x is 65: B0 must be in \[2, 64\]"):
        interpret(graph, bindings.flatten((torch.ones(65, 4), k), {"flag": 5}))


def interpreted(graph: Graph, *inputs: object) -> list[Any]:
    return interpret(graph, inputs)


class Halves(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, int]:
        joined = torch.cat([x, y[1:]], 0)
        return joined.view(-1) * x.shape[0], x[: x.shape[0] // 2], (x.shape[0] * 2 + 1) // 3


def test_derived_sizes_are_solved(tmp_path: Path) -> None:
    half, rows = torch.export.Dim("half", min=2, max=64), torch.export.Dim("rows", min=3)
    shapes = {"x": {0: 2 * half}, "y": {0: rows}}
    exported = torch.export.export(
        Halves(), (torch.randn(6, 4), torch.randn(5, 4)), dynamic_shapes=shapes
    )
    torch.export.save(exported, tmp_path / "halves.pt2")
    graph, bindings = load(tmp_path / "halves.pt2")
    assert [str(size) for size in graph.inputs[0].value.tensor.shape] == ["2*B0", "4"]
    for args in ((torch.randn(8, 4), torch.randn(3, 4)), (torch.randn(4, 4), torch.randn(7, 4))):
        flat = bindings.flatten(args)
        for outputs in (interpret(graph, flat), to_fx(graph)(*flat)):
            torch.testing.assert_close(bindings.unflatten(outputs), Halves()(*args))


@pytest.mark.parametrize("name", ["gpt2", "llama", "resnet", "convnext", "vae"])
def test_models_run_the_same_and_close_to_float64(name: str) -> None:
    module, inputs = ZOO[name]()
    graph, bindings = load(torch.export.export(module, inputs))
    flat = bindings.flatten(inputs)
    assert parse(str(graph)) == graph
    wanted = seeded(lambda: module(*inputs))
    for run in (lambda: interpret(graph, flat), lambda: to_fx(graph)(*flat)):
        torch.testing.assert_close(bindings.unflatten(seeded(run)), wanted, rtol=1e-4, atol=1e-5)
    precise = bindings.unflatten(seeded(lambda: interpret(graph, flat, dtype=torch.float64)))
    torch.testing.assert_close(precise, wanted, check_dtype=False, rtol=1e-3, atol=1e-4)


def seeded(run: Callable[[], Any]) -> Any:
    torch.manual_seed(7)
    with torch.no_grad():
        return run()


# --- decompositions -------------------------------------------------------------------------------


def test_operators_that_we_lower_whole_stay_whole() -> None:
    aten = torch.ops.aten
    table = decomposition_table()
    whole = (
        aten.silu.default,
        aten.gelu_backward.default,
        aten._softmax_backward_data.default,
        aten.native_layer_norm.default,
        aten.hardswish.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    )
    assert not any(target in table for target in whole)
    assert all(t in table for t in (aten.linear.default, aten.t.default, aten.glu.default))
    assert aten.bernoulli.default not in table  # in parts it draws other numbers than eager


def test_what_is_kept_by_name_would_be_taken_apart_otherwise() -> None:
    core = {str(target) for target in torch._decomp.core_aten_decompositions()}
    assert core >= KEPT


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_in_inference_is_taken_apart_exactly(affine: bool) -> None:
    norm = nn.BatchNorm2d(3, affine=affine).eval()
    norm.running_mean, norm.running_var = torch.randn(3), torch.rand(3) + 0.5
    x = torch.randn(2, 3, 4, 4)
    graph, bindings = load(torch.export.export(norm, (x,)))
    assert {node.op.name for node in graph.nodes} >= {"aten.mul.Tensor", "aten.add.Tensor"}
    torch.testing.assert_close(interpret(graph, bindings.flatten((x,)))[0], norm(x))


# --- files that are refused -----------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(ImportFailure) as failure:
        load(path)
    return str(failure.value)


def test_missing_truncated_and_foreign_files_are_refused(saved: Path, tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "nothing.pt2")
    assert "there is no such file" in refusal(tmp_path)
    data = saved.read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"graph f() {}",
        "half": data[: len(data) // 2],
        "tail": data[:-40],
    }.items():
        path = tmp_path / f"{name}.pt2"
        path.write_bytes(content)
        assert "is truncated or no .pt2 file" in refusal(path)
    torch.save({"weight": torch.ones(2)}, tmp_path / "checkpoint.pt2")
    assert "it has no 'archive_format'" in refusal(tmp_path / "checkpoint.pt2")
    damaged = bytearray(data)
    place = data.index(b"counter")
    damaged[place : place + 7] = b"CoUnTeR"
    (tmp_path / "damaged.pt2").write_bytes(damaged)
    assert "does not match its checksum" in refusal(tmp_path / "damaged.pt2")


def edited(path: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a `.pt2` file whose program was changed."""
    target = path.with_name("edited.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("models/model.json"):
                program = json.loads(data)
                change(program)
                data = json.dumps(program).encode()
            new.writestr(name, data)
    return target


def nodes_of(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"]


def call_shell(program: Any) -> None:
    nodes_of(program)[1]["target"] = "torch.os.system"


def open_file(program: Any) -> None:
    nodes_of(program)[1]["target"] = "torch.ops.aten.from_file.default"


def load_library(program: Any) -> None:
    nodes_of(program)[1]["target"] = "torch.ops.load_library"


def unknown_operator(program: Any) -> None:
    nodes_of(program)[1]["target"] = "torch.ops.aten.adds.Tensor"


def evaluate_text(program: Any) -> None:
    program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0] = {
        "as_expr": {"expr_str": "__import__('os').system('true')", "hint": {"as_int": 6}}
    }


def symbol_from_text(program: Any) -> None:
    program["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0] = {
        "as_expr": {"expr_str": "S('print(1)')", "hint": {"as_int": 6}}
    }


def name_that_is_code(program: Any) -> None:
    nodes_of(program)[1]["name"] = "x): pass\nprint(1)\ndef f("


def spec_that_imports(program: Any) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = '[1, {"default_factory_module": "os"}]'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (call_shell, "it calls 'torch.os.system', which is no operator"),
        (load_library, "it calls 'torch.ops.load_library', which is no operator"),
        (open_file, "it calls aten.from_file.default, which opens files"),
        (unknown_operator, "unknown operator 'aten.adds.Tensor'"),
        (evaluate_text, "'__import__('os').system('true')' is not a size expression"),
        (symbol_from_text, "'S('print(1)')' is not a size expression"),
        (name_that_is_code, "is not a name"),
        (spec_that_imports, "its inputs or outputs are defaultdicts or enums"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_file_that_could_run_code_is_refused(
    saved: Path, change: Callable[[Any], None], message: str
) -> None:
    assert message in refusal(edited(saved, change))


class Opaque:
    """Not a tensor: unpickling it calls what it names."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


def test_pickled_objects_are_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved.with_name("pickled.pt2")
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name.endswith("sample_inputs/model.pt"):
                with new.open(name, "w") as file:
                    torch.save(((Opaque(),), {}), file)
            else:
                new.writestr(name, old.read(name))
    assert "holds pickled objects that are no tensors" in refusal(path)
    assert capsys.readouterr().out == ""


def test_bindings_are_values(program: torch.export.ExportedProgram) -> None:
    _, bindings = load(program)
    assert isinstance(bindings, Bindings)
    assert "state" not in repr(copy.copy(bindings))
