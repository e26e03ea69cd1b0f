"""What rules may ask and compute: pure functions of types and attributes, by name.

A question (it answers with a bool) stands in `when`; anything else computes an argument of `give`.
They see values by their types only, and sizes may be symbolic: a question that cannot be answered
for every size is answered no.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import torch

from rewright.ir import (
    Arg,
    Dim,
    Node,
    Size,
    UnsupportedError,
    Value,
    divisible,
    equal,
    exact_div,
    hint,
)
from rewright.ir.dims import at_most, make, product
from rewright.ir.loops.views import place_from_front
from rewright.ir.types import is_dense
from rewright.passes.dtypes import holds as holds_all


class Surroundings(Protocol):
    """What a function may know besides its arguments."""

    def producer(self, value: Value) -> Node | None: ...


@dataclass(frozen=True)
class RuleFunction:
    """`call` takes the surroundings first when `looks_around`. `least` and `most` arguments are
    given in a rule."""

    name: str
    call: Callable[..., Any]
    asks: bool
    looks_around: bool
    least: int
    most: int


Call = TypeVar("Call", bound=Callable[..., Any])

FUNCTIONS: Final[dict[str, RuleFunction]] = {}


def _function(call: Call) -> Call:
    """Register a function under its own name, a final underscore left out."""
    parameters = inspect.signature(call).parameters
    names = list(parameters)
    around = bool(names) and names[0] == "around"
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    count = len(names) - around
    least = sum(
        p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in parameters.values()
    )
    name = call.__name__.rstrip("_")
    asks = call.__annotations__["return"] in ("bool", bool)
    FUNCTIONS[name] = RuleFunction(
        name, call, asks, around, least - around, 99 if variadic else count
    )
    return call


class Unanswered(Exception):
    """An expression has no value here: the rule does not apply."""


# --- questions ----------------------------------------------------------------------------------


@_function
def constant(around: Surroundings, x: Value) -> bool:
    """The value is known at compile time."""
    node = around.producer(x)
    if node is None:
        return False
    return node.op.name == "rw.constant" or (
        node.op.is_pure and all(constant(around, v) for v in node.operands)
    )


@_function
def same_type(x: Value, y: Value) -> bool:
    """The same dtype, shape, strides and device."""
    return x.type == y.type


@_function
def same_shape(x: Value, y: Value) -> bool:
    """The same sizes, whatever the symbols are."""
    return same(x.tensor.shape, y.tensor.shape)


@_function
def same_dtype(x: Value, *others: Value) -> bool:
    """All have one dtype."""
    return all(y.tensor.dtype == x.tensor.dtype for y in others)


@_function
def contiguous(x: Value) -> bool:
    """Row-major in memory."""
    return x.tensor.is_contiguous


@_function
def dense(x: Value) -> bool:
    """Without gaps in memory, in some order of dimensions."""
    return is_dense(x.tensor)


@_function
def is_identity(order: tuple[int, ...]) -> bool:
    """An order of dimensions that leaves each where it is."""
    return tuple(d % len(order) for d in order) == tuple(range(len(order)))


@_function
def moves_only_ones(order: tuple[int, ...], x: Value) -> bool:
    """The order leaves all dimensions of more than one element in theirs."""
    rank, shape = x.tensor.rank, x.tensor.shape
    kept = [d % rank for d in order if shape[d % rank] != 1]
    return kept == sorted(kept)


@_function
def one_of(x: Any, *options: Any) -> bool:
    """Equal to one of these."""
    return any(same(x, option) for option in options)


@_function
def same(a: Any, b: Any) -> bool:
    """Equal, for every size; 1 and 1.0 are equal, 0.0 and -0.0 are not."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return a == b and (a != 0 or math.copysign(1, a) == math.copysign(1, b))
    if isinstance(b, float):
        return same(b, a)
    if is_size(a) and is_size(b):
        return equal(a, b)
    return type(a) is type(b) and bool(a == b)


@_function
def divides(n: int, size: Size) -> bool:
    """The number divides the size, whatever the symbols are."""
    return divisible(size, n)


@_function
def finite(number: Any) -> bool:
    """A number, and neither infinite nor NaN."""
    return isinstance(number, (int, float)) and math.isfinite(number)


@_function
def power_of_two(number: Any) -> bool:
    """Multiplying by it changes an exponent and no digit."""
    return finite(number) and number != 0 and math.frexp(abs(number))[0] == 0.5


@_function
def integral(x: Value) -> bool:
    """Of an integer dtype or bool."""
    return not (x.tensor.dtype.is_floating_point or x.tensor.dtype.is_complex)


@_function
def leading(axis: int, x: Value) -> bool:
    """The axis is not the last one of `x`."""
    return axis % x.tensor.rank != x.tensor.rank - 1


@_function
def last(axis: int, x: Value) -> bool:
    """The axis is the last one of `x`."""
    return x.tensor.rank > 0 and axis % x.tensor.rank == x.tensor.rank - 1


@_function
def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Every number of `narrow` is a number of `wide`."""
    return holds_all(wide, narrow)


@_function
def disjoint(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """No item is in both lists."""
    return not {*a} & {*b}


@_function
def is_number(size: Size) -> bool:
    """The size is known when the graph is compiled."""
    return isinstance(size, int)


@_function
def is_floating(dtype: torch.dtype) -> bool:
    """A floating dtype."""
    return dtype.is_floating_point


@_function
def representable(number: Any, dtype: torch.dtype) -> bool:
    """The number is one of the dtype's."""
    if dtype is torch.bool:
        return number in (0, 1)
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        return bool(number == int(number) and info.min <= number <= info.max)
    return bool(torch.tensor(number, dtype=torch.float64).to(dtype).item() == number)


# --- facts --------------------------------------------------------------------------------------


@_function
def shape(x: Value) -> tuple[Size, ...]:
    """The sizes of all dimensions."""
    return x.tensor.shape


@_function
def size(x: Value, axis: int) -> Size:
    """The size of a dimension."""
    rank = x.tensor.rank
    if not -rank <= axis < rank:
        raise Unanswered
    return x.tensor.shape[axis]


@_function
def dtype(x: Value) -> torch.dtype:
    """The dtype."""
    return x.tensor.dtype


@_function
def device(x: Value) -> torch.device:
    """The device."""
    return x.tensor.device


@_function
def rank(x: Value) -> int:
    """How many dimensions there are."""
    return x.tensor.rank


@_function
def numel(x: Value) -> Size:
    """How many elements there are."""
    return x.tensor.numel


@_function
def length(items: tuple[Arg, ...]) -> int:
    """How many items a list has."""
    return len(items)


@_function
def seen(size: Size) -> int:
    """The size at compile time: for choosing what is cheaper, not for what is right."""
    return hint(size)


# --- orders, shapes, axes -----------------------------------------------------------------------


@_function
def compose(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """The order of dimensions that is `first`, then `second`."""
    n = len(first)
    return tuple(first[d % n] % n for d in second)


@_function
def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The order that undoes an order of dimensions."""
    n = len(order)
    places = [d % n for d in order]
    return tuple(places.index(d) for d in range(n))


@_function
def swapped(rank: int, a: int, b: int) -> tuple[int, ...]:
    """The order of dimensions in which `a` and `b` have changed places."""
    order = list(range(rank))
    order[a], order[b] = order[b], order[a]
    return tuple(order)


@_function
def axis_of(axis: int, x: Value) -> int:
    """The axis counted from the front."""
    return axis % max(x.tensor.rank, 1)


@_function
def axes_of(axes: Any, x: Value) -> tuple[int, ...]:
    """Axes counted from the front, ascending; all of them for none."""
    n = max(x.tensor.rank, 1)
    listed = (axes,) if isinstance(axes, int) else axes or tuple(range(x.tensor.rank))
    return tuple(sorted(d % n for d in listed))


@_function
def union(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The items of both lists, ascending."""
    return tuple(sorted({*a, *b}))


@_function
def count_over(x: Value, axes: Any) -> Size:
    """How many elements a reduction over the axes combines into one."""
    return product(x.tensor.shape[d] for d in axes_of(axes, x)) if x.tensor.rank else 1


@_function
def moved(axis: int, order: tuple[int, ...]) -> int:
    """The axis of the source of a permutation that is axis `axis` of its result."""
    return order[axis % len(order)] % len(order)


@_function
def with_(items: tuple[Arg, ...], place: int, item: Arg) -> tuple[Arg, ...]:
    """The list with one item replaced."""
    place %= max(len(items), 1)
    return (*items[:place], item, *items[place + 1 :])


@_function
def join(*lists: Any) -> tuple[Arg, ...]:
    """One list of several; what is no list is an item."""
    return tuple(i for found in lists for i in (found if isinstance(found, tuple) else (found,)))


@_function
def quotient(a: Size, b: Size) -> Size:
    """`a / b`, where it has no remainder."""
    found = exact_div(a, b)
    if found is None:
        raise Unanswered
    return found


@_function
def start_of(place: Any, size: Size) -> Size:
    """Where a slice begins that is asked to begin at `place`, counted from the front."""
    try:
        return place_from_front(place, size)
    except UnsupportedError:
        raise Unanswered from None


@_function
def total(sizes: tuple[Size, ...]) -> Size:
    """The product of sizes."""
    return product(sizes)


@_function
def larger(a: Any, b: Any) -> Any:
    """The larger of two numbers or sizes."""
    return make("max", a, b) if is_size(a) and is_size(b) else max(a, b)


@_function
def smaller(a: Any, b: Any) -> Any:
    """The smaller of two numbers or sizes."""
    return make("min", a, b) if is_size(a) and is_size(b) else min(a, b)


@_function
def sqrt(number: Any) -> float:
    """The square root of a number."""
    if not finite(number) or number < 0:
        raise Unanswered
    return math.sqrt(number)


@_function
def log2_of(number: Any) -> float:
    """The logarithm to base two of a number."""
    if not finite(number) or number <= 0:
        raise Unanswered
    return math.log2(number)


@_function
def widest(x: Value, y: Value) -> torch.dtype:
    """The dtype in which both meet."""
    return torch.promote_types(x.tensor.dtype, y.tensor.dtype)


# --- arithmetic ---------------------------------------------------------------------------------


def arithmetic(sign: str, args: list[Any]) -> Any:
    """`+ - * // / % **`, `== != < <= > >=` and `not`, on numbers and sizes."""
    if sign == "not":
        return not args[0]
    if sign in ("==", "!="):
        return same(*args) is (sign == "==")
    if not all(isinstance(a, (int, float)) or is_size(a) for a in args):
        raise Unanswered
    if len(args) == 1:
        return -args[0]
    if sign in _ORDERS:
        return _compare(sign, *args)
    if sign == "/" and all(map(is_size, args)) and not all(isinstance(a, int) for a in args):
        return quotient(*args)
    try:
        return _SIGNS[sign](*args)
    except (ZeroDivisionError, OverflowError):
        raise Unanswered from None


def _compare(sign: str, a: Any, b: Any) -> bool:
    """Of symbolic sizes only what holds for all of them."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return bool(_ORDERS[sign](a, b))
    if not (is_size(a) and is_size(b)):
        raise Unanswered
    if sign in (">", ">="):
        a, b = b, a
    return at_most(a, b) if "=" in sign else at_most(a + 1, b)


_ORDERS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_SIGNS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "**": operator.pow,
}


def is_size(x: object) -> bool:
    """A number of elements, known or symbolic."""
    return (isinstance(x, int) and not isinstance(x, bool)) or isinstance(x, Dim)
