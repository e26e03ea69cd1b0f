"""Graphs of polynomials and fractions, evaluated without rounding: numpy's arrays of Fractions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from random import Random
from typing import Any, Final

import numpy as np

from rewright.ir import Arg, Constant, Graph, Node, Value, hint

_MOST_ELEMENTS: Final = 4000
_POINTS: Final = 2


class _Unknown(Exception):
    """An operator has no exact form."""


def equal_in_fractions(before: Graph, after: Graph, random: Random) -> bool:
    """Both graphs give the same fractions at random points; False also where one of them computes
    something that fractions do not hold. Sizes must be numbers."""
    if any(v.type.dtype.is_complex for g in (before, after) for v in g.values if _is_tensor(v)):  # type: ignore[union-attr]
        return False
    if before.symbols or sum(hint(v.tensor.numel) for v in before.values) > _MOST_ELEMENTS:
        return False
    if not all(v.tensor.dtype.is_floating_point for v in before.values):
        return False
    try:
        return all(_agree(before, after, random) for _ in range(_POINTS))
    except (_Unknown, ZeroDivisionError, ValueError):
        return False


def _is_tensor(value: Value) -> bool:
    return hasattr(value.type, "dtype")


def _agree(before: Graph, after: Graph, random: Random) -> bool:
    given = [_point(i.value, random) for i in before.inputs]
    wanted, found = _run(before, given), _run(after, given)
    return all(
        a.shape == b.shape and bool(np.all(a == b)) for a, b in zip(wanted, found, strict=True)
    )


def _point(value: Value, random: Random) -> np.ndarray[Any, Any]:
    shape = tuple(map(hint, value.tensor.shape))
    flat = np.empty(int(np.prod(shape, dtype=int)), dtype=object)
    for i in range(flat.size):
        flat[i] = Fraction(random.randint(-9, 9), random.choice((1, 1, 2, 3)))
    return flat.reshape(shape)


def _run(graph: Graph, given: Sequence[np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    values = dict(zip((i.value.name for i in graph.inputs), given, strict=True))
    for node in graph.nodes:
        constant = node.kwarg("value") if node.op.name == "rw.constant" else None
        if isinstance(constant, Constant):
            values[node.result.name] = _fractions(constant)
            continue
        rule = _OPERATORS.get(node.op.name)
        if rule is None or len(node.results) != 1:
            raise _Unknown
        values[node.result.name] = np.asarray(rule(_Call(node, values)), dtype=object)
    return [values[v.name] for v in graph.outputs if isinstance(v, Value)]


def _fractions(constant: Constant) -> np.ndarray[Any, Any]:
    numbers = constant.tensor.double().numpy()
    return np.asarray(np.vectorize(Fraction, otypes=[object])(numbers), dtype=object)


class _Call:
    """A node with its operands' contents."""

    def __init__(self, node: Node, values: dict[str, np.ndarray[Any, Any]]) -> None:
        self.node, self.values = node, values
        self.shape = tuple(map(hint, node.result.tensor.shape))

    def __getitem__(self, name: str) -> Any:
        return self.read(self.node.arg(name))

    def read(self, arg: Arg) -> Any:
        if isinstance(arg, Value):
            return self.values[arg.name]
        if isinstance(arg, tuple):
            return [self.read(a) for a in arg]
        if isinstance(arg, float):
            if arg != arg or arg in (float("inf"), float("-inf")):
                raise _Unknown
            return Fraction(arg)
        return Fraction(arg) if isinstance(arg, int) and not isinstance(arg, bool) else arg

    def ints(self, name: str) -> Any:
        return self.node.arg(name)


def _filled(call: _Call) -> Any:
    out = np.empty(call.shape, dtype=object)
    out[...] = call["fill_value"]
    return out


def _sum(call: _Call) -> Any:
    """Sums of nothing are 0, which numpy knows as an integer."""
    x = call["self"]
    named = call.ints("dim") if "dim" in call.node.op.argument_names else None
    axes = (named,) if isinstance(named, int) else tuple(named or range(x.ndim))
    total = np.asarray(np.sum(x, axis=axes), dtype=object)
    if "mean" in call.node.op.name:
        total = total / Fraction(int(np.prod([x.shape[a] for a in axes], dtype=int)))
    return np.asarray(total, dtype=object).reshape(call.shape)


def _slice(call: _Call) -> Any:
    x, dim = call["self"], call.ints("dim")
    start, end, step = (call.ints(name) for name in ("start", "end", "step"))
    at = [slice(None)] * x.ndim
    at[dim] = slice(start, end, step)
    return x[tuple(at)]


def _product(call: _Call, left: str, right: str) -> Any:
    a, b = call[left], call[right]
    if a.shape[-1] == 0:
        return np.full(call.shape, Fraction(0), dtype=object)
    return np.asarray(np.matmul(a, b), dtype=object).reshape(call.shape)


def _added(call: _Call, left: str, right: str) -> Any:
    return call["self"] * call["beta"] + _product(call, left, right) * call["alpha"]


def _whole_power(call: _Call) -> Any:
    exponent = call["exponent"]
    if not isinstance(exponent, Fraction) or exponent.denominator != 1:
        raise _Unknown
    return np.vectorize(lambda x: x ** int(exponent), otypes=[object])(call["self"])


def _view(call: _Call) -> Any:
    return call["self"].reshape(call.shape)


def _shaped(of: Callable[[_Call], Any]) -> Callable[[_Call], Any]:
    return lambda call: np.broadcast_to(np.asarray(of(call), dtype=object), call.shape)


_OPERATORS: Final[dict[str, Callable[[_Call], Any]]] = {
    **{
        f"aten.{name}.default": _view
        for name in ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze")
    },
    **{f"aten.squeeze.{form}": _view for form in ("dim", "dims")},
    **{f"aten.{name}.default": lambda c: c["self"] for name in ("alias", "clone", "detach")},
    "aten._to_copy.default": lambda c: c["self"],
    "aten.permute.default": lambda c: c["self"].transpose(c.ints("dims")),
    "aten.transpose.int": lambda c: c["self"].swapaxes(c.ints("dim0"), c.ints("dim1")),
    "aten.t.default": lambda c: c["self"].T,
    "aten.expand.default": _shaped(lambda c: c["self"]),
    "aten.select.int": lambda c: np.asarray(
        c["self"].take(c.ints("index"), axis=c.ints("dim")), dtype=object
    ),
    "aten.slice.Tensor": _slice,
    "aten.cat.default": lambda c: np.concatenate(c["tensors"], axis=c.ints("dim")),
    "aten.full.default": _filled,
    "aten.neg.default": lambda c: -c["self"],
    "aten.reciprocal.default": lambda c: Fraction(1) / c["self"],
    "aten.pow.Tensor_Scalar": _whole_power,
    **{
        f"aten.add.{form}": _shaped(lambda c: c["self"] + c["other"] * c["alpha"])
        for form in ("Tensor", "Scalar")
    },
    **{
        f"aten.sub.{form}": _shaped(lambda c: c["self"] - c["other"] * c["alpha"])
        for form in ("Tensor", "Scalar")
    },
    **{
        f"aten.rsub.{form}": _shaped(lambda c: c["other"] - c["self"] * c["alpha"])
        for form in ("Tensor", "Scalar")
    },
    **{f"aten.mul.{f}": _shaped(lambda c: c["self"] * c["other"]) for f in ("Tensor", "Scalar")},
    **{f"aten.div.{f}": _shaped(lambda c: c["self"] / c["other"]) for f in ("Tensor", "Scalar")},
    **{
        f"aten.{name}": _sum
        for name in ("sum.default", "sum.dim_IntList", "mean.default", "mean.dim")
    },
    "aten.mm.default": lambda c: _product(c, "self", "mat2"),
    "aten.bmm.default": lambda c: _product(c, "self", "mat2"),
    "aten.addmm.default": lambda c: _added(c, "mat1", "mat2"),
    "aten.baddbmm.default": lambda c: _added(c, "batch1", "batch2"),
    "aten.maximum.default": _shaped(lambda c: np.maximum(c["self"], c["other"])),
    "aten.minimum.default": _shaped(lambda c: np.minimum(c["self"], c["other"])),
    "aten.relu.default": lambda c: np.maximum(c["self"], np.asarray(Fraction(0), dtype=object)),
}
