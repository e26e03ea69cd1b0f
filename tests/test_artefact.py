"""Artefacts: what lies in the folder, how it is written, how its program is called."""

from __future__ import annotations

import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewright
from rewright.artefact import load, save
from rewright.cli import main
from rewright.driver import compile_graph
from rewright.ir import ArtefactError, UnsupportedError
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.options import Options
from zoo import tiny_convnext, tiny_mlp

pytestmark = pytest.mark.cpu


# --- what is in it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact of the MLP."""
    return rewright.optimize(*tiny_mlp()).save(tmp_path_factory.mktemp("mlp") / "build")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "build"))


def test_the_schedule_and_the_report_are_in_it(folder: Path) -> None:
    graph = parse((folder / "graph.rw").read_text())
    assert graph.name == "main"
    assert (folder / "graph.rw").read_text() == f"{graph}\n"
    report = json.loads((folder / "report.json").read_text())
    assert [row["spec"] for row in report["passes"]][-1] == "memory"
    assert "KERNEL void" in (folder / "kernels.cpp").read_text()


def test_two_compiles_write_the_same(folder: Path, tmp_path: Path) -> None:
    """But for the report, which tells how long they took."""
    again = rewright.optimize(*tiny_mlp()).save(tmp_path / "again")
    first, second = (manifest_of(f)["files"] for f in (folder, again))
    assert [name for name in first if first[name] != second[name]] == ["report.json"]


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "rewright.json").read_text())


def test_the_manifest_says_how_it_is_called(tmp_path: Path) -> None:
    module, (x,) = tiny_mlp()
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=50)}}
    compiled = rewright.optimize(module, (x,), dynamic_shapes=rows)
    found = manifest_of(compiled.save(tmp_path / "build"))
    assert (found["format"], found["version"]) == ("rewright-artefact", 1)
    assert (found["rewright"], found["torch"]) == (rewright.__version__, torch.__version__)
    assert found["entry"] == {"file": "program.py", "function": "load"}
    assert found["sizes"] == [{"name": "B0", "low": 2, "high": 50, "divisor": 1}]
    assert [i["name"] for i in found["inputs"] if not i["held"]] == ["x"]
    assert found["inputs"][-1]["type"] == "f32[B0, 16]" and not found["inputs"][-1]["mutable"]
    assert [o["type"] for o in found["outputs"]] == ["f32[B0, 10]"]


def test_the_readme_names_every_file_and_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (folder / "README.md").read_text()
    top = {name.split("/")[0] for name in manifest_of(folder)["files"]} - {"README.md"}
    assert top | {"rewright.json"} == {
        line.split("`")[1].rstrip("/") for line in text.splitlines() if line.startswith("| `")
    }
    code = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    exec("\n".join(code), namespace)
    assert [x.shape for x in namespace["outputs"]] == [(8, 10)]


def test_the_memory_plan_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Buffers of the arena with their offsets, as `plan-memory` reads and places them."""
    folder = rewright.optimize(*tiny_convnext()).save(tmp_path / "build")
    with (folder / "memory.csv").open() as file:
        rows = list(csv.DictReader(file))
    program = runpy.run_path(str(folder / "program.py"))
    planned = program["intervals"]()
    assert [(int(r["lower"]), int(r["upper"]), int(r["size"]), int(r["offset"])) for r in rows] == (
        planned
    )
    assert {row["id"] for row in rows} <= {v.name for v in load(folder).graph.values} and len(
        rows
    ) > 2
    assert main(["plan-memory", str(folder / "memory.csv"), "--alignment", "64", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arena"] <= program["ARENA_BYTES"]


def test_its_kernels_are_built_again(folder: Path, tmp_path: Path) -> None:
    """By the script in the folder, from what lies there; it is the same library."""
    copied = Path(shutil.copytree(folder, tmp_path / "build"))
    (copied / "kernels.so").unlink()
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([str(copied / "build.sh")], check=True, env=environment)
    assert (copied / "kernels.so").read_bytes() == (folder / "kernels.so").read_bytes()
    load(copied)


def test_a_folder_written_anew_gives_the_new_kernels(tmp_path: Path) -> None:
    """Although the process has loaded a library from that very path before."""
    text = "graph f(%x: f32[64]) {{\n  %y = aten.{}.default(%x) : f32[64]\n  return %y\n}}"
    x = torch.randn(64)
    for name in ("exp", "sin"):
        program = compile_graph(parse(text.format(name)), Options())
        artefact = load(save(program, None, tmp_path / "build"))
        torch.testing.assert_close(artefact.call([x]), [getattr(x, name)()])


def test_an_artefact_is_read_back(folder: Path) -> None:
    artefact = load(folder)
    args = artefact.inputs()
    torch.testing.assert_close(artefact.call(list(args)), interpret(artefact.graph, args))


def test_constants_come_back(tmp_path: Path) -> None:
    """Also those too large to stand in the text."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(64.0).reshape(8, 8).exp2().log()

    x = torch.randn(8, 8)
    compiled = rewright.optimize(Masked(), (x,))
    assert any(node.op.name == "rw.constant" for node in compiled.graph.nodes)
    artefact = load(compiled.save(tmp_path / "build"))
    torch.testing.assert_close(artefact.call([x])[0], Masked()(x))


# --- refusals -----------------------------------------------------------------------------------


def test_a_call_that_does_not_fit_is_refused(folder: Path) -> None:
    call = runpy.run_path(str(folder / "program.py"))["load"]()
    with pytest.raises(TypeError, match="takes 1 inputs: x"):
        call()
    with pytest.raises(TypeError, match="x is a tensor of 2 dimensions"):
        call(torch.ones(8))
    with pytest.raises(
        ValueError, match=r"x is torch.float32 \(8, 16\), not torch.float32 \(9, 16\)"
    ):
        call(torch.ones(9, 16))
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        call(torch.ones(8, 16, dtype=torch.float64))


def test_a_size_out_of_its_range_is_refused(tmp_path: Path) -> None:
    module, (x,) = tiny_mlp()
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=50)}}
    rewright.optimize(module, (x,), dynamic_shapes=rows).save(tmp_path / "build")
    call = runpy.run_path(str(tmp_path / "build" / "program.py"))["load"]()
    assert call(torch.ones(50, 16))[0].shape == (50, 10)
    with pytest.raises(ValueError, match="wanted 2 <= B0 <= 50, not B0 = 51"):
        call(torch.ones(51, 16))


def test_higher_order_operators_are_refused(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))
            return y

    compiled = rewright.optimize(Branching(), (torch.ones(3),))
    torch.testing.assert_close(compiled(torch.ones(3)), torch.ones(3).sin())
    with pytest.raises(UnsupportedError, match=r"cannot hold the higher-order hop\.cond"):
        compiled.save(tmp_path / "build")
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_failure_leaves_what_was_there(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it comes while the files are written."""
    before = contents(copied)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rewright.artefact, "write_tensors", full)
    compiled = rewright.optimize(*tiny_mlp())
    with pytest.raises(ArtefactError, match=r"cannot write .*: No space left on device"):
        compiled.save(copied)
    assert contents(copied) == before
    assert [p.name for p in copied.parent.iterdir()] == ["build"]


def test_a_graph_without_a_module_is_saved_too(tmp_path: Path) -> None:
    graph = parse("graph f(%x: f32[3]) {\n  %y = aten.exp.default(%x) : f32[3]\n  return %y\n}")
    program = compile_graph(graph, Options())
    artefact = load(save(program, None, tmp_path / "build"))
    x = torch.randn(3)
    torch.testing.assert_close(artefact.call([x]), [x.exp()])


def test_a_portable_artefact_needs_less(tmp_path: Path) -> None:
    compiled = rewright.optimize(*tiny_mlp(), target="cpu:avx2")
    target = manifest_of(compiled.save(tmp_path / "build"))["target"]
    assert (target["name"], target["machine"]) == ("cpu:avx2", "x86_64")
    assert target["needs"] == ["avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"]


def test_what_somebody_else_put_there_is_not_replaced(copied: Path) -> None:
    compiled = rewright.optimize(*tiny_mlp())
    (copied / "notes.txt").write_text("mine")
    before = contents(copied)
    with pytest.raises(ArtefactError, match=r"notes\.txt in it was not written by rewright"):
        compiled.save(copied)
    assert contents(copied) == before
    (copied / "notes.txt").unlink()
    (copied / "rewright.json").write_text('{"version": 3}')
    with pytest.raises(ArtefactError, match="exists and was not written by rewright"):
        compiled.save(copied)


def test_inputs_are_laid_out_or_refused(tmp_path: Path) -> None:
    """As the program was built for: strides, and no lazily negated or conjugated values."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp() * 2

    z = torch.randn(4, 8, dtype=torch.complex64).conj()
    folder = rewright.optimize(Twice(), (torch.randn(4, 8),)).save(tmp_path / "build")
    call = runpy.run_path(str(folder / "program.py"))["load"]()
    assert z.imag.is_neg()
    torch.testing.assert_close(call(z.imag)[0], z.imag.exp() * 2)
    torch.testing.assert_close(call(z.imag.t().contiguous().t())[0], z.imag.exp() * 2)
    with pytest.raises(ValueError, match="x is on cpu, not on meta"):
        call(torch.empty(4, 8, device="meta"))
