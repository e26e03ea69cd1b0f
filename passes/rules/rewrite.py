"""The pass that applies rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rewright.ir import Graph
from rewright.passes.base import Env, Pass
from rewright.passes.rules.build import Replacement
from rewright.passes.rules.engine import Engine, Outcome
from rewright.passes.rules.library import EXACT, content_key, rules_of
from rewright.passes.rules.work import Work


@dataclass(frozen=True)
class Rules(Pass, name="rules", takes="aten", gives="aten"):
    """Apply rewrite rules until none matches; `sets` are sets of ours, files and texts.

    before:
        graph f(%x: f32[2, 3], %y: f32[2, 3]) {
          %a = aten.neg.default(%y) : f32[2, 3]
          %b = aten.add.Tensor(%x, %a) : f32[2, 3]
          return %b
        }
    after:
        graph f(%x: f32[2, 3], %y: f32[2, 3]) {
          %b = aten.sub.Tensor(%x, %y) : f32[2, 3]
          return %b
        }

    Refuses: to change the type of a value, strides included; to let an output share storage with
    an input or another output, where it did not before; to compute twice what others read too.
    """

    sets: tuple[str, ...] = (EXACT,)

    def run(self, graph: Graph, env: Env) -> Graph:
        outcome = self.apply(graph, env)
        return self.gave(outcome.graph, outcome.renamed) if outcome.rewrites else graph

    def apply(self, graph: Graph, env: Env, *, who: str = "rules") -> Outcome:
        """`run` for the pass `who`, with what each rule did."""

        def cheapest(candidates: Sequence[Replacement], work: Work) -> Replacement:
            return min(candidates, key=lambda c: _seconds(c, work, env))

        engine = _engine(self.sets, content_key(self.sets))
        return engine.run(graph, env.log, cheapest, who=who, fuel=env.fuel)


@cache
def _engine(sets: tuple[str, ...], content: str) -> Engine:
    return Engine(rules_of(sets))


def _seconds(candidate: Replacement, work: Work, env: Env) -> float:
    """Estimated time of what a replacement adds less that of what it takes the place of, each node
    on its own."""
    gone = [work.nodes[number] for number in candidate.match.nodes]
    before, after = (sum(e.seconds for e in env.cost.estimate(n)) for n in (gone, candidate.nodes))
    return after - before
