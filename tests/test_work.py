"""What running a node takes: operations and bytes, against counts by hand and torch's own."""

from __future__ import annotations

from textwrap import dedent

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rewright.ir import Dim, Graph, Node, Symbol, Value, evaluate, hint
from rewright.ir.parse import parse
from rewright.ir.work import bytes_read, bytes_written, flops, is_call


def graph_of(text: str) -> Graph:
    return parse(dedent(text))


def node_of(inputs: str, line: str) -> Node:
    """The last node of a graph of one line."""
    return parse(f"graph f({inputs}) {{\n{line}\nreturn\n}}").nodes[-1]


# --- arithmetic ---------------------------------------------------------------------------------

IMAGE = "%x: f32[2, 8, 10, 12]"
HEADS = "%q: f32[2, 4, 16, 8], %k: f32[2, 4, 20, 8], %v: f32[2, 4, 20, 32]"
MASKS = {"both": "[true, true, true]", "weight": "[false, true, false]"}

CONTRACTIONS: dict[str, tuple[str, str, int]] = {
    "mm": ("%x: f32[3, 5], %y: f32[5, 7]", "%a = aten.mm.default(%x, %y) : f32[3, 7]", 2 * 105),
    "bmm": (
        "%x: f32[4, 3, 5], %y: f32[4, 5, 7]",
        "%a = aten.bmm.default(%x, %y) : f32[4, 3, 7]",
        2 * 420,
    ),
    "addmm": (
        "%b: f32[7], %x: f32[3, 5], %y: f32[5, 7]",
        "%a = aten.addmm.default(%b, %x, %y) : f32[3, 7]",
        2 * 105 + 21,
    ),
    "baddbmm": (
        "%b: f32[4, 3, 7], %x: f32[4, 3, 5], %y: f32[4, 5, 7]",
        "%a = aten.baddbmm.default(%b, %x, %y) : f32[4, 3, 7]",
        2 * 420 + 84,
    ),
    "mv": ("%x: f32[3, 5], %y: f32[5]", "%a = aten.mv.default(%x, %y) : f32[3]", 30),
    "dot": ("%x: f32[5], %y: f32[5]", "%a = aten.dot.default(%x, %y) : f32[]", 10),
    "linear": (
        "%x: f32[2, 3, 5], %w: f32[7, 5], %b: f32[7]",
        "%a = aten.linear.default(%x, %w, %b) : f32[2, 3, 7]",
        2 * 6 * 35 + 42,
    ),
    "convolution": (
        f"{IMAGE}, %w: f32[6, 8, 3, 3], %b: f32[6]",
        "%a = aten.convolution.default(%x, %w, %b, [1, 1], [1, 1], [1, 1], false, [0, 0], 1)"
        " : f32[2, 6, 10, 12]",
        2 * (2 * 6 * 120) * (8 * 9) + 2 * 6 * 120,
    ),
    "grouped convolution": (
        f"{IMAGE}, %w: f32[8, 1, 3, 3]",
        "%a = aten.convolution.default(%x, %w, none, [2, 2], [1, 1], [1, 1], false, [0, 0], 8)"
        " : f32[2, 8, 5, 6]",
        2 * (2 * 8 * 30) * 9,
    ),
    "transposed convolution": (
        f"{IMAGE}, %w: f32[8, 6, 2, 2]",
        "%a = aten.convolution.default(%x, %w, none, [2, 2], [0, 0], [1, 1], true, [0, 0], 1)"
        " : f32[2, 6, 20, 24]",
        2 * (2 * 8 * 120) * (6 * 4),
    ),
    **{
        f"convolution backward, {name}": (
            f"%g: f32[2, 6, 10, 12], {IMAGE}, %w: f32[6, 8, 3, 3]",
            "%a, %b, %c = aten.convolution_backward.default(%g, %x, %w, [6], [1, 1], [1, 1], "
            f"[1, 1], false, [0, 0], 1, {mask}) : f32[2, 8, 10, 12], f32[6, 8, 3, 3], f32[6]",
            {"both": 2, "weight": 1}[name] * 2 * (2 * 6 * 120) * (8 * 9)
            + {"both": 2 * 6 * 120, "weight": 0}[name],
        )
        for name, mask in MASKS.items()
    },
}


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_contractions_count_two_operations_a_multiply_add(name: str) -> None:
    inputs, line, expected = CONTRACTIONS[name]
    assert flops(node_of(inputs, line)) == expected


@pytest.mark.parametrize("name", [n for n in CONTRACTIONS if n not in ("dot", "mv", "linear")])
def test_contractions_agree_with_torchs_own_count(name: str) -> None:
    """torch leaves out additions of biases."""
    inputs, line, _ = CONTRACTIONS[name]
    node = node_of(inputs, line)

    def meta(arg: object) -> object:
        if isinstance(arg, Value):
            return torch.empty([hint(s) for s in arg.tensor.shape], device="meta")
        return [meta(a) for a in arg] if isinstance(arg, tuple) else arg

    with FlopCounterMode(display=False) as counter:
        assert node.op.target is not None
        node.op.target(*map(meta, node.args))
    biased = max(hint(v.tensor.numel) for v in (*node.operands, *node.results))
    assert 0 <= hint(flops(node)) - counter.get_total_flops() <= biased


def attention(arguments: str) -> Node:
    return node_of(
        HEADS,
        f"%o, %l = aten._scaled_dot_product_flash_attention_for_cpu.default(%q, %k, %v{arguments})"
        " : f32[2, 4, 16, 32], f32[2, 4, 16]",
    )


def test_attention_counts_both_products_and_the_softmax_between() -> None:
    scores = 2 * 4 * 16 * 20
    assert flops(attention("")) == scores * (2 * 8 + 2 * 32 + 12)


def test_causal_attention_counts_half() -> None:
    assert flops(attention(", 0.0, true")) == hint(flops(attention(""))) // 2


def test_attention_backward_counts_five_products() -> None:
    node = node_of(
        f"%g: f32[2, 4, 16, 32], {HEADS}, %o: f32[2, 4, 16, 32], %l: f32[2, 4, 16]",
        "%a, %b, %c = aten._scaled_dot_product_flash_attention_for_cpu_backward.default("
        "%g, %q, %k, %v, %o, %l, 0.0, false)"
        " : f32[2, 4, 16, 8], f32[2, 4, 20, 8], f32[2, 4, 20, 32]",
    )
    assert flops(node) == (2 * 4 * 16 * 20) * (3 * 2 * 8 + 2 * 2 * 32 + 12)


@pytest.mark.parametrize(
    ("line", "each"),
    [
        ("%a = aten.add.Tensor(%x, 1.0) : f32[6]", 1),
        ("%a = aten.add.Tensor(%x, %x, alpha=3) : f32[6]", 2),
        ("%a = aten.exp.default(%x) : f32[6]", 8),
        ("%a = aten._to_copy.default(%x, dtype=f16) : f16[6]", 0),
        ("%a = aten.sum.default(%x) : f32[]", 1),
        ("%a = aten._softmax.default(%x, 0, false) : f32[6]", 12),
        ("%a = aten.view.default(%x, [2, 3]) : f32[2, 3]", 0),
        ("%a = aten.full.default([6], 1.0) : f32[6]", 0),
        ("%a = aten.flip.default(%x, [0]) : f32[6]", 0),
        ("%a = rw.constant(data=[1.0]) : f32[1]", 0),
        ("%a, %b = aten.sort.default(%x) : f32[6], i64[6]", 1),
        ("%a = py.add(1, 2) : int", 0),
    ],
)
def test_elements_cost_what_their_formula_holds(line: str, each: int) -> None:
    assert flops(node_of("%x: f32[6]", line)) == 6 * each


def test_costlier_formulas_count_more() -> None:
    counts = [
        hint(flops(node_of("%x: f32[6]", f"%a = aten.{name}.default(%x) : f32[6]")))
        for name in ("relu", "exp", "sigmoid", "tanh", "lgamma")
    ]
    assert counts == sorted(set(counts))


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "line", "read", "written"),
    [
        ("%x: f32[4, 8]", "%a = aten.relu.default(%x) : f32[4, 8]", 128, 128),
        ("%x: f32[4, 8]", "%a = aten.mul.Tensor(%x, %x) : f32[4, 8]", 128, 128),
        ("%x: f16[4, 8]", "%a = aten._to_copy.default(%x, dtype=f32) : f32[4, 8]", 64, 128),
        ("%x: f32[4, 8] strides [0, 1]", "%a = aten.relu.default(%x) : f32[4, 8]", 32, 128),
        ("%x: f32[4, 8]", "%a = aten.t.default(%x) : f32[8, 4] strides [1, 8]", 0, 0),
        ("%x: f32[0, 8]", "%a = aten.relu.default(%x) : f32[0, 8]", 0, 0),
        (
            "%t: f32[1000, 8], %i: i64[3]",
            "%a = aten.embedding.default(%t, %i) : f32[3, 8]",
            3 * 8 * 4 + 3 * 8,
            3 * 8 * 4,
        ),
        (
            "%t: f32[2, 8], %i: i64[100]",
            "%a = aten.embedding.default(%t, %i) : f32[100, 8]",
            2 * 8 * 4 + 100 * 8,
            100 * 8 * 4,
        ),
        ("%n: int", "%a = aten.full.default([4], %n) : i64[4]", 0, 32),
    ],
)
def test_bytes_are_those_of_distinct_elements(
    inputs: str, line: str, read: int, written: int
) -> None:
    node = node_of(inputs, line)
    assert bytes_read(node) == read
    assert bytes_written(node) == written


def test_a_region_moves_its_operands_and_results_only() -> None:
    node = node_of(
        "%x: f32[64], %y: f32[64]",
        """%c = rw.fused(%x, %y) body(%x: f32[64], %y: f32[64]) {
          %a = aten.exp.default(%x) : f32[64]
          %b = aten.mul.Tensor(%a, %y) : f32[64]
          %c = aten.mul.Tensor(%b, %x) : f32[64]
          return %c
        } : f32[64]""",
    )
    assert (flops(node), bytes_read(node), bytes_written(node)) == (64 * 10, 512, 256)


def test_a_region_reads_what_its_views_show() -> None:
    """Of the first input a column, of the second a broadcast row, of the third all, twice."""
    node = node_of(
        "%x: f32[8, 32], %y: f32[1, 4], %z: f32[8, 4]",
        """%c = rw.fused(%x, %y, %z) body(%x: f32[8, 32], %y: f32[1, 4], %z: f32[8, 4]) {
          %s = aten.slice.Tensor(%x, 1, 4, 8) : f32[8, 4] strides [32, 1]
          %e = aten.expand.default(%y, [8, 4]) : f32[8, 4] strides [0, 1]
          %a = aten.add.Tensor(%s, %e) : f32[8, 4]
          %b = aten.mul.Tensor(%a, %z) : f32[8, 4]
          %c = aten.sub.Tensor(%b, %z) : f32[8, 4]
          return %c
        } : f32[8, 4]""",
    )
    assert bytes_read(node) == 4 * (8 * 4 + 4 + 8 * 4)


def test_a_buffer_that_is_written_is_not_read() -> None:
    graph = graph_of("""
        graph f(%x: f32[4]) {
          %p = rw.alloc(offset=0) : f32[4]
          %a = aten.neg.default(%x, out=[%p]) : f32[4]
          rw.free(%a)
          return
        }""")
    alloc, neg, free = graph.nodes
    assert (bytes_read(neg), bytes_written(neg)) == (16, 16)
    assert not is_call(alloc) and is_call(neg) and not is_call(free)


def test_symbolic_sizes_stay_symbolic() -> None:
    size = Dim.of(Symbol("B0", 8, 1, 64))
    node = graph_of("""
        graph f(%x: f32[B0, 5], %y: f32[5, 7]) where B0 in [1, 64] hint 8 {
          %a = aten.mm.default(%x, %y) : f32[B0, 7]
          return %a
        }""").nodes[0]
    assert flops(node) == 70 * size
    assert bytes_read(node) == 20 * size + 140
    assert evaluate(bytes_written(node), {"B0": 3}) == 84
