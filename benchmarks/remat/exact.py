"""The optimum of small problems, by OR-Tools' CP-SAT: where it proves one, it is an oracle.

Retention intervals as in Moccasin (Bartan et al., ICML 2023), but in any order: a step runs up to
`COPIES` times at times of its own, each value lives from such a time to a last one, and whoever
reads it runs while one of its lives lasts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from rewright.passes.remat.problem import Problem

COPIES: Final = 2


@dataclass
class Exact:
    """A model in the making; `times` and `runs` of each step's copies, the first of which is the
    earliest and always there."""

    problem: Problem
    budget: int
    model: Any
    times: list[list[Any]] = field(default_factory=list)
    runs: list[list[Any]] = field(default_factory=list)
    lives: list[Any] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        return sum(COPIES if step.again else 1 for step in self.problem.steps)

    def build(self) -> None:
        model = self.model
        slots = []
        for step in self.problem.steps:
            count = COPIES if step.again else 1
            times = [model.new_int_var(0, self.end - 1, "") for _ in range(count)]
            runs = [model.new_bool_var("") for _ in range(count)]
            model.add(runs[0] == 1)
            for n in range(1, count):
                model.add(times[n - 1] < times[n])
                model.add_implication(runs[n], runs[n - 1])
            self.times.append(times)
            self.runs.append(runs)
            for time, run in zip(times, runs, strict=True):
                slots.append(model.new_optional_fixed_size_interval_var(time, 1, run, ""))
                self.lives.append(slots[-1])
                self.bytes.append(step.workspace)
        model.add_no_overlap(slots)
        for step, times in zip(self.problem.steps, self.times, strict=True):
            for value in step.reads:  # follows from the rest, and spares much search
                model.add(self.times[self.problem.maker[value]][0] < times[0])
        for value in range(len(self.problem.sizes)):
            self.retain(value)
        model.add_cumulative(self.lives, self.bytes, self.budget)
        model.minimize(self.seconds)

    @property
    def seconds(self) -> Any:
        return sum(
            int(step.seconds) * run
            for step, runs in zip(self.problem.steps, self.runs, strict=True)
            for run in runs
        )

    def retain(self, value: int) -> None:
        """A life of a value for each copy of its maker, long enough for all that read it."""
        model, maker = self.model, self.problem.maker[value]
        lasts = [model.new_int_var(0, self.end, "") for _ in self.times[maker]]
        for n, (last, made, run) in enumerate(
            zip(lasts, self.times[maker], self.runs[maker], strict=True)
        ):
            length = model.new_int_var(1, self.end, "")
            self.lives.append(model.new_optional_interval_var(made, length, last, run, ""))
            self.bytes.append(self.problem.sizes[value])
            if value in self.problem.kept:
                model.add(last == self.end if n == 0 else length == 1)
        for reader, step in enumerate(self.problem.steps):
            for time, run in zip(self.times[reader], self.runs[reader], strict=True):
                if value in step.reads:
                    self.served(maker, lasts, time, run)

    def served(self, maker: int, lasts: list[Any], time: Any, run: Any) -> None:
        model, chosen = self.model, []
        for made, there, last in zip(self.times[maker], self.runs[maker], lasts, strict=True):
            serves = model.new_bool_var("")
            model.add_implication(serves, there)
            model.add(made < time).only_enforce_if(serves)
            model.add(time < last).only_enforce_if(serves)
            chosen.append(serves)
        model.add_bool_or(*chosen, run.Not())


def optimum(
    problem: Problem, budget: int, work: float = 30.0, known: float | None = None
) -> int | None:
    """The least whole seconds of any schedule within the budget in which no step runs more often
    than `COPIES` times; None where nothing is proved with so much work (about seconds). Only what
    is better than the seconds of a `known` schedule is looked for."""
    from ortools.sat.python import cp_model

    exact = Exact(problem, budget, cp_model.CpModel())
    exact.build()
    if known is not None:
        exact.model.add(exact.seconds <= int(known) - 1)
    solver = cp_model.CpSolver()
    solver.parameters.max_deterministic_time = work  # the same however busy the machine is
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    found = solver.solve(exact.model)
    if found == cp_model.INFEASIBLE and known is not None:
        return int(known)
    return int(solver.objective_value + 0.5) if found == cp_model.OPTIMAL else None
