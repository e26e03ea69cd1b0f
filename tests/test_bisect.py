"""rewright bisect names faults that are planted in passes and rules, in models of some hundred
nodes; what it writes is small, fails with the fault and does not without."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from planted import FAULTS, RIGHT, believed_rules
from planted_models import Planted, bert_model, resnet_model
from rewright.bisect import Case, Finding, Healthy, bisect, write
from rewright.ir.parse import parse
from rewright.options import Options
from run_case import check_case, read_case, run_case

pytestmark = pytest.mark.cpu
MOST_NODES = 5


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is checked after passes: what they break is not found at once."""
    monkeypatch.setenv("REWRIGHT_CHECK", "0")


def found_in(planted: Planted, seconds: float = 60, **how: str) -> tuple[Finding, Case]:
    graph, inputs = planted.model()
    assert len(graph.nodes) > 100
    options = Options.of({"rules": planted.rules, "freeze": planted.freeze})
    found = bisect(graph, options, inputs, seconds=seconds, **how)  # type: ignore[arg-type]
    assert isinstance(found, Finding), str(found)
    assert found.case is not None
    return found, found.case


@pytest.mark.parametrize("planted", FAULTS, ids=lambda planted: planted.name.replace(" ", "-"))
def test_a_fault_is_named_and_made_small(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        planted.plant(patch)
        found, case = found_in(planted)
        assert found.place == planted.place
        assert planted.what in (found.rewrite.rule if found.rewrite else found.what)
        assert planted.node in ("", found.node)
        assert len(case.graph.nodes) <= MOST_NODES
        write(found, case, tmp_path)
        assert fails(tmp_path)
    if not planted.rules:
        assert not fails(tmp_path)


def fails(folder: Path) -> bool:
    """Whether the case file fails as a test; the script says the same."""
    case = read_case(folder / "case.rw")
    try:
        check_case(case, run_case(case))
        failed = False
    except Exception:
        failed = True
    assert status(folder / "repro.py") == int(failed)
    return failed


def status(script: Path, *arguments: str) -> object:
    """How a script ends, run here, where the fault is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *arguments])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as ended:
            return ended.code
    return 0


def test_a_wrong_rule_is_named_by_its_applications(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among those of right rules, in the order in which the pass made them."""
    planted = next(p for p in FAULTS if p.name == "wrong rule")
    believed_rules(monkeypatch)
    found, _ = found_in(planted)
    assert found.rewrite is not None
    assert found.rewrite.of_rule == 1 and found.rewrite.number <= found.rewrite.count
    assert f"application 1 of rule {planted.what}, node %gelu" in str(found)


def test_what_is_right_is_not_blamed() -> None:
    for graph, inputs in (bert_model(), resnet_model()):
        found = bisect(graph, Options.of({"rules": "fastmath"}), inputs)
        assert isinstance(found, Healthy), str(found)
        assert "16 passes ran: decompose, " in str(found)
        assert found.as_json()["found"] is False


def test_a_right_rule_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = bert_model()
    assert isinstance(bisect(graph, Options.of({"rules": RIGHT}), inputs), Healthy)


# --- numbers that random inputs do not show -----------------------------------------------------

VARIANCE = """
rule variance-by-squares reassociating {
  %x: float[b..., n]
  match %y = aten.var.correction(%x, [-1], correction=0, keepdim=true)
  give {
    %m = aten.mean.dim(%x, [-1], true)
    %s = aten.mean.dim(aten.mul.Tensor(%x, %x), [-1], true)
    %y = aten.sub.Tensor(%s, aten.mul.Tensor(%m, %m))
  }
}
"""
KELVIN = """
graph kelvin(%x: f32[8, 64]) {
  %v = aten.var.correction(%x, [-1], correction=0, keepdim=true) : f32[8, 1]
  %d = aten.sqrt.default(%v) : f32[8, 1]
  %m = aten.mean.dim(%x, [-1], true) : f32[8, 1]
  %c = aten.sub.Tensor(%x, %m) : f32[8, 64]
  %y = aten.div.Tensor(%c, %d) : f32[8, 64]
  return %y
}
"""


def test_inputs_are_saved_where_random_ones_show_nothing(tmp_path: Path) -> None:
    """A rule that is proved, since it holds in real arithmetic, and cancels far from zero."""
    options = Options.of({"rules": VARIANCE})
    kelvin = 300 + torch.randn(8, 64)
    found = bisect(parse(KELVIN), options, [kelvin])
    assert isinstance(found, Finding) and found.case is not None
    assert found.rewrite is not None and found.rewrite.rule == "variance-by-squares"
    assert found.node == "v" and len(found.case.graph.nodes) == 1
    assert {path.name for path in write(found, found.case, tmp_path)} == {
        *("case.rw", "repro.py", "case.pt")
    }
    assert "torch.tensor([[" in (tmp_path / "repro.py").read_text()
    assert fails(tmp_path)
    celsius = bisect(parse(KELVIN), options, [kelvin - 300])
    assert isinstance(celsius, Healthy)


def test_a_file_of_inputs_that_is_not_needed_any_more_goes(tmp_path: Path) -> None:
    found = bisect(parse(KELVIN), Options.of({"rules": VARIANCE}), [300 + torch.randn(8, 64)])
    assert isinstance(found, Finding) and found.case is not None
    write(found, found.case, tmp_path)
    drawn = replace(found.case, data=lambda graph: [])
    assert {path.name for path in write(found, drawn, tmp_path)} == {"case.rw", "repro.py"}
    assert not (tmp_path / "case.pt").exists()
