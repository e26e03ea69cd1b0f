"""A pass that only looks: how often a graph clips."""

from __future__ import annotations

from dataclasses import dataclass

from rewright.ir import Graph
from rewright.passes import Env, Pass


@dataclass(frozen=True)
class CountClips(Pass, name="softclip-count", takes="aten", gives="aten"):
    """Say how many soft clips there are, where there are more than `most`."""

    most: int = 0

    def run(self, graph: Graph, env: Env) -> Graph:
        found = [node for node in graph.nodes if node.op.name == "softclip.softclip.default"]
        if len(found) > self.most:
            env.log.decide(self.name, found[0].name, f"is one of {len(found)} soft clips")
        return graph
