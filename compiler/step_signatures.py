"""What AOTAutograd sees of the halves of a scheduled step: modules that show a signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from rewright.ir import Value
from rewright.ir.dim_fold import fold
from rewright.ir.dims import Size
from rewright.ir.symbol_sources import symbol_sources
from rewright.passes.remat import Halves

Parts = tuple[fx.GraphModule, fx.GraphModule]


def signatures(parts: Parts, halves: Halves) -> Parts:
    """Modules with the inputs and outputs of the halves, by what PyTorch's own parts say of theirs;
    in between they only make tensors."""
    found = _Signatures(parts, halves)
    return found.forward(), found.backward()


def placeholders(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def outputs_of(gm: fx.GraphModule) -> list[Any]:
    found: Any = gm.graph.output_node().args[0]
    return list(found)


class _Signatures:
    def __init__(self, parts: Parts, halves: Halves) -> None:
        self.parts, self.halves = parts, halves
        inputs = (i.value for i in halves.forward.inputs)
        self.inputs = dict(zip(inputs, placeholders(parts[0]), strict=True))
        self.traced = _Traced(halves, self.inputs)

    def forward(self) -> fx.GraphModule:
        part, count = self.parts[0], self.halves.returned
        given = outputs_of(part)
        writer = _Stubs()
        for node in self.inputs.values():
            writer.placeholder(node.name, node.meta)
        made = [writer.like(node) for node in given[:count]]
        known = dict(zip(self.halves.forward.outputs[:count], made, strict=True))
        known |= {value: writer.like(node) for value, node in self.inputs.items()}
        for value in self.halves.saved:
            made.append(known.get(value) or writer.stub(value.name, self.traced.meta(value)))
        made += [writer.like(node) for node in given[count:] if is_number(node)]
        made += [known[value] for value in self.halves.sizes]
        return writer.module(part, made)

    def backward(self) -> fx.GraphModule:
        part, writer = self.parts[1], _Stubs()
        given = placeholders(part)
        for node in given:
            if is_number(node):
                writer.placeholder(node.name, node.meta)
        for i, value in enumerate((*self.halves.sizes, *self.halves.saved)):
            known = self.inputs.get(value)
            meta = self.traced.meta(value) if known is None else known.meta
            writer.placeholder(f"saved_{i}", meta)
        for node in given:
            if node.name.startswith("tangents_"):
                writer.placeholder(node.name, node.meta)
        return writer.module(part, [writer.like(node) for node in outputs_of(part)])


class _Stubs:
    """A graph whose nodes only say what they are."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.made: dict[str, fx.Node] = {}

    def placeholder(self, name: str, meta: Mapping[str, Any]) -> None:
        self._keep(name, self.graph.placeholder(name), meta)

    def like(self, node: object) -> object:
        """What stands for a node of a part; anything else stands for itself."""
        if not isinstance(node, fx.Node):
            return node
        return self.made.get(node.name) or self.stub(node.name, node.meta)

    def stub(self, name: str, meta: Mapping[str, Any]) -> fx.Node:
        call = self.graph.call_function(torch.ops.aten.empty.memory_format, ([0],))
        return self._keep(name, call, meta)

    def _keep(self, name: str, node: fx.Node, meta: Mapping[str, Any]) -> fx.Node:
        node.meta = dict(meta)
        self.made[name] = node
        return node

    def module(self, like: fx.GraphModule, outputs: Sequence[Any]) -> fx.GraphModule:
        meta = like.graph.output_node().meta
        output = self.graph.output(tuple(outputs))
        # torch describes each output there, and these are not the ones it described.
        output.meta = {name: value for name, value in meta.items() if name != "desc"}
        module = fx.GraphModule(torch.nn.Module(), self.graph, "Half")
        module.meta = dict(like.meta)
        return module


class _Traced:
    """Fake tensors of AOTAutograd's own kind for values that it has not seen."""

    def __init__(self, halves: Halves, inputs: Mapping[Value, fx.Node]) -> None:
        from torch._guards import detect_fake_mode

        self.inputs, self.sources = inputs, symbol_sources(halves.forward)
        self.mode: Any = detect_fake_mode([_traced(node) for node in inputs.values()])

    def meta(self, value: Value) -> Mapping[str, Any]:
        type = value.tensor
        shape, strides = ([self.size(s) for s in sizes] for sizes in (type.shape, type.layout))
        with self.mode:
            traced = torch.empty_strided(shape, strides, dtype=type.dtype, device=type.device)
        return {"val": traced}

    def size(self, size: Size) -> Any:
        if isinstance(size, int):
            return size
        return fold(size, self.symbol, lambda function, operands: function(*operands))

    def symbol(self, name: str) -> Any:
        source = self.sources[name]
        traced = _traced(self.inputs[source.value])
        whole = traced if source.axis is None else traced.shape[source.axis]
        return whole if source.size.is_symbol else (whole - source.rest) // source.factor


def _traced(node: object) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else node


def is_number(node: object) -> bool:
    """True for a size that is handed over, False for a tensor."""
    return not isinstance(_traced(node), torch.Tensor) and node is not None
