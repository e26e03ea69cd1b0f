"""Which values share memory: one answer, computed from view facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rewright.ir.effects import effects_of
from rewright.ir.graph import Graph, Node, Value
from rewright.ir.ops import Effect, Kind
from rewright.ir.types import OtherType, TensorType

# Operators that torch declares as views and that copy when strides or types leave no other way.
MAY_COPY: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("reshape.default", "reshape_as.default", "flatten.using_ints", "ravel.default"),
        *("contiguous.default", "to.dtype", "to.device", "to.other", "to.dtype_layout"),
        *("_autocast_to_full_precision.default", "_autocast_to_reduced_precision.default"),
        *("pin_memory.default", "coalesce.default", "resolve_conj.default", "resolve_neg.default"),
    )
)

# Those of them that go by what a type does not show.
_UNSEEN: Final = frozenset(
    f"aten.{name}.default" for name in ("pin_memory", "coalesce", "resolve_conj", "resolve_neg")
)


def shares_input_storage(node: Node) -> bool:
    """True when every result is certainly a window of the first operand's storage."""
    if node.op.kind is not Kind.VIEW or not node.operands:
        return False
    return node.op.name not in MAY_COPY or _is_in_place(node)


def may_share_input_storage(node: Node) -> bool:
    """True unless every result certainly has memory of its own."""
    if node.op.kind is not Kind.VIEW or not node.operands:
        return False
    return node.op.name not in MAY_COPY or not _is_copy(node)


def lasts(node: Node) -> bool:
    """True when what the node makes is there before the graph runs, and after."""
    return node.op.name in ("rw.constant", "rw.frozen")


def storage_roots(graph: Graph) -> Mapping[Value, Value]:
    """For every value the value that owns its storage (itself when it has its own).

    A result that may or may not be a copy counts with its operand, which therefore stays alive.
    """
    roots: dict[Value, Value] = {i.value: i.value for i in graph.inputs}
    for node in graph.nodes:
        for value, base in zip(node.results, _bases(node), strict=True):
            roots[value] = value if base is None else roots[base]
    return roots


def keeps_operands(node: Node) -> bool:
    """True when what the node was given is read after it returned: a sparse tensor holds on to its
    indices and values, and a collective goes on until somebody waits for it."""
    makes_object = any(value.type == OtherType("object") for value in node.results)
    return makes_object or Effect.COLLECTIVE in effects_of(node)


def _bases(node: Node) -> Sequence[Value | None]:
    """For every result the value, made before it, whose storage it may share."""
    if node.op.name == "hop.invoke_subgraph" and node.graphs:
        bases = _bases_of_region(node)
        return [bases.get(value) for value in node.results]
    base = node.operands[0] if may_share_input_storage(node) else None
    return (base,) * len(node.results)


def _bases_of_region(node: Node) -> Mapping[Value, Value]:
    """A nested region of a training step also returns what it was given, for its backward."""
    graph = node.graphs[0][1]
    inner = storage_roots(graph)
    given = zip(graph.inputs, node.args[2:], strict=False)
    owners = {i.value: arg for i, arg in given if isinstance(arg, Value)}
    bases: dict[Value, Value] = {}
    for value, output in zip(node.results, graph.outputs, strict=False):
        if isinstance(output, Value):
            owner = owners.setdefault(inner[output], value)
            if owner != value:
                bases[value] = owner
    return bases


def _is_in_place(node: Node) -> bool:
    """True when the operand already is what is asked for, but for its shape."""
    source, result = _types(node)
    if source is None or result is None or _asks_for_copy(node) or node.op.name in _UNSEEN:
        return False
    if source.dtype != result.dtype or source.device != result.device:
        return False
    return source == result or (source.is_contiguous and result.is_contiguous)


def _is_copy(node: Node) -> bool:
    source, result = _types(node)
    if source is None or result is None:
        return False
    return _asks_for_copy(node) or source.dtype != result.dtype or source.device != result.device


def _types(node: Node) -> tuple[TensorType | None, TensorType | None]:
    types = (node.operands[0].type, node.results[0].type)
    source, result = (t if isinstance(t, TensorType) else None for t in types)
    return source, result


def _asks_for_copy(node: Node) -> bool:
    return "copy" in node.op.argument_names and node.arg("copy") is True
