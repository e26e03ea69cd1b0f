"""Types of results that a file does not give: each operator is asked, on tensors without data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from rewright.ir.dims import Dim, Size, Symbol, symbols_of
from rewright.ir.errors import ImportFailure
from rewright.ir.fx_export import Traced
from rewright.ir.fx_sizes import SizeTable
from rewright.ir.graph import Arg, Value, dims_in, map_leaves, sizes_of, values_in
from rewright.ir.ops import Op
from rewright.ir.types import Type


class Inference:
    """Runs operators on stand-ins whose sizes are symbols, and collects what torch finds out."""

    def __init__(self) -> None:
        self._traced = Traced()
        self._known: dict[str, Symbol] = {}
        self._table = SizeTable(known=self._known)

    def types(
        self, called: Op, args: tuple[Arg, ...], kwargs: Mapping[str, Arg]
    ) -> tuple[Type, ...]:
        """The types of an operator's results. Raises ImportFailure when arguments do not fit."""
        assert called.target is not None
        everything = (args, *kwargs.values())
        self._meet(dims_in(everything))
        for value in values_in(everything):
            self._meet(sizes_of(value.type))
        try:
            with self._traced.mode, torch.no_grad():
                given = [map_leaves(arg, self._stand_in) for arg in args]
                named = {key: map_leaves(arg, self._stand_in) for key, arg in kwargs.items()}
                returned = called.target(*given, **named)
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ImportFailure(f"the arguments do not fit: {lines[0]}") from None
        results = returned if isinstance(returned, list | tuple) else (returned,)
        return tuple(self._table.type(result) for result in results)

    def equal_sizes(self, symbols: Iterable[Symbol]) -> dict[str, Size]:
        """What symbols must be for the operators to have run: an earlier one, or a number."""
        table = SizeTable(known=self._known)
        first: dict[str, Symbol] = {}
        found: dict[str, Size] = {}
        for symbol in symbols:
            if not self._met(symbol):
                continue
            size = table.size(self._traced.size(Dim.of(symbol)))
            if isinstance(size, Dim) and size.is_symbol:
                size = Dim.of(first.setdefault(size.text, symbol))
            if str(size) != symbol.name:
                found[symbol.name] = size
        return found

    def _met(self, symbol: Symbol) -> bool:
        return symbol in self._known.values()

    def _meet(self, sizes: Iterable[Size]) -> None:
        """Remember by which of torch's names our symbols go."""
        for symbol in symbols_of(sizes):
            if not self._met(symbol):
                made: Any = self._traced.size(Dim.of(symbol))
                self._known[str(made.node._expr)] = symbol

    def _stand_in(self, arg: Arg) -> object:
        if isinstance(arg, Value):
            return self._traced.value(arg.type)
        return self._traced.size(arg) if isinstance(arg, Dim) else arg
