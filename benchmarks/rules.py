"""The rule base on long graphs: time to the fixed point, and how it grows.

Graphs are chains of blocks as decoders have them, with dynamic batch and length, spelled so that
rules have work to do. torch's FakeTensor and sympy are counted: rewriting asks neither for what it
can know.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.options import RESULTS, add_count, positive
from benchmarks.report import print_table, track, write_json
from rewright.costmodel import Roofline
from rewright.ir import Graph, Target, dims
from rewright.ir.parse import parse
from rewright.passes import Env
from rewright.passes.rules import FASTMATH, Outcome, Rules

NODES = (1_000, 3_000, 10_000, 30_000)

# A block of 20 nodes that rules have much to do in: 12 rewrites leave 6 of them. `{0}` is the
# block's number, `{1}` its input.
BUSY = """
  %m{0} = aten.mean.dim(%{1}, [-1], true) : f32[B0, B1, 1]
  %c{0} = aten.sub.Tensor(%{1}, %m{0}) : f32[B0, B1, 64]
  %q{0} = aten.pow.Tensor_Scalar(%c{0}, 2) : f32[B0, B1, 64]
  %v{0} = aten.mean.dim(%q{0}, [-1], true) : f32[B0, B1, 1]
  %e{0} = aten.add.Tensor(%v{0}, 1e-05) : f32[B0, B1, 1]
  %r{0} = aten.rsqrt.default(%e{0}) : f32[B0, B1, 1]
  %n{0} = aten.mul.Tensor(%c{0}, %r{0}) : f32[B0, B1, 64]
  %s{0} = aten.mul.Tensor(%n{0}, %w) : f32[B0, B1, 64]
  %a{0} = aten.view.default(%s{0}, [B0*B1, 64]) : f32[B0*B1, 64]
  %p{0} = aten.mm.default(%a{0}, %k) : f32[B0*B1, 64]
  %b{0} = aten.view.default(%p{0}, [B0, B1, 64]) : f32[B0, B1, 64]
  %h{0} = aten.view.default(%b{0}, [B0, B1, 4, 16]) : f32[B0, B1, 4, 16]
  %t{0} = aten.transpose.int(%h{0}, 1, 2) : f32[B0, 4, B1, 16] strides [64*B1, 16, 64, 1]
  %u{0} = aten.transpose.int(%t{0}, 1, 2) : f32[B0, B1, 4, 16]
  %x{0} = aten.view.default(%u{0}, [B0, B1, 64]) : f32[B0, B1, 64]
  %g{0} = aten.sigmoid.default(%x{0}) : f32[B0, B1, 64]
  %i{0} = aten.mul.Tensor(%x{0}, %g{0}) : f32[B0, B1, 64]
  %j{0} = aten.neg.default(%i{0}) : f32[B0, B1, 64]
  %l{0} = aten.add.Tensor(%{1}, %j{0}) : f32[B0, B1, 64]
  %z{0} = aten.mul.Tensor(%l{0}, 1) : f32[B0, B1, 64]"""
# One of as many nodes that no rule changes.
PLAIN = """
  %m{0} = aten.mean.dim(%{1}, [-1], true) : f32[B0, B1, 1]
  %c{0} = aten.add.Tensor(%{1}, %m{0}) : f32[B0, B1, 64]
  %q{0} = aten.sin.default(%c{0}) : f32[B0, B1, 64]
  %v{0} = aten.amax.default(%q{0}, [-1], true) : f32[B0, B1, 1]
  %e{0} = aten.tanh.default(%v{0}) : f32[B0, B1, 1]
  %r{0} = aten.exp.default(%e{0}) : f32[B0, B1, 1]
  %n{0} = aten.mul.Tensor(%c{0}, %r{0}) : f32[B0, B1, 64]
  %s{0} = aten.mul.Tensor(%n{0}, %w) : f32[B0, B1, 64]
  %a{0} = aten.view.default(%s{0}, [B0*B1, 64]) : f32[B0*B1, 64]
  %p{0} = aten.mm.default(%a{0}, %k) : f32[B0*B1, 64]
  %b{0} = aten.relu.default(%p{0}) : f32[B0*B1, 64]
  %h{0} = aten.view.default(%b{0}, [B0, B1, 4, 16]) : f32[B0, B1, 4, 16]
  %t{0} = aten.transpose.int(%h{0}, 1, 2) : f32[B0, 4, B1, 16] strides [64*B1, 16, 64, 1]
  %u{0} = aten.cumsum.default(%t{0}, 2) : f32[B0, 4, B1, 16]
  %y{0} = aten.transpose.int(%u{0}, 1, 2)
    : f32[B0, B1, 4, 16] strides [64*B1, 16, 16*B1, 1]
  %d{0} = aten.clone.default(%y{0}, memory_format=memory_format(contiguous))
    : f32[B0, B1, 4, 16]
  %x{0} = aten.view.default(%d{0}, [B0, B1, 64]) : f32[B0, B1, 64]
  %g{0} = aten.cos.default(%x{0}) : f32[B0, B1, 64]
  %i{0} = aten.mul.Tensor(%x{0}, %g{0}) : f32[B0, B1, 64]
  %z{0} = aten.add.Tensor(%{1}, %i{0}) : f32[B0, B1, 64]"""
BLOCK_NODES = 20


def graph_of(nodes: int, every: int) -> Graph:
    """Of every so many blocks the first is a busy one."""
    blocks, last = [], "x"
    for number in range(nodes // BLOCK_NODES):
        blocks.append((PLAIN if number % every else BUSY).format(number, last))
        last = f"z{number}"
    inputs = "%x: f32[B0, B1, 64], %w: f32[64] param, %k: f32[64, 64] param"
    where = "B0 in [1, 64] hint 4, B1 in [1, 4096] hint 128"
    return parse(f"graph long({inputs}) where {where} {{{''.join(blocks)}\n  return %{last}\n}}")


def main() -> int:
    asked = arguments()
    target = Target.parse("cpu:avx2")
    rows = []
    for nodes, every in track(
        [(n, e) for e in asked.every for n in asked.nodes], lambda job: f"{job[0]} nodes"
    ):
        graph = graph_of(nodes, every)
        rows.append(measure(graph, Env(cost=Roofline(target), target=target), asked.repeat))
    columns = ("nodes", "rewrites", "left", "seconds", "us a node", "sympy calls", "fake tensors")
    print_table(columns, [[f"{value:.4g}" for value in row.values()] for row in rows])
    write_json(asked.json, "rules", {"repeat": asked.repeat}, {"rules": rows})
    return 0


def measure(graph: Graph, env: Env, repeat: int) -> dict[str, float]:
    """Median seconds of fresh runs; the counts are those of the first, with nothing memoized."""
    seconds = []
    first: Outcome | None = None
    found: dict[str, int] = {}
    with counted() as counts:
        for _ in range(repeat):
            start = perf_counter()
            outcome = Rules((FASTMATH,)).apply(graph, env)
            seconds.append(perf_counter() - start)
            first = first or outcome
            found = found or dict(counts)
    assert first is not None
    return {
        "nodes": len(graph.nodes),
        "rewrites": first.rewrites,
        "left": len(first.graph.nodes),
        "seconds": median(seconds),
        "us_a_node": 1e6 * median(seconds) / len(graph.nodes),
        "sympy_calls": found["sympy"],
        "fake_tensors": found["fake"],
    }


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Counts what reaches sympy, and what reaches FakeTensorMode."""
    counts = {"sympy": 0, "fake": 0}
    operation, dispatch = dims._sympy_op, FakeTensorMode.__torch_dispatch__

    def asked_sympy(kind: str) -> Any:
        counts["sympy"] += 1
        return operation(kind)

    def asked_fake(*args: Any, **kwargs: Any) -> Any:
        counts["fake"] += 1
        return dispatch(*args, **kwargs)

    dims._sympy_op = asked_sympy
    FakeTensorMode.__torch_dispatch__ = asked_fake  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        dims._sympy_op = operation
        FakeTensorMode.__torch_dispatch__ = dispatch  # type: ignore[method-assign]


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser("python -m benchmarks.rules", description=__doc__)
    options.add_argument("--nodes", nargs="+", type=positive, default=list(NODES), metavar="N")
    options.add_argument("--json", type=Path, default=RESULTS / "rules.json", metavar="FILE")
    one_in = "one block in so many has work for rules"
    options.add_argument("--every", nargs="+", type=positive, default=[4, 1], help=one_in)
    add_count(options, "repeat", 3, "runs of each graph")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(main())
