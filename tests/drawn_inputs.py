"""What the inputs of a drawn graph hold. It follows from their names alone, so a graph that was
printed and read back runs on the same numbers.

A name (`x0`, `i2_off`) says what the input holds and which numbers in particular; one that ends in
`_off` lies one element into its storage, where no vector is aligned.

    x   floats: quarters in [-2, 2], so few that every dtype holds them, their sums and some of
        their products exactly; comparisons of such values come out the same in every precision
    s   as x, with an infinity, a NaN and a -0.0 among them
    i   integers in [-4, 4], from 0 on where they are unsigned
    k   integers 0 and 1: places in any dimension of at least two elements
    b   true and false
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from rewright.ir import Graph, Value
from rewright.ir.dims import evaluate, hint

OFFSET: Final = "_off"
# Sizes at which a graph with symbols runs: those it is compiled for, others, and the extremes.
HINTS: Final[Mapping[str, int]] = {"B0": 5, "B1": 11}
OTHERS: Final[Sequence[Mapping[str, int]]] = ({"B0": 3, "B1": 17}, {"B0": 64, "B1": 2})

# Which of two zeros is the larger is for nobody to say: ATen's answer depends on where they stand.
EXTREMES: Final = frozenset(("amax", "amin", "max", "min", "maximum", "minimum", "fmax", "fmin"))


def inputs_for(graph: Graph, sizes: Mapping[str, int] = HINTS) -> list[torch.Tensor]:
    """Fresh inputs of `graph`, with the strides of its signature."""
    names = {node.op.name.split(".")[1] for node in graph.nodes}
    signed_zeros = EXTREMES.isdisjoint(names)
    return [content(i.value, sizes, signed_zeros) for i in graph.inputs]


def content(value: Value, sizes: Mapping[str, int], signed_zeros: bool = True) -> torch.Tensor:
    """What the input called `value.name` holds."""
    type, number = value.tensor, re.sub(r"\D", "", value.name)
    generator = torch.Generator().manual_seed(int(number or 0))
    before = 1 if value.name.endswith(OFFSET) else 0
    elements = evaluate(type.storage_elements, sizes)
    storage = torch.zeros(before + elements, dtype=type.dtype)
    made = _elements(value, elements, generator)
    storage[before:] = made if signed_zeros else torch.where(made == 0, 0, made)
    shape, strides = ([evaluate(s, sizes) for s in of] for of in (type.shape, type.layout))
    return storage.as_strided(shape, strides, before)


def kind_of(dtype: torch.dtype) -> str:
    """The name of a harmless input of a dtype: its integers may be used as indices."""
    return "b" if dtype == torch.bool else "x" if dtype.is_floating_point else "k"


def _elements(value: Value, count: int, generator: torch.Generator) -> torch.Tensor:
    dtype = value.tensor.dtype

    def drawn(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high + 1, (count,), generator=generator)

    match value.name[0]:
        case "s":
            made = drawn(-8, 8).double() / 4
            for number in (math.inf, -math.inf, math.nan, -0.0):
                made[drawn(0, 15) == 0] = number
            return made.to(dtype)
        case "i":
            return drawn(0 if not dtype.is_signed else -4, 4).to(dtype)
        case "k" | "b":
            return drawn(0, 1).to(dtype)
    return (drawn(-8, 8).double() / 4).to(dtype)


def sizes_of_runs(graph: Graph) -> list[Mapping[str, int]]:
    """The sizes at which to run `graph`: the hints and, when it has symbols, others."""
    assert all(hint(s.hint or 0) == HINTS[s.name] for s in graph.symbols)
    return [HINTS, *OTHERS] if graph.symbols else [HINTS]
