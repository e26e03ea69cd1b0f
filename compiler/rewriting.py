"""Optimizing a graph that is not compiled: the passes that stay at the aten level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from rewright.costmodel import Roofline
from rewright.driver import target_of
from rewright.ir import Graph, OptionError
from rewright.options import Options
from rewright.passes import DEFAULT, EVERY_STAGE, Env, Pipeline
from rewright.report import PassRow
from rewright.report_json import to_json
from rewright.reporting import pass_rows


@dataclass(frozen=True)
class Rewritten:
    """A graph after its passes, and what each of them did; `state` gives the tensors of inputs
    that a caller does not pass."""

    graph: Graph
    passes: tuple[PassRow, ...]
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def as_json(self) -> dict[str, Any]:
        return {"graph": self.graph.name, "passes": to_json(self.passes)}

    def __str__(self) -> str:
        from rewright.tables import pass_table

        return pass_table(self.passes)

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write the graph to a `.mlir` file as text, to a `.mlirbc` file as bytecode, in the torch
        dialect, and parameters to a `.safetensors` file beside it; gives the files.

        Raises OptionError for another name, ToolchainError where torch-mlir is missing,
        UnsupportedError for what the dialect cannot say, ArtefactError when a file cannot be
        written.
        """
        from rewright.ir.mlir_context import state_path
        from rewright.ir.mlir_export import save_mlir
        from rewright.sources import MLIR_SUFFIXES

        target = Path(path)
        if target.suffix not in MLIR_SUFFIXES:
            raise OptionError(
                f"a graph is written as {' or '.join(MLIR_SUFFIXES)}, not '{target}'",
                help="str() of the graph is its text",
            )
        save_mlir(self.graph, target, self.state)
        return (target, state_path(target)) if self.state else (target,)


def rewrite(graph: Graph, options: Options, state: Mapping[str, Tensor] | None = None) -> Rewritten:
    """Run the passes of `options` up to the first that leaves the aten level.

    Raises what the passes raise, and OptionError for a pipeline that does not parse.
    """
    chosen = Pipeline.parse(options.passes, DEFAULT)
    target = target_of(options)
    env = Env(cost=Roofline(target), target=target)
    result = chosen.at_aten().run(graph, env, snapshots=EVERY_STAGE)
    return Rewritten(result.graph, tuple(pass_rows(graph, result.stages, env)), state or {})
