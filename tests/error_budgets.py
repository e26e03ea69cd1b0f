"""Small models optimized within error budgets, and how far off they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rewright

WIDTH = 96


def mlp(seed: int = 0, depth: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(depth)]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 80)).eval()


def samples(count: int, rows: int = 24, seed: int = 1) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(rows, WIDTH, generator=generator),) for _ in range(count)]


def optimized(model: nn.Module, budget: object, **given: Any) -> rewright.Compiled:
    """For the least bytes, since which kernels are quicker is up to the machine."""
    calibration = given.pop("calibration", samples(6))
    example = given.pop("example", samples(1))[0]
    options = {"objective": "bytes", **given}
    return rewright.optimize(
        model, example, error_budget=budget, calibration=calibration, **options
    )


def quantized(compiled: rewright.Compiled) -> list[str]:
    nodes = compiled.graph.nodes
    return [str(n.kwarg("format")) for n in nodes if n.op.name == "rw.quantized_linear"]


def relative(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact.double()).norm() / exact.double().norm())


def held_out(model: nn.Module, compiled: rewright.Compiled, count: int = 4) -> float:
    """The largest error on samples that nobody has seen."""
    with torch.no_grad():
        return max(relative(compiled(*x), model(*x)) for x in samples(count, seed=99))


def outliers(model: nn.Module) -> nn.Module:
    """One channel of activations is a hundred times the others."""
    with torch.no_grad():
        model[0][0].weight[3] *= 100  # type: ignore[index]
    return model
