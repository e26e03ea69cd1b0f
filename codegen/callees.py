"""Whom a call sequence calls, and under which names."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from rewright.codegen.runtime import KEPT_BYTES
from rewright.ir import (
    Graph,
    Node,
    TensorType,
    fresh_names,
    op_of_target,
    out_variant,
    shares_input_storage,
)
from rewright.ir.hop_args import decode


def operator_names(graph: Graph) -> dict[str, str]:
    """What each operator that is called is called in the source."""
    fresh = fresh_names(())
    called = sorted(set(_called(graph)))
    stems = (re.sub(r"\W", "_", name.removesuffix(".default")) for name in called)
    return {name: fresh(stem) for name, stem in zip(called, stems, strict=True)}


def function_names(graph: Graph) -> dict[tuple[int, str], str]:
    """Functions that run nested graphs which are no kernels, by node and graph."""
    fresh = fresh_names(())
    return {
        (id(node), name): fresh(re.sub(r"\W", "_", f"run_{name}"))
        for node in graph.nodes
        if node.op.namespace == "hop" or node.op.name == "rw.frozen"
        for name, _ in node.graphs
    }


def callee(node: Node) -> str:
    """The operator that runs a node: its own, or the one that writes into a buffer."""
    writes = node.kwarg("out") is not None or fills_large(node)
    overload = out_variant(node.op) if writes else None
    return node.op.name if overload is None else op_of_target(overload).name


def fills_large(node: Node) -> bool:
    """True for a result of its own that is so large that we allocate it, on large pages."""
    if len(node.results) != 1 or not isinstance(node.result.type, TensorType):
        return False
    type = node.result.type
    is_large = type.device.type == "cpu" and type.nbytes_hint > KEPT_BYTES
    return is_large and not shares_input_storage(node) and out_variant(node.op) is not None


def _called(graph: Graph) -> Iterator[str]:
    """Every operator that the source names."""
    for node in graph.nodes:
        if node.op.namespace == "rw":
            continue
        yield callee(node)
        if node.op.namespace == "hop":
            args, kwargs = decode(node, lambda _: None, {name: None for name, _ in node.graphs})
            yield from (op_of_target(a).name for a in _operators_in((args, *kwargs.values())))


def _operators_in(arg: object) -> Iterator[object]:
    if isinstance(arg, (tuple, dict)):
        for item in arg.values() if isinstance(arg, dict) else arg:
            yield from _operators_in(item)
    elif isinstance(arg, torch._ops.OperatorBase):
        yield arg
