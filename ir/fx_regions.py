"""Regions in torch.fx: calls of one torch operator, `rewright::region`, whose text says what it is.

They are for graphs that come back from fx soon, as the joint graph of a training step does, which
torch parts; elsewhere regions are inlined.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from rewright.ir.alone import alone, resized
from rewright.ir.dim_fold import fold
from rewright.ir.dims import Dim, Size, hint, substitute
from rewright.ir.graph import Graph, Node, Value
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.show import show
from rewright.ir.work import flops

_library = torch.library.Library("rewright", "FRAGMENT")
_library.define("region(str text, Tensor[] operands, SymInt[] sizes) -> Tensor[]")
REGION = torch.ops.rewright.region.default


@cache
def _parsed(text: str) -> Graph:
    return parse(text)


def told(region: Node) -> tuple[str, tuple[Size, ...]]:
    """What `REGION` is told about a region, and what its symbols are."""
    graph = alone(region)
    return show(graph), tuple(map(Dim.of, graph.symbols))


def region_of(text: str, operands: Sequence[Value], sizes: Sequence[object]) -> Node:
    """The region of a text, on operands, where its symbols are these sizes."""
    graph = _parsed(text)
    (call,) = graph.nodes
    pairs = zip(graph.symbols, sizes, strict=True)
    known = {s.name: size for s, size in pairs if isinstance(size, int | Dim)}
    sized = resized(call, lambda size: substitute(size, known) if isinstance(size, Dim) else size)
    given = {i.value.name: v for i, v in zip(graph.inputs, operands, strict=True)}
    return sized.replace({v: given[v.name] for v in sized.operands})


def _run(text: str, operands: list[Tensor], sizes: list[int]) -> list[Tensor]:
    return list(interpret(_parsed(text), operands))


def _traced(text: str, operands: list[Tensor], sizes: list[Any]) -> list[Tensor]:
    """Results of the right types, for tracing."""
    graph = _parsed(text)
    known = {s.name: size for s, size in zip(graph.symbols, sizes, strict=True)}

    def size(of: Size) -> Any:
        if isinstance(of, int):
            return of
        return fold(of, known.__getitem__, lambda function, operands: function(*operands))

    made = []
    for value in graph.nodes[0].results:
        type = value.tensor
        shape, strides = ([size(s) for s in sizes] for sizes in (type.shape, type.layout))
        made.append(torch.empty_strided(shape, strides, dtype=type.dtype, device=type.device))
    return made


_library.impl("region", _run, "CompositeExplicitAutograd")
torch.library.register_fake("rewright::region", _traced, lib=_library)


@register_flop_formula(torch.ops.rewright.region)
def _operations(text: str, *_: object, **__: object) -> int:
    """What torch's partitioner takes a region to cost."""
    return hint(flops(_parsed(text).nodes[0]))
