"""Fused graphs as programs to be timed: every distinct kernel is built once, all in one library."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from rewright.building import march_of
from rewright.codegen import Executable, kernels_of
from rewright.codegen.cpp import build, emit
from rewright.ir import Graph, Kind, graph_key
from rewright.ir.loops import AnyNest
from rewright.passes import Env, PlanMemory


def executables(graphs: Sequence[Graph], env: Env) -> list[Executable]:
    """Programs of fused-level graphs, in their order.

    Raises ToolchainError when the kernels cannot be built, UnsupportedError for a region without a
    loop nest.
    """
    planned = [PlanMemory().run(graph, env) for graph in graphs]
    kernels = _Kernels()
    of_nodes = [kernels.names_of(graph) for graph in planned]
    library = None
    if kernels.nests:
        library = build(emit(kernels.nests), march=march_of(env.target))
    made = []
    for graph, of_node in zip(planned, of_nodes, strict=True):
        functions = {name: library.function(name) for name in set(of_node.values()) if library}
        made.append(Executable(graph, functions, of_node))
    return made


class _Kernels:
    """The distinct kernels of several graphs, under names of their own."""

    def __init__(self) -> None:
        self.nests: list[AnyNest] = []
        self._names: dict[Hashable, str] = {}

    def names_of(self, graph: Graph) -> dict[str, str]:
        """For each region the name of its kernel."""
        found = kernels_of(graph)
        nests = {nest.name: nest for nest in found.nests}
        named = {}
        for node in graph.nodes:
            if node.op.kind is not Kind.REGION:
                continue
            nest = nests[found.of_node[node.name]]
            key = graph_key(node.graph("body"))
            if key not in self._names:
                self._names[key] = f"p{len(self._names)}_{nest.name}"
                self.nests.append(replace(nest, name=self._names[key]))
            named[node.name] = self._names[key]
        return named
