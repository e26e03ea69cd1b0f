"""A program that was timed call by call on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from rewright.cost_models import is_measured
from rewright.driver import Program
from rewright.ir import OptionError

# A program is run so often, if that takes no longer than so many seconds; a few times in any case.
ROUNDS: Final = 24
SECONDS: Final = 10.0
FEWEST: Final = 3


def profiled(program: Program, inputs: Sequence[Any] | None = None) -> Program:
    """The program, with what each of its calls takes on `inputs` of its graph, or on random ones.

    Raises OptionError for a program for another machine.
    """
    from rewright.calibrate.bench import Bench
    from rewright.calibrate.profile import profile
    from rewright.sources import random_inputs

    target = program.plan.env.target
    if not is_measured(target):
        raise OptionError(
            f"calls are timed on this machine, and the program is for {target.name}",
            who="profile",
            help="leave out --target",
        )
    given = random_inputs(program.source) if inputs is None else inputs
    once = program.report.passes[-1].estimated_seconds
    rounds = max(FEWEST, min(ROUNDS, int(SECONDS / max(2 * once, 1e-6))))
    return replace(program, profile=profile(Bench(target), program.recipe, given, rounds))
