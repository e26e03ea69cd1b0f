"""Sizes of symbols: what their bounds settle."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import torch

from rewright.ir.dims import Dim, Size, Symbol, evaluate, make
from rewright.ir.types import TensorType


def size(low: int, name: str = "B0") -> Dim:
    return Dim.of(Symbol(name, 4, low, 64))


def test_the_smaller_of_two_is_known_by_bounds() -> None:
    known, unknown = size(1), size(0)
    assert make("min", 64, 64 * known) == 64
    assert make("max", 64, 64 * known) == 64 * known
    assert make("min", known, 65) == known
    assert str(make("min", 64, 64 * unknown)) == "min(64, 64*B0)"
    assert make("min", 2, known) not in (2, known)


@pytest.mark.parametrize("low", [0, 1])
def test_without_elements_all_strides_are_row_major(low: int) -> None:
    """Export writes so of [batch, length, 64], flattened."""
    batch, length = size(low, "B0"), size(low, "B1")
    stride: Size = make("min", 64, 64 * length)
    assert TensorType(torch.float32, (batch * length, 64), (stride, 1)).is_contiguous
    # Where the symbol is no size of the tensor's, it may have elements all the same.
    assert TensorType(torch.float32, (batch, 64), (stride, 1)).is_contiguous == (low == 1)
    assert not TensorType(torch.float32, (batch * length, 64), (2 * stride, 1)).is_contiguous


Term = int | str | tuple[str, "Term", "Term"]
SYMBOLS = {"B0": (0, 6), "B1": (1, None), "B2": (2, 7)}
FOLDED: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
}


def drawn(random: Random, depth: int) -> Term:
    if depth == 0 or random.random() < 0.2:
        return random.randint(-4, 9) if random.random() < 0.25 else random.choice(list(SYMBOLS))
    kind = random.choice(list(FOLDED))
    divisor = random.randint(1, 5) if kind in ("floordiv", "mod") else None
    return kind, drawn(random, depth - 1), divisor or drawn(random, depth - 1)


def built(term: Term) -> Size:
    match term:
        case int():
            return term
        case str():
            low, high = SYMBOLS[term]
            return Dim.of(Symbol(term, 4, low, high))
        case (kind, a, b):
            return make(kind, built(a), built(b))


def value_of(term: Term, values: dict[str, int]) -> int:
    match term:
        case int():
            return term
        case str():
            return values[term]
        case (kind, a, b):
            return FOLDED[kind](value_of(a, values), value_of(b, values))


@pytest.mark.parametrize("seed", range(8))
def test_what_is_settled_holds_for_all_values(seed: int) -> None:
    """Differences among the operands, too, which are no sizes and may be negative."""
    random = Random(seed)
    for _ in range(100):
        kind = random.choice(["min", "max"])
        term: Term = (kind, drawn(random, 2), drawn(random, 1))
        size = built(term)
        for _ in range(6):
            values = {s: random.randint(low, high or 12) for s, (low, high) in SYMBOLS.items()}
            assert evaluate(size, values) == value_of(term, values), f"{term} became {size}"
