"""Terms of the loop IR as Triton expressions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import torch

from rewright.codegen.triton.indices import Indices, Text
from rewright.codegen.triton.primitives import TYPES, takes_literals, template
from rewright.ir import Dim
from rewright.ir.loops import (
    Apply,
    Convert,
    Inside,
    Load,
    Number,
    Position,
    Ref,
    Round,
    Term,
    computes_in,
)

LARGEST_F32: Final = torch.finfo(torch.float32).max


@dataclass
class Terms:
    """`pointers` and `storage` give the parameter and the dtype of each input, `dims` the
    dimensions of every name defined so far."""

    indices: Indices
    pointers: Mapping[str, str]
    storage: Mapping[str, torch.dtype]
    dims: dict[str, frozenset[str]] = field(default_factory=dict)

    def text(self, term: Term) -> Text:
        match term:
            case Ref(name=name):
                return Text(name, self.dims[name])
            case Number(value=value, dtype=dtype):
                return self._number(value, dtype)
            case Load():
                return self._load(term)
            case Position(at=at, dtype=dtype):
                index = self.indices.index(at)
                return _to(index, dtype) if index.dims else _scalar(index.text, dtype)
            case Inside(guards=guards):
                guard = self.indices.guard(guards)
                return guard if guard.text else _scalar("True", torch.bool)
            case Apply():
                return self._apply(term)
            case Convert(arg=arg, dtype=dtype):
                return self.as_type(arg, dtype)
            case Round(arg=arg, storage=storage, dtype=dtype):
                return _to(_to(self.text(arg), storage), dtype)

    def as_type(self, term: Term, dtype: torch.dtype) -> Text:
        """The term in another compute type."""
        text = self.text(term)
        if term.dtype == dtype:
            return text
        return Text(f"{text.closed} != 0", text.dims) if dtype is torch.bool else _to(text, dtype)

    def _load(self, load: Load) -> Text:
        storage, guard = self.storage[load.buffer], self.indices.guard(load.guards)
        index = self.indices.spread(self.indices.index(load.at), guard.dims)
        place = self.pointers[load.buffer]
        if index.text != "0":
            place = f"{place} + {index.closed}"
        otherwise = ", 0" if guard.text else ""
        loaded = f"tl.load({place}{self.indices.mask(index.dims, guard)}{otherwise})"
        if load.dtype != storage:
            loaded += f".to({TYPES[load.dtype]})"
        return Text(loaded, index.dims)

    def _number(self, value: object, dtype: torch.dtype) -> Text:
        if isinstance(value, Dim):
            return Text(f"tl.cast({self.indices.size(value)}, {TYPES[dtype]})")
        return _scalar(literal(value, dtype), dtype)

    def _apply(self, term: Apply) -> Text:
        masks = 1 if term.name == "select" else 0
        dtype = computes_in(term.args[masks:])
        form = template(term.name, dtype)
        plain = takes_literals(form) and not all(isinstance(a, Number) for a in term.args[masks:])
        texts = [self.as_type(a, torch.bool) for a in term.args[:masks]]
        texts += [self._operand(a, dtype, plain) for a in term.args[masks:]]
        texts = [t if masks else Text(t.closed, t.dims) for t in texts]
        dims = frozenset[str]().union(*(t.dims for t in texts))
        return Text(form.format(*(t.text for t in texts)), dims)

    def _operand(self, term: Term, dtype: torch.dtype, plain: bool) -> Text:
        if not isinstance(term, Number):
            return self.as_type(term, dtype)
        if plain and not isinstance(term.value, Dim):
            return Text(literal(term.value, dtype))
        return self._number(term.value, dtype)


def literal(value: object, dtype: torch.dtype) -> str:
    """What Triton reads as `value` where it expects the type `dtype`."""
    assert isinstance(value, (bool, int, float))
    if dtype is torch.bool:
        return str(bool(value))
    if not dtype.is_floating_point:
        return str(int(value))
    number = float(value)
    if dtype is torch.float32 and math.isfinite(number) and abs(number) > LARGEST_F32:
        number = torch.tensor(number, dtype=torch.float64).to(torch.float32).item()
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def _scalar(text: str, dtype: torch.dtype) -> Text:
    return Text(f"tl.full((), {text}, {TYPES[dtype]})")


def _to(text: Text, dtype: torch.dtype) -> Text:
    return Text(f"{text.closed}.to({TYPES[dtype]})", text.dims)
