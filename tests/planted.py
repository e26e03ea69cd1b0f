"""Faults to be found: each planted in a part of Rewright, and a model in which it does harm."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

import rewright.codegen.cpp
from examples.case import Case
from examples.huggingface import bert, gpt2
from examples.resnet import resnet50
from rewright.api import export
from rewright.ir import Graph, Node, TensorType, Value, op
from rewright.ir.parse import parse
from rewright.ir.pt2 import load
from rewright.passes import Canonicalize, Dce, Env, Libraries
from rewright.passes.rules import library, read_rules
from rewright.sources import random_inputs, torch_kept_quiet

Patch = pytest.MonkeyPatch
Model = tuple[Graph, list[Any]]

ADD = "aten.add.Tensor"


@dataclass(frozen=True)
class Planted:
    """A fault, the model that it breaks, and what to say of it: the place to blame, the operator
    or rule, the first node that is wrong."""

    name: str
    plant: Callable[[Patch], None]
    model: Callable[[], Model]
    place: str
    what: str
    node: str = ""
    rules: str = ""
    freeze: bool = False


# --- models, of some hundred nodes --------------------------------------------------------------


@cache
def gpt2_model() -> Model:
    """36 features: the last vector of a row is not full."""
    sizes: dict[str, Any] = {"n_embd": 36, "n_head": 4, "n_layer": 4, "vocab_size": 128}
    return _exported("gpt2", gpt2(2, 12, bos_token_id=0, eos_token_id=0, **sizes))


@cache
def spelled_model() -> Model:
    """Attention by product, softmax and product."""
    sizes = {"n_embd": 32, "n_head": 4, "n_layer": 4, "vocab_size": 128}
    return _exported(
        "gpt2", gpt2(2, 12, attention="eager", bos_token_id=0, eos_token_id=0, **sizes)
    )


@cache
def bert_model() -> Model:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 128}
    return _exported("bert", bert(2, 12, num_hidden_layers=4, num_attention_heads=4, **sizes))


@cache
def resnet_model() -> Model:
    """In training mode: the statistics of every norm are updated."""
    module, inputs = resnet50(2, 32, depths=(2, 2, 2, 2), width=8, classes=10)
    return _exported("resnet", (module.train(), inputs))


@cache
def still_resnet_model() -> Model:
    """In inference: norms can be taken into weights."""
    return _exported("resnet", resnet50(2, 32, depths=(2, 2, 2, 2), width=8, classes=10))


class Windows(torch.nn.Module):
    """Attention that looks at the 32 tokens before each, layer after layer."""

    def __init__(self, layers: int = 6, heads: int = 2, width: int = 16) -> None:
        super().__init__()
        self.heads, sizes = heads, (heads * width, 3 * heads * width)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*sizes) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = torch.arange(x.shape[1])
        seen = (place <= place[:, None]) & (place[:, None] - place < 32)
        for layer in self.layers:
            q, k, v = layer(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            made = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            x = x + made.transpose(1, 2).flatten(-2)
        return x


@cache
def windows_model() -> Model:
    torch.manual_seed(0)
    return _exported("windows", (Windows().eval(), (torch.randn(1, 256, 32),)))


@cache
def composite_model() -> Model:
    """As text, with operators that are still to be taken apart."""
    lines = [
        f"  %h{i} = aten.linear.default(%{'x' if i == 0 else f'g{i - 1}'}, %w, %b) : f32[8, 32]\n"
        f"  %g{i} = aten.gelu.default(%h{i}) : f32[8, 32]"
        for i in range(100)
    ]
    head = "graph stack(%x: f32[8, 32], %w: f32[32, 32] param, %b: f32[32] param) {"
    graph = parse("\n".join([head, *lines, "  return %g99", "}"]))
    x, w, b = random_inputs(graph)
    return graph, [x, w / 4, b]


def _exported(name: str, case: Case) -> Model:
    module, inputs = case
    with torch_kept_quiet():
        graph, bindings = load(export(module, inputs), name=name)
    return graph, bindings.flatten(inputs, {})


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


# --- kernels ------------------------------------------------------------------------------------


def wrong_erf(patch: Patch) -> None:
    """The error function is printed as another one."""
    _emitting(patch, lambda text: re.sub(r"\berf\(", "tanh(", text))


def short_tail(patch: Patch) -> None:
    """The last vector of a row lacks its last number."""
    short = """using namespace rw;
template <class T> inline void store_short(T* to, compute<T> x, Whole n) { store(to, x, n); }
template <class T> inline void store_short(T* to, compute<T> x, int n) { store(to, x, n - 1); }
"""
    _emitting(
        patch,
        lambda text: re.sub(r"\bstore\((.*), n\);", r"store_short(\1, n);", text).replace(
            "using namespace rw;\n", short
        ),
    )


def sums_from_one(patch: Patch) -> None:
    """A sum begins at one, in every lane."""
    how = """using namespace rw;
struct FromOne : Add { template <class T> static V<T> none() { return splat(T(1)); } };
"""
    _emitting(
        patch,
        lambda text: text.replace("AlongLanes<f32, Add>", "AlongLanes<f32, FromOne>").replace(
            "using namespace rw;\n", how
        ),
    )


def no_compiler_takes_it(patch: Patch) -> None:
    """What is printed for an operator is no C++."""
    _emitting(patch, lambda text: re.sub(r"\btanh\(", "tanh(()", text))


def wild_pointer(patch: Patch) -> None:
    """A kernel reads memory that is not there."""
    _emitting(patch, lambda text: re.sub(r"\berf\((\w+)\)", r"erf(load((const f32*)8, n))", text))


def later_mask(patch: Patch) -> None:
    """Attention takes a token itself for one that it must not see."""
    _emitting(patch, lambda text: re.sub(r"(const mask t\d+ = )le\(", r"\1lt(", text))


def raising_emitter(patch: Patch) -> None:
    """No C++ is made of a kernel with a hyperbolic tangent."""

    def changed(text: str) -> str:
        if re.search(r"\btanh\(", text):
            raise AssertionError("a scalar was spilled twice")
        return text

    _emitting(patch, changed)


def slow_tanh(patch: Patch) -> None:
    """Before the hyperbolic tangent of a vector a hundred thousand steps are counted."""
    slow = """using namespace rw;
template <class T> inline T slow_tanh(T x) {
  for (volatile int i = 0; i < 100000; i = i + 1) {}
  return tanh(x);
}
"""
    _emitting(
        patch,
        lambda text: re.sub(r"\btanh\(", "slow_tanh(", text).replace("using namespace rw;\n", slow),
    )


def one_address(patch: Patch) -> None:
    """The runtime places all buffers at the beginning of the arena."""
    from rewright.codegen.runtime import Frame

    honest = Frame.place

    def wrong(self: Frame, offset: int, *of: Any) -> torch.Tensor:
        return honest(self, 0, *of)

    patch.setattr(Frame, "place", wrong)


def _emitting(patch: Patch, change: Callable[[str], str]) -> None:
    honest = rewright.codegen.cpp.emit

    def emit(*given: Any, **named: Any) -> str:
        return change(honest(*given, **named))

    patch.setattr(rewright.codegen.cpp, "emit", emit)


def doubled_products(patch: Patch) -> None:
    """The call sequence has ATen make products twice as large."""
    from rewright.codegen import call_sequence

    honest = call_sequence._Writer.args

    def wrong(self: Any, node: Node) -> str:
        text = honest(self, node)
        return f"{text}, alpha=2.0" if node.op.name == "aten.addmm.default" else text

    patch.setattr(call_sequence._Writer, "args", wrong)


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
KERNELS = (
    Planted("wrong erf", wrong_erf, bert_model, "gelu", "aten.gelu.default", "gelu"),
    Planted("short tail", short_tail, gpt2_model, "k0", "", "native_layer_norm"),
    Planted(
        "sums from one",
        sums_from_one,
        bert_model,
        "layer_norm",
        "aten.native_layer_norm.default",
        "native_layer_norm",
    ),
    Planted(
        "no compiler takes it",
        no_compiler_takes_it,
        gpt2_model,
        "tanh",
        "aten.tanh.default",
        "tanh",
    ),
    Planted("wild pointer", wild_pointer, bert_model, "gelu", "aten.gelu.default", "gelu"),
    Planted(
        "doubled products",
        doubled_products,
        bert_model,
        "the call sequence",
        "aten.addmm.default",
        "addmm",
    ),
    Planted(
        "later mask",
        later_mask,
        windows_model,
        "kernel k0_attention",
        "",
        "_scaled_dot_product_flash_attention_for_cpu",
    ),
    Planted("raising emitter", raising_emitter, gpt2_model, "tanh", "aten.tanh.default", "tanh"),
    Planted("one address", one_address, gpt2_model, "the call sequence", ""),
)
SLOW_KERNEL = Planted("slow tanh", slow_tanh, gpt2_model, "tanh", "aten.tanh.default", "tanh")
SLOW = Planted("slow pass", slow_pass, gpt2_model, "pass libraries", "aten.tanh.default", "tanh")
