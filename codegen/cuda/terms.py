"""Terms of the loop IR as CUDA C++ expressions: a thread computes single numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rewright.codegen.cpp.index import sum_text
from rewright.codegen.cpp.terms import OF_MASKS, OF_NUMBERS
from rewright.codegen.cpp.text import STORAGE, number_text, size_text
from rewright.ir.loops import (
    Affine,
    Apply,
    Convert,
    Inside,
    Load,
    Number,
    Position,
    Ref,
    Round,
    Term,
    Within,
    computes_in,
)


@dataclass(frozen=True)
class Printer:
    """`names` gives identifiers to buffers, `storage` their element types, `loaded` the text of
    reads that are made ahead, by buffer and place."""

    names: Mapping[str, str]
    storage: Mapping[str, torch.dtype]
    loaded: Mapping[tuple[str, Affine], str]

    def term(self, term: Term) -> str:
        match term:
            case Ref(name=name):
                return name
            case Number(value=value, dtype=dtype):
                return f"{STORAGE[dtype]}({number_text(value, dtype)})"
            case Load():
                return self._load(term)
            case Position(at=at, dtype=dtype):
                return f"{STORAGE[dtype]}({index(at)})"
            case Inside(guards=guards):
                return self._inside(guards)
            case Apply():
                return self._apply(term)
            case Convert(arg=arg, dtype=dtype):
                return self.as_type(arg, dtype)
            case Round(arg=arg, storage=storage):
                return f"round_to<{STORAGE[storage]}>({self.term(arg)})"
        raise AssertionError(f"unknown term {term}")

    def as_type(self, term: Term, dtype: torch.dtype) -> str:
        """The term in another compute type."""
        if term.dtype == dtype:
            return self.term(term)
        return f"cast<{STORAGE[dtype]}>({self.term(term)})"

    def _apply(self, term: Apply) -> str:
        masks = 1 if term.name == "select" else 0
        dtype = computes_in(term.args[masks:])
        renamed = OF_MASKS if dtype is torch.bool else OF_NUMBERS
        args = [self.as_type(a, torch.bool) for a in term.args[:masks]]
        args += [self.as_type(a, dtype) for a in term.args[masks:]]
        return f"{renamed.get(term.name, term.name)}({', '.join(args)})"

    def _load(self, load: Load) -> str:
        text = (
            self.loaded.get((load.buffer, load.at))
            or f"{self.names[load.buffer]}[{index(load.at)}]"
        )
        if load.dtype != self.storage[load.buffer]:
            text = f"cast<{STORAGE[load.dtype]}>({text})"
        if not load.guards:
            return text
        return f"({self._inside(load.guards)} ? {text} : {STORAGE[load.dtype]}(0))"

    def _inside(self, guards: Sequence[Within]) -> str:
        parts = [f"within({index(g.at)}, {size_text(g.low)}, {size_text(g.high)})" for g in guards]
        return " && ".join(parts) or "true"


def index(at: Affine) -> str:
    return sum_text([(coefficient, name) for name, coefficient in at.terms], at.offset)
