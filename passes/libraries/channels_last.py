"""Images with the channels of a pixel next to each other, as convolutions on CPUs want them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Final

import torch

from rewright.costmodel import Tools, show_seconds
from rewright.ir import (
    CheckError,
    Effect,
    Graph,
    Node,
    TensorType,
    Type,
    UnsupportedError,
    Value,
    effect_of,
    fresh_names,
    hint,
    storage_roots,
    values_in,
)
from rewright.ir.alone import alone
from rewright.ir.ask_torch import asked, some_sizes, without_data
from rewright.ir.infer import can_infer, infer
from rewright.ir.types import channels_last_strides, contiguous_strides, is_channels_last
from rewright.passes.base import Env, Pass
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.images import IMAGES, images_of, is_image, laid, product_of_pixels
from rewright.passes.libraries.products import race

# Operators that are told where numbers lie.
_BY_STRIDES: Final = ("as_strided", "view.dtype", "set_", "resize")


@dataclass(frozen=True)
class ChannelsLast(Pass, name="channels-last", takes="aten", gives="aten"):
    """Give convolutions their images as [N, H, W, C], and let what follows keep them so.

    before:
        graph f(%x: f32[2, 3, 4, 4], %w: f32[5, 3, 1, 1]) {
          %a = aten.convolution.default(
            %x, %w, none, [1, 1], [0, 0], [1, 1], false, [0, 0], 1
          ) : f32[2, 5, 4, 4]
          %b = aten.relu.default(%a) : f32[2, 5, 4, 4]
          return %b
        }
    after:
        graph f(%x: f32[2, 3, 4, 4], %w: f32[5, 3, 1, 1]) {
          %a_1 = aten.clone.default(%x, memory_format=memory_format(channels_last))
            : f32[2, 3, 4, 4] strides [48, 1, 12, 3]
          %a = aten.convolution.default(
            %a_1, %w, none, [1, 1], [0, 0], [1, 1], false, [0, 0], 1
          ) : f32[2, 5, 4, 4] strides [80, 1, 20, 5]
          %b_1 = aten.relu.default(%a) : f32[2, 5, 4, 4] strides [80, 1, 20, 5]
          %b = aten.clone.default(%b_1, memory_format=memory_format(contiguous))
            : f32[2, 5, 4, 4]
          return %b
        }

    What leaves the graph lies as before. Random numbers are drawn in the order in which they were,
    so what they are drawn for lies as before too.

    Where weights are `packed`, as after `freeze`, channels last is always the quicker way.

    Refuses: convolutions of other than images; transposed ones; other devices than the CPU; outputs
    that share memory with others and would lie otherwise.
    """

    packed: bool = False

    def run(self, graph: Graph, env: Env) -> Graph:
        if not any(map(_is_wanted, graph.nodes)):
            return graph
        relaid = _Relaid(graph, dataclasses.replace(env, tools=None) if self.packed else env)
        for node in graph.nodes:
            relaid.node(node)
        why = relaid.obstacle()
        if why is not None:
            env.log.refuse(self.name, graph.name, why)
            return graph
        return self.gave(relaid.graph(), {})


def _is_wanted(node: Node) -> bool:
    """A convolution that may rather have its images the other way."""
    images = images_of(node)
    return len(images) > 0 and not all(map(is_channels_last, images))


class _Relaid:
    """A graph, node by node, in which some values lie otherwise than they did."""

    def __init__(self, graph: Graph, env: Env) -> None:
        self._graph, self._env = graph, env
        self._sizes = some_sizes(graph)
        self._fresh = fresh_names(v.name for v in graph.values)
        self._nodes: list[Node] = []
        self._moved: dict[Value, Value] = {}
        self._back: dict[Value, Value] = {}

    def node(self, node: Node) -> None:
        changed = node.replace(self._moved)
        if _is_wanted(node):
            places = IMAGES[node.op.name]
            changed = self._with_images(changed, places) if self._pays(node) else node
        elif changed is not node and not can_infer(node.op):
            # Kernels of ATen that take two images need not look at how the second lies.
            changed = self._with_images(changed, tuple(range(len(node.args))))
        if changed is node or not self._follows(node, changed):
            self._nodes.append(node.replace({v: self._as_it_was(v) for v in node.operands}))

    def _pays(self, node: Node) -> bool:
        """True where a convolution takes no longer with channels last, or only so much longer as
        moving its images between layouts takes."""
        tools = self._env.tools
        found = None if tools is None else race_layouts(node, tools)
        if found is None:
            return True
        rows, last = found
        made = [v.type for v in node.results if isinstance(v.type, TensorType)]
        moved = sum(type.nbytes_hint for type in (*images_of(node), *made))
        _, bandwidth = self._env.target.memory(moved)
        if last <= rows + 2 * moved / bandwidth:
            return True
        took = f"channels last takes {show_seconds(last)}, and rows {show_seconds(rows)}"
        self._env.log.refuse(ChannelsLast.name, node.name, took)
        return False

    def _with_images(self, node: Node, places: tuple[int, ...]) -> Node:
        """The node with all images among these arguments channels last."""
        emit = Emitter(self._fresh, node)
        args = list(node.args)
        for place in places:
            image = args[place]
            if not isinstance(image, Value) or not is_image(image.type):
                continue
            if not is_channels_last(image.tensor):
                args[place] = emit("aten.clone.default", image, memory_format=torch.channels_last)
        self._nodes += emit.nodes
        return dataclasses.replace(node, args=tuple(args))

    def _follows(self, node: Node, changed: Node) -> bool:
        """Take a node with the operands it now has, if it can have them."""
        types = self._types(changed)
        if types is None:
            return False
        results = []
        for value, type in zip(node.results, types, strict=True):
            moved = value
            if type != value.type:
                leaves = value in self._graph.returned
                name = self._fresh(value.name) if leaves else value.name
                moved = self._moved[value] = Value(name, type)
            results.append(moved)
        self._nodes.append(dataclasses.replace(changed, results=tuple(results)))
        return True

    def _types(self, node: Node) -> list[Type] | None:
        """Types of results that differ from the declared in strides only; None where torch, or a
        caller, goes by strides."""
        by_strides = any(part in node.op.name for part in _BY_STRIDES)
        if by_strides or node.graphs or effect_of(node) is not Effect.NONE:
            return None
        try:
            found = list(infer(node)) if can_infer(node.op) else self._asked(node)
        except (CheckError, UnsupportedError):
            return None
        if found is None or list(map(_but_strides, found)) != [
            _but_strides(v.type) for v in node.results
        ]:
            return None
        return found

    def _asked(self, node: Node) -> list[Type] | None:
        if node.op.target is None or node.op.namespace == "py":
            return None
        try:
            with without_data():
                returned = asked(node, self._sizes)
        except (IndexError, RuntimeError, TypeError, ValueError):
            return None
        found: list[Type] = []
        for value, given in zip(node.results, returned, strict=True):
            type: Type | None = value.type
            if isinstance(type, TensorType) and isinstance(given, torch.Tensor):
                type = _laid_as(type, tuple(given.stride()))
            elif given is not None:
                return None
            if type is None:
                return None
            found.append(type)
        return found

    def _as_it_was(self, value: Value) -> Value:
        """A value with the strides that it had. What leaves the graph keeps its name."""
        if value in self._moved and value not in self._back:
            emit = Emitter(self._fresh, self._graph.producers[value])
            moved = self._moved[value]
            made = emit("aten.clone.default", moved, memory_format=torch.contiguous_format)
            if value in self._graph.returned:
                emit.end_in(dataclasses.replace(value, type=made.type))
                made = value
            self._back[value] = made
            self._nodes += emit.nodes
        return self._back.get(value, value)

    # --- the whole ----------------------------------------------------------------------------

    def obstacle(self) -> str | None:
        """Why the graph must stay as it is."""
        moved = [v for v in self._leaving if v in self._moved]
        odd = next((v for v in (*moved, *self._back) if not v.tensor.is_contiguous), None)
        if odd is not None:
            return f"%{odd.name} must lie as it does, and is no row-major tensor"
        roots = storage_roots(self._graph)
        shared = Counter(roots[v] for v in self._leaving)
        two = next((v for v in moved if shared[roots[v]] > 1), None)
        return None if two is None else f"%{two.name} leaves the graph and shares its memory"

    @property
    def _leaving(self) -> tuple[Value, ...]:
        written = (value for _, value in self._graph.updates)
        return tuple(dict.fromkeys((*values_in(self._graph.outputs), *written)))

    def graph(self) -> Graph:
        for value in self._leaving:
            self._as_it_was(value)
        return self._graph.with_nodes(self._nodes)


def race_layouts(node: Node, tools: Tools) -> tuple[float, float] | None:
    """Seconds of a convolution by rows and with channels last, in the quicker of its ways."""
    by_rows, last = (laid(node, channels_last=way) for way in (False, True))
    found = tools.race([alone(by_rows), alone(last)])
    if found is None:
        return None
    product = product_of_pixels(last)
    others = (None if product is None else race(product, tools)) or []
    return found[0], min([found[1], *others])


def _but_strides(type: Type) -> Type:
    return dataclasses.replace(type, strides=None) if isinstance(type, TensorType) else type


def _laid_as(type: TensorType, strides: tuple[int, ...]) -> TensorType | None:
    """`type` in the one of the two layouts that has these strides at the hints."""
    shape = tuple(hint(s) for s in type.shape)
    if strides == contiguous_strides(shape):
        return dataclasses.replace(type, strides=None)
    if len(shape) == 4 and strides == channels_last_strides(shape):
        return dataclasses.replace(type, strides=channels_last_strides(type.shape))
    return type if strides == tuple(hint(s) for s in type.layout) else None
