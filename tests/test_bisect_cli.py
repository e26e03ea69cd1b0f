"""rewright bisect on the command line: what it prints and writes, how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import rewright.codegen.cpp
from rewright.bisect import fault_in
from rewright.cli import main
from rewright.ir.text_files import load_text
from test_bisect import KELVIN, VARIANCE, as_users_have_it

__all__ = ["as_users_have_it"]

pytestmark = pytest.mark.cpu
FACTORY = """\
import torch

class Standard(torch.nn.Module):
    def forward(self, x):
        return x / x.var(-1, correction=0, keepdim=True)

def warm():
    torch.manual_seed(0)
    return Standard(), (300 + torch.randn(8, 64),)

def model():
    return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.GELU()), (torch.randn(3, 6),)
"""
# Takes the model down that it belongs to, and not the command.
DEADLY = """\
import re
import rewright.codegen.cpp
from readings import model

honest = rewright.codegen.cpp.emit

def emit(*given, **named):
    return re.sub(r"\\berf\\((\\w+)\\)", r"erf(load((const f32*)8, n))", honest(*given, **named))

def deadly():
    rewright.codegen.cpp.emit = emit
    return model()
"""
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "readings.py").write_text(FACTORY)
    (tmp_path / "deadly.py").write_text(DEADLY)
    (tmp_path / "squares.rules").write_text(VARIANCE)
    (tmp_path / "kelvin.rw").write_text(f"rewright 1\n{KELVIN}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("readings", "deadly"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(rewright.codegen.cpp, "emit", rewright.codegen.cpp.emit)  # as it was, after


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str, code: int = 0) -> str:
        assert main(["bisect", *arguments]) == code
        printed = capsys.readouterr()
        assert code == 2 or not printed.err
        return printed.err if code == 2 else printed.out

    return call


def test_nothing_is_broken(run: Run) -> None:
    lines = run("kelvin.rw").splitlines()
    assert lines[0] == "nothing is broken"
    assert lines[1].startswith("  16 passes ran: decompose, channels-last, ")
    assert "relative error" in lines[3] and "is allowed" in lines[3]


def test_a_rule_is_named(run: Run) -> None:
    lines = run("readings:warm", "--rules", "squares.rules", code=1).splitlines()
    assert lines[0].startswith(
        'pass rules{sets=["exact","squares.rules"]}, application 1 of rule variance-by-squares, '
        "node %var = aten.var.correction (readings.py:5): relative error "
    )
    assert lines[1] == "  it is application 1 of 1 in that pass"
    assert lines[2].startswith("one node shows it, by rules alone (relative error ")
    assert lines[-1] == "-o DIR writes this as a case file, and a script"
    assert not list(Path().glob("*/case.rw"))


def test_json_and_files(run: Run) -> None:
    arguments = ("readings:warm", "--rules", "squares.rules", "-o", "deep/found", "--json")
    told = json.loads(run(*arguments, code=1))
    assert (told["found"], told["kind"], told["node"]) == (True, "numbers", "var")
    assert (told["rule"], told["application"], told["nodes"]) == ("variance-by-squares", 1, 1)
    assert told["error"] > told["allowed"] and told["shows_again"] is True
    assert told["files"] == [f"deep/found/{n}" for n in ("case.rw", "repro.py", "case.pt")]
    assert Path("deep/found/case.rw").read_text() == told["case"]
    graph = load_text("deep/found/case.rw")
    assert len(graph.nodes) == 1 and fault_in(graph, "rules", "numbers") is None
    assert json.loads(run("readings:warm", "--json"))["found"] is False


def test_crashes_alone(run: Run) -> None:
    assert "nothing is broken" in run("readings:warm", "--rules", "squares.rules", "--crash")
    said = run("deadly:deadly", "--crash", "--seconds", "3", code=1)
    assert said.startswith("kernel k0_")
    assert "aten.gelu.default" in said and "the process ends by SIGSEGV" in said


def test_time_as_the_cost_model_says(run: Run) -> None:
    said = run("readings:model", "--slow-predicted")
    assert said.startswith("no pass costs time, as predicted\n")


def test_mistakes(run: Run) -> None:
    assert "not allowed with argument" in run("kelvin.rw", "--crash", "--slow", code=2)
    assert "there is no file other.rw" in run("other.rw", code=2)
    assert "no pass named 'cze'" in run("kelvin.rw", "--passes", "cze,fuse,memory", code=2)
    arguments = ("readings:warm", "--rules", "squares.rules", "-o", "kelvin.rw")
    assert "cannot write kelvin.rw" in run(*arguments, code=2)
