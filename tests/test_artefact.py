"""Artefacts: folders that run with torch alone, in processes where Rewright cannot be imported."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewright
from examples.case import Case
from rewright.artefact import load, save
from rewright.codegen.runtime import check_cpu, cpu_flags
from rewright.driver import compile_graph
from rewright.ir import ArtefactError, UnsupportedError
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.options import Options
from zoo import tiny_convnext, tiny_gpt2, tiny_mlp, tiny_vae

pytestmark = pytest.mark.cpu

# Runs every case below a folder: an artefact, inputs of some calls, and where the outputs go.
ALONE = """
import pathlib, runpy, sys, torch

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "rewright":
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
sys.path[:] = [p for p in sys.path if p]
for case in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    call = runpy.run_path(str(case / "build" / "program.py"))["load"]()
    results = []
    for inputs in torch.load(case / "inputs.pt"):
        torch.manual_seed(0)
        results.append((list(call(*inputs)), inputs))
    torch.save(results, case / "results.pt")
assert not any(name.split(".")[0] == "rewright" for name in sys.modules)
"""


class Recurrent(nn.Module):
    """Writes a buffer, an argument, and a mask that is known when it is compiled."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor, times: int) -> tuple[Tensor, Tensor, int]:
        mask = torch.ones(4, 4).tril() * torch.tensor([1.0, 2.0, 3.0, 4.0])
        x.add_(1)
        self.total.add_(self.linear(x).sum(0))
        return x @ mask * times, self.total.clone(), x.shape[0]


@dataclass(frozen=True)
class Built:
    """An artefact with the inputs of some calls, and the module that it was made of."""

    module: nn.Module
    calls: list[tuple[Any, ...]]


def built(folder: Path, case: Case, *calls: tuple[Any, ...], dynamic_shapes: Any = None) -> Built:
    module, example = case
    example = tuple(x.clone() if isinstance(x, Tensor) else x for x in example)
    compiled = rewright.optimize(copy.deepcopy(module), example, dynamic_shapes=dynamic_shapes)
    compiled.save(folder / "build")
    torch.save(list(calls), folder / "inputs.pt")
    return Built(module, list(calls))


def everything(folder: Path) -> dict[str, Built]:
    for name in ("gpt2", "convnext", "vae", "recurrent", "mlp"):
        (folder / name).mkdir()
    gpt2, (tokens,) = tiny_gpt2()
    shapes = {"x": {0: torch.export.Dim("n", max=8), 1: torch.export.Dim("t", max=64)}}
    lengths = [(torch.randint(0, 128, s),) for s in ((2, 16), (1, 1), (8, 33), (3, 64))]
    convnext, (image,) = tiny_convnext()
    layouts = [(image,), (image.to(memory_format=torch.channels_last),), (image.transpose(2, 3),)]
    x = torch.randn(6, 4)
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=50)}, "times": None}
    recurrent: Any = (Recurrent(), (x, 3))
    return {
        "gpt2": built(folder / "gpt2", (gpt2, (tokens,)), *lengths, dynamic_shapes=shapes),
        "convnext": built(folder / "convnext", (convnext, (image,)), *layouts),
        "vae": built(folder / "vae", tiny_vae(), tiny_vae()[1]),
        "recurrent": built(
            folder / "recurrent",
            recurrent,
            (x, 3),
            (torch.randn(4, 3).t().contiguous().repeat(3, 2)[:, :4], 3),
            dynamic_shapes=rows,
        ),
        "mlp": built(folder / "mlp", tiny_mlp(), tiny_mlp()[1]),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], None]]:
    """A comparison of what an artefact gave in a process without Rewright with eager."""
    folder = tmp_path_factory.mktemp("artefacts")
    cases = everything(folder)
    moved = folder.with_name("moved")
    folder.rename(moved)
    command = [sys.executable, "-c", ALONE, str(moved)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=moved, check=False)
    assert done.returncode == 0, done.stderr

    def compare(name: str) -> None:
        case = cases[name]
        found = torch.load(moved / name / "results.pt")
        assert len(found) == len(case.calls) > 0
        for (outputs, inputs_after), inputs in zip(found, case.calls, strict=True):
            mine = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
            torch.manual_seed(0)
            with torch.no_grad():
                expected = torch.utils._pytree.tree_leaves(case.module(*mine))
            torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(inputs_after, mine)

    yield compare
    shutil.rmtree(moved)


@pytest.mark.parametrize("name", ["gpt2", "convnext", "vae", "recurrent", "mlp"])
def test_an_artefact_runs_without_rewright(results: Callable[[str], None], name: str) -> None:
    results(name)


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
    assert json.loads((folder / "rewright.json").read_text())["rewright"] == rewright.__version__
    assert "KERNEL void" in (folder / "kernels.cpp").read_text()


def test_two_compiles_write_the_same_text(folder: Path, tmp_path: Path) -> None:
    again = rewright.optimize(*tiny_mlp()).save(tmp_path / "again")
    for name in ("program.py", "runtime.py", "graph.rw", "kernels.cpp", "rewright.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


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
    import runpy

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
    import runpy

    module, (x,) = tiny_mlp()
    rows = {"x": {0: torch.export.Dim("rows", min=2, max=50)}}
    rewright.optimize(module, (x,), dynamic_shapes=rows).save(tmp_path / "build")
    call = runpy.run_path(str(tmp_path / "build" / "program.py"))["load"]()
    assert call(torch.ones(50, 16))[0].shape == (50, 10)
    with pytest.raises(ValueError, match="wanted 2 <= B0 <= 50, not B0 = 51"):
        call(torch.ones(51, 16))


def test_a_cpu_without_the_instructions_is_refused() -> None:
    if not cpu_flags():
        pytest.skip("the system does not say what its CPU can do")
    check_cpu(sorted(cpu_flags()))
    with pytest.raises(RuntimeError, match="built for a CPU with avx4096, which this one has not"):
        check_cpu(["avx4096"])


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


def test_a_failure_leaves_what_was_there(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it comes while the files are written."""
    before = {p.name: p.read_bytes() for p in copied.iterdir()}

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    compiled = rewright.optimize(*tiny_mlp())
    with pytest.raises(ArtefactError, match=r"cannot write .*: No space left on device"):
        compiled.save(copied)
    assert {p.name: p.read_bytes() for p in copied.iterdir()} == before
    assert [p.name for p in copied.parent.iterdir()] == ["build"]


@pytest.mark.parametrize("name", ["tensors.pt", "program.py", "runtime.py", "graph.rw"])
def test_a_damaged_artefact_is_refused(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ArtefactError, match="is damaged"):
        load(copied)


def test_truncated_tensors_are_refused(copied: Path) -> None:
    tensors = copied / "tensors.pt"
    tensors.write_bytes(tensors.read_bytes()[:200])
    with pytest.raises(ArtefactError, match="is damaged"):
        load(copied)


def test_a_graph_without_a_module_is_saved_too(tmp_path: Path) -> None:
    graph = parse("graph f(%x: f32[3]) {\n  %y = aten.exp.default(%x) : f32[3]\n  return %y\n}")
    program = compile_graph(graph, Options())
    artefact = load(save(program, None, tmp_path / "build"))
    x = torch.randn(3)
    torch.testing.assert_close(artefact.call([x]), [x.exp()])


def test_a_portable_artefact_needs_less(tmp_path: Path) -> None:
    compiled = rewright.optimize(*tiny_mlp(), target="cpu:avx2")
    text = (compiled.save(tmp_path / "build") / "program.py").read_text()
    assert 'NEEDS = ["avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"]' in text
