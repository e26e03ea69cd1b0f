"""A case once more: what its file promises, and what its script does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rewright.bisect.broken import Fault, fault_of
from rewright.bisect.running import Setting, Subject
from rewright.bisect.slow import Clock, Measured, Predicted, loss
from rewright.driver import environment
from rewright.ir import Graph
from rewright.ir.parse import parse
from rewright.ir.text_files import read_tensors
from rewright.options import Options
from rewright.passes import Pipeline
from rewright.sources import random_inputs

if TYPE_CHECKING:
    from rewright.passes import Env

# What a case file may promise of what a pipeline does to its graph.
PROMISES: Final = {
    "computes the same": "numbers",
    "computes the same, built": "built",
    "is no slower": "predicted",
    "is no slower, built": "slow",
}


def fault_in(
    graph: Graph,
    passes: str,
    how: str,
    inputs: Sequence[Any] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    env: Env | None = None,
) -> Fault | None:
    """What is wrong with `graph` after `passes`, by default on random inputs.

    `how`: as the interpreter says ("numbers"), or as it runs when it is "built"; or whether it
    takes longer for them, as the cost model says ("predicted") or as measured ("slow").
    """
    chosen = Options.of(options or {})
    given = random_inputs(graph) if inputs is None else inputs
    setting = Setting(chosen, environment(graph, chosen, (given,))[0] if env is None else env)
    steps = Pipeline.parse(passes).passes
    if how in ("numbers", "built"):
        return fault_of(graph, Subject(setting, steps, how == "built"), given)
    clock: Clock = Measured(setting) if how == "slow" else Predicted(setting)
    return loss(graph, steps, clock, setting, given)


def try_again(
    text: str | Path,
    passes: str,
    how: str,
    inputs: Sequence[Any] | None = None,
    **options: Any,
) -> int:
    """Say whether the graph of a text, or of a file, still has its fault; the exit status is 1 when
    it has."""
    if isinstance(text, Path):
        graph = parse(text.read_text(), constants=read_tensors(text.with_suffix(".safetensors")))
    else:
        graph = parse(text)
    fault = fault_in(graph, passes, how, inputs, options=options)
    names = ", ".join(step.name for step in Pipeline.parse(passes))
    print(f"{names}: {fault or 'nothing is wrong'}")
    return 0 if fault is None else 1
