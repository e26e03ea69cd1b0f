"""Outliers of activations, moved into weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import rewright
from error_budgets import WIDTH, held_out, mlp, optimized, outliers, quantized, samples
from rewright.ir import Graph
from rewright.ir.interpret import interpret
from rewright.passes.quantize.balance import MOST, balance


def with_formats(model: nn.Module, budget: float, formats: str, **given: Any) -> rewright.Compiled:
    passes = f"canonicalize,quantize{{formats={formats},objective=bytes}},dce,fuse,memory"
    return optimized(model, budget, passes=passes, **given)


def choices(compiled: rewright.Compiled) -> dict[str, str]:
    """What each layer became, by the certificate."""
    told = [d for d in compiled.program.plan.log if d.pass_ == "quantize" and d.subject != "main"]
    return {d.subject: d.sentence.split(",")[0] for d in told}


def after_quantize(compiled: rewright.Compiled) -> Graph:
    source = compiled.program.plan.stages.stages[1].snapshot
    assert source is not None
    return source


def test_an_outlier_is_repaired() -> None:
    """One channel of 96 is a hundred times the others: with a unit for each row the layer that
    reads it is off by more than the budget, and stays float unless the outlier is moved."""
    model = outliers(mlp())
    plain = with_formats(model, 0.01, "int8")
    assert choices(plain)["addmm_1"] == "float"
    moved = with_formats(model, 0.01, "int8+int8-balanced")
    assert choices(moved)["addmm_1"] == "int8-balanced"
    assert len(quantized(moved)) > len(quantized(plain))
    assert held_out(model, moved) <= 0.01


def test_kernels_compute_what_the_graph_says() -> None:
    compiled = with_formats(outliers(mlp()), 10.0, "int8-balanced")
    assert choices(compiled)["addmm_1"] == "int8-balanced"
    (x,) = samples(1, seed=5)[0]
    (expected,) = interpret(after_quantize(compiled), compiled.bindings.flatten((x,), {}))
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)


class Gated(nn.Module):
    """Two layers read one tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.up = nn.Linear(WIDTH, 128), nn.Linear(WIDTH, 128)
        self.scale = torch.ones(WIDTH)
        self.scale[3] = 100

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x) * self.scale
        made: Tensor = torch.sigmoid(self.gate(x)) * self.up(x)
        return made


def test_layers_that_read_one_tensor_share_its_division() -> None:
    compiled = with_formats(Gated().eval(), 10.0, "int8-balanced")
    assert quantized(compiled) == ["int8", "int8"]
    first, second = (
        n.operands[0] for n in after_quantize(compiled).nodes if n.op.name == "rw.quantized_linear"
    )
    assert first == second


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 128), nn.Linear(128, WIDTH)
        with torch.no_grad():
            self.norm.weight[3] = self.up.weight[5] = 100

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return made


def test_kernels_divide_on_the_way() -> None:
    """That of the norm, and that of the activation: there are no more of them than without."""
    kernels = {}
    for formats in ("int8", "int8-balanced"):
        compiled = with_formats(Block().eval(), 10.0, formats)
        assert quantized(compiled) == ["int8", "int8"]
        kernels[formats] = [n.op.name for n in compiled.graph.nodes].count("rw.fused")
    assert kernels["int8"] == kernels["int8-balanced"]


def test_weights_that_change_are_balanced_again() -> None:
    model = outliers(mlp())
    compiled = with_formats(model, 0.01, "int8+int8-balanced")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert held_out(model, compiled) <= 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_product_changes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(n, 64, generator=generator).to(dtype) for n in (8, 24))
    x[:, 5] *= 1000
    factors = balance(x, [w], dtype)
    assert factors is not None
    assert torch.equal(factors.log2(), factors.log2().round())
    assert int(factors.argmax()) == 5
    factors = factors.to(dtype)
    assert torch.equal(linear(x / factors, w * factors), linear(x, w))


def _nothing(x: Tensor, w: Tensor) -> None:
    pass


def _zeros(x: Tensor, w: Tensor) -> None:
    x[:, 2], w[:, 3] = 0, 0


def _nan(x: Tensor, w: Tensor) -> None:
    x[:, 2], w[:, 3] = torch.nan, torch.inf


def _all_zeros(x: Tensor, w: Tensor) -> None:
    x.zero_()


@pytest.mark.parametrize("change", [_nothing, _zeros, _nan, _all_zeros])
def test_channels_that_do_not_stick_out_stay(change: Callable[[Tensor, Tensor], None]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(64, 32, generator=generator) for _ in range(2))
    change(x, w)
    assert balance(x, [w], torch.float32) is None


def test_factors_are_bounded() -> None:
    x, w = torch.ones(4, 32), torch.ones(4, 32)
    x[:, 1], x[:, 2], w[:, 3] = 1e30, 0, 0
    factors = balance(x, [w], torch.float32)
    assert factors is not None
    assert factors[:4].tolist() == [1, 2**MOST, 1, 1]


def test_what_was_quiet_stays_within_the_range_of_halves() -> None:
    x, w = torch.ones(4, 32), torch.ones(4, 32)
    x[:, 1], x[:, 2] = 1000, 1e-6
    wide, narrow = (balance(x, [w], dtype) for dtype in (torch.bfloat16, torch.float16))
    assert wide is not None and narrow is not None
    assert float(wide.min()) < 1 <= float(narrow.min()) and wide[1] == narrow[1] > 1
