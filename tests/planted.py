"""Faults to be found in passes and rules, each planted there, and a model in which it does harm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from planted_models import (
    Patch,
    Planted,
    bert_model,
    composite_model,
    gpt2_model,
    resnet_model,
    spelled_model,
    still_resnet_model,
)
from rewright.ir import Graph, Node, TensorType, Value, op
from rewright.passes import Canonicalize, Dce, Env, Libraries
from rewright.passes.rules import library, read_rules

ADD = "aten.add.Tensor"

# --- passes -------------------------------------------------------------------------------------


def merged_projections(patch: Patch) -> None:
    """cse holds products with one input for one, whatever their weights."""
    from rewright.ir import node_key as honest

    def key(node: Node, name: Any) -> Any:
        if node.op.name == "aten.addmm.default":
            return "addmm", node.operands[1].name, node.result.type
        return honest(node, name)

    patch.setattr("rewright.passes.cse.node_key", key)


def rounded_constants(patch: Patch) -> None:
    """fold keeps one digit of the factors that it passes as numbers."""
    from rewright.passes.scalars import scalar_arguments as honest

    def rounded(graph: Graph) -> Graph:
        return _each(honest(graph), "aten.mul.Tensor", lambda node: _with_factor(node, 1))

    patch.setattr("rewright.passes.fold.scalar_arguments", rounded)


def _with_factor(node: Node, digits: int) -> Node:
    x, factor = node.args
    return node if not isinstance(factor, float) else _with_args(node, x, round(factor, digits))


def forgotten_update(patch: Patch) -> None:
    """dce drops an update."""
    honest = Dce.run

    def forgetful(self: Dce, graph: Graph, env: Env) -> Graph:
        return honest(self, dataclasses.replace(graph, updates=graph.updates[1:]), env)

    patch.setattr(Dce, "run", forgetful)


def square_permutes(patch: Patch) -> None:
    """canonicalize takes the transpose of a square matrix for a copy of it."""
    honest = Canonicalize.run

    def wrong(self: Canonicalize, graph: Graph, env: Env) -> Graph:
        done = honest(self, graph, env)
        found = [n for n in done.nodes if n.op.name == "aten.permute.default" and _is_square(n)]
        values = {
            n.result: Value(n.name, dataclasses.replace(n.result.tensor, strides=None))
            for n in found
        }
        copies = {n.name: _copy(n, values[n.result]) for n in found}
        nodes = tuple(copies.get(n.name, n) if n.results else n for n in done.nodes)
        return dataclasses.replace(done, nodes=nodes).substitute(dict(values))

    patch.setattr(Canonicalize, "run", wrong)


def _is_square(node: Node) -> bool:
    shape = node.result.tensor.shape
    return len(shape) == 2 and shape[0] == shape[1]


def _copy(node: Node, value: Value) -> Node:
    return Node(op("aten.clone.default"), node.args[:1], (), (value,), loc=node.loc)


def scaled_products(patch: Patch) -> None:
    """decompose makes a product of a linear layer that is a hundredth too large."""
    from rewright.passes import decompose

    honest = decompose._trace

    def wrong(alone: Graph, table: Any) -> Graph | str:
        body = honest(alone, table)
        if isinstance(body, str):
            return body
        return _each(
            body, "aten.addmm.default", lambda n: dataclasses.replace(n, kwargs=(("alpha", 1.01),))
        )

    patch.setattr(decompose, "_trace", wrong)


def swapped_operands(patch: Patch) -> None:
    """fuse gives regions their weight for their bias."""
    from rewright.passes.fuse import make

    honest = make.make_region

    def wrong(*given: Any) -> Node:
        region = honest(*given)
        args = list(region.args)
        if len(args) > 1 and _type(args[-1]) == _type(args[-2]):
            args[-2:] = args[:-3:-1]
        return dataclasses.replace(region, args=tuple(args))

    patch.setattr(make, "make_region", wrong)


def _type(arg: object) -> object:
    return arg.type if isinstance(arg, Value) else None


def shared_slots(patch: Patch) -> None:
    """memory lets two buffers that are alive at once have one address."""
    from rewright.passes.memory.solve import solve as honest

    def wrong(problem: Any) -> Any:
        made = honest(problem)
        return dataclasses.replace(made, offsets=tuple(o // 2 // 64 * 64 for o in made.offsets))

    patch.setattr("rewright.passes.memory.plan.solve", wrong)
    patch.setattr("rewright.passes.memory.plan.judge", lambda problem, made: None)


def attention_scale(patch: Patch) -> None:
    """lower-attention forgets that the scale was a root."""
    from rewright.passes.attention.region import scale_and_bias as honest

    def wrong(node: Node) -> Any:
        found = honest(node)
        return None if found is None else (found[0] ** 2, found[1])

    patch.setattr("rewright.passes.attention.lower.scale_and_bias", wrong)


def added_scales(patch: Patch) -> None:
    """freeze adds to weights what it has to multiply them by."""
    from rewright.passes.libraries.scales import take_in as honest

    def wrong(graph: Graph, frozen: Any) -> Graph:
        done = honest(graph, frozen)
        known = {node.name for node in graph.nodes}

        def added(node: Node) -> Node:
            return node if node.name in known else dataclasses.replace(node, op=op(ADD))

        return _each(done, "aten.mul.Tensor", added)

    patch.setattr("rewright.passes.libraries.freeze.take_in", wrong)


def raising_pass(patch: Patch) -> None:
    """libraries stumbles over a hyperbolic tangent."""
    honest = Libraries.run

    def wrong(self: Libraries, graph: Graph, env: Env) -> Graph:
        for node in graph.nodes:
            if node.op.name == "aten.tanh.default":
                raise KeyError(node.name)
        return honest(self, graph, env)

    patch.setattr(Libraries, "run", wrong)


def slow_pass(patch: Patch) -> None:
    """libraries has something sorted that nobody wants sorted."""
    honest = Libraries.run

    def wrong(self: Libraries, graph: Graph, env: Env) -> Graph:
        nodes = (n for node in honest(self, graph, env).nodes for n in _sorted_twice(node))
        return graph.with_nodes(nodes)

    patch.setattr(Libraries, "run", wrong)


def _sorted_twice(node: Node) -> Iterator[Node]:
    yield node
    if node.op.name == "aten.tanh.default":
        shape = node.result.tensor.shape
        made = Value(f"{node.name}.sorted", node.result.type)
        order = Value(f"{node.name}.order", TensorType(torch.int64, shape))
        yield Node(op("aten.sort.default"), (node.result,), (), (made, order))


def _each(graph: Graph, name: str, change: Callable[[Node], Node]) -> Graph:
    return graph.with_nodes(change(n) if n.op.name == name else n for n in graph.nodes)


def _with_args(node: Node, *args: Any) -> Node:
    return dataclasses.replace(node, args=args)


# --- rules --------------------------------------------------------------------------------------

RIGHT = """
rule sine-of-negative exact {
  %x: float
  match aten.sin.default(aten.neg.default(%x))
  give  aten.neg.default(aten.sin.default(%x))
}

rule relu-twice exact {
  %x: float
  match aten.relu.default(aten.relu.default(%x))
  give  aten.relu.default(%x)
}

rule cube-is-product reassociating {
  %x: float
  match aten.pow.Tensor_Scalar(%x, 3)
  give  aten.mul.Tensor(aten.mul.Tensor(%x, %x), %x)
}
"""
WRONG = """
rule gelu-is-a-gate approximate {
  %x: float
  match aten.gelu.default(%x)
  give  aten.mul.Tensor(%x, aten.sigmoid.default(aten.mul.Tensor(%x, 1.702)))
}
"""
WRONG_TOO = """
rule tanh-is-sigmoid reassociating {
  %x: float
  match aten.tanh.default(%x)
  give  aten.sigmoid.default(aten.mul.Tensor(%x, 2))
}
"""


def believed_rules(patch: Patch) -> None:
    """Nobody proves what users write."""
    patch.setattr(library, "_proved", read_rules)


FAULTS = (
    Planted(
        "merged projections",
        merged_projections,
        bert_model,
        "pass cse",
        "aten.addmm.default",
        "addmm_1",
    ),
    Planted(
        "rounded constants", rounded_constants, gpt2_model, "pass fold", "aten.mul.Tensor", "mul_1"
    ),
    Planted(
        "forgotten update",
        forgotten_update,
        resnet_model,
        "pass dce",
        "aten._native_batch_norm_legit_functional.default",
        "_native_batch_norm_legit_functional.3",
    ),
    Planted(
        "square permutes",
        square_permutes,
        bert_model,
        "pass canonicalize",
        "aten.permute.default",
        "permute",
    ),
    Planted(
        "scaled products",
        scaled_products,
        composite_model,
        "pass decompose",
        "aten.linear.default",
        "h0",
    ),
    Planted(
        "swapped operands",
        swapped_operands,
        gpt2_model,
        "pass fuse",
        "aten.native_layer_norm.default",
        "native_layer_norm",
    ),
    Planted("shared slots", shared_slots, gpt2_model, "pass memory", "", "add_1"),
    Planted(
        "attention scale",
        attention_scale,
        spelled_model,
        "pass lower-attention",
        "rw.attention",
        "bmm_1_6",
    ),
    Planted(
        "wrong rule",
        believed_rules,
        bert_model,
        "pass rules",
        "gelu-is-a-gate",
        "gelu",
        rules=RIGHT + WRONG,
    ),
    Planted(
        "another wrong rule",
        believed_rules,
        gpt2_model,
        "pass rules",
        "tanh-is-sigmoid",
        "tanh",
        rules=RIGHT + WRONG_TOO,
    ),
    Planted(
        "raising pass", raising_pass, gpt2_model, "pass libraries", "aten.tanh.default", "tanh"
    ),
    Planted(
        "added scales",
        added_scales,
        still_resnet_model,
        "pass freeze",
        "aten.mul.Tensor",
        "mul_2",
        freeze=True,
    ),
)
SLOW = Planted("slow pass", slow_pass, gpt2_model, "pass libraries", "aten.tanh.default", "tanh")
