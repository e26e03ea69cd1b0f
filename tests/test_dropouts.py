"""Dropouts of training steps in parts: eager's masks, the same bits, and less that is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rewright

pytestmark = pytest.mark.cpu

WHOLE = "rewright.dropouts.opened"


class Net(nn.Module):
    """Layers whose dropped results all would be kept."""

    def __init__(self, p: float, *, checkpointed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))
        self.p, self.checkpointed = p, checkpointed

    def layer(self, x: Tensor, layer: nn.Module) -> Tensor:
        return x.sin() + F.dropout(torch.tanh(layer(x)), self.p)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.checkpointed:
                x = checkpoint(self.layer, x, layer, use_reentrant=False)
            else:
                x = self.layer(x, layer)
        return x.square().sum()


def step(net: nn.Module, x: Tensor, **options: Any) -> list[Tensor]:
    """The loss, the gradients, and what random numbers are next."""
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="rewright", options=options)
    torch.manual_seed(7)
    loss = compiled(x)
    loss.backward()
    found = [loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]
    net.zero_grad()
    return [*found, torch.get_rng_state()]


@pytest.mark.parametrize(
    ("dtype", "p"),
    [
        (torch.float32, 0.1),
        (torch.float32, 1.0),
        (torch.float64, 0.3),
        (torch.bfloat16, 0.1),
        (torch.float16, 0.3),
    ],
)
def test_parts_give_the_same_bits(
    dtype: torch.dtype, p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, x = Net(p).to(dtype), torch.randn(33, 64).to(dtype)
    parts = step(net, x)
    within = step(net, x, memory_budget="min")
    monkeypatch.setattr(WHOLE, lambda joint: joint)
    whole = step(net, x)
    assert len(parts) == len(whole) == 18
    assert all(map(torch.equal, parts, whole)) and all(map(torch.equal, within, whole))


def test_masks_are_eagers() -> None:
    net, x = Net(0.3).double(), torch.randn(33, 64).double()
    parts = step(net, x)
    torch.manual_seed(7)
    torch.testing.assert_close(parts[0], net(x).detach())
    assert torch.equal(parts[-1], torch.get_rng_state())


def peak(net: nn.Module, x: Tensor) -> int:
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="rewright", options={"memory_budget": "min"})

    def call() -> None:
        net.zero_grad()
        compiled(x).backward()

    call()
    return rewright.measured_peak(call)


def test_results_need_not_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Net(0.3), torch.randn(2048, 64)
    parts = peak(net, x)
    monkeypatch.setattr(WHOLE, lambda joint: joint)
    assert parts < 0.6 * peak(net, x)


def test_checkpoints_of_the_user_stay() -> None:
    net, x = Net(0.3, checkpointed=True), torch.randn(33, 64)
    parts = step(net, x)
    torch.manual_seed(7)
    torch.testing.assert_close(parts[0], net(x).detach())
