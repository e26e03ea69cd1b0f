"""From the arguments of one call to the values of a graph's symbols."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import torch

from rewright.ir.dims import Dim, Size, Symbol, evaluate, symbols_of
from rewright.ir.errors import InputError
from rewright.ir.graph import Graph, Input
from rewright.ir.types import DTYPE_NAMES, ScalarType, TensorType

_PYTHON: Final[dict[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
}


class Seen(NamedTuple):
    """A size of the signature, what the call has there, and where that is."""

    size: Size
    value: int
    where: str


def bind(graph: Graph, args: Sequence[object], *, exact: bool = True) -> dict[str, int]:
    """The value of every symbol that the arguments determine.

    Raises InputError, naming the input, when an argument does not fit the signature. Unless
    `exact`, one floating dtype is as good as another, and one integer dtype too.
    """
    if len(args) != len(graph.inputs):
        raise InputError(
            f"graph {graph.name} takes {len(graph.inputs)} inputs, and got {len(args)}"
        )
    seen = [
        size
        for input, arg in zip(graph.inputs, args, strict=True)
        for size in _sizes(input, arg, exact)
    ]
    values: dict[str, int] = {}
    given: dict[str, Seen] = {}
    for size in seen:
        if isinstance(size.size, Dim) and size.size.is_symbol:
            first = given.setdefault(size.size.text, size)
            values.setdefault(size.size.text, size.value)
            if first.value != size.value:
                raise InputError(
                    f"{size.where} is {size.value}, but {first.where} is {first.value}: "
                    f"both are {size.size}"
                )
    _solve_rest(seen, values)
    for symbol in graph.symbols:
        if symbol.name in values:
            _check_range(symbol, values[symbol.name], seen)
    return values


def solve(size: Dim, value: int, known: Mapping[str, int]) -> tuple[str, int] | None:
    """The one symbol of `size` that is not known, and what makes `size` equal `value`."""
    unknown = [s.name for s in size.symbols if s.name not in known]
    if len(unknown) != 1:
        return None
    found = line(size, unknown[0], known)
    if found is None or (value - found[1]) % found[0]:
        return None
    return unknown[0], (value - found[1]) // found[0]


def line(size: Dim, symbol: str, known: Mapping[str, int]) -> tuple[int, int] | None:
    """`(a, b)` with `size = a * symbol + b`, a not zero, for the `known` values of the others."""
    if any(mark in size.text for mark in ("//", "%", "max", "min")):
        return None
    at = [evaluate(size, {**known, symbol: x}) for x in (0, 1, 2, 3)]
    slopes = {b - a for a, b in pairwise(at)}
    return (at[1] - at[0], at[0]) if len(slopes) == 1 and 0 not in slopes else None


def _solve_rest(seen: Sequence[Seen], values: dict[str, int]) -> None:
    """Check the sizes that are expressions; one in a single unknown symbol gives its value."""
    for size in seen:
        if isinstance(size.size, Dim):
            solution = solve(size.size, size.value, values)
            if solution is not None:
                values.setdefault(*solution)
        elif size.size != size.value:
            raise InputError(f"{size.where} is {size.value}, not {size.size}")
    for size in seen:
        if all(s.name in values for s in symbols_of([size.size])):
            wanted = evaluate(size.size, values)
            if wanted != size.value:
                raise InputError(f"{size.where} is {size.value}, not {size.size} = {wanted}")


def _sizes(input: Input, arg: object, exact: bool) -> Iterator[Seen]:
    name, type = f"%{input.value.name}", input.value.type
    if isinstance(type, ScalarType):
        if not isinstance(arg, _PYTHON[type.kind]):
            raise InputError(f"{name} is {_spell(arg)}, not a Python {type.kind}")
        if type.dim is not None and isinstance(arg, int):
            yield Seen(type.dim, arg, name)
    if not isinstance(type, TensorType):
        return
    if not isinstance(arg, torch.Tensor):
        raise InputError(f"{name} is {_spell(arg)}, not a tensor")
    if arg.dtype != type.dtype and (exact or _family(arg.dtype) != _family(type.dtype)):
        raise InputError(f"{name} is {_dtype(arg.dtype)}, not {_dtype(type.dtype)}")
    if arg.ndim != type.rank:
        raise InputError(f"{name} has {arg.ndim} dimensions, not {type.rank}")
    if arg.device.type != type.device.type:
        raise InputError(f"{name} is on {arg.device}, not on {type.device}")
    for index, (size, value) in enumerate(zip(type.shape, arg.shape, strict=True)):
        yield Seen(size, value, f"dimension {index} of {name}")


def _check_range(symbol: Symbol, value: int, seen: Sequence[Seen]) -> None:
    plain = (s for s in seen if s.size == Dim.of(symbol))
    size = next(plain, None) or next(s for s in seen if symbol in symbols_of([s.size]))
    here = f"{size.where} is {size.value}"
    if size.size != Dim.of(symbol):
        here += f", so {symbol.name} is {value}"
    high = "inf" if symbol.high is None else symbol.high
    if value < symbol.low or (symbol.high is not None and value > symbol.high):
        raise InputError(f"{here}: {symbol.name} must be in [{symbol.low}, {high}]")
    if value % symbol.divisor:
        raise InputError(f"{here}: {symbol.name} must be a multiple of {symbol.divisor}")


def _family(dtype: torch.dtype) -> tuple[bool, bool, bool]:
    return dtype.is_floating_point, dtype.is_complex, dtype is torch.bool


def _spell(arg: object) -> str:
    if arg is None:
        return "none"
    name = type(arg).__name__
    return f"an {name}" if name[0] in "aeio" else f"a {name}"


def _dtype(dtype: torch.dtype) -> str:
    return DTYPE_NAMES.get(dtype, str(dtype))
