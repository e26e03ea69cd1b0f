"""Optimizing a graph that is not compiled: the passes that stay at the aten level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewright.costmodel import Roofline
from rewright.driver import EVERY_STAGE, target_of
from rewright.ir import Graph
from rewright.options import Options
from rewright.passes import DEFAULT, Env, Pipeline
from rewright.report import PassRow
from rewright.report_json import to_json
from rewright.reporting import pass_rows


@dataclass(frozen=True)
class Rewritten:
    """A graph after its passes, and what each of them did."""

    graph: Graph
    passes: tuple[PassRow, ...]

    def as_json(self) -> dict[str, Any]:
        return {"graph": self.graph.name, "passes": to_json(self.passes)}

    def __str__(self) -> str:
        from rewright.tables import pass_table

        return pass_table(self.passes)


def rewrite(graph: Graph, options: Options) -> Rewritten:
    """Run the passes of `options` up to the first that leaves the aten level.

    Raises what the passes raise, and OptionError for a pipeline that does not parse.
    """
    chosen = Pipeline(DEFAULT) if options.passes == "default" else Pipeline.parse(options.passes)
    target = target_of(options)
    env = Env(cost=Roofline(target), target=target)
    result = chosen.at_aten().run(graph, env, snapshots=EVERY_STAGE)
    return Rewritten(result.graph, tuple(pass_rows(graph, result.stages, env)))
