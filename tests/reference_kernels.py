"""Programs that call the library, each after a line that names it: oneDNN, asked to, prints between
these lines which of its implementations run. Run by test_reference_kernels.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rewright
from error_budgets import mlp, optimized, samples


class Narrow(nn.Module):
    """A linear layer on int8 as users write it by hand, with a scale for each row."""

    weight: Tensor
    scales: Tensor

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("weight", torch.randint(-127, 128, (width, width), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        unit = x.abs().amax(1, keepdim=True) / 127
        steps = torch.clamp(torch.round(x / unit), -127, 127).to(torch.int8)
        made: Tensor = torch._int_mm(steps, self.weight.t()).float() * unit * self.scales
        return made


def planted() -> None:
    """What oneDNN has no fast kernel for on CPUs with VNNI but no AMX: steps of x with a sign."""
    steps, weight = (torch.randint(-127, 128, (64, 64), dtype=torch.int8) for _ in range(2))
    onednn = torch.ops.onednn
    packed = onednn.qlinear_prepack(weight, [64, 64])
    zeros = torch.zeros(64, dtype=torch.int32)
    plain: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")
    onednn.qlinear_pointwise(steps, 1.0, 0, packed, torch.ones(64), zeros, *plain)


def main() -> None:
    print("planted", flush=True)
    planted()
    x, image = torch.randn(64, 256), torch.randn(2, 16, 12, 12)
    images = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU()).eval()
    for name, model, example in (("int8 by hand", Narrow(), x), ("images", images, image)):
        for freeze in ("no", "yes"):
            print(f"compile {name}, freeze={freeze}", flush=True)
            program = rewright.optimize(model, (example,), freeze=freeze)
            print(f"run {name}, freeze={freeze}", flush=True)
            program(example)
    for formats in ("bf16", "fp16", "int8"):
        passes = f"canonicalize,quantize{{formats={formats},objective=bytes}},dce,libraries,freeze"
        print(f"compile {formats}", flush=True)
        program = optimized(mlp(), 10.0, passes=f"{passes},fuse,memory")
        print(f"run {formats}", flush=True)
        program(*samples(1)[0])


if __name__ == "__main__":
    main()
