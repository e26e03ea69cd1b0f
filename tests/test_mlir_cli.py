"""MLIR on the command line: what is read, written and refused, and how it ends."""

from __future__ import annotations

import json
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlir_cases import DYNAMIC, RELU, function
from rewright.cli import main
from rewright.ir.interpret import interpret
from rewright.ir.mlir_export import to_mlir
from rewright.ir.mlir_import import from_mlir, load_mlir
from rewright.ir.parse import parse
from rewright.passes import DEFAULT
from zoo import tiny_mlp

pytest.importorskip("torch_mlir", reason="torch-mlir is not installed")
pytestmark = pytest.mark.cpu

TEXT = """\
rewright 1
graph twice(%x: f32[B0, 8], %bias: f32[8] param) where B0 in [1, 64] hint 4 {
  %a = aten.add.Tensor(%x, %bias) : f32[B0, 8] @ model.py:7
  %b = aten.exp.default(%a) : f32[B0, 8] @ model.py:8
  %c = aten.exp.default(%a) : f32[B0, 8] @ model.py:9
  %d = aten.add.Tensor(%b, %c) : f32[B0, 8] @ model.py:9
  return %d
}
"""
# An operator that the dialect has no name for, on a number that it cannot say.
UNSAYABLE = """\
rewright 1
graph f(%x: c64[2]) {
  %y = aten.mul.Tensor(%x, complex(0.0, 1.0)) : c64[2] @ model.py:9
  return %y
}
"""
# Between two calls of ATen lies a value that needs a buffer.
BUFFERED = """\
rewright 1
graph f(%x: f32[8, 8]) {
  %y = aten.mm.default(%x, %x) : f32[8, 8] @ model.py:8
  %z = aten.mm.default(%y, %x) : f32[8, 8] @ model.py:9
  return %z
}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "twice.rw").write_text(TEXT)
    (tmp_path / "unsayable.rw").write_text(UNSAYABLE)
    (tmp_path / "buffered.rw").write_text(BUFFERED)
    (tmp_path / "dynamic.mlir").write_text(DYNAMIC)
    (tmp_path / "bad.mlir").write_text(function("%0 = torch.aten.relux %x : !m -> !m", RELU[1]))
    return tmp_path


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that succeeds: what it prints."""

    def call(*arguments: str) -> str:
        ended = main(list(arguments))
        printed = capsys.readouterr()
        assert (ended, printed.err) == (0, "")
        return printed.out

    return call


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str], folder: Path) -> Run:
    """Run a command that is refused: its message. Nothing is printed or written."""

    def call(*arguments: str) -> str:
        before = {p: p.read_bytes() for p in folder.iterdir()}
        assert main(list(arguments)) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert {p: p.read_bytes() for p in folder.iterdir()} == before
        return printed.err

    return call


def test_optimize_writes_the_optimized_graph(run: Run) -> None:
    for name in ("out.mlir", "out.mlirbc"):
        lines = run("optimize", "twice.rw", "-o", name).splitlines()
        passes = ["import", *(p.name for p in DEFAULT if p.gives == "aten")]
        assert [line.split()[0] for line in lines[1:-1]] == passes
        assert lines[-1] == f"wrote {name}"
        assert [n.name for n in load_mlir(name).nodes] == ["a", "b", "d"]
    found = json.loads(run("optimize", "out.mlir", "-o", "again.mlir", "--json", "--passes", "dce"))
    assert [row["spec"] for row in found["passes"]] == ["import", "dce"]
    assert load_mlir("again.mlir") == load_mlir("out.mlirbc")


def test_a_file_of_torch_mlir_is_optimized_and_runs(run: Run, folder: Path) -> None:
    from torch_mlir.fx import export_and_import

    module, (x,) = tiny_mlp()
    batch = torch.export.Dim("batch", min=2, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = export_and_import(module, x, dynamic_shapes=({0: batch},), func_name="mlp")
    (folder / "mlp.mlir").write_text(f"{written}\n")
    run("optimize", "mlp.mlir", "-o", "out.mlir")
    before, after = load_mlir("mlp.mlir"), load_mlir("out.mlir")
    assert len(after.nodes) < len(before.nodes)
    with torch.no_grad():
        torch.testing.assert_close(interpret(after, [x[:3]])[0], module(x[:3]))
    for name in ("mlp.mlir", "out.mlir"):
        checked = run("run", name, "--check", "--rounds", "1").splitlines()[1]
        assert checked.endswith("within twice that plus 1e-6")


def test_an_artefact_is_the_same_by_either_way(run: Run, folder: Path) -> None:
    (folder / "twice.mlir").write_text(run("show", "twice.rw", "--mlir", "--after", "import"))
    run("optimize", "twice.rw", "-o", "direct")
    run("optimize", "twice.mlir", "-o", "through")
    for path in sorted((folder / "direct").iterdir()):
        if path.is_file() and path.suffix != ".json":  # which hold timings
            assert path.read_bytes() == (folder / "through" / path.name).read_bytes()
    checked = run("run", "through", "--check", "--rounds", "1").splitlines()[1]
    assert checked.endswith("within twice that plus 1e-6")


def test_weights_go_with_the_graph(run: Run, folder: Path) -> None:
    module, inputs = tiny_mlp()
    torch.export.save(torch.export.export(module, inputs), folder / "mlp.pt2")
    last = run("optimize", "mlp.pt2", "-o", "mlp.mlir").splitlines()[-1]
    assert last == "wrote mlp.mlir and mlp.mlir.safetensors"
    run("optimize", "mlp.mlir", "-o", "build")
    program = runpy.run_path("build/program.py")["load"]()
    with torch.no_grad():
        torch.testing.assert_close(program(*inputs)[0], module(*inputs))
    (folder / "mlp.mlir.safetensors").write_bytes(b"no tensors")
    assert main(["show", "mlp.mlir"]) == 2


def test_show_prints_mlir(run: Run) -> None:
    assert from_mlir(run("show", "twice.rw", "--mlir", "--after", "import")) == parse(TEXT)
    optimized = from_mlir(run("show", "twice.rw", "--mlir"))
    assert [n.name for n in optimized.nodes] == ["a", "b", "d"]
    fused = from_mlir(run("show", "twice.rw", "--mlir", "--after", "fuse"))
    assert [n.op for n in fused.nodes] == [n.op for n in optimized.nodes]
    assert "linalg.generic" in run("show", "dynamic.mlir", "--linalg")
    assert "aten.reshape.default" in run("show", "dynamic.mlir", "--after", "import")


def test_mistakes_are_messages(fail: Run) -> None:
    pointed = (
        "error: custom op 'torch.aten.relux' is unknown\n"
        " --> bad.mlir:4:10\n"
        "  |\n"
        "4 |     %0 = torch.aten.relux %x : !m -> !m\n"
        "  |          ^\n"
    )
    for command in ("show", "run", "optimize", "why"):
        assert fail(command, "bad.mlir") == pointed
    assert fail("show", "none.mlir") == "error: there is no file none.mlir\n"
    assert fail("optimize", "unsayable.rw", "-o", "dynamic.mlir") == (
        "error: [mlir] node 'y' (aten.mul.Tensor) at model.py:9: "
        "a complex number as an argument has no form in MLIR\n"
    )
    assert fail("optimize", "twice.rw", "-o", "none/out.mlir") == (
        "error: cannot write none/out.mlir: No such file or directory\n"
    )
    assert fail("show", "buffered.rw", "--mlir", "--after", "memory").endswith(
        "(rw.alloc) at model.py:8: it has no form in MLIR\n"
    )


def test_a_file_that_lies_about_types_is_refused(fail: Run, folder: Path) -> None:
    """Ours say what strides are, and a kernel that believed a lie would read other memory."""
    lie = '%b = torch.aten.exp %a {rewright.types = ["f32[B0, 8] strides [1, 64]"]} :'
    text = to_mlir(parse(TEXT)).replace("%b = torch.aten.exp %a :", lie)
    (folder / "lying.mlir").write_text(text)
    assert "%b is declared f32[B0, 8] strides [1, 64]" in fail("run", "lying.mlir")


def test_without_torch_mlir_there_is_a_message(fail: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_mlir", None)
    missing = (
        "error: [mlir] MLIR is read and written by torch-mlir, which is not installed\n"
        "  = help: pip install torch-mlir\n"
    )
    assert fail("show", "dynamic.mlir") == missing
    assert fail("optimize", "twice.rw", "-o", "out.mlir") == missing
    assert fail("show", "twice.rw", "--linalg") == missing
