"""Frozen weights: what is computed of them once, and when it is computed again."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rewright
from rewright.backend import programs
from rewright.codegen.runtime import Frozen
from rewright.ir import Node, OptionError
from rewright.ir.expand import expand
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.options import Options
from rewright.passes import Env
from rewright.passes.libraries import convolutions


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


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Has kernels of ours take over every convolution that they can; by their names."""
    names: list[str] = []

    def all_of(
        calls: object, made: Mapping[str, Node], weights: object, env: Env
    ) -> Mapping[str, Node]:
        names.extend(made)
        return made

    monkeypatch.setattr(convolutions, "_winners", all_of)
    return names


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 16, 1, stride=2, groups=16),
        nn.Sequential(nn.Conv2d(16, 32, 1, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 1, stride=2)),
        nn.Conv2d(16, 32, 1),
    ],
)
def test_batches_that_vary_and_are_empty(layer: nn.Module, taken: list[str]) -> None:
    size = torch.export.Dim("batch", min=0, max=64)
    exported = torch.export.export(
        layer.eval(), (torch.randn(4, 16, 17, 17),), dynamic_shapes=({0: size},)
    )
    program = rewright.optimize(exported, freeze=True)
    assert len(taken) == sum(isinstance(m, nn.Conv2d) for m in layer.modules())
    for batch in (2, 0, 1, 7):
        x = torch.randn(batch, 16, 17, 17)
        assert is_right(program(x), layer, x)


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("bias", [torch.randn(48)[::2], torch.randn(1).expand(24)])
def test_a_bias_that_does_not_lie_in_one_piece(window: int, bias: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(16, 24, window), nn.ReLU()).eval()
    model[0].bias = nn.Parameter(bias)
    x = torch.randn(2, 16, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert is_right(frozen(model)(x), model, x)


@pytest.mark.usefixtures("taken")
def test_a_weight_that_lies_channels_last() -> None:
    model = nn.Conv2d(5, 9, 3).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 5, 9, 9).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert is_right(frozen(model)(x), model, x)


@pytest.mark.parametrize("shape", [(2, 40, 1, 1), (1, 40, 1, 1), (2, 40, 3, 3)])
def test_strides_of_what_leaves_are_eagers(shape: tuple[int, ...]) -> None:
    model, x = nn.Conv2d(40, 10, shape[-1]).eval(), torch.randn(shape)
    with torch.no_grad():
        assert frozen(model)(x).stride() == model(x).stride()


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
