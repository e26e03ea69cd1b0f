"""Arguments in MLIR: every constant, list and size an operator reads is a value of its own.

Where our number is of another kind than an operator's schema wants (1 for a float, 2.0 for a
tensor), a conversion stands between them; the importer looks through it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, Final

import torch

from rewright.ir.dim_fold import fold
from rewright.ir.dims import Dim, Size
from rewright.ir.errors import UnsupportedError
from rewright.ir.graph import Arg, Value
from rewright.ir.mlir_sizes import SIZE_OPERATORS
from rewright.ir.mlir_types import DTYPE_NUMBERS, FORMAT_NUMBERS, LAYOUT_NUMBERS, mlir_type
from rewright.ir.symbol_sources import SymbolSource
from rewright.ir.types import ScalarType, TensorType

# What a list of the schema is called in the dialect, by its elements.
_LISTS: Final = {
    "IntType": "int",
    "FloatType": "float",
    "BoolType": "bool",
    "NumberType": "number",
    "StringType": "str",
    "TensorType": "vtensor",
}
# How a number of one kind becomes one of another: (it is, it shall be) -> operator, result.
_CONVERSIONS: Final = {
    ("bool", "IntType"): ("torch.aten.Int.bool", "!torch.int"),
    ("bool", "NumberType"): ("torch.aten.Int.bool", "!torch.int"),
    ("int", "FloatType"): ("torch.aten.Float.Scalar", "!torch.float"),
    ("int", "BoolType"): ("torch.aten.Bool.int", "!torch.bool"),
}
_TENSORS: Final = {"bool": torch.bool, "int": torch.int64, "float": torch.float64}
CONVERSIONS: Final = frozenset(
    {"torch.prim.NumToTensor.Scalar", *(name for name, _ in _CONVERSIONS.values())}
)


class Operands:
    """Makes the values that one function's operators read; `made` holds those of the graph's."""

    def __init__(self, ir: Any, sources: Mapping[str, SymbolSource]) -> None:
        self.made: dict[Value, Any] = {}
        self._ir = ir
        self._sources = sources
        self._sizes: dict[Size, Any] = {}

    def of(self, arg: Arg, wanted: torch.JitType | None = None) -> Any:
        """The value of an argument; `wanted` is its type in the schema.

        Raises UnsupportedError for what the dialect has no word for.
        """
        kind, is_list, optional = _described(wanted)
        if isinstance(arg, tuple):
            return self._list(arg, kind, optional)
        made = self._leaf(arg, kind)
        if is_list and isinstance(arg, int | float | Dim):
            # torch takes a number for a list of one.
            facts = {"rewright.number": self._ir.UnitAttr.get()}
            result = f"!torch.list<{_LISTS[kind]}>"
            return self.create("torch.prim.ListConstruct", [made], result, facts)
        return made

    def create(
        self, name: str, operands: list[Any], result: str, attributes: dict[str, Any] | None = None
    ) -> Any:
        """The one result of a new operation."""
        results = [self._ir.Type.parse(result)]
        made = self._ir.Operation.create(name, results, operands, attributes or {})
        return made.results[0]

    def _list(self, items: tuple[Arg, ...], kind: str, optional: bool) -> Any:
        if kind not in _LISTS:
            kind = _kind_of(items)
        made = [self._leaf(item, kind) for item in items]
        element = f"optional<{_LISTS[kind]}>" if optional else _LISTS[kind]
        return self.create("torch.prim.ListConstruct", made, f"!torch.list<{element}>")

    def _leaf(self, arg: Arg, kind: str) -> Any:
        match arg:
            case Value():
                made = self.made[arg]
                scalar = arg.type if isinstance(arg.type, ScalarType) else None
                return made if scalar is None else self._fit(made, scalar.kind, kind)
            case None:
                return self.create("torch.constant.none", [], "!torch.none")
            case bool() | int() | float():
                return self._fit(self._number(arg), type(arg).__name__, kind)
            case Dim():
                return self._fit(self.size(arg), "int", kind)
            case str():
                attribute = self._ir.StringAttr.get(arg)
                return self.create("torch.constant.str", [], "!torch.str", {"value": attribute})
            case torch.device():
                attribute = self._ir.StringAttr.get(str(arg))
                return self.create(
                    "torch.constant.device", [], "!torch.Device", {"value": attribute}
                )
        number = _number_of(arg)
        if number is None:
            what = "a complex number" if isinstance(arg, complex) else f"{arg}"
            raise UnsupportedError(f"{what} as an argument has no form in MLIR")
        return self._number(number)

    def _number(self, value: bool | int | float) -> Any:
        ir = self._ir
        if isinstance(value, bool):
            attribute = ir.IntegerAttr.get(ir.IntegerType.get_signless(1), int(value))
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise UnsupportedError(f"{value} does not fit into 64 bits")
            attribute = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)
        else:
            attribute = ir.FloatAttr.get_f64(value)
        kind = type(value).__name__
        return self.create(f"torch.constant.{kind}", [], f"!torch.{kind}", {"value": attribute})

    def _fit(self, made: Any, have: str, want: str) -> Any:
        """A number as what the schema wants."""
        if want == "TensorType":
            number = made if have != "bool" else self._fit(made, have, "NumberType")
            result = mlir_type(TensorType(_TENSORS[have], ()))
            return self.create("torch.prim.NumToTensor.Scalar", [number], result)
        if (have, want) == ("bool", "FloatType"):
            made, have = self._fit(made, have, "IntType"), "int"
        if (have, want) not in _CONVERSIONS:
            return made
        name, result = _CONVERSIONS[have, want]
        return self.create(name, [made], result)

    # --- sizes --------------------------------------------------------------------------------

    def size(self, size: Size) -> Any:
        """A size, computed from those of the tensors at hand."""
        if isinstance(size, int):
            return self._number(size)
        if size not in self._sizes:
            self._sizes[size] = fold(size, self._symbol, self._compute)
        return self._sizes[size]

    def _symbol(self, name: str) -> Any:
        source = self._sources.get(name)
        if source is None or source.value not in self.made:
            raise UnsupportedError(f"nothing says what {name} is")
        at = self.made[source.value]
        if source.axis is not None:
            at = self.create("torch.aten.size.int", [at, self._number(source.axis)], "!torch.int")
        if source.size.is_symbol:
            return at
        multiple = self._binary("torch.aten.sub.int", at, source.rest)
        return self._binary("torch.aten.floordiv.int", multiple, source.factor)

    def _compute(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        if function is operator.pow:
            base, exponent = operands
            times = partial(self._binary, SIZE_OPERATORS[operator.mul])
            return reduce(times, [base] * exponent)
        if function not in SIZE_OPERATORS:
            raise UnsupportedError(f"a size with {function.__name__} has no form in MLIR")
        return self._binary(SIZE_OPERATORS[function], *operands)

    def _binary(self, name: str, *operands: Any) -> Any:
        values = [self._number(o) if isinstance(o, int) else o for o in operands]
        return self.create(name, values, "!torch.int")


def _described(wanted: torch.JitType | None) -> tuple[str, bool, bool]:
    """Of a type in a schema: its kind or its elements', whether it is a list, and whether the
    elements may be missing."""
    if wanted is None:
        return "", False, False
    is_list = optional = False
    while wanted.kind() in ("OptionalType", "ListType"):
        optional = is_list and wanted.kind() == "OptionalType"
        is_list = is_list or wanted.kind() == "ListType"
        wanted = wanted.getElementType()
    return wanted.kind(), is_list, optional


def _kind_of(items: tuple[Arg, ...]) -> str:
    """What a list of numbers holds that no schema describes."""
    first = items[0] if items else 0
    kinds = {bool: "BoolType", int: "IntType", float: "FloatType", Dim: "IntType"}
    if type(first) not in kinds:
        raise UnsupportedError("a list of this kind as an argument has no form in MLIR")
    return kinds[type(first)]


def _number_of(arg: Arg) -> int | None:
    """The number that stands for a dtype, a layout or a memory format."""
    if isinstance(arg, torch.dtype):
        return DTYPE_NUMBERS.get(arg)
    if isinstance(arg, torch.layout):
        return LAYOUT_NUMBERS.get(arg)
    return FORMAT_NUMBERS.get(arg) if isinstance(arg, torch.memory_format) else None
