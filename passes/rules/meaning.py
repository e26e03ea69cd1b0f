"""Showing that two graphs are one function, by more than samples of it.

In this order: both are lowered to loops, and the loops are the same, for symbolic sizes too; the
loops differ, and sympy finds what they compute equal in real arithmetic; both are evaluated in
exact arithmetic on fractions, where two polynomials that agree at random points are one (Schwartz,
1980; Zippel, 1979).
"""

from __future__ import annotations

from random import Random
from typing import Final

from rewright.ir import Graph, UnsupportedError
from rewright.ir.loops import lower
from rewright.ir.loops.nest import Nest
from rewright.passes.rules.algebra import equal_algebra
from rewright.passes.rules.exact import equal_in_fractions
from rewright.passes.rules.loop_text import Normal

LOOPS: Final = "lowered to the same loops"
ALGEBRA: Final = "equal by sympy's algebra"
FRACTIONS: Final = "equal in exact fractions at random points"


def meaning(before: Graph, after: Graph) -> str | None:
    """How the two graphs were shown to be one function; None when nothing shows it."""
    first, second = _loops(before), _loops(after)
    if first is not None and second is not None:
        if Normal(first).text() == Normal(second).text():
            return LOOPS
        if equal_algebra(first, second):
            return ALGEBRA
    return FRACTIONS if equal_in_fractions(before, after, Random(0)) else None


def _loops(graph: Graph) -> Nest | None:
    try:
        return lower(graph, "kernel")
    except UnsupportedError:
        return None
