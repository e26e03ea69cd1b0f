"""Where a call shows the sizes it is made for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rewright.ir import Dim, Graph, ScalarType, Size, TensorType
from rewright.ir.bind import line


def input_sizes(graph: Graph) -> Mapping[str, str]:
    """For each symbol that the inputs decide, a Python expression over `args` that gives it.

    A size that stands alone comes before one like `2*B0 + 1`. Symbols come in the graph's order;
    those left out are known only while the graph runs.
    """
    found: dict[str, str] = {}
    for wanted_alone in (True, False):
        for size, text in _sizes(graph):
            if size.is_symbol == wanted_alone and len(size.symbols) == 1:
                _add(found, size, text)
    return {s.name: found[s.name] for s in graph.symbols if s.name in found}


def _add(found: dict[str, str], size: Dim, text: str) -> None:
    name = size.symbols[0].name
    if size.is_symbol:
        found.setdefault(name, text)
        return
    straight = line(size, name, {})
    if straight is not None:
        factor, rest = straight
        found.setdefault(name, f"({text} - {rest}) // {factor}")


def _sizes(graph: Graph) -> Iterator[tuple[Dim, str]]:
    """Symbolic sizes of the inputs with their expressions."""
    for place, input in enumerate(graph.inputs):
        type = input.value.type
        listed: list[tuple[Size | None, str]] = []
        if isinstance(type, ScalarType):
            listed = [(type.dim, f"int(args[{place}])")]
        elif isinstance(type, TensorType):
            listed = [(size, f"args[{place}].shape[{d}]") for d, size in enumerate(type.shape)]
        yield from ((size, text) for size, text in listed if isinstance(size, Dim))
