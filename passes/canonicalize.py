"""Clean-up that never changes a number: copies, casts and views that do nothing, or do in two
steps what takes one. It knows nothing of arithmetic: `x + 0` is not `x` when x is -0.0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rewright.ir import Graph
from rewright.passes.base import Env, Pass
from rewright.passes.rules import Rules

SETS: Final = ("views", "casts", "creations")


@dataclass(frozen=True)
class Canonicalize(Pass, name="canonicalize", takes="aten", gives="aten"):
    """Apply the rules that remove casts, copies and views that do nothing and join chains of them;
    filled tensors no longer read what they are shaped like.

    before:
        graph f(%x: f32[2, 3]) {
          %a = aten.t.default(%x) : f32[3, 2] strides [1, 3]
          %b = aten.t.default(%a) : f32[2, 3]
          %c = aten.sin.default(%b) : f32[2, 3]
          return %c
        }
    after:
        graph f(%x: f32[2, 3]) {
          %c = aten.sin.default(%x) : f32[2, 3]
          return %c
        }

    Refuses: to make an output share storage with an input or with another output, where it did
    not before. Types of what remains never change, strides included.
    """

    def run(self, graph: Graph, env: Env) -> Graph:
        found = Rules(SETS).apply(graph, env, who=self.name)
        return self.gave(found.graph, found.renamed) if found.rewrites else graph
