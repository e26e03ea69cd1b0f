"""Which library runs a matrix product: torch's own choice (MKL on x86), or oneDNN through ATen.

Which is quicker depends on the CPU, the sizes and the layout, by up to a factor of three either
way, so the two are timed against each other once; results are rounded otherwise in their last bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

from rewright.costmodel import Tools, show_seconds
from rewright.ir import Graph, Node, Value, fresh_names
from rewright.ir.alone import alone, at_hints
from rewright.ir.onednn import LINEAR, PLAIN
from rewright.passes.base import Env, Pass
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.images import product_of_pixels
from rewright.passes.libraries.products import (
    LEAST_WORK,
    Product,
    factors,
    product_of,
    race,
    torchs_call,
    turned,
)

# What another call must save to be made.
MARGIN: Final = 0.03


@dataclass(frozen=True)
class Libraries(Pass, name="libraries", takes="aten", gives="aten"):
    """Have oneDNN run those products that it runs quicker than what torch would call.

    before:
        graph f(%x: f32[128, 128], %w: f32[64, 128], %b: f32[64]) {
          %t = aten.permute.default(%w, [1, 0]) : f32[128, 64] strides [1, 128]
          %y = aten.addmm.default(%b, %x, %t) : f32[128, 64]
          return %y
        }
    after:
        graph f(%x: f32[128, 128], %w: f32[64, 128], %b: f32[64]) {
          %t = aten.permute.default(%w, [1, 0]) : f32[128, 64] strides [1, 128]
          %y = mkldnn._linear_pointwise.default(%x, %w, %b, "none", [], "") : f32[128, 64]
          return %y
        }

    Refuses: types that the CPU has no products of, other devices; where nothing can be measured, as
    for another machine or in a process that has others it must decide like.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        if env.tools is None:
            return graph
        chosen = _Choice(graph, env, env.tools)
        nodes = [n for node in graph.nodes for n in chosen.nodes(node)]
        return self.gave(graph.with_nodes(nodes), chosen.renamed) if chosen.renamed else graph


class _Choice:
    """Which calls the nodes of a graph become."""

    def __init__(self, graph: Graph, env: Env, tools: Tools) -> None:
        self._graph, self._env, self._tools = graph, env, tools
        self._race = cache(lambda product: race(product, tools))  # equal layers ask once
        self._fresh = fresh_names(v.name for v in graph.values)
        self.renamed: dict[str, tuple[str, ...]] = {}

    def nodes(self, node: Node) -> list[Node]:
        """What takes the place of a node: other calls that are quicker, or the node itself."""
        product = product_of(node)
        if product is not None:
            made = self._product(node, product)
        else:
            pixels = product_of_pixels(node)
            made = None if pixels is None else self._pixels(node, pixels)
        if made is None:
            return [node]
        self.renamed[node.name] = (node.name,)
        return made

    def _product(self, node: Node, product: Product) -> list[Node] | None:
        if product.work < LEAST_WORK:
            return None
        found = self._race(product)
        if found is None or not self._is_best(node, *found):
            return None
        left, right, bias = factors(node)
        emit = Emitter(self._fresh, node)
        emit(LINEAR, left, turned(right, self._graph, emit), bias, *PLAIN)
        emit.end_in(node.result)
        return emit.nodes

    def _pixels(self, node: Node, product: Product) -> list[Node] | None:
        """A convolution as a product of its pixels, in the quicker of two calls."""
        slides = self._tools.race([alone(at_hints(node))])
        multiplied = self._race(product)
        if slides is None or multiplied is None:
            return None
        usual, onednn = multiplied
        if not self._is_best(node, slides[0], min(multiplied)):
            return None
        emit = Emitter(self._fresh, node)
        image, weight, bias = node.args[:3]
        assert isinstance(image, Value) and isinstance(weight, Value)
        batch, channels, height, width = image.tensor.shape
        filters = weight.tensor.shape[0]
        left = emit("aten.permute.default", image, (0, 2, 3, 1))
        left = emit("aten.view.default", left, (batch * height * width, channels))
        right = emit("aten.view.default", weight, (filters, channels))
        if onednn < (1 - MARGIN) * usual:
            made = emit(LINEAR, left, right, bias, *PLAIN)
        else:
            turned = emit("aten.permute.default", right, (1, 0))
            (made,) = emit.call(*torchs_call(left, turned, bias), {})
        if node.result.tensor.strides is None:  # one pixel, or one filter, lies in both ways
            emit("aten.view.default", made, (batch, filters, height, width))
        else:
            made = emit("aten.view.default", made, (batch, height, width, filters))
            emit("aten.permute.default", made, (0, 3, 1, 2))
        if emit.nodes[-1].result.type != node.result.type:
            return None
        emit.end_in(node.result)
        return emit.nodes

    def _is_best(self, node: Node, usual: float, other: float) -> bool:
        """True when another call takes clearly less; the log is told when it does not."""
        if other < (1 - MARGIN) * usual:
            return True
        took = f"oneDNN takes {show_seconds(other)}, and {node.op} {show_seconds(usual)}"
        self._env.log.refuse(Libraries.name, node.name, took)
        return False
