"""How images lie: channels last where it pays, products of pixels, whole models, training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewright.calibrate.tools import BenchTools
from rewright.costmodel import Roofline
from rewright.ir import Graph
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.passes import ChannelsLast, Env, Libraries
from rewright.passes.libraries.images import product_of_pixels
from rewright.passes.libraries.products import Product
from rewright.sources import random_inputs
from run_case import NoTools, case_env

LAST = "f32[2, 64, 16, 16] strides [16384, 1, 1024, 64]"


def pixels(sizes: str = "f32[32, 64, 1, 1]", steps: str = "[1, 1], [0, 0], [1, 1]") -> Graph:
    return parse(f"""
    graph f(%x: {LAST}, %w: {sizes}, %b: f32[32]) {{
      %a = aten.convolution.default(%x, %w, %b, {steps}, false, [0, 0], 1)
        : f32[2, 32, 16, 16] strides [8192, 1, 512, 32]
      return %a
    }}
    """)


class Takes(NoTools):
    """`Tools` that know what calls of operators take, by a part of their names."""

    def __init__(self, **seconds: float) -> None:
        self.known = seconds

    def race(self, calls: Sequence[Graph]) -> list[float]:
        return [next(s for k, s in self.known.items() if k in str(call)) for call in calls]


def env_of(tools: Takes) -> Env:
    env = case_env()
    return Env(Roofline(env.target), env.target, tools)


@pytest.mark.parametrize(
    ("seconds", "called"),
    [
        ({"convolution": 3.0, "addmm": 2.0, "linear": 1.0}, "mkldnn._linear_pointwise.default"),
        ({"convolution": 3.0, "addmm": 1.0, "linear": 2.0}, "aten.addmm.default"),
        ({"convolution": 1.0, "addmm": 2.0, "linear": 2.0}, "aten.convolution.default"),
    ],
)
def test_a_product_of_pixels(seconds: dict[str, float], called: str) -> None:
    graph = pixels()
    env = env_of(Takes(**seconds))
    found = Libraries().run(graph, env)
    assert called in [n.op.name for n in found.nodes]
    assert found.nodes[-1].result == graph.nodes[-1].result
    given = random_inputs(graph)
    (ours,), (its,) = interpret(found, given), interpret(graph, given)
    assert ours.stride() == its.stride()
    torch.testing.assert_close(ours, its, rtol=1e-4, atol=1e-5)


def test_what_is_no_product_of_pixels() -> None:
    assert product_of_pixels(pixels().nodes[0]) == Product(512, 64, 32, False, True, True)
    strided = pixels(steps="[1, 1], [1, 1], [1, 1]").nodes[0]
    wide = pixels("f32[32, 64, 3, 3]", "[1, 1], [1, 1], [1, 1]").nodes[0]
    by_rows = parse(str(pixels()).replace(" strides [16384, 1, 1024, 64]", "")).nodes[0]
    assert [product_of_pixels(n) for n in (strided, wide, by_rows)] == [None, None, None]


def test_one_pixel_lies_in_both_ways() -> None:
    """What a squeeze-and-excitation block does to its means."""
    graph = parse("""
    graph f(%x: f32[2, 64, 1, 1], %w: f32[32, 64, 1, 1]) {
      %a = aten.convolution.default(%x, %w, none, [1, 1], [0, 0], [1, 1], false, [0, 0], 1)
        : f32[2, 32, 1, 1]
      return %a
    }
    """)
    found = Libraries().run(graph, env_of(Takes(convolution=3.0, linear=1.0, mm=2.0)))
    assert "mkldnn._linear_pointwise.default" in [n.op.name for n in found.nodes]
    given = random_inputs(graph)
    torch.testing.assert_close(interpret(found, given)[0], interpret(graph, given)[0])


def test_rows_stay_where_they_are_quicker() -> None:
    graph = parse("""
    graph f(%x: f32[2, 8, 6, 6], %w: f32[8, 8, 3, 3]) {
      %a = aten.convolution.default(%x, %w, none, [1, 1], [1, 1], [1, 1], false, [0, 0], 1)
        : f32[2, 8, 6, 6]
      return %a
    }
    """)
    slow = env_of(Takes(**{"strides [288, 1": 2.0, "convolution": 1.0}))
    assert ChannelsLast().run(graph, slow).nodes == graph.nodes
    assert any("channels last takes 2 s" in str(d) for d in slow.log)
    # What moving the images takes is taken off.
    close = env_of(Takes(**{"strides [288, 1": 1.0 + 1e-9, "convolution": 1.0}))
    assert len(ChannelsLast().run(graph, close).nodes) == 3


class Block(nn.Module):
    """Convolutions, wide and deep, a residual, dropout, pooling, squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm, self.deep = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.one, self.squeeze = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.group, self.head = nn.GroupNorm(4, 16), nn.Linear(16 * 4 * 4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.norm(self.first(x)))
        z = F.dropout(self.deep(y), 0.3, self.training) + y
        z = z * self.squeeze(z.mean((2, 3), keepdim=True)).sigmoid()
        z = F.max_pool2d(self.group(F.silu(self.one(z))), 2)
        z = F.interpolate(z, scale_factor=2.0, mode="nearest")
        return self.head(F.adaptive_avg_pool2d(z, 4).flatten(1)), torch.cat([z, y[..., :8, :8]], 1)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("quick", ["mkldnn", "aten", None])
def test_a_model(dynamic: bool, quick: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, strides and eager's masks, forward and backward, whoever wins the races."""
    if quick is not None:
        monkeypatch.setattr(
            BenchTools,
            "race",
            lambda self, calls: [0.5 if f"{quick}." in str(c) else 1.0 for c in calls],
        )
    torch.manual_seed(0)
    model = Block()
    compiled = torch.compile(model, backend="rewright", dynamic=dynamic)
    for batch in (2, 3):
        x = torch.randn(batch, 3, 8, 8)
        found = [_step(f, model, x) for f in (model, compiled)]
        for ours, its in zip(found[1], found[0], strict=True):
            assert ours.stride() == its.stride()
            # Of a bias before a norm the gradient is nothing but rounding.
            assert float((ours - its).norm()) < 1e-5 * float(its.norm()) + 1e-3


def _step(function: Callable[..., tuple[Tensor, Tensor]], model: Block, x: Tensor) -> list[Tensor]:
    """Outputs and gradients of one step, from one state of the generator and of the norms."""
    torch.manual_seed(1)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = x.clone().requires_grad_()
    model.zero_grad()
    logits, features = function(x)
    (logits.square().sum() + features.sum()).backward()
    grads = [x.grad, *(p.grad for p in model.parameters())]
    model.load_state_dict(state)
    return [logits.detach(), features.detach(), *(g.clone() for g in grads if g is not None)]
