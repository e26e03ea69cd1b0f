"""Convolutions on frozen weights in kernels of ours, with what follows them, where these win."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from rewright.costmodel import show_seconds
from rewright.ir import (
    Arg,
    CheckError,
    Graph,
    Input,
    Node,
    Size,
    TensorType,
    UnsupportedError,
    Value,
    equal,
    fresh_names,
    hint,
    op,
    values_in,
)
from rewright.ir.alone import alone, at_hints
from rewright.ir.loops import FILTER_STEP, filter_steps, lower_convolution, needed_nodes
from rewright.ir.onednn import CONVOLUTION, CONVOLUTION_BINARY, PACK_CONVOLUTION, TO_MKLDNN
from rewright.passes.base import Env, Pass
from rewright.passes.emitter import Emitter
from rewright.passes.libraries.epilogues import applied
from rewright.passes.libraries.freeze import split_frozen

OURS: Final = "rw.convolution"
VIA: Final = "cpp"
_CALLS: Final = (CONVOLUTION, CONVOLUTION_BINARY)


@dataclass(frozen=True)
class Convolutions(Pass, name="convolutions", takes="aten", gives="aten"):
    """Compute convolutions on frozen weights, and what follows them, in kernels of ours where these
    are quicker than oneDNN's.

    before:
        graph f(%x: f32[1, 2, 3, 3] strides [18, 1, 6, 2], %w: f32[5, 2, 1, 1] param) {
          %p = rw.frozen(%w) body(%w: f32[5, 2, 1, 1]) {
            %d = aten.to_mkldnn.default(%w) : f32[5, 2, 1, 1]
            %p = aten.mkldnn_reorder_conv2d_weight.default(%d) : f32[5, 2, 1, 1]
            return %p
          } : f32[5, 2, 1, 1]
          %y = mkldnn._convolution_pointwise.default(
            %x, %p, none, [0, 0], [1, 1], [1, 1], 1, "relu", [], ""
          ) : f32[1, 5, 3, 3] strides [45, 1, 15, 5]
          return %y
        }
    after:
        graph f(%x: f32[1, 2, 3, 3] strides [18, 1, 6, 2], %w: f32[5, 2, 1, 1] param) {
          %p_4 = rw.frozen(%w) body(%w: f32[5, 2, 1, 1]) {
            %p_1 = aten.constant_pad_nd.default(%w, [0, 0, 0, 0, 0, 0, 0, 11], 0.0)
              : f32[16, 2, 1, 1]
            %p_2 = aten.view.default(%p_1, [1, 16, 2, 1, 1]) : f32[1, 16, 2, 1, 1]
            %p_3 = aten.permute.default(%p_2, [0, 3, 4, 2, 1])
              : f32[1, 1, 1, 2, 16] strides [32, 1, 1, 1, 2]
            %p_4 = aten.clone.default(%p_3, memory_format=memory_format(contiguous))
              : f32[1, 1, 1, 2, 16]
            return %p_4
          } : f32[1, 1, 1, 2, 16]
          %y = rw.convolution(%x, %p_4, via="cpp") body(
              %x: f32[1, 2, 3, 3] strides [18, 1, 6, 2],
              %packed: f32[1, 1, 1, 2, 16]
          ) {
            %y = aten.permute.default(%packed, [0, 4, 3, 1, 2])
              : f32[1, 16, 2, 1, 1] strides [32, 1, 16, 32, 32]
            %y_1 = aten.clone.default(%y, memory_format=memory_format(contiguous))
              : f32[1, 16, 2, 1, 1]
            %y_2 = aten.view.default(%y_1, [16, 2, 1, 1]) : f32[16, 2, 1, 1]
            %y_3 = aten.slice.Tensor(%y_2, 0, 0, 5) : f32[5, 2, 1, 1]
            %y_4 = aten.convolution.default(
                %x, %y_3, none, [1, 1], [0, 0], [1, 1], false, [0, 0], 1
              ) : f32[1, 5, 3, 3] strides [45, 1, 15, 5]
            %y_5 = aten.relu.default(%y_4) : f32[1, 5, 3, 3] strides [45, 1, 15, 5]
            return %y_5
          } : f32[1, 5, 3, 3] strides [45, 1, 15, 5]
          return %y
        }

    Sums are added up in another order, so results are rounded otherwise in their last bits.

    Refuses: weights that are not frozen; groups, but for one or one a channel; gaps in what a
    filter sees; sizes of images, but for the batch, that are symbolic; a bias with gaps; what
    oneDNN computes as quickly, measured.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        calls = {n.name: n for n in graph.nodes if n.op.name in _CALLS}
        if env.tools is None or env.target.device != "cpu" or not calls:
            return graph
        weights = _Weights(graph)
        made: dict[str, Node] = {}
        for name, call in calls.items():
            try:
                made[name] = _ours(call, weights)
            except (CheckError, UnsupportedError) as error:
                env.log.refuse(self.name, name, error.message)
        won = _winners(calls, made, weights, env)
        if not won:
            return graph
        nodes = [won.get(node.name, node) for node in graph.nodes]
        wanted = dict.fromkeys(_weight(calls[name]) for name in won)
        again = weights.repacked(graph.with_nodes(nodes), tuple(wanted))
        return self.gave(again, {name: (name,) for name in won})


class _Weights:
    """Frozen weights by what packs them for oneDNN."""

    def __init__(self, graph: Graph) -> None:
        self.fresh = fresh_names(v.name for v in graph.values)
        self._plain: dict[Value, Value] = {}
        self._frozen = next((n for n in graph.nodes if n.op.name == "rw.frozen"), None)
        self._packed: dict[Value, tuple[Value, list[Node]]] = {}
        if self._frozen is not None:
            body = self._frozen.graph("body")
            for result, inside in zip(self._frozen.results, body.outputs, strict=True):
                assert isinstance(inside, Value)
                plain = _unpacked(body, inside)
                if plain is not None:
                    self._plain[result] = plain

    def plain(self, weight: Value) -> Value:
        """What a packed weight is packed of. Raises UnsupportedError when it is not frozen."""
        if weight not in self._plain:
            raise UnsupportedError("its weight is not frozen")
        return self._plain[weight]

    def packed(self, weight: Value) -> Value:
        """A weight as kernels of ours read it, by the name that it will have."""
        if weight not in self._packed:
            emit = Emitter(self.fresh, Node(op("rw.constant"), (), (), (weight,)))
            self._packed[weight] = pack(self.plain(weight), emit), emit.nodes
        return self._packed[weight][0]

    def repacked(self, graph: Graph, wanted: Sequence[Value]) -> Graph:
        """The graph that packs weights as kernels of ours read those that are `wanted` so, and none
        that nothing reads any more."""
        frozen = self._frozen
        assert frozen is not None
        body = frozen.graph("body")
        read = {v for n in graph.nodes for v in n.operands} | set(graph.returned)
        pairs = zip(frozen.results, body.outputs, strict=True)
        kept = [(result, output) for result, output in pairs if result in read]
        packed = [self._packed[weight] for weight in wanted]
        results = (*(result for result, _ in kept), *(value for value, _ in packed))
        outputs = (*(output for _, output in kept), *(value for value, _ in packed))
        made = (*body.nodes, *(node for _, nodes in packed for node in nodes))
        nodes = tuple(needed_nodes(made, values_in(outputs)))
        held = {v for n in nodes for v in n.operands}
        places = [place for place, i in enumerate(body.inputs) if i.value in held]
        inside = Graph("body", tuple(body.inputs[p] for p in places), nodes, outputs)
        again = dataclasses.replace(
            frozen,
            args=tuple(frozen.args[place] for place in places),
            results=results,
            graphs=(("body", inside),),
        )
        return graph.with_nodes(again if node is frozen else node for node in graph.nodes)


def _unpacked(body: Graph, packed: Value) -> Value | None:
    """What oneDNN's weight is made of."""
    for name in (PACK_CONVOLUTION, TO_MKLDNN):
        made = body.producers.get(packed)
        if made is None or made.op.name != name:
            return None
        packed = made.operands[0]
    return packed


# --- calls ----------------------------------------------------------------------------------------


def _parts(call: Node) -> tuple[Value, Value | None, Value, Value | None, tuple[Arg, ...]]:
    """Images, what is added to the result, the weight, the bias, and all the rest."""
    args = call.args
    if call.op.name == CONVOLUTION:
        args = (args[0], None, *args[1:])
    images, other, weight, bias, *rest = args
    assert isinstance(images, Value) and isinstance(weight, Value)
    assert other is None or isinstance(other, Value)
    assert bias is None or isinstance(bias, Value)
    return images, other, weight, bias, tuple(rest)


def _weight(call: Node) -> Value:
    return _parts(call)[2]


def _ours(call: Node, weights: _Weights) -> Node:
    """A call as a kernel of ours. Raises UnsupportedError."""
    images, other, weight, bias, _ = _parts(call)
    emit = Emitter(weights.fresh, call)
    given = {"x": images, "packed": weights.packed(weight), "bias": bias, "other": other}
    operands = {name: value for name, value in given.items() if value is not None}
    body = _body(call, operands, weights.plain(weight).tensor.shape[0], emit.inside())
    lower_convolution(body, call.name)
    emit.region(OURS, tuple(operands.values()), body, via=VIA)
    emit.end_in(call.result)
    return emit.nodes[-1]


def _body(call: Node, operands: Mapping[str, Value], filters: Size, emit: Emitter) -> Graph:
    given = {name: Value(name, value.type) for name, value in operands.items()}
    *_, rest = _parts(call)
    padding, stride, dilation, groups, *function = rest
    weight = unpack(given["packed"], filters, emit)
    how = (stride, padding, dilation, False, (0, 0), groups)
    args = (given["x"], weight, given.get("bias"), *how)
    (made,) = emit.call(op("aten.convolution.default"), args, {}, [call.result.type])
    if "other" in given:
        sum_of, factor, *function = function
        if sum_of != "add" or factor is not None:
            raise UnsupportedError("kernels of ours add another image, and nothing else")
        made = emit("aten.add.Tensor", made, given["other"])
    name, numbers, variant = function
    if name not in (None, "none"):
        made = applied(made, name, numbers, variant, emit)
    return Graph("body", tuple(map(Input, given.values())), tuple(emit.nodes), (made,))


def _winners(
    calls: Mapping[str, Node], made: Mapping[str, Node], weights: _Weights, env: Env
) -> Mapping[str, Node]:
    """Those of ours that take less than the calls they stand for. Equal layers race once."""
    assert env.tools is not None
    texts = {name: str(alone(at_hints(node))) for name, node in made.items()}
    first = {text: name for name, text in reversed(texts.items())}
    pairs = [
        (_on_packed(calls[name], weights), alone(at_hints(made[name]))) for name in first.values()
    ]
    seconds = dict(zip(first, env.tools.races(pairs) if pairs else [], strict=True))
    won = {}
    for name, text in texts.items():
        found = seconds[text]
        if found is None:
            continue
        theirs, ours = found
        if ours < theirs:
            won[name] = made[name]
        else:
            took = f"a kernel of ours takes {show_seconds(ours)}, oneDNN {show_seconds(theirs)}"
            env.log.refuse(Convolutions.name, name, took)
    return won


def _on_packed(call: Node, weights: _Weights) -> Graph:
    """oneDNN's call alone, on a weight that is packed once."""
    weight = _weight(call)
    plain = weights.plain(weight)
    graph = alone(at_hints(call))
    (node,) = graph.nodes
    place = node.operands.index(_weight(node))
    lasting = Value("weight", plain.type)
    emit = Emitter(fresh_names(v.name for v in graph.values), node)
    images, *_, rest = _parts(node)
    padding, stride, dilation, groups = rest[:4]
    sizes = tuple(map(hint, images.tensor.shape))
    moved = emit(TO_MKLDNN, lasting)
    packed = emit(PACK_CONVOLUTION, moved, padding, stride, dilation, groups, sizes)
    inputs = [i for i in graph.inputs if i.value != node.operands[place]]
    inputs.append(Input(lasting, "param"))
    again = node.replace({node.operands[place]: packed})
    whole = dataclasses.replace(graph, inputs=tuple(inputs), nodes=(*emit.nodes, again))
    return split_frozen(whole)


# --- weights as kernels read them -----------------------------------------------------------------


def pack(weight: Value, emit: Emitter) -> Value:
    """[O, C, H, W] as [O / 16, H, W, C, 16], with filters of zeros at the end."""
    filters, channels, height, width = weight.tensor.shape
    steps = filter_steps(filters)
    missing = steps * FILTER_STEP - filters
    if not weight.tensor.is_contiguous:  # padding keeps the order of dimensions in memory
        weight = _copied(weight, emit)
    if missing:
        whole = TensorType(weight.tensor.dtype, (steps * FILTER_STEP, channels, height, width))
        padded = (weight, (*(0,) * 7, missing), 0.0)
        (weight,) = emit.call(op("aten.constant_pad_nd.default"), padded, {}, [whole])
    parted = emit("aten.view.default", weight, (steps, FILTER_STEP, channels, height, width))
    return _copied(emit("aten.permute.default", parted, (0, 3, 4, 2, 1)), emit)


def unpack(packed: Value, filters: Size, emit: Emitter) -> Value:
    """The weight that `pack` was given."""
    steps, height, width, channels, step = packed.tensor.shape
    turned = _copied(emit("aten.permute.default", packed, (0, 4, 3, 1, 2)), emit)
    whole = emit("aten.view.default", turned, (steps * step, channels, height, width))
    if equal(filters, steps * step):
        return whole
    return emit("aten.slice.Tensor", whole, 0, 0, filters)


def _copied(value: Value, emit: Emitter) -> Value:
    return emit("aten.clone.default", value, memory_format=torch.contiguous_format)
