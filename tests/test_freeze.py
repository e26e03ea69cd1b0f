"""Frozen weights: what is computed of them once, and when it is computed again."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rewright
from rewright.backend import programs
from rewright.codegen.runtime import Frozen
from rewright.ir import OptionError
from rewright.ir.expand import expand
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.options import Options


class Net(nn.Module):
    """Batch norms after convolutions, plain and deep, a residual, a layer scale, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn1 = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.deep, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.wide, self.bn3 = nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.head, self.gamma = nn.Linear(16, 7), nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.bn1(self.stem(x)))
        x = F.relu(self.bn3(self.wide(F.silu(self.bn2(self.deep(x))))) + x)
        return self.head(x.mean((2, 3))) * self.gamma  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    for norm in (model.bn1, model.bn2, model.bn3):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
        nn.init.normal_(norm.weight)
    return model


def frozen(model: nn.Module, dynamic: bool | None = False) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend="rewright", dynamic=dynamic, options={"freeze": True})


def is_right(found: Tensor, model: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        wanted = model(x)
    return float((found - wanted).norm()) <= 1e-5 * float(wanted.norm())


@pytest.mark.parametrize("dynamic", [False, True])
def test_batch_norms_are_gone_and_weights_packed(dynamic: bool) -> None:
    model = net()
    call = frozen(model, dynamic)
    with torch.no_grad():
        for batch in (2, 5):
            x = torch.randn(batch, 3, 16, 16)
            assert is_right(call(x), model, x)
    graph = programs()[-1].graph
    called = [n.op.name for n in graph.nodes]
    assert called.count("rw.frozen") == 1
    theirs = [n for n in graph.nodes if "_convolution_pointwise" in n.op.name]
    ours = [n.graph("body") for n in graph.nodes if n.op.name == "rw.convolution"]
    assert len(theirs) + len(ours) == 3
    assert not any(name.startswith("aten.convolution") for name in called)
    functions = {a for n in theirs for a in n.args if a in ("hardswish", "swish", "relu")}
    inside = {n.op.name for body in ours for n in body.nodes}
    names = {"hardswish": "hardswish", "swish": "silu", "relu": "relu"}
    assert all(f in functions or f"aten.{a}.default" in inside for f, a in names.items())


def test_changed_weights_are_noticed() -> None:
    model = net()
    call, x = frozen(model), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = call(x).clone()
        model.stem.weight.mul_(2.0)
        assert is_right(call(x), model, x)
        other = net()
        nn.init.normal_(other.head.weight)
        model.load_state_dict(other.state_dict())
        assert is_right(call(x), model, x) and not torch.equal(call(x), before)
        model.bn1.running_mean.zero_()  # type: ignore[union-attr]
        assert is_right(call(x), model, x)
        model.head = nn.Linear(16, 7)  # Dynamo compiles again
        assert is_right(call(x), model, x)


def test_under_inference_mode_and_after() -> None:
    model = net()
    call, x = frozen(model), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert is_right(call(x), model, x)
    with torch.no_grad():
        assert is_right(call(x), model, x)


def test_training_is_not_frozen() -> None:
    model = net()
    call, x = frozen(model), torch.randn(2, 3, 16, 16)
    call(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    held = [n.op.name for p in programs()[-2:] for n in p.graph.nodes]
    assert "rw.frozen" not in held


def test_what_is_kept_is_computed_once() -> None:
    calls: list[int] = []

    def compute(*parameters: Tensor) -> list[Tensor]:
        calls.append(len(parameters))
        return [sum(parameters, torch.zeros(2))]

    kept = Frozen(compute)
    a, b = torch.ones(2), torch.ones(2)
    for _ in range(3):
        assert kept(a, b)[0].tolist() == [2.0, 2.0]
    assert calls == [2]
    a.add_(1)
    assert kept(a, b)[0].tolist() == [3.0, 3.0]
    # Another tensor, though the memory of a tensor that is gone may be handed out again.
    for _ in range(20):
        a = torch.full((2,), 5.0)
        assert kept(a, b)[0].tolist() == [6.0, 6.0]
    assert calls == [2] * 22
    with torch.inference_mode():
        c = torch.ones(2)
        assert kept(c, b)[0].tolist() == [2.0, 2.0]


def test_an_operator_that_is_computed_once_is_its_body() -> None:
    graph = parse("""
    graph f(%x: f32[4], %w: f32[4] param) {
      %e = rw.frozen(%w) body(%w: f32[4]) {
        %e = aten.exp.default(%w) : f32[4]
        return %e
      } : f32[4]
      %y = aten.mul.Tensor(%x, %e) : f32[4]
      return %y
    }
    """)
    x, w = torch.randn(4), torch.randn(4)
    assert [n.op.name for n in expand(graph).nodes] == ["aten.exp.default", "aten.mul.Tensor"]
    for same in (graph, expand(graph)):
        torch.testing.assert_close(interpret(same, [x, w])[0], x * w.exp())
        (exact,) = interpret(same, [x, w], dtype=torch.float64)
        torch.testing.assert_close(exact, x.double() * w.double().exp())


def test_an_exported_program(tmp_path: Path) -> None:
    model, x = net(), torch.randn(2, 3, 16, 16)
    program = rewright.optimize(torch.export.export(model, (x,)), freeze=True)
    assert is_right(program(x), model, x)
    program.save(tmp_path / "build")
    saved = runpy.run_path(str(tmp_path / "build" / "program.py"))["load"]()
    for _ in range(2):
        assert is_right(saved(x)[0], model, x)


def test_the_option_is_yes_or_no() -> None:
    assert [Options.of({"freeze": v}).freeze for v in (True, False, "yes")] == ["yes", "no", "yes"]
    with pytest.raises(OptionError, match="freeze is 'no' or 'yes', not 'maybe'"):
        Options.of({"freeze": "maybe"})
