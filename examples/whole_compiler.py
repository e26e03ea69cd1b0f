"""A whole compiler in one file: text -> graph -> one rewrite -> one fused kernel -> run.

    python -m examples.whole_compiler

Rewright does these five things at length; here each is a page, in the order in which they happen.
The graph, its text and the formulas of operators are Rewright's own. Left out: views, reductions,
other dtypes than float32, strides, symbolic sizes, threads, SIMD, and where the memory comes from.
"""

from __future__ import annotations

import ast
import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from rewright.ir import Arg, Graph, Input, Kind, Node, TensorType, Value, op, pointwise_obstacle
from rewright.ir.check import check
from rewright.ir.expr import Call, Literal, Operand, Scalar
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse
from rewright.ir.pointwise import scalar_expr, subexpressions
from rewright.ir.show import show

# --- 1. text -> graph -----------------------------------------------------------------------------
#
# A graph is a function: inputs, nodes in an order that can run, outputs. Values are named once and
# never change; operators are PyTorch's, with their full names. `ir/text.lark` is the grammar.

PROGRAM = """
graph demo(%x: f32[64, 96], %w: f32[96, 80] param, %r: f32[64, 80]) {
  %h = aten.mm.default(%x, %w) : f32[64, 80]
  %a = aten.neg.default(%h) : f32[64, 80]
  %b = aten.neg.default(%a) : f32[64, 80]
  %c = aten.add.Tensor(%b, %r) : f32[64, 80]
  %d = aten.relu.default(%c) : f32[64, 80]
  %e = aten.mul.Scalar(%d, 0.1) : f32[64, 80]
  return %e
}
"""

# --- 2. one rewrite -------------------------------------------------------------------------------
#
# A rule is two expressions: what to look for, and which part of it to read instead. This one is
# exact: it changes no bit of any result, whatever is in x.

RULE = ("neg(neg(x))", "x")
OPERATORS = {"neg": "aten.neg.default", "relu": "aten.relu.default"}


def rewrite(graph: Graph, rule: tuple[str, str]) -> Graph:
    """Apply the rule everywhere; a pass returns a new graph, it changes none."""
    pattern = ast.parse(rule[0], mode="eval").body
    replaced: dict[Value, Arg] = {}
    for node in graph.nodes:
        found = match(pattern, node.results[0], graph)
        if found is not None:
            replaced[node.result] = found[rule[1]]
    return without_dead_nodes(graph.substitute(replaced))


def match(pattern: ast.expr, arg: Arg, graph: Graph) -> dict[str, Arg] | None:
    """What each name of the pattern stands for when it is read as `arg`; None: it is not that."""
    if isinstance(pattern, ast.Name):
        return {pattern.id: arg}
    node = graph.producers.get(arg) if isinstance(arg, Value) else None
    assert isinstance(pattern, ast.Call) and isinstance(pattern.func, ast.Name)
    if node is None or node.op is not op(OPERATORS[pattern.func.id]):
        return None
    found: dict[str, Arg] = {}
    for part, operand in zip(pattern.args, node.args, strict=True):
        inner = match(part, operand, graph)
        if inner is None or any(found.get(name, arg) != arg for name, arg in inner.items()):
            return None
        found |= inner
    return found


def without_dead_nodes(graph: Graph) -> Graph:
    """Nodes that somebody reads; nothing here has effects."""
    read, kept = set(graph.returned), list[Node]()
    for node in reversed(graph.nodes):
        if read.intersection(node.results):
            kept.append(node)
            read.update(node.operands)
    return graph.with_nodes(reversed(kept))


# --- 3. fusion ------------------------------------------------------------------------------------
#
# An elementwise operator reads a number, computes for a nanosecond and writes a number, so memory
# decides its speed. Operators that share numbers go into one region, whose inner values are never
# written. May a node join its producer? Only when nobody else reads what lies between them.


def fuse(graph: Graph) -> Graph:
    """Trees of elementwise nodes become `rw.fused` nodes, which carry a graph that says what they
    compute."""
    regions: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        if not is_elementwise(node):
            continue
        members: list[Node] = []
        for value in dict.fromkeys(node.operands):
            only_here = graph.readers[value] == (node,) and value not in graph.returned
            if value in regions and only_here:
                members += regions.pop(value)
        regions[node.result] = [*members, node]
    inside = {id(node) for members in regions.values() for node in members}
    nodes = [
        region(regions[node.result]) if node.result in regions else node
        for node in graph.nodes
        if node.result in regions or id(node) not in inside
    ]
    return graph.with_nodes(nodes)


def is_elementwise(node: Node) -> bool:
    """Each element of the result is a formula, one we can print, over the elements at the same
    place of the operands."""
    if node.op.kind is not Kind.POINTWISE or pointwise_obstacle(node):
        return False
    plain = TensorType(torch.float32, node.result.tensor.shape)
    calls = (e for e in subexpressions(scalar_expr(node).expr) if isinstance(e, Call))
    same_shape = all(value.type == plain for value in (*node.operands, node.result))
    return same_shape and all(call.name in PRIMITIVES for call in calls)


def region(members: Sequence[Node]) -> Node:
    made = {node.result for node in members}
    reads = dict.fromkeys(v for node in members for v in node.operands if v not in made)
    inputs = tuple(Input(value) for value in reads)
    results = members[-1].results
    body = Graph("body", inputs, tuple(members), results)
    return Node(op("rw.fused"), tuple(reads), (), results, graphs=(("body", body),))


# --- 4. one kernel per region ---------------------------------------------------------------------
#
# `scalar_expr` gives one element of an operator's result as a formula over its operands' elements.
# Printing that formula is all that depends on the language.

PRIMITIVES = {
    "add": "({} + {})",
    "sub": "({} - {})",
    "mul": "({} * {})",
    "div": "({} / {})",
    "neg": "(-{})",
    "sqrt": "sqrtf({})",
    "lt": "({} < {})",
    "gt": "({} > {})",
    "select": "({} ? {} : {})",
}
# No fused multiply-add: a node computes the same bits wherever it runs.
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC")


def c_source(region: Node) -> str:
    """A C function that computes all elements of a region's result in one loop."""
    body = region.graph("body")
    reads = [f"    float {x.value.name} = in[{k}][i];" for k, x in enumerate(body.inputs)]
    computes = [f"    float {node.name} = {c_of_node(node)};" for node in body.nodes]
    lines = [
        f"void kernel_{region.name}(const float** in, float* out, long count) {{",
        "  for (long i = 0; i < count; i++) {",
        *reads,
        *computes,
        f"    out[i] = {region.name};",
        "  }",
        "}",
    ]
    return "\n".join(lines)


def c_of_node(node: Node) -> str:
    element = scalar_expr(node)
    return c_of(element.expr, [v.name for v in element.operands if isinstance(v, Value)])


def c_of(expr: Scalar, operands: Sequence[str]) -> str:
    match expr:
        case Operand(index):
            return operands[index]
        case Literal(value):
            # As eager does, round the number to float before computing; print every bit of it.
            return f"{float(torch.tensor(value, dtype=torch.float32)).hex()}f"
        case Call(name, args):
            return PRIMITIVES[name].format(*(c_of(a, operands) for a in args))
    raise TypeError(f"{expr!r} is not a formula")


def build(source: str) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler is not None, "this example needs a C compiler"
    with tempfile.TemporaryDirectory() as folder:
        text, library = Path(folder, "kernels.c"), Path(folder, "kernels.so")
        text.write_text(source)
        subprocess.run([compiler, *FLAGS, text, "-o", library, "-lm"], check=True)
        return ctypes.CDLL(str(library))


# --- 5. run ---------------------------------------------------------------------------------------
#
# The order of the nodes is the schedule. What has no kernel of ours is PyTorch's: a matrix product
# calls the library that eager calls.

Kernel = Callable[..., torch.Tensor]


def kernel(region: Node, library: ctypes.CDLL) -> Kernel:
    """The compiled region as a function from tensors to a tensor."""
    function = getattr(library, f"kernel_{region.name}")

    def call(*operands: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(operands[0])
        addresses = (ctypes.c_void_p * len(operands))(*(t.data_ptr() for t in operands))
        function(addresses, ctypes.c_void_p(out.data_ptr()), ctypes.c_long(out.numel()))
        return out

    return call


def run(
    graph: Graph, inputs: Sequence[torch.Tensor], kernels: Mapping[str, Kernel]
) -> list[torch.Tensor]:
    values = {i.value: given for i, given in zip(graph.inputs, inputs, strict=True)}
    for node in graph.nodes:
        function = kernels.get(node.name) or node.op.target
        assert function is not None
        args = [values[a] if isinstance(a, Value) else a for a in node.args]
        values[node.result] = function(*args)
    return [values[output] for output in graph.outputs if isinstance(output, Value)]


def main() -> None:
    """Take the program all the way and compare with PyTorch's own operators, bit for bit."""
    graph = parse(PROGRAM)
    simpler = rewrite(graph, RULE)
    fused = fuse(simpler)
    check(fused, "fused")  # the rules every pass's result keeps
    regions = [node for node in fused.nodes if node.op is op("rw.fused")]
    source = "\n".join(["#include <math.h>", *map(c_source, regions)])
    library = build(source)
    kernels = {region.name: kernel(region, library) for region in regions}
    for stage, made in (("as written", graph), ("rewritten", simpler), ("fused", fused)):
        print(f"# {stage}\n{show(made, header=False)}\n")
    print(source)

    inputs = [torch.randn(64, 96), torch.randn(96, 80), torch.randn(64, 80)]
    (ours,), (eager,) = run(fused, inputs, kernels), interpret(graph, inputs)
    different = int((ours.view(torch.int32) != eager.view(torch.int32)).sum())
    print(f"\n{different} of {ours.numel()} numbers differ from eager")


if __name__ == "__main__":
    main()
