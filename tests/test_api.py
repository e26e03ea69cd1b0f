"""The door in Python, beside `optimize` itself: files, graphs for other tools, explanations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rewright
from rewright.ir import CheckError, OptionError

pytestmark = pytest.mark.cpu


def model() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
    return layers.eval(), (torch.randn(3, 8),)


def test_a_program_tells_why() -> None:
    program = rewright.optimize(*model())
    assert str(program.why("fuse")).startswith("fuse took ")
    assert program.why("%gelu").kernels[0].function == "k0_gelu"
    assert str(program.why("k0")) == str(program.why("k0_gelu"))
    assert {d.pass_ for d in program.why().decisions} >= {"fuse", "memory"}
    with pytest.raises(CheckError, match="did you mean 'fuse'"):
        program.why("fuze")
    torch.compile(model()[0], backend="rewright")(*model()[1])
    assert rewright.programs()[-1].why("gelu").subject == "gelu"


def test_a_graph_for_other_tools_goes_out_and_in(tmp_path: Path) -> None:
    module, inputs = model()
    found = rewright.rewrite(module, inputs)
    assert "rw." not in str(found.graph) and "dce" in str(found)
    files = found.save(tmp_path / "model.mlirbc")
    assert [f.name for f in files] == ["model.mlirbc", "model.mlirbc.safetensors"]
    (out,) = rewright.optimize(files[0])(*inputs)
    torch.testing.assert_close(out, module(*inputs))
    with pytest.raises(OptionError, match=r"written as \.mlir or \.mlirbc, not"):
        found.save(tmp_path / "model.onnx")


def test_a_text_is_optimized_and_called(tmp_path: Path) -> None:
    (tmp_path / "f.rw").write_text(
        "rewright 1\ngraph f(%x: f32[4], %y: f32[4]) {\n"
        "  %a = aten.add.Tensor(%x, %y) : f32[4]\n  return %a, %x\n}\n"
    )
    x, y = torch.randn(4), torch.randn(4)
    total, same = rewright.optimize(tmp_path / "f.rw")(x, y)
    assert torch.equal(total, x + y) and torch.equal(same, x)
    graph = rewright.rewrite(str(tmp_path / "f.rw")).graph
    assert [n.op.name for n in graph.nodes] == ["aten.add.Tensor"]


def test_default_stands_for_the_default_passes() -> None:
    program = rewright.optimize(*model(), passes="dce,default")
    names = [row.name for row in program.report.passes]
    assert names[:4] == ["import", "dce", "decompose", "channels-last"] and names[-1] == "memory"
    with pytest.raises(OptionError, match="no pass named 'default'"):
        rewright.optimize(*model(), passes="default{size=1},default")


def test_what_a_budget_or_a_window_finds_nothing_for_is_said() -> None:
    x = torch.randn(4, 8)
    spent = rewright.optimize(nn.ReLU(), (x,), error_budget=0.1, calibration=[(x,)])
    assert "nothing to spend rel_l2<=0.1 on" in str(spent.why("quantize"))
    narrowed = rewright.optimize(nn.ReLU(), (x,), attention="window{size=4}")
    assert "there is no attention to narrow" in str(narrowed.why("window"))


def test_rules_that_are_texts_are_shown_by_name() -> None:
    text = """
    rule twice-negated exact {
      %x: float
      match aten.neg.default(aten.neg.default(%x))
      give  %x
    }"""
    program = rewright.optimize(*model(), rules=[rewright.rule(text)])
    assert 'rules{sets=["exact","twice-negated"]}' in str(program.report)
    assert "match" not in str(program.why("rules"))


def test_nodes_come_from_lines_of_the_user() -> None:
    """Not from those of torch's modules, which no two models differ in."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(x)
            return y

    program = rewright.optimize(Own(), (torch.randn(2, 4),))
    assert {n.loc.file for n in program.graph.nodes if n.loc} == {"test_api.py"}


def test_measured_peak_is_what_a_call_allocates() -> None:
    rewright.measured_peak(lambda: torch.empty(1))  # what the profiler itself allocates first
    assert rewright.measured_peak(lambda: torch.empty(1 << 20)) >= 4 << 20


def test_attention_in_a_kernel_of_ours_is_not_told_to_have_none() -> None:
    class Window(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            place = torch.arange(q.shape[2])
            seen = (place <= place[:, None]) & (place[:, None] - place < 32)
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)

    program = rewright.optimize(Window(), tuple(torch.randn(1, 2, 256, 16) for _ in range(3)))
    assert "rw.attention is a kernel by itself" in str(program.why("fuse"))
