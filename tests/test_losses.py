"""Losses of training steps in parts: the same bits, and less that is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.cpu

ROWS, CLASSES = 48, 600

Loss = Callable[[Tensor, Tensor], Tensor]


def mean(x: Tensor, i: Tensor) -> Tensor:
    return F.cross_entropy(x, i)


def of_each(x: Tensor, i: Tensor) -> Tensor:
    return F.cross_entropy(x, i, reduction="none", ignore_index=3).sin()


def of_a_product(x: Tensor, i: Tensor) -> Tensor:
    return F.nll_loss((x @ x.T @ x).log_softmax(-1), i, reduction="sum")


def weighed(x: Tensor, i: Tensor) -> Tensor:
    return F.cross_entropy(x, i, weight=torch.arange(CLASSES).to(x.dtype))


def smoothed(x: Tensor, i: Tensor) -> Tensor:
    return F.cross_entropy(x, i, label_smoothing=0.1)


LOSSES = [mean, of_each, of_a_product, weighed, smoothed]


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(ROWS, CLASSES).to(dtype).requires_grad_()
    i = torch.randint(CLASSES, (ROWS,))
    i[:3] = torch.tensor([3, 0, CLASSES - 1])
    return x, i


def step(loss: Loss, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The loss and the gradient."""
    torch._dynamo.reset()
    x, i = inputs(dtype)
    found = torch.compile(loss, backend="rewright")(x, i)
    found.sum().backward()
    assert x.grad is not None
    return found.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_in_parts_has_the_same_bits(
    loss: Loss, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, gradient = step(loss, dtype)
    monkeypatch.setattr("rewright.losses.opened", lambda joint: joint)
    other, expected = step(loss, dtype)
    torch.testing.assert_close(value, other, rtol=0, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [mean, of_each])
def test_beside_the_scores_nothing_of_their_size_is_kept(loss: Loss) -> None:
    large: set[bool] = set()
    torch._dynamo.reset()
    x, i = inputs(torch.float32)

    def keep(value: Tensor) -> Tensor:
        if value.nbytes >= x.nbytes:
            large.add(value.data_ptr() == x.data_ptr())
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        torch.compile(loss, backend="rewright")(x, i)
    assert large == {True}


def test_a_class_that_there_is_not_is_an_error() -> None:
    torch._dynamo.reset()
    x, i = inputs(torch.float32)
    i[4] = CLASSES
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        torch.compile(mean, backend="rewright")(x, i)
