"""Arithmetic on Python numbers: `py.*` nodes here, `torch.aten.add.int` and its like in MLIR."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rewright.ir.dims import Dim
from rewright.ir.graph import Arg, Value
from rewright.ir.types import ScalarType

# Where both have the same word, it is the same one.
_WORDS: Final = {
    "truediv": "div",
    "mod": "remainder",
    "sym_float": "Float",
    "sym_int": "Int",
    "sym_sqrt": "sqrt",
    "sym_not": "__not__",
}
_SAME: Final = ("add", "sub", "mul", "floordiv", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge")
_SAME_ROUNDINGS: Final = ("floor", "ceil", "round", "trunc")
_PYTHON: Final = {word: name for name, word in _WORDS.items()} | {
    name: name for name in (*_SAME, *_SAME_ROUNDINGS)
}
_KINDS: Final = frozenset({"int", "float", "bool", "Scalar", "float_int", "int_float"})


def scalar_operator(name: str, args: Iterable[Arg]) -> str:
    """The operation that does what the operator `py.*` called `name` does on `args`."""
    function = name.partition(".")[2]
    kinds = list(dict.fromkeys(_kind(arg) for arg in args))
    overload = "Scalar" if function in ("sym_float", "sym_int") else "_".join(kinds)
    return f"torch.aten.{_WORDS.get(function, function)}.{overload}"


def python_operator(name: str) -> str | None:
    """The operator `py.*` of an operation on numbers; None when it is another kind of thing."""
    parts = name.split(".")
    if len(parts) != 4 or parts[:2] != ["torch", "aten"] or parts[3] not in _KINDS:
        return None
    function = _PYTHON.get(parts[2])
    return None if function is None else f"py.{function}"


def _kind(arg: Arg) -> str:
    if isinstance(arg, Value):
        return arg.type.kind if isinstance(arg.type, ScalarType) else "Tensor"
    return "int" if isinstance(arg, Dim) else type(arg).__name__
