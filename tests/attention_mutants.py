"""Graphs that are nearly attention: spellings of it with something changed, and a check that the
passes change no result of them.

    python tests/attention_mutants.py 1000 [--seed 0]      # or make mutants

Rows and keys are as many as features, and sequences as many as heads, so that hardly anything but
what is computed tells axes apart (pytorch/pytorch#195320). What passes make is interpreted in
float64, and so is the graph before; kernels of what they chose are built and run, too.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from attention_spellings import SPELLINGS
from rewright.codegen.cpp import build, emit
from rewright.costmodel import Roofline
from rewright.ir import (
    CheckError,
    Graph,
    Input,
    Node,
    Target,
    TensorType,
    UnsupportedError,
    Value,
    fresh_names,
    op,
)
from rewright.ir.infer import infer
from rewright.ir.interpret import interpret
from rewright.ir.loops import AttentionNest, lower_attention
from rewright.ir.signature import normalize
from rewright.passes import (
    Attention,
    Canonicalize,
    Cse,
    Env,
    FlashAttention,
    Fold,
    LowerAttention,
    Pipeline,
    Rules,
)
from run_case import LastWins
from spellings import traced

# Sequences, and heads; rows, keys and features: fewer than a tile has rows of others, and more.
EACH: Final = 2
LENGTHS: Final = (4, 36)
# Kernels that are built at once.
MANY: Final = 40
# How far results may be off in float64, and those of kernels in float32; relative, in L2.
EXACT: Final = 1e-9
ROUNDED: Final = 2e-5
NEAR: Final = 1e-3

# What is constant is folded in its own type, float32: what follows is held to the folded graph.
FOLDED: Final = (Canonicalize(), Fold())
PASSES: Final = (Cse(), Rules(), Attention(), FlashAttention())


# --- graphs ---------------------------------------------------------------------------------------


def spelled(name: str, length: int) -> Graph:
    shape = (EACH, EACH, length, length)
    return traced(SPELLINGS[name], tuple(torch.randn(shape) for _ in "qkv"))


def again(graph: Graph, nodes: Sequence[Node], outputs: Sequence[Value]) -> Graph:
    """The graph with these nodes, whose types follow from what they read. Raises CheckError or
    UnsupportedError where that does not fit together."""
    now = {i.value.name: i.value for i in graph.inputs}
    made = []
    for node in nodes:
        read = {v: now[v.name] for v in node.operands}
        moved = node.replace(read)
        types = infer(moved) if node.operands else [v.type for v in node.results]
        results = tuple(Value(v.name, t) for v, t in zip(node.results, types, strict=True))
        now |= {v.name: v for v in results}
        made.append(replace(moved, results=results))
    return replace(graph, nodes=tuple(made), outputs=tuple(now[v.name] for v in outputs))


@dataclass
class Mutant:
    """A graph while something is changed in it."""

    graph: Graph
    dice: random.Random
    nodes: list[Node] = field(init=False)
    inputs: list[Value] = field(init=False)
    outputs: list[Value] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = list(self.graph.nodes)
        self.inputs = [i.value for i in self.graph.inputs]
        self.outputs = [v for v in self.graph.outputs if isinstance(v, Value)]
        self.fresh = fresh_names(v.name for v in self.graph.values)

    def made(self) -> Graph:
        graph = replace(self.graph, inputs=tuple(map(Input, self.inputs)))
        return again(graph, self.nodes, self.outputs)

    def place(self) -> int:
        """One of the nodes that compute with floats."""
        places = [n for n, node in enumerate(self.nodes) if is_float(node.results[0])]
        return self.dice.choice(places)

    def node(self, name: str, *args: Any, **kwargs: Any) -> Node:
        """A new one; its type is found later."""
        operator = op(name)
        given, keywords = normalize(operator, args, kwargs)
        bare = Node(operator, given, keywords, ())
        types = infer(bare)
        return replace(bare, results=tuple(Value(self.fresh("m"), t) for t in types))

    def put_after(self, place: int, node: Node) -> None:
        """Have all later nodes read what `node` makes of the result at a place."""
        old, new = self.nodes[place].results[0], node.results[0]
        later = [n.replace({old: new}) for n in self.nodes[place + 1 :]]
        self.nodes = [*self.nodes[: place + 1], node, *later]
        self.outputs = [new if v == old else v for v in self.outputs]


def is_float(value: Value) -> bool:
    return isinstance(value.type, TensorType) and value.type.dtype == torch.float32


# --- what is changed ------------------------------------------------------------------------------


def reads_another(m: Mutant) -> None:
    """An operand becomes another value of its shape."""
    place = m.place()
    node = m.nodes[place]
    own = [v for v in node.operands if isinstance(v.type, TensorType)]
    if not own:
        return
    old = m.dice.choice(own)
    before = [*m.inputs, *(v for n in m.nodes[:place] for v in n.results)]
    others = [
        v
        for v in before
        if isinstance(v.type, TensorType)
        and (v.type.shape, v.type.dtype) == (old.tensor.shape, old.tensor.dtype)
    ]
    if others:
        m.nodes[place] = node.replace({old: m.dice.choice(others)})


def turned(m: Mutant) -> None:
    """Two dimensions are exchanged, of one size or not."""
    place = m.place()
    value = m.nodes[place].results[0]
    order = list(range(value.tensor.rank))
    if len(order) < 2:
        return
    a, b = m.dice.sample(order, 2)
    order[a], order[b] = b, a
    m.put_after(place, m.node("aten.permute.default", value, tuple(order)))
    if m.dice.random() < 0.5:
        like = {"memory_format": torch.contiguous_format}
        m.put_after(place + 1, m.node("aten.clone.default", m.nodes[place + 1].results[0], **like))


def another_order(m: Mutant) -> None:
    """A permutation becomes another one."""
    places = [n for n, node in enumerate(m.nodes) if node.op.name == "aten.permute.default"]
    if places:
        place = m.dice.choice(places)
        order = list(m.nodes[place].args[1])  # type: ignore[arg-type]
        m.dice.shuffle(order)
        args = (m.nodes[place].args[0], tuple(order))
        m.nodes[place] = replace(m.nodes[place], args=args)


def something_done(m: Mutant) -> None:
    """One more operator along the way: on queries, scores, probabilities or results."""
    place = m.place()
    value = m.nodes[place].results[0]
    if value.tensor.rank == 0:
        return
    ways: list[Callable[[], Node]] = [
        lambda: m.node("aten.mul.Tensor", value, m.dice.choice([0.5, 2.0, -1.0])),
        lambda: m.node("aten.add.Tensor", value, 0.25),
        lambda: m.node("aten.neg.default", value),
        lambda: m.node("aten.relu.default", value),
        lambda: m.node("aten.tanh.default", value),
        lambda: m.node("aten.mul.Tensor", value, value),
        lambda: m.node("aten.flip.default", value, (m.dice.randrange(value.tensor.rank),)),
        lambda: m.node("aten.roll.default", value, (1,), (m.dice.randrange(value.tensor.rank),)),
        lambda: m.node("aten._softmax.default", value, m.dice.randrange(value.tensor.rank), False),
    ]
    m.put_after(place, m.dice.choice(ways)())


def another_axis(m: Mutant) -> None:
    """Softmaxes and reductions over another one."""
    for place, node in enumerate(m.nodes):
        rank = node.results[0].tensor.rank
        if node.op.name == "aten._softmax.default":
            args = (node.args[0], m.dice.randrange(rank), node.args[2])
            m.nodes[place] = replace(node, args=args)
        elif node.op.name in ("aten.amax.default", "aten.sum.dim_IntList"):
            dims = (m.dice.randrange(rank),)
            if m.dice.random() < 0.7:
                m.nodes[place] = replace(node, args=(node.args[0], dims, *node.args[2:]))


def operands_exchanged(m: Mutant) -> None:
    place = m.place()
    args = m.nodes[place].args
    if len(args) >= 2 and all(isinstance(a, Value) for a in args[:2]):
        m.nodes[place] = replace(m.nodes[place], args=(args[1], args[0], *args[2:]))


def left_out(m: Mutant) -> None:
    """What a node reads in its place, where that has its shape."""
    place = m.place()
    node = m.nodes[place]
    old = node.results[0]
    for value in node.operands:
        if isinstance(value.type, TensorType) and value.type.shape == old.tensor.shape:
            m.nodes[place + 1 :] = [n.replace({old: value}) for n in m.nodes[place + 1 :]]
            m.outputs = [value if v == old else v for v in m.outputs]
            return


def read_outside(m: Mutant) -> None:
    """Something on the way is returned, too."""
    value = m.nodes[m.place()].results[0]
    if value not in m.outputs:
        m.outputs.append(value)


def something_added(m: Mutant) -> None:
    """A tensor is added, or multiplied with, that is repeated along some dimensions."""
    place = m.place()
    value = m.nodes[place].results[0]
    shape = tuple(s if m.dice.random() < 0.5 else 1 for s in value.tensor.shape)
    shape = shape[m.dice.randrange(len(shape) + 1) :]
    bias = Value(m.fresh("bias"), TensorType(torch.float32, shape))
    m.inputs.append(bias)
    name = m.dice.choice(["aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor"])
    args = (value, bias) if m.dice.random() < 0.7 else (bias, value)
    node = m.node(name, *args)
    if node.results[0].tensor.shape == value.tensor.shape:
        m.put_after(place, node)


def masked(m: Mutant) -> None:
    """By a triangle, before the softmax or after it, with one number or another; scores are taken
    to be numbers, so none of what they are products of is infinite."""
    place = m.place()
    value = m.nodes[place].results[0]
    rank = value.tensor.rank
    if rank < 2 or value.tensor.shape[-1] != value.tensor.shape[-2]:
        return
    size = value.tensor.shape[-1]
    mask = Value(m.fresh("mask"), TensorType(torch.bool, (size, size)))
    m.inputs.append(mask)
    number = m.dice.choice([-1e30, -10.0, 0.0, float("-inf"), torch.finfo(torch.float32).min])
    if abs(number) > 10 and not comes_from_product(value, m.nodes):
        number = -10.0
    m.put_after(place, m.node("aten.masked_fill.Scalar", value, mask, number))


def comes_from_product(value: Value, nodes: Sequence[Node]) -> bool:
    made: set[Value] = set()
    for node in nodes:
        if node.op.name.endswith("bmm.default") or made.intersection(node.operands):
            made.update(node.results)
    return value in made


CHANGES: Final = (
    *(reads_another, turned, another_order, something_done, another_axis),
    *(operands_exchanged, left_out, read_outside, something_added, masked),
)


def mutant(seed: int) -> tuple[str, Graph]:
    """What was changed in what, and the graph: the first that fits together."""
    dice = random.Random(seed)
    while True:
        name, length = dice.choice(list(SPELLINGS)), dice.choice(LENGTHS)
        m = Mutant(spelled(name, length), dice)
        changes = dice.choices(CHANGES, k=dice.choice([1, 1, 2, 3]))
        try:
            for change in changes:
                change(m)
                m = Mutant(m.made(), dice)
        except (CheckError, UnsupportedError):
            continue
        return f"{seed}: {name}, {', '.join(c.__name__ for c in changes)}", m.graph


# --- what comes of it -----------------------------------------------------------------------------


def drawn(graph: Graph, seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    found = []
    for given in graph.inputs:
        type = given.value.tensor
        sizes = [size for size in type.shape if isinstance(size, int)]
        if type.dtype == torch.bool:
            found.append(torch.ones(sizes, dtype=torch.bool).triu(1))
        else:
            found.append(torch.randn(sizes))
    return found


def differ(found: Sequence[Tensor], wanted: Sequence[Tensor], limit: float) -> bool:
    return any(far(a, b, limit) for a, b in zip(found, wanted, strict=True))


def far(found: Tensor, wanted: Tensor, limit: float) -> bool:
    """True where numbers differ; what was no number may be anything, as rows without a key are."""
    known = wanted.isfinite()
    off = (found.double() - wanted.double())[known].norm()
    size = wanted.double()[known].norm()
    return not (off <= limit * max(float(size), 1e-3))


@dataclass(frozen=True)
class Made:
    """A kernel, what it reads, and what it should give."""

    nest: AttentionNest
    read: tuple[Tensor, ...]
    wanted: Tensor


@dataclass(frozen=True)
class Tried:
    """One graph, what the passes made of it, and the kernels in that."""

    name: str
    is_attention: bool
    is_wrong: bool
    kernels: tuple[Made, ...]


def tried(seed: int) -> Tried:
    name, graph = mutant(seed)
    inputs = drawn(graph, seed)
    target = Target.parse("cpu:avx2")
    env = Env(cost=Roofline(target), target=target, tools=LastWins(), seed=seed)
    folded = Pipeline(FOLDED).run(graph, env, check=True).graph
    chosen = Pipeline(PASSES).run(folded, env, check=True).graph
    lowered = Pipeline((LowerAttention(),)).run(chosen, env, check=True).graph
    given, wanted, *made = (
        interpret(g, inputs, dtype=torch.float64) for g in (graph, folded, chosen, lowered)
    )
    is_wrong = differ(wanted, given, ROUNDED) or any(differ(end, wanted, EXACT) for end in made)
    ours = [n for n in chosen.nodes if n.op.name == "rw.attention"]
    kernels = tuple(kernel_of(n, chosen, inputs) for n in ours if n.kwarg("via"))
    return Tried(name, bool(ours), is_wrong, kernels)


def kernel_of(node: Node, graph: Graph, inputs: list[Tensor]) -> Made:
    """The kernel of a node, with numbers as they are in a run of its graph."""
    seen: dict[str, Tensor] = {}

    def watch(value: Value, result: object) -> None:
        if isinstance(result, Tensor):
            seen[value.name] = result

    interpret(graph, inputs, dtype=torch.float64, watch=watch)
    seen |= {i.value.name: x for i, x in zip(graph.inputs, inputs, strict=True)}
    read = []
    for value in node.operands:
        x = seen[value.name]
        held = torch.empty_strided(x.shape, strides(value.tensor), dtype=value.tensor.dtype)
        read.append(held.copy_(x))
    body = node.graph("body")
    (wanted,), (eager,) = interpret(body, read, dtype=torch.float64), interpret(body, read)
    # Where float32 does not do, as beyond its largest number, nothing is said of a kernel.
    known = (eager.double() - wanted).abs() <= NEAR * (1 + wanted.abs())
    wanted = wanted.masked_fill(~known, torch.nan)
    return Made(lower_attention(body, "kernel"), tuple(read), wanted)


def strides(type: TensorType) -> list[int]:
    return [step for step in type.layout if isinstance(step, int)]


def wrong_kernels(graphs: Sequence[Tried]) -> list[str]:
    """Names of graphs with a kernel that computes something else than its node."""
    every = [(t.name, kernel) for t in graphs for kernel in t.kernels]
    found = []
    for first in range(0, len(every), MANY):
        some = every[first : first + MANY]
        nests = [replace(made.nest, name=f"k{n}") for n, (_, made) in enumerate(some)]
        library = build(emit(nests))
        for nest, (name, made) in zip(nests, some, strict=True):
            (output,) = nest.outputs
            result = torch.empty_strided(made.wanted.shape, strides(output.type))
            addresses = [x.data_ptr() for x in (*made.read, result)]
            library.function(nest.name)((ctypes.c_void_p * len(addresses))(*addresses), None)
            if far(result, made.wanted, ROUNDED):
                found.append(name)
    return found


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("count", type=int, nargs="?", default=1000)
    asked.add_argument("--seed", type=int, default=0, help="of the first graph")
    given = asked.parse_args()
    found = [tried(given.seed + n) for n in range(given.count)]
    wrong = [t.name for t in found if t.is_wrong]
    off = wrong_kernels(found)
    told = Counter(
        {
            "graphs": len(found),
            "with attention": sum(t.is_attention for t in found),
            "kernels": sum(len(t.kernels) for t in found),
            "results changed": len(wrong),
            "kernels off": len(off),
        }
    )
    print(", ".join(f"{n} {what}" for what, n in told.items()))
    for name in (*wrong, *off):
        print(name)
    return 1 if wrong or off else 0


if __name__ == "__main__":
    sys.exit(main())
