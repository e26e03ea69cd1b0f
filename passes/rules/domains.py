"""What the variables of rules may be: classes of dtypes for values, domains for attributes.

Each says what it admits, for matching, and draws from itself, for the evidence that a rule must
bring (`instances.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import torch

from rewright.ir import DTYPES, Size, Value, equal
from rewright.ir.dims import product
from rewright.passes.rules.functions import Unanswered, is_size, same

_FLOATS: Final = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS: Final = (torch.int64, torch.int32, torch.int8, torch.uint8, torch.int16)

# Class -> dtypes to draw from, the most telling first; a value of any other dtype of the same
# category is of the class too.
KINDS_OF_DTYPES: Final[Mapping[str, tuple[torch.dtype, ...]]] = {
    "any": (*_FLOATS, *_INTEGERS, torch.bool),
    "number": (*_FLOATS, *_INTEGERS),
    "float": _FLOATS,
    "wide": (torch.float32, torch.float64),
    "half": (torch.float16, torch.bfloat16),
    "int": _INTEGERS,
    "bool": (torch.bool,),
}


def is_of(kind: str, dtype: torch.dtype) -> bool:
    """Whether a dtype is of a class, or is the one that `kind` names."""
    match kind:
        case "any":
            return True
        case "number":
            return dtype is not torch.bool
        case "float":
            return dtype.is_floating_point
        case "int":
            return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)
    return dtype in KINDS_OF_DTYPES.get(kind, ()) or DTYPES.get(kind) is dtype


@dataclass(frozen=True)
class Domain:
    """What an attribute may be. `admits` and `draw` are called with the domain's arguments after
    the value or the source of randomness."""

    doc: str
    admits: Callable[..., bool]
    draw: Callable[..., Any]
    arguments: tuple[int, int] = (0, 0)


def _is_number(x: object) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def _draw_number(random: Random) -> float:
    return random.choice((2, 0.5, -1.5, 3.0, 1, -1, 0.1, 7, -0.25, 0, 0.0, 1.0))


def _draw_positive(random: Random) -> float:
    return random.choice((2, 0.5, 3.0, 1.0, 0.1, 0.125, 7.5, 1e-5))


def _axis(x: object, of: Value) -> bool:
    rank = max(of.tensor.rank, 1)
    return isinstance(x, int) and not isinstance(x, bool) and -rank <= x < rank


def _draw_axis(random: Random, of: Value) -> int:
    rank = max(of.tensor.rank, 1)
    return random.randrange(-rank, rank)


def _gap(x: object, of: Value) -> bool:
    """Where a new dimension may come: before each one, and at the end."""
    rank = of.tensor.rank + 1
    return isinstance(x, int) and not isinstance(x, bool) and -rank <= x < rank


def _draw_gap(random: Random, of: Value) -> int:
    rank = of.tensor.rank + 1
    return random.randrange(-rank, rank)


def _axes(x: object, of: Value) -> bool:
    if x is None:
        return True
    listed = (x,) if isinstance(x, int) else x
    if not isinstance(listed, tuple) or not all(_axis(d, of) for d in listed):
        return False
    rank = max(of.tensor.rank, 1)
    return len({d % rank for d in listed}) == len(listed)


def _draw_axes(random: Random, of: Value) -> tuple[int, ...]:
    if not of.tensor.rank:
        return ()
    chosen = random.sample(range(of.tensor.rank), random.randint(1, of.tensor.rank))
    return tuple(d - random.choice((0, of.tensor.rank)) for d in chosen)


def _rank_of(of: object) -> int:
    """A value has a rank; a number is one."""
    return of.tensor.rank if isinstance(of, Value) else int(of)  # type: ignore[call-overload]


def _order(x: object, of: object) -> bool:
    rank = _rank_of(of)
    if not isinstance(x, tuple) or not all(isinstance(d, int) and -rank <= d < rank for d in x):
        return False
    return sorted(d % rank for d in x) == list(range(rank))


def _draw_order(random: Random, of: object) -> tuple[int, ...]:
    rank = _rank_of(of)
    return tuple(d - random.choice((0, 0, rank)) for d in random.sample(range(rank), rank))


def _shape(x: object, of: Value | None = None) -> bool:
    if not isinstance(x, tuple) or not all(map(is_size, x)):
        return False
    return of is None or -1 in x or equal(product(x), of.tensor.numel)


def _draw_shape(random: Random, of: Value | None = None) -> tuple[int, ...]:
    """A shape of as many elements as the value has."""
    if of is None:
        return tuple(random.choice((1, 2, 3, 5)) for _ in range(random.randint(0, 3)))
    count = of.tensor.numel
    if not isinstance(count, int):
        return _merged(random, of)
    if count == 0:
        return tuple(random.sample((0, random.randint(1, 3), 2), random.randint(1, 3)))
    factors = _factors(count)
    random.shuffle(factors)
    shape = [1] * random.randint(1 if count > 1 else 0, 4)
    for factor in factors:
        shape[random.randrange(len(shape))] *= factor
    if shape and random.random() < 0.2:
        shape[random.randrange(len(shape))] = -1
    return tuple(shape)


def _merged(random: Random, of: Value) -> tuple[Any, ...]:
    """A shape of symbolic sizes: neighbours multiplied, ones put in."""
    shape: list[Any] = []
    for size in of.tensor.shape:
        if shape and random.random() < 0.4:
            shape[-1] = shape[-1] * size
        else:
            shape.append(size)
        if random.random() < 0.2:
            shape.append(1)
    return tuple(shape)


def _factors(count: int) -> list[int]:
    found, p = [], 2
    while count > 1:
        while count % p == 0:
            found.append(p)
            count //= p
        p += 1
    return found


def _place(x: object, of: Value | None = None, axis: int = 0) -> bool:
    return x is None or is_size(x)


def _draw_place(random: Random, of: Value, axis: int) -> int:
    """A bound of a slice: inside, from the end, at the ends and beyond."""
    if not _axis(axis, of):
        raise Unanswered
    size = of.tensor.shape[axis] if of.tensor.rank else 1
    if not isinstance(size, int):
        return random.choice((0, 1, -1, 2**63 - 1))
    return random.choice((0, size, 2**63 - 1, random.randint(0, size), random.randint(-size, size)))


def _index(x: object, of: Value, axis: int) -> bool:
    return is_size(x)


def _draw_index(random: Random, of: Value, axis: int) -> int:
    if not _axis(axis, of) or not of.tensor.rank or of.tensor.shape[axis] == 0:
        raise Unanswered
    size = of.tensor.shape[axis]
    return random.randrange(-size, size) if isinstance(size, int) else random.choice((0, -1))


def _expansion(x: object, of: Value) -> bool:
    return _shape(x) and isinstance(x, tuple) and len(x) >= of.tensor.rank


def _draw_expansion(random: Random, of: Value) -> tuple[Size, ...]:
    """What a value expands to: sizes of one grow, and dimensions may come in front."""
    grown: list[Size] = [
        random.choice((2, 3, 1)) if s == 1 else random.choice((s, -1)) for s in of.tensor.shape
    ]
    front = [random.choice((1, 2, 3)) for _ in range(random.choice((0, 0, 1)))]
    return (*front, *grown)


DOMAINS: Final[Mapping[str, Domain]] = {
    "number": Domain("a whole or floating number", _is_number, _draw_number),
    "positive": Domain(
        "a number above zero", lambda x: _is_number(x) and 0 < x < math.inf, _draw_positive
    ),
    "float": Domain(
        "a floating number", lambda x: isinstance(x, float), lambda r: float(_draw_number(r))
    ),
    "int": Domain(
        "a whole number, of either sign",
        lambda x: isinstance(x, int) and not isinstance(x, bool),
        lambda r: r.randint(-3, 3),
    ),
    "flag": Domain("true or false", lambda x: isinstance(x, bool), lambda r: r.random() < 0.5),
    "size": Domain(
        "a size, which may be symbolic", is_size, lambda r: r.choice((1, 2, 3, 5, 0, 8))
    ),
    "dtype": Domain(
        "a dtype", lambda x: isinstance(x, torch.dtype), lambda r: r.choice(KINDS_OF_DTYPES["any"])
    ),
    "floating": Domain(
        "a floating dtype",
        lambda x: isinstance(x, torch.dtype) and x.is_floating_point,
        lambda r: r.choice(_FLOATS),
    ),
    "axis": Domain("a dimension of the value, counted from either end", _axis, _draw_axis, (1, 1)),
    "gap": Domain("a place for a new dimension of the value", _gap, _draw_gap, (1, 1)),
    "axes": Domain("some dimensions of the value; none means all", _axes, _draw_axes, (1, 1)),
    "order": Domain("an order of the value's dimensions", _order, _draw_order, (1, 1)),
    "shape": Domain(
        "a list of sizes; of a value: with as many elements", _shape, _draw_shape, (0, 1)
    ),
    "expansion": Domain("a shape that the value expands to", _expansion, _draw_expansion, (1, 1)),
    "place": Domain("a bound of a slice of the value along the axis", _place, _draw_place, (2, 2)),
    "index": Domain("an index into the value along the axis", _index, _draw_index, (2, 2)),
    "step": Domain(
        "the step of a slice", lambda x: isinstance(x, int), lambda r: r.choice((1, 1, 2, 3))
    ),
    "choice": Domain(
        "one of these",
        lambda x, *options: any(same(x, o) for o in options),
        lambda r, *options: r.choice(options),
        (1, 9),
    ),
    "about": Domain(
        "the number, in all digits that anyone writes",
        lambda x, c: _is_number(x) and abs(x - c) <= 1e-8 * abs(c),
        lambda r, c: c,
        (1, 1),
    ),
    "argument": Domain("any argument", lambda x: True, lambda r: None),
}


def admits(name: str, value: object, arguments: Sequence[object]) -> bool:
    return DOMAINS[name].admits(value, *arguments)
