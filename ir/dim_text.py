"""How a dimension prints and reads: sums, products, `//`, `%`, `max()`, `min()`, and names."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rewright.ir.errors import TextError, did_you_mean

if TYPE_CHECKING:
    import sympy

    from rewright.ir.dims import Size


def show_expr(expr: sympy.Expr) -> str:
    """Canonical text of a size expression: deterministic, and `parse_size` reads it back."""
    return _show(expr, 0)


def _wrap(text: str, inner: int, outer: int) -> str:
    return f"({text})" if inner < outer else text


def _show(expr: sympy.Expr, outer: int) -> str:
    if expr.is_Integer:
        return _wrap(str(int(expr)), 1 if expr < 0 else 9, outer)
    if expr.is_Symbol:
        return str(expr.name)
    kind = type(expr).__name__
    if kind == "Add":
        return _wrap(_show_sum(expr), 1, outer)
    if kind == "Mul":
        return _wrap("*".join(_show(a, 3) for a in _factors(expr)), 2, outer)
    if kind in ("FloorDiv", "CleanDiv"):
        return _wrap(f"{_show(expr.args[0], 2)}//{_show(expr.args[1], 3)}", 2, outer)
    if kind in ("Mod", "PythonMod"):
        return _wrap(f"{_show(expr.args[0], 2)}%{_show(expr.args[1], 3)}", 2, outer)
    if kind == "ModularIndexing":
        base, div, mod = expr.args
        return _wrap(f"{_show(base, 2)}//{_show(div, 3)}%{_show(mod, 3)}", 2, outer)
    if kind in ("Pow", "PowByNatural"):
        return f"{_show(expr.args[0], 4)}**{_show(expr.args[1], 4)}"
    if kind in ("Max", "Min"):
        return f"{kind.lower()}({', '.join(sorted(_show(a, 0) for a in expr.args))})"
    if kind == "CeilDiv":
        return _wrap(f"-(-({_show(expr.args[0], 0)})//{_show(expr.args[1], 3)})", 1, outer)
    raise TextError(f"a size of kind {kind} has no text form: {expr}")


def _factors(expr: sympy.Expr) -> list[sympy.Expr]:
    """Numbers first, then by text, so that the order never depends on creation."""
    return sorted(expr.args, key=lambda a: (not a.is_Integer, _show(a, 0)))


def _show_sum(expr: sympy.Expr) -> str:
    terms = sorted(expr.args, key=lambda a: (bool(a.is_Integer), _leads_negative(a), _show(a, 0)))
    text = _show(terms[0], 2)
    for term in terms[1:]:
        if _leads_negative(term):
            text += f" - {_show(-term, 2)}"
        else:
            text += f" + {_show(term, 2)}"
    return text


def _leads_negative(expr: sympy.Expr) -> bool:
    return bool(expr.as_coeff_Mul()[0] < 0)


def parse_size(text: str, names: Mapping[str, Size]) -> Size:
    """Read a size; `names` gives the meaning of each symbol. Raises `TextError`."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise TextError(f"'{text}' is not a size expression") from error
    return _build(tree, names, text)


_OPERATORS = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.FloorDiv: "floordiv",
    ast.Mod: "mod",
    ast.Pow: "pow",
}


def _build(tree: ast.expr, names: Mapping[str, Size], text: str) -> Size:
    from rewright.ir.dims import make

    match tree:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.Name(id=name):
            raise TextError(f"unknown symbol '{name}' in '{text}'{did_you_mean(name, names)}")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return make("mul", -1, _build(operand, names, text))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            kind = _OPERATORS[type(op)]
            return make(kind, _build(left, names, text), _build(right, names, text))
        case ast.Call(func=ast.Name(id="max" | "min" as kind), args=args):
            return make(kind, *(_build(a, names, text) for a in args))
    raise TextError(f"'{text}' is not a size expression")
