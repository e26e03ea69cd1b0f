"""Training steps through our backend, beside eager: everything that a step leaves behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from through_backend import Function, compiled, copied


def trains_as_eager(
    function: Function,
    *inputs: Any,
    module: nn.Module | None = None,
    dynamic: bool | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Outputs, gradients, the inputs afterwards and the random state are as in eager.

    `module` is what the function reads parameters from.
    """
    ours = compiled(function, dynamic=dynamic)
    same_step(ours, function, *inputs, module=module, rtol=rtol, atol=atol)


def same_step(
    ours: Function,
    eager: Function,
    *inputs: Any,
    module: nn.Module | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """As `trains_as_eager`, for a function that is compiled already."""
    expected, found = step(eager, inputs, module), step(ours, inputs, module)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        same(one, other, rtol, atol)


def same(ours: Any, eager: Any, rtol: float | None = None, atol: float | None = None) -> None:
    """Of one type, with the same strides, and close."""
    assert type(ours) is type(eager)
    if not isinstance(eager, Tensor):
        assert ours == eager
        return
    torch.testing.assert_close(ours, eager, rtol=rtol, atol=atol, equal_nan=True)
    assert ours.requires_grad == eager.requires_grad
    assert ours.stride() == eager.stride()


def step(function: Function, inputs: tuple[Any, ...], module: nn.Module | None) -> list[Any]:
    """One step on copies: outputs, inputs, gradients of inputs and parameters, random state."""
    torch.manual_seed(0)
    mine = copied(inputs)
    parameters = [] if module is None else list(module.parameters())
    for parameter in parameters:
        parameter.grad = None
    outputs = pytree.tree_leaves(function(*mine))
    differentiable = [y for y in outputs if isinstance(y, Tensor) and y.requires_grad]
    torch.autograd.backward(differentiable, [uneven(y) for y in differentiable])
    given = [x for x in mine if isinstance(x, Tensor)]
    gradients = [x.grad for x in (*given, *parameters)]
    return [*outputs, *given, *gradients, torch.get_rng_state()]


def uneven(like: Tensor) -> Tensor:
    """A gradient for `like` that is another number at every place."""
    pattern = torch.cos(torch.arange(like.numel(), dtype=torch.float64)).reshape(like.shape)
    return (pattern * (1 + 0.5j) if like.is_complex() else pattern).to(like.dtype)


def leaf(x: Tensor) -> Tensor:
    """`x` as an input whose gradient is wanted."""
    return x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
