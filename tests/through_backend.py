"""Functions through our backend, beside eager: all that a caller can see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import rewright

Function = Callable[..., Any]

X = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7


def compiled(function: Function, **options: Any) -> Function:
    """`function` through our backend, as one graph."""
    given = options.pop("options", None)
    made: Function = torch.compile(
        function, backend="rewright", fullgraph=True, options=given, **options
    )
    return made


def same_as_eager(function: Function, *inputs: Any, dynamic: bool | None = None) -> None:
    """Outputs, the inputs afterwards and what shares memory with what are as in eager."""
    expected = observed(function, inputs)
    found = observed(compiled(function, dynamic=dynamic), inputs)
    assert found.aliases == expected.aliases
    for ours, eager in zip(found.leaves, expected.leaves, strict=True):
        assert type(ours) is type(eager)
        if isinstance(eager, Tensor):
            torch.testing.assert_close(ours, eager, equal_nan=True)
            assert ours.stride() == eager.stride()
        else:
            assert ours == eager


class Observed:
    """A call's outputs and inputs, flat, and for each tensor the first that shares its memory."""

    def __init__(self, leaves: list[Any]) -> None:
        self.leaves = leaves
        addresses = [
            x.untyped_storage().data_ptr() if isinstance(x, Tensor) and x.numel() else None
            for x in leaves
        ]
        self.aliases = [a if a is None else addresses.index(a) for a in addresses]


def observed(function: Function, inputs: tuple[Any, ...]) -> Observed:
    """Call on copies that share memory as the originals do."""
    torch.manual_seed(0)
    mine = copied(inputs)
    return Observed(pytree.tree_leaves((function(*mine), mine)))


def copied(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies over copied storages: strides, offsets and sharing are kept."""
    storages: dict[int, torch.UntypedStorage] = {}

    def copy_of(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        storage = x.untyped_storage()
        mine = storages.setdefault(storage._cdata, storage.clone())
        made = torch.empty(0, dtype=x.dtype)
        made.set_(mine, x.storage_offset(), x.shape, x.stride())
        return made.requires_grad_(x.requires_grad)

    return tuple(pytree.tree_map(copy_of, inputs))


def the_program() -> Any:
    """The one program that was compiled."""
    (program,) = rewright.programs()
    return program


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return y


def gradients(module: nn.Module, call: Function, x: Tensor) -> list[Tensor]:
    parameters = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(call(x).square().mean(), parameters))
