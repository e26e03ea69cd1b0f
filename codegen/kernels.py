"""The kernels of a graph: each distinct region once, under a name that says what it does."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from rewright.ir import Graph, Kind, Node, graph_key
from rewright.ir.loops import (
    AnyNest,
    lower,
    lower_attention,
    lower_attention_backward,
    lower_convolution,
    lower_quantized,
)

# Operators of a region that its kernel's name spells out.
NAMED_OPS = 4


@dataclass(frozen=True)
class Kernels:
    """`nests` in order of first use; `of_node` gives the kernel of each region by node name."""

    nests: tuple[AnyNest, ...]
    of_node: Mapping[str, str]


def kernels_of(graph: Graph) -> Kernels:
    """Lower every region of a fused- or kernel-level graph; equal regions share a kernel.

    Raises UnsupportedError when a region has no loop nest, which the fuse pass rules out.
    """
    nests: dict[Hashable, AnyNest] = {}
    of_node: dict[str, str] = {}
    for node in graph.nodes:
        if node.op.kind is not Kind.REGION:
            continue
        body, fast = node.graph("body"), is_fast(node)
        key = (node.op.name, graph_key(body), fast)
        if key not in nests:
            nests[key] = lower_region(node, f"k{len(nests)}_{_what_it_does(node)}")
        of_node[node.name] = nests[key].name
    return Kernels(tuple(nests.values()), of_node)


def lower_region(region: Node, name: str) -> AnyNest:
    """What the kernel of a region computes. Raises UnsupportedError."""
    if region.op.name == "rw.attention":
        return lower_attention(region.graph("body"), name)
    if region.op.name == "rw.attention_backward":
        return lower_attention_backward(region.graph("body"), name)
    if region.op.name == "rw.convolution":
        return lower_convolution(region.graph("body"), name)
    if region.op.name == "rw.quantized_linear":
        return lower_quantized(region, name)
    return lower(region.graph("body"), name, fast=is_fast(region))


def is_fast(region: Node) -> bool:
    """True for a region whose nodes need not be rounded one by one (`fuse{numerics="fast"}`)."""
    return region.kwarg("numerics") == "fast"


def _what_it_does(node: Node) -> str:
    """The first few operators of the region that move or change data."""
    if node.op.name != "rw.fused":
        return node.op.name.removeprefix("rw.")
    words = [
        n.op.name.split(".")[1].strip("_")
        for n in node.graph("body").nodes
        if n.op.kind is not Kind.VIEW
    ]
    short = list(dict.fromkeys(words))[-NAMED_OPS:]
    return "_".join(short) or "view"
