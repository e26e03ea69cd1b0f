"""The passes of a compile once more, one by one, with the graph after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewright.bisect.running import Setting
from rewright.driver import environment, pipeline_of
from rewright.ir import BudgetError, Graph, OptionError, TextError
from rewright.options import Options
from rewright.passes import Pass, Pipeline
from rewright.passes.fuel import Fuel

Say = Callable[[str], None]
# What passes raise on purpose: about what was asked, not about the graph.
REFUSALS = (BudgetError, OptionError, TextError)


@dataclass(frozen=True)
class Replay:
    """`graphs[0]` is the graph as it came, `graphs[i]` what `passes[i - 1]` made of the one before.
    When a pass raised, `raised` says what, and the graphs end before it. `note` says why there are
    no kernels, if so."""

    setting: Setting
    passes: tuple[Pass, ...]
    graphs: tuple[Graph, ...]
    note: str | None = None
    raised: Exception | None = None

    @property
    def source(self) -> Graph:
        return self.graphs[0]

    @property
    def final(self) -> Graph:
        return self.graphs[-1]

    def rewritten(self, place: int, fuel: Fuel) -> Graph:
        """What `passes[place - 1]` leaves with so much fuel for its rules."""
        return self.setting.passed(self.graphs[place - 1], self.passes[place - 1 : place], fuel)


def replay(
    graph: Graph,
    options: Options,
    samples: tuple[Sequence[Any], ...] = (),
    say: Say = lambda said: None,
    *,
    apart: bool = True,
) -> Replay:
    """Run the passes that the options ask for. Raises OptionError, BudgetError and TextError."""
    env, note = environment(graph, options, samples)
    passes = pipeline_of(options, kernels=note is None).passes
    found = Replay(Setting(options, env, apart), passes, (graph,), note)
    for place, step in enumerate(passes, 1):
        say(f"pass {place} of {len(passes)}: {step.name}")
        try:
            after = Pipeline((step,)).run(found.final, env).graph
        except REFUSALS:
            raise
        except Exception as error:
            return dataclasses.replace(found, raised=error)
        found = dataclasses.replace(found, graphs=(*found.graphs, after))
    return found
