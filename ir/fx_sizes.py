"""From torch's symbolic sizes to ours: one table of symbols for one import.

What torch knows about a symbol lies in its ShapeEnv, under names that differ between torch
versions; everything that touches them stands at the end of this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from torch import fx

from rewright.ir.dims import Size, Symbol, from_sympy
from rewright.ir.errors import ImportFailure
from rewright.ir.types import OtherType, ScalarType, TensorType, Type

if TYPE_CHECKING:
    import sympy

Range: TypeAlias = tuple[int, int | None]

# Inclusive lower bound of an integer that may be anything.
LOWEST: Final = -(2**63)

# Expression classes, sympy's and torch's, that sizes are written in.
_SIZE_CLASSES: Final = frozenset(
    {"Add", "Mul", "Pow", "PowByNatural", "FloorDiv", "CleanDiv", "Mod", "PythonMod"}
    | {"ModularIndexing", "Max", "Min"}
)
# Integers made from a true division of integers.
_ROUNDED_DIVISIONS: Final = frozenset({"CeilToInt", "FloorToInt", "TruncToInt"})


class SizeTable:
    """Sizes and types in terms of B0, B1, ... (known at compile time) and u0, u1, ... (not).

    Symbols are numbered as they appear. `ranges` overrides what the ShapeEnv says about some, by
    torch's names; `known` gives those that have a symbol already, and may grow meanwhile. An
    integer that is no size expression (made by way of floats, say) becomes a symbol of its own,
    which the node that computes it defines.
    """

    def __init__(
        self,
        ranges: Mapping[str, Range] | None = None,
        known: Mapping[str, Symbol] | None = None,
    ) -> None:
        self._ranges = dict(ranges or {})
        self._known = {} if known is None else known
        self._symbols: dict[str, Symbol] = {}
        self._opaque: dict[sympy.Expr, sympy.Symbol] = {}
        self._sizes: dict[sympy.Expr, Size] = {}
        self._strides: dict[sympy.Expr, Size] = {}
        self._types: dict[object, TensorType] = {}
        self._counts = {"B": 0, "u": 0}

    def size(self, value: int | torch.SymInt) -> Size:
        if isinstance(value, int):
            return value
        node = value.node
        raw = getattr(node, "_expr", None)
        if node.is_nested_int():
            raise ImportFailure("a size of a nested (jagged) tensor has no form in the IR")
        if raw is None:
            return int(node.maybe_as_int())
        found = self._sizes.get(raw)
        if found is None:
            found = self._sizes[raw] = self._convert(node.expr, node.shape_env)
        return found

    def type(self, value: object) -> Type:
        """The type of a traced value."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value) if _is_dense(value) else OtherType("object")
        if isinstance(value, bool | torch.SymBool):
            return ScalarType("bool")
        if isinstance(value, torch.SymInt) and value.node.is_nested_int():
            return OtherType("object")
        if isinstance(value, int | torch.SymInt):
            return ScalarType("int", self.size(value))
        if isinstance(value, float | torch.SymFloat):
            return ScalarType("float")
        if isinstance(value, torch.Generator):
            return OtherType("generator")
        return OtherType("none" if value is None else "object")

    def _tensor(self, value: torch.Tensor) -> TensorType:
        shape = tuple([d if type(d) is int else self.size(d) for d in value.shape])
        strides = tuple([d if type(d) is int else self._stride(d) for d in value.stride()])
        key = (value.dtype, shape, strides, value.device)
        found = self._types.get(key)
        if found is None:
            found = self._types[key] = TensorType(*key)
        return found

    def _stride(self, value: int | torch.SymInt) -> Size:
        """Where a size may be zero, torch steps by `max(1, size)`; an empty tensor has no steps."""
        if isinstance(value, int):
            return value
        raw = getattr(value.node, "_expr", None)
        if raw is None or not raw.atoms(_max_class()):
            return self.size(value)
        found = self._strides.get(raw)
        if found is None:
            steps = value.node.expr.replace(_is_max_with_one, lambda m: m.args[1])
            found = self._strides[raw] = self._convert(steps, value.node.shape_env)
        return found

    def _convert(self, expr: sympy.Expr, env: Any) -> Size:
        if expr.is_Integer:
            return int(expr)
        written = expr.xreplace(dict(self._replacements(expr, env)))
        for symbol in sorted(written.free_symbols, key=lambda s: (len(s.name), s.name)):
            if symbol.name not in self._symbols:
                self._symbols[symbol.name] = self._declare(symbol, env)
        return from_sympy(written, self._symbols)

    def _replacements(self, expr: sympy.Expr, env: Any) -> Iterator[tuple[sympy.Expr, sympy.Expr]]:
        """The outermost parts of `expr` that are no size expressions, and what stands for them."""
        if expr.is_Symbol or expr.is_Integer:
            return
        if type(expr).__name__ in _SIZE_CLASSES:
            for arg in expr.args:
                yield from self._replacements(arg, env)
            return
        quotient = _rounded_division(expr)
        if quotient is None:
            yield expr, self._opaque_symbol(expr, env)
        else:
            inner = dict(self._replacements(quotient, env))
            yield expr, quotient.xreplace(inner)

    def _opaque_symbol(self, expr: sympy.Expr, env: Any) -> sympy.Symbol:
        import sympy

        found = self._opaque.get(expr)
        if found is None:
            found = sympy.Symbol(f"opaque{len(self._opaque)}", integer=True)
            self._opaque[expr] = found
            low, high = range_of(expr, env)
            # Without a hint, though torch has one: no plan made before the run may count on it.
            self._symbols[found.name] = Symbol(self._next("u"), None, low, high)
        return found

    def _declare(self, symbol: sympy.Symbol, env: Any) -> Symbol:
        if symbol.name in self._known:
            return self._known[symbol.name]
        seen = value_of(symbol, env)
        unseen = seen is None and symbol.name.startswith("u")
        low, high = self._ranges.get(symbol.name) or range_of(symbol, env)
        name = self._next("u" if unseen else "B")
        return Symbol(name, seen, low, high, divisor_of(symbol, env))

    def _next(self, letter: str) -> str:
        number = self._counts[letter]
        self._counts[letter] += 1
        return f"{letter}{number}"


@cache
def _max_class() -> type:
    from torch.utils._sympy.functions import Max

    return Max


def _is_max_with_one(expr: sympy.Expr) -> bool:
    return expr.func is _max_class() and len(expr.args) == 2 and bool(expr.args[0] == 1)


def _is_dense(value: torch.Tensor) -> bool:
    return value.layout is torch.strided and not value.is_nested


def _rounded_division(expr: sympy.Expr) -> sympy.Expr | None:
    """`ceil(a / b)`, `floor(a / b)` and, for what is not negative, `trunc(a / b)` by `//`."""
    from torch.utils._sympy.functions import FloorDiv

    kind = type(expr).__name__
    if kind not in _ROUNDED_DIVISIONS or type(expr.args[0]).__name__ != "IntTrueDiv":
        return None
    a, b = expr.args[0].args
    if kind == "CeilToInt" and b.is_Integer and b > 0:
        return FloorDiv(a + b - 1, b)
    if kind == "FloorToInt" or (a.is_nonnegative and b.is_nonnegative):
        return FloorDiv(a, b)
    return None


# --- torch's ShapeEnv, versions 2.11 to 2.15 ------------------------------------------------------


def value_of(expr: sympy.Expr, env: Any) -> int | None:
    """What `expr` is for the sizes seen at compile time; None when some were not seen."""
    values = getattr(env, "backed_var_to_val", None)
    if values is None:
        values = env.var_to_val
    value = expr.xreplace({s: values[s] for s in expr.free_symbols if s in values})
    return int(value) if value.is_number and value.is_finite else None


def range_of(expr: sympy.Expr, env: Any) -> Range:
    """Inclusive bounds that follow from what torch guards."""
    found = env.bound_sympy(expr)
    low = int(found.lower) if found.lower.is_Integer else LOWEST
    return (low, int(found.upper) if found.upper.is_Integer else None)


def divisor_of(symbol: sympy.Symbol, env: Any) -> int:
    """The largest integer that torch guards to divide the symbol."""
    import math

    facts = (f for f in getattr(env, "divisible", ()) if f.args[0] == symbol)
    return math.lcm(*(int(f.args[1]) for f in facts if f.args[1].is_Integer))


def forget_derived_ranges(gm: fx.GraphModule) -> None:
    """Ranges of expressions, which a loaded program has and torch's own passes stumble over."""
    values = (node.meta.get("val") for node in gm.graph.nodes)
    traced = next((v for v in values if isinstance(v, torch.Tensor)), None)
    env = getattr(getattr(traced, "fake_mode", None), "shape_env", None)
    if env is not None:
        for expr in [expr for expr in env.var_to_range if not expr.is_Symbol]:
            del env.var_to_range[expr]


def symbolic_int(symbol: Symbol, env: Any) -> torch.SymInt:
    """A fresh SymInt of `env` about which torch knows what `symbol` says."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    if symbol.hint is None or symbol.name.startswith("u"):
        unbacked: torch.SymInt = env.create_unbacked_symint()
        env.constrain_symbol_range(
            unbacked.node.expr, compiler_min=symbol.low, compiler_max=_upper(symbol)
        )
        return unbacked
    source = ConstantSource(symbol.name)
    made = env.create_unspecified_symbol(symbol.hint, source, dynamic_dim=DimDynamic.DYNAMIC)
    env.constrain_symbol_range(made, compiler_min=symbol.low, compiler_max=_upper(symbol))
    sized: torch.SymInt = env.create_symintnode(made, hint=symbol.hint, source=source)
    if symbol.divisor > 1:
        torch._check(sized % symbol.divisor == 0)
    return sized


def _upper(symbol: Symbol) -> Any:
    from torch.utils._sympy.numbers import int_oo

    return int_oo if symbol.high is None else symbol.high
