"""How the arguments of higher-order operators are written: they also take graphs, operators, dicts.

A graph is the string "@name" of one of the node's graphs, an operator "@aten.mul.Tensor", a dict
("@dict", (key, value), ...). Two more keywords say what a list of results does not:
`_returns`, when what the operator returns is no plain list of values: its structure, with "one" for
a value; `_bare`, the names of nested graphs that return a value and not a tuple of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

import torch

from rewright.ir.graph import Arg, Node
from rewright.ir.ops import Effect, op, op_of_target

# Keys to follow, from what an operator returns to one result.
Path: TypeAlias = tuple[int | str, ...]

RETURNS: Final = "_returns"
BARE: Final = "_bare"
_ONE: Final = "one"
_DICT: Final = "@dict"


def graph_reference(name: str) -> str:
    return f"@{name}"


def operator_reference(target: torch._ops.OpOverload | torch._ops.HigherOrderOperator) -> str:
    return f"@{op_of_target(target).name}"


def dict_argument(items: Mapping[str, Arg]) -> Arg:
    return (_DICT, *items.items())


def returns_keyword(value: object) -> dict[str, Arg]:
    """The keyword that describes a traced result, and none for a plain list."""
    structure = _structure(value)
    plain = isinstance(structure, tuple) and all(item == _ONE for item in structure)
    return {} if plain else {RETURNS: structure}


def bare_graphs(node: Node) -> frozenset[str]:
    """The nested graphs that must return a value and not a tuple of one."""
    names = node.kwarg(BARE, ())
    return frozenset(str(name) for name in names) if isinstance(names, tuple) else frozenset()


def draws(node: Node) -> bool:
    """True when the node calls an operator that draws random numbers."""
    called = (op(a[1:]) for a in node.args if isinstance(a, str) and a.startswith("@aten."))
    return any(o.effect is Effect.RNG for o in called)


def decode(
    node: Node, change: Callable[[Arg], object], graphs: Mapping[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """The arguments to call a higher-order operator with.

    `change` gives what stands for a leaf, `graphs` what stands for a nested graph.
    """

    def value(arg: Arg) -> object:
        if isinstance(arg, str) and arg.startswith("@"):
            return graphs[arg[1:]] if arg[1:] in graphs else op(arg[1:]).target
        if not isinstance(arg, tuple):
            return change(arg)
        if arg[:1] == (_DICT,):
            return {pair[0]: value(pair[1]) for pair in arg[1:] if isinstance(pair, tuple)}
        return tuple(value(item) for item in arg)

    kwargs = {name: value(arg) for name, arg in node.kwargs if name not in (RETURNS, BARE)}
    return tuple(value(arg) for arg in node.args), kwargs


def paths(node: Node) -> Iterator[Path]:
    """Where each result of the node lies in what the operator returns."""
    structure = node.kwarg(RETURNS)
    if structure is None:
        structure = (_ONE,) * len(node.results)
    return _paths(structure, ())


def _structure(value: object) -> Arg:
    if isinstance(value, dict):
        return (_DICT, *((str(key), _structure(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return tuple(_structure(item) for item in value)
    return _ONE


def _paths(structure: Arg, here: Path) -> Iterator[Path]:
    if not isinstance(structure, tuple):
        yield here
    elif structure[:1] == (_DICT,):
        for pair in structure[1:]:
            if isinstance(pair, tuple):
                yield from _paths(pair[1], (*here, str(pair[0])))
    else:
        for index, item in enumerate(structure):
            yield from _paths(item, (*here, index))
