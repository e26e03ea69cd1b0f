"""A nest evaluated the dumb way: one tensor a scalar, over the whole space at once.

The oracle of emitter tests: it knows nothing of schedules, and computes floats in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from primitives import FUNCTIONS
from rewright.ir import Dim, Size
from rewright.ir.dims import evaluate as size_of
from rewright.ir.loops import (
    Affine,
    Apply,
    Convert,
    Inside,
    Load,
    Nest,
    Number,
    Position,
    Reduce,
    Ref,
    Round,
    Store,
    Term,
    Within,
)

_REDUCTIONS: Final = {
    "sum": lambda x: x.sum(-1, keepdim=True, dtype=x.dtype),
    "prod": lambda x: x.prod(-1, keepdim=True, dtype=x.dtype),
    "max": lambda x: x.amax(-1, keepdim=True),
    "min": lambda x: x.amin(-1, keepdim=True),
    "any": lambda x: x.any(-1, keepdim=True),
    "all": lambda x: x.all(-1, keepdim=True),
}


def run_nest(
    nest: Nest, buffers: Mapping[str, Tensor], sizes: Mapping[str, int] | None = None
) -> None:
    """Run `nest` on `buffers`: flat storage of each input, and of each output, which it writes."""
    _Run(nest, buffers, sizes or {}).run()


class _Run:
    """Scalars are tensors [rows, columns], either of them 1 where the scalar does not vary."""

    def __init__(self, nest: Nest, buffers: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        self.nest, self.buffers, self.sizes = nest, buffers, sizes
        self.scalars: dict[str, Tensor] = {}
        rows, cols = (self._positions([a.size for a in axes]) for axes in (nest.rows, nest.cols))
        self.axes = {a.name: p[:, None] for a, p in zip(nest.rows, rows, strict=True)}
        self.axes |= {a.name: p[None, :] for a, p in zip(nest.cols, cols, strict=True)}
        self.space = tuple(
            math.prod(self._size(a.size) for a in axes) for axes in (nest.rows, nest.cols)
        )

    def run(self) -> None:
        for statement in self.nest.statements():
            if isinstance(statement, Store):
                self._store(statement)
            elif isinstance(statement, Reduce):
                term = self._term(statement.term).expand(-1, self.space[1])
                self.scalars[statement.name] = _REDUCTIONS[statement.how](term)
            else:
                self.scalars[statement.name] = self._term(statement.term)

    def _size(self, size: Size) -> int:
        return size_of(size, self.sizes)

    def _positions(self, shape: Sequence[Size]) -> list[Tensor]:
        """For each axis its value at every element of the axes' space, row-major."""
        ranges = [torch.arange(self._size(size)) for size in shape]
        if not ranges:
            return []
        return [grid.flatten() for grid in torch.meshgrid(*ranges, indexing="ij")]

    def _affine(self, at: Affine) -> Tensor:
        total = torch.full((1, 1), self._size(at.offset))
        for name, coefficient in at.terms:
            total = total + self.axes[name] * self._size(coefficient)
        return total

    def _inside(self, guards: Sequence[Within]) -> Tensor:
        inside = torch.ones((1, 1), dtype=torch.bool)
        for guard in guards:
            at = self._affine(guard.at)
            inside = inside & (at >= self._size(guard.low)) & (at < self._size(guard.high))
        return inside

    def _store(self, store: Store) -> None:
        buffer, at = self.buffers[store.buffer], self._affine(store.at)
        value = self.scalars[store.value.name].to(buffer.dtype)
        at, value = torch.broadcast_tensors(at, value)
        buffer[at.flatten()] = value.flatten()

    def _term(self, term: Term) -> Tensor:
        match term:
            case Ref(name=name):
                return self.scalars[name]
            case Number(value=value, dtype=dtype):
                number = self._size(value) if isinstance(value, Dim) else value
                return torch.full((1, 1), number, dtype=wide(dtype))
            case Load():
                return self._load(term)
            case Position(at=at, dtype=dtype):
                return self._affine(at).to(wide(dtype))
            case Inside(guards=guards):
                return self._inside(guards)
            case Apply(name=name, args=args):
                return FUNCTIONS[name](*(self._term(a) for a in args))
            case Convert(arg=arg, dtype=dtype):
                return self._term(arg).to(wide(dtype))
            case Round(arg=arg, storage=storage, dtype=dtype):
                return self._term(arg).to(storage).to(wide(dtype))
        raise AssertionError(f"unknown term {term}")

    def _load(self, load: Load) -> Tensor:
        buffer, inside = self.buffers[load.buffer], self._inside(load.guards)
        at, inside = torch.broadcast_tensors(self._affine(load.at), inside)
        if buffer.numel() == 0:  # whatever is read here goes nowhere
            return torch.zeros(at.shape, dtype=wide(load.dtype))
        element = buffer[torch.where(inside, at, 0)].to(wide(load.dtype))
        return torch.where(inside, element, torch.zeros_like(element))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which a compute type is evaluated."""
    return torch.float64 if dtype.is_floating_point else dtype
