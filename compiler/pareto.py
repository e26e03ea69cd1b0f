"""What a training step takes in time for the memory it is given: `rewright pareto`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import fsum
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from rewright.costmodel import show_seconds
from rewright.ir import ImportFailure
from rewright.options import Options
from rewright.passes.remat import Order, Progress, Schedule, Scheduled, TrainingStep, solve
from rewright.step_budget import fused_step, scheduled_step
from rewright.step_memory import step_memory
from rewright.step_signatures import Parts
from rewright.tables import bytes_text, table

# What PyTorch's partitioner is asked for, as its `activation_memory_budget`.
SHARES: Final = tuple(round(0.1 * i, 1) for i in range(10, -1, -1))


@dataclass(frozen=True)
class Point:
    """A schedule: the most bytes that the step allocates, and its seconds by the cost model."""

    name: str
    peak: int
    seconds: float


@dataclass(frozen=True)
class Study:
    """Our schedules, the fastest first, each from one of PyTorch's partitions, and those; no
    schedule of any is below `bound`. `steps` are the bytes at each node, of the first of ours and
    the last."""

    ours: tuple[Point, ...]
    torch: tuple[Point, ...]
    bound: int
    steps: tuple[tuple[int, ...], tuple[int, ...]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        first = self.ours[0]
        rows = [
            (
                p.name,
                bytes_text(p.peak),
                show_seconds(p.seconds),
                f"{p.seconds / first.seconds:.3f}",
            )
            for p in (*self.ours, *self.torch)
        ]
        shown = table(("schedule", "peak", "predicted", "of the first"), rows)
        return f"{shown}\nno schedule of this step is below {bytes_text(self.bound)}"


@dataclass(frozen=True)
class _Partition:
    """The halves of PyTorch's partition at a share, of the step or of that with its loss in
    parts."""

    share: float
    in_parts: bool
    halves: Parts
    returned: int

    @property
    def name(self) -> str:
        return f"from {self.share}" + (", loss in parts" if self.in_parts else "")


def study(
    module: nn.Module,
    inputs: Sequence[Any],
    options: Options,
    say: Callable[[str], None] = lambda said: None,
) -> Study:
    """Of a training step of `module`: its gradient is that of the number that it returns, or of the
    mean of the squares of all numbers that it returns. `say` is told of every schedule."""
    _check_differentiable(module, inputs)
    options = replace(options, memory_budget="min")  # as steps with a budget are compiled
    ours: list[tuple[Point, tuple[int, ...]]] = []
    others, bounds = [], []
    for part in _parts(module, inputs, options):
        fused = fused_step(part.halves, part.returned, options)
        step, scheduled = fused.step, scheduled_step(fused.step, fused.env)
        front = solve(scheduled.problem, fused.env.seed, _told(scheduled, part.name, say))
        bounds.append(front.bound)
        orders = [scheduled.problem.given_order, *(s.order for s in front.schedules)]
        made = [_point(step, scheduled, order, part.name) for order in orders]
        if not part.in_parts:
            others.append(replace(made[0][0], name=f"torch {part.share}"))
        ours += made
    kept = list(_front(ours))
    steps = kept[0][1], kept[-1][1]
    return Study(tuple(point for point, _ in kept), tuple(others), min(bounds), steps)


def _told(scheduled: Scheduled, name: str, say: Callable[[str], None]) -> Progress:
    def tell(found: Schedule) -> None:
        slower = found.seconds / scheduled.problem.seconds - 1
        say(f"{name}: peak {bytes_text(found.peak)}, {slower:+.1%} time")

    return tell


def _point(
    step: TrainingStep, scheduled: Scheduled, order: Order, name: str
) -> tuple[Point, tuple[int, ...]]:
    """And the bytes at each node."""
    steps = scheduled.problem.steps
    found = tuple(step_memory(step.halves(scheduled, order)).bytes())
    return Point(name, max(found), fsum(steps[i].seconds for i in order)), found


def _front(found: Sequence[tuple[Point, tuple[int, ...]]]) -> Iterator[tuple[Point, Any]]:
    """Those that no other beats in both, the fastest first."""
    least = float("inf")
    for point, steps in sorted(found, key=lambda f: (f[0].seconds, f[0].peak)):
        if point.peak < least:
            least = point.peak
            yield point, steps


def _parts(module: nn.Module, inputs: Sequence[Any], options: Options) -> list[_Partition]:
    """PyTorch's partitions of the step at every share."""
    from rewright.joint import starts, with_joint

    found: list[_Partition] = []

    def see(part: Any, joint: fx.GraphModule, given: Any, **more: Any) -> None:
        for start in starts(part, joint, given, options, **more):
            found.extend(
                _Partition(share, bool(start.notes), start.cut(share), more["num_fwd_outputs"])
                for share in SHARES
            )

    _call_once(module, inputs)
    with_joint(_loss(module), inputs, options, see)
    return found


def _call_once(module: nn.Module, inputs: Sequence[Any]) -> None:
    """As it is: many libraries set modules up in their first call, which Dynamo does not trace."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module(*inputs)


def _check_differentiable(module: nn.Module, inputs: Sequence[Any]) -> None:
    given = (x for x in inputs if isinstance(x, Tensor))
    if not any(t.requires_grad for t in (*module.parameters(), *given)):
        raise ImportFailure(
            "the model has nothing to differentiate",
            help="a parameter or an input must require its gradient",
        )


def _loss(module: nn.Module) -> Callable[..., Tensor]:
    def loss(*inputs: Any) -> Tensor:
        answer = module(*inputs)
        tensors = [t for t in torch.utils._pytree.tree_leaves(answer) if isinstance(t, Tensor)]
        real = [t for t in tensors if t.is_floating_point()]
        if len(real) == 1 and real[0].ndim == 0:
            return real[0]
        return torch.stack([t.square().mean() for t in real]).sum()

    return loss


def draw(found: Study, path: Path) -> None:
    """The curves. Raises OptionError."""
    from rewright.pictures import draw_fronts

    fronts = {
        "Rewright": [(p.peak, p.seconds) for p in found.ours],
        "PyTorch's partitioner": [(p.peak, p.seconds) for p in found.torch],
    }
    draw_fronts(fronts, path, found.bound)


def draw_steps(found: Study, path: Path) -> None:
    """Memory over the step, as it stands and at the least peak. Raises OptionError."""
    from rewright.pictures import draw_memory

    draw_memory(dict(zip(("as it stands", "least peak"), found.steps, strict=True)), path)
