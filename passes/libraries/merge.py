"""Products that read the same matrix, as one product on frozen weights side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Final

from rewright.costmodel import Tools, show_seconds
from rewright.ir import (
    CheckError,
    Effect,
    Graph,
    Input,
    Kind,
    Node,
    TensorType,
    Type,
    UnsupportedError,
    Value,
    effect_of,
    fresh_names,
    hint,
    op,
)
from rewright.ir.infer import can_infer, infer
from rewright.ir.loops import needed_nodes
from rewright.ir.onednn import LINEAR, PACK_LINEAR, PLAIN, is_available
from rewright.passes.base import Env, Pass
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.epilogues import followed
from rewright.passes.libraries.freeze import frozen_values, split_frozen
from rewright.passes.libraries.products import (
    LEAST_WORK,
    Product,
    factors,
    product_of,
    torchs_call,
    turned,
)
from rewright.passes.libraries.scales import take_in

# How a product is computed: where the call goes, the left factor, the right one, the bias.
Way = Callable[[Emitter, Value, Value, Value | None], Value]
# What one product must save to be worth a copy of its weights.
MARGIN: Final = 0.01
# What gives the same type however its operands lie, and reads them where they lie.
_LAID_AS_BEFORE: Final = (
    "rw.attention",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
)


@dataclass(frozen=True)
class MergeProducts(Pass, name="merge-products", takes="aten", gives="aten"):
    """Multiply a matrix that several products read by their frozen weights side by side, in one
    product, where that is quicker; each reader gets its columns of the result, as a view.

    before:
        graph f(%x: f32[128, 64], %v: f32[64, 96] param, %w: f32[64, 160] param) {
          %a = aten.mm.default(%x, %v) : f32[128, 96]
          %b = aten.mm.default(%x, %w) : f32[128, 160]
          %c = aten.exp.default(%a) : f32[128, 96]
          %d = aten.neg.default(%b) : f32[128, 160]
          return %c, %d
        }
    after:
        graph f(%x: f32[128, 64], %v: f32[64, 96] param, %w: f32[64, 160] param) {
          %a_1 = aten.cat.default([%v, %w], 1) : f32[64, 256]
          %a_2 = aten.mm.default(%x, %a_1) : f32[128, 256]
          %a = aten.slice.Tensor(%a_2, 1, 0, 96) : f32[128, 96] strides [256, 1]
          %b = aten.slice.Tensor(%a_2, 1, 96, 256) : f32[128, 160] strides [256, 1]
          %c = aten.exp.default(%a) : f32[128, 96]
          %d = aten.neg.default(%b) : f32[128, 160]
          return %c, %d
        }

    `freeze`, which follows, computes the weights once.

    Refuses: products that leave the graph; functions that oneDNN could apply instead; readers that
    need a matrix without gaps; where nothing can be measured.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        if env.tools is None:
            return graph
        raced = cache(partial(_race, tools=env.tools))  # equal layers ask once
        # What `freeze` would take into weights goes first: it is not looked for behind slices.
        merged = scaled = take_in(graph, frozen_values(graph))
        renamed: dict[str, tuple[str, ...]] = {}
        for group in _groups(scaled):
            names = tuple(node.name for node in group)
            why = _obstacle(group, scaled)
            if why is None:
                why = _slower(raced(tuple(p for n in group if (p := product_of(n)))))
            made = why if why is not None else _merged(merged, names)
            if isinstance(made, str):
                env.log.refuse(self.name, names[0], made)
            else:
                merged = made
                renamed |= {name: (name,) for name in names}
        return graph if merged is scaled else self.gave(merged, renamed)


def _groups(graph: Graph) -> list[list[Node]]:
    """Products of one left factor on frozen weights that lie alike, with biases or without."""
    frozen = frozen_values(graph)
    found: dict[tuple[object, ...], list[Node]] = {}
    for node in graph.nodes:
        product = product_of(node)
        if product is None:
            continue
        left, right, bias = factors(node)
        assert isinstance(right, Value)
        columns = right.tensor.shape[1]
        if left in frozen or right not in frozen or not isinstance(columns, int):
            continue
        if bias is not None and not _is_frozen_row(bias, columns, frozen):
            continue
        found.setdefault((left, product.right_transposed, bias is None), []).append(node)
    return [group for group in found.values() if len(group) > 1]


def _is_frozen_row(bias: object, columns: int, frozen: set[Value]) -> bool:
    return isinstance(bias, Value) and bias in frozen and bias.tensor.shape == (columns,)


# --- may I --------------------------------------------------------------------------------------


def _obstacle(group: Sequence[Node], graph: Graph) -> str | None:
    """Why products had better stay apart, whatever they take."""
    for node in group:
        found = followed(node, graph)
        if found is not None and not _is_read_in_kernels(found[0].result, graph):
            return f"oneDNN can apply the function that follows %{node.name}"
    return None


def _is_read_in_kernels(value: Value, graph: Graph) -> bool:
    """True for what only elementwise functions read, as a gate: their kernel computes it too."""
    readers = graph.readers.get(value, ())
    return value not in graph.returned and all(r.op.kind is Kind.POINTWISE for r in readers)


# --- should I -----------------------------------------------------------------------------------


def _race(products: Sequence[Product], tools: Tools) -> tuple[float, float] | None:
    """Seconds of products one by one and of all in one, each in the quickest of its ways; of a part
    of large ones."""
    whole = replace(products[0], n=sum(p.n for p in products))
    if whole.work < LEAST_WORK:
        return None
    cut = whole.cut()
    parts = [replace(cut, n=max(1, p.n * cut.n // whole.n)) for p in products]
    joined = [replace(cut, n=sum(p.n for p in parts))]
    ways = (_torchs, _onednns, _onednns_packed) if is_available() else (_torchs,)
    found = tools.race([_calls(each, way) for each in (parts, joined) for way in ways])
    if found is None:
        return None
    return min(found[: len(ways)]), min(found[len(ways) :])


def _slower(found: tuple[float, float] | None) -> str | None:
    if found is None:
        return "too small, or nothing can be measured"
    apart, joined = found
    if joined < (1 - MARGIN) * apart:
        return None
    return f"in one they take {show_seconds(joined)}, apart {show_seconds(apart)}"


def _calls(products: Sequence[Product], way: Way) -> Graph:
    """Products of one left factor and parameters, each in a call."""
    first = products[0]
    typed = partial(TensorType, first.dtype)
    turns = (1, first.m) if first.left_transposed else None
    left = Value("a", typed((first.m, first.k), turns))
    inputs = [Input(left)]
    result = Value("y", left.type)
    emit = Emitter(fresh_names(("a",)), Node(op("aten.mm.default"), (), (), (result,)))
    results = []
    for place, product in enumerate(products):
        strides = (1, product.k) if product.right_transposed else None
        right = Value(f"w{place}", typed((product.k, product.n), strides))
        bias = Value(f"b{place}", typed((product.n,))) if product.bias else None
        inputs += [Input(v, "param") for v in (right, bias) if v is not None]
        results.append(way(emit, left, right, bias))
    return split_frozen(Graph("calls", tuple(inputs), tuple(emit.nodes), tuple(results)))


def _torchs(emit: Emitter, left: Value, right: Value, bias: Value | None) -> Value:
    return emit.call(*torchs_call(left, right, bias), {})[0]


def _onednns(emit: Emitter, left: Value, right: Value, bias: Value | None) -> Value:
    return emit(LINEAR, left, emit("aten.permute.default", right, (1, 0)), bias, *PLAIN)


def _onednns_packed(emit: Emitter, left: Value, right: Value, bias: Value | None) -> Value:
    weight = emit("aten.permute.default", right, (1, 0))
    packed = emit(PACK_LINEAR, weight, left.tensor.shape[0])
    return emit(LINEAR, left, packed, bias, *PLAIN)


# --- do it --------------------------------------------------------------------------------------


def _merged(graph: Graph, names: Sequence[str]) -> Graph | str:
    """The graph with these products in one; or why what reads them does not let it."""
    group = [node for node in graph.nodes if node.name in names]
    emit = Emitter(fresh_names(v.name for v in graph.values), group[0])
    moved = _joined(group, graph, emit)
    # Weights that are made later on are made first.
    frozen = frozen_values(graph)
    known = [n for n in graph.nodes if n.op.name == "rw.constant" or frozen.issuperset(n.results)]
    read = [v for node in emit.nodes for v in node.operands]
    early = needed_nodes([n for n in known if n.results], read)
    placed = {n.name for n in early}
    nodes = [*early]
    for node in graph.nodes:
        if node.name == group[0].name:
            nodes += emit.nodes
        elif node.name not in names and node.name not in placed:
            changed = _follows(node, moved)
            if changed is None:
                odd = next(v for v in node.operands if v in moved)
                return f"{node.op} cannot read %{odd.name} in place"
            nodes.append(changed)
    leaving = next((v for v in graph.returned if v in moved), None)
    if leaving is not None:
        return f"%{leaving.name} leaves the graph"
    return graph.with_nodes(nodes)


def _joined(group: Sequence[Node], graph: Graph, emit: Emitter) -> dict[Value, Value]:
    """One product, and for each of the old results the columns that take its place."""
    left, _, bias = factors(group[0])
    rights = [factors(node)[1] for node in group]
    product = product_of(group[0])
    assert product is not None
    if product.right_transposed:
        rows = emit("aten.cat.default", tuple(turned(r, graph, emit) for r in rights), 0)
        weight = emit("aten.permute.default", rows, (1, 0))
    else:
        weight = emit("aten.cat.default", tuple(rights), 1)
    if bias is not None:
        bias = emit("aten.cat.default", tuple(factors(node)[2] for node in group), 0)
    (whole,) = emit.call(*torchs_call(left, weight, bias), {})
    moved: dict[Value, Value] = {}
    start = 0
    for node in group:
        stop = start + hint(node.result.tensor.shape[1])
        part = emit("aten.slice.Tensor", whole, 1, start, stop)
        moved[node.result] = dataclasses.replace(node.result, type=part.type)
        emit.end_in(moved[node.result])
        start = stop
    return moved


def _follows(node: Node, moved: dict[Value, Value]) -> Node | None:
    """A node on operands that lie otherwise, whose results may then too: `moved` is told. None for
    one that must have them as they were."""
    if not any(v in moved for v in node.operands):
        return node
    changed = _with_body(node.replace(moved), node)
    if changed is None or effect_of(node) is not Effect.NONE:
        return None
    if node.op.name in _LAID_AS_BEFORE:
        return changed
    types = _types(changed)
    if types is None:
        return None
    results = []
    for value, type in zip(node.results, types, strict=True):
        if type != value.type:
            moved[value] = dataclasses.replace(value, type=type)
        results.append(moved.get(value, value))
    return dataclasses.replace(changed, results=tuple(results))


def _types(node: Node) -> list[Type] | None:
    """Types of results that differ from the declared in strides only."""
    if node.graphs or not can_infer(node.op):
        return None
    try:
        found = list(infer(node))
    except (CheckError, UnsupportedError):
        return None
    same = map(_but_strides, found), (_but_strides(v.type) for v in node.results)
    return found if all(a == b for a, b in zip(*same, strict=True)) else None


def _but_strides(type: Type) -> Type:
    return replace(type, strides=None) if isinstance(type, TensorType) else type


def _with_body(changed: Node, node: Node) -> Node | None:
    """A region whose body takes operands as they lie now; None where its results would lie
    otherwise."""
    if not node.graphs:
        return changed
    if node.op.name not in _LAID_AS_BEFORE:
        return None
    body = node.graph("body")
    moved = {}
    for given, value in zip(body.inputs, changed.operands, strict=True):
        if given.value.type != value.type:
            moved[given.value] = dataclasses.replace(given.value, type=value.type)
    inputs = tuple(replace(i, value=moved.get(i.value, i.value)) for i in body.inputs)
    nodes = [_follows(inner, moved) for inner in body.nodes]
    if None in nodes or any(v in moved for v in body.returned):
        return None
    inside = replace(body, inputs=inputs, nodes=tuple(n for n in nodes if n is not None))
    return dataclasses.replace(changed, graphs=(("body", inside),))
