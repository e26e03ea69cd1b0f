"""How far from the optimum schedules of traced training steps are, where CP-SAT proves one.

    python -m benchmarks.remat.optimal

Whole steps of small models, and windows of larger ones: calls around the boundary of forward and
backward, what comes from before taken as given. Each at budgets between the least peak that is
found and the first. Calls take what the cost model says, in ten-thousandths of all; the oracle
(`benchmarks.remat.exact`) may order them freely and run each twice. Results go to
`benchmarks/results/remat_optimal.json`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.remat.exact import optimum
from benchmarks.remat.fastsa import peak_of
from benchmarks.remat.results import write
from benchmarks.remat.step_traces import traced
from benchmarks.remat.steps import Training, squares, training
from rewright.passes.remat.problem import Problem
from rewright.passes.remat.solve import fit

SHARES: Final = (0.0, 0.25, 0.5, 0.75)
WINDOWS: Final = {"unet": 16, "llama": 16}
UNITS: Final = 10_000  # seconds are whole numbers to the oracle
WORK: Final = 30.0


class Residual(nn.Module):
    """Two convolutions with their norms, and a way around them."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        conv, norm = nn.Conv2d, nn.BatchNorm2d
        self.first, self.then = (conv(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(norm(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inside = F.relu(self.norms[0](self.first(x)))
        found: Tensor = self.norms[1](self.then(inside))
        return F.relu(x + found)


class Attention(nn.Module):
    """Causal attention after a norm, and a way around both."""

    def __init__(self, width: int = 64, heads: int = 2) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.into, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.into(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key, value = (t.transpose(-3, -2) for t in (query, key, value))
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        found: Tensor = self.out(heads.transpose(-3, -2).flatten(-2))
        return x + found


def layers(count: int, width: int = 64) -> Training:
    each = (nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(count))
    return Training(nn.Sequential(*each), (torch.randn(512, width),), squares)


def whole() -> Iterator[tuple[str, Problem]]:
    """Steps of models so small that the optimum of the whole can be proved."""
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Residual())
    models: Mapping[str, Training] = {
        "3 layers": layers(3),
        "4 layers": layers(4),
        "residual block": Training(convolutions, (torch.randn(4, 3, 32, 32),), squares),
        "attention block": Training(Attention(), (torch.randn(4, 64, 64),), squares),
    }
    for name, found in models.items():
        found.module.train()
        yield name, traced(found)[1].problem


def windows() -> Iterator[tuple[str, Problem]]:
    for name, count in WINDOWS.items():
        problem = traced(training(name))[1].problem
        middle = next(i for i, step in enumerate(problem.steps) if step.name == "the boundary")
        yield f"{count} calls of {name}", window(problem, middle - count // 2, count)


def window(problem: Problem, first: int, count: int) -> Problem:
    """So many steps by themselves: what they read from before is there, and what others read of
    theirs is kept."""
    inside, after = problem.steps[first : first + count], problem.steps[first + count :]
    made = [value for step in inside for value in step.makes]
    wanted = problem.kept.union(*(step.reads for step in after))
    number = {value: i for i, value in enumerate(made)}
    steps = tuple(
        replace(
            step,
            reads=tuple(number[v] for v in step.reads if v in number),
            makes=tuple(number[v] for v in step.makes),
        )
        for step in inside
    )
    kept = frozenset(number[value] for value in made if value in wanted)
    return Problem(steps, tuple(problem.sizes[value] for value in made), kept)


def in_units(problem: Problem) -> Problem:
    unit = problem.seconds / UNITS
    steps = (replace(step, seconds=float(round(step.seconds / unit))) for step in problem.steps)
    return replace(problem, steps=tuple(steps))


@dataclass(frozen=True)
class Row:
    """What a schedule costs over running everything once, within a budget, a share of the first
    peak; and how much longer it takes than the optimum, where that was proved."""

    name: str
    steps: int
    budget: float
    cost: float
    over: float | None


def rows(name: str, problem: Problem) -> Iterator[Row]:
    problem = in_units(problem)
    first, least = peak_of(problem), fit(problem, None).peak
    for share in SHARES if least < first else ():
        budget = least + int(share * (first - least))
        found = fit(problem, budget)
        best = optimum(problem, budget, WORK, found.seconds)
        over = None if best is None else found.seconds / best - 1
        cost = found.seconds / problem.seconds - 1
        yield Row(name, len(problem.steps), budget / first, cost, over)


def main() -> int:
    found: list[Row] = []
    for kind in (whole, windows):
        for name, problem in kind():
            for row in rows(name, problem):
                print(row, flush=True)
                found.append(row)
    proved = [row.over for row in found if row.over is not None]
    print(f"{len(proved)} of {len(found)} proved; at most {max(proved):.2%} over the optimum")
    write("optimal", [asdict(row) for row in found])
    return 0 if max(proved) <= 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
