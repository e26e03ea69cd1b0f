"""A training step within a memory budget: what stands in the place of PyTorch's partitioner.

PyTorch's own partition is the start: what it computes again is fused into who reads it. Both halves
are brought to the fused level as they always are, joined into one graph, scheduled within the
budget, and parted where the schedule passes from forward to backward. AOTAutograd gets modules
that only show their signature; the graphs lie in their `meta`, where the compilers look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import fx

from rewright.calibrate.workspace import workspaces
from rewright.costmodel import call_seconds, show_bytes
from rewright.driver import environment, pipeline_of
from rewright.ir import CheckError, Graph, TensorType, UnsupportedError, values_in
from rewright.ir.effects import may_repeat
from rewright.ir.fx_import import import_graph
from rewright.ir.fx_sizes import SizeTable
from rewright.options import Options
from rewright.passes import EVERY_STAGE, Bytes, DecisionLog, Env, Pipeline
from rewright.passes.remat import (
    LEAST,
    SMALL,
    Fitted,
    Halves,
    Order,
    Remat,
    Scheduled,
    TrainingStep,
    fitted,
    lower_bound,
    refusal,
)
from rewright.step_memory import Promise, step_memory
from rewright.step_part import Earlier, Scheduling, StepPart
from rewright.step_signatures import Parts, is_number, outputs_of, placeholders, signatures
from rewright.torch_compat import pinned_outputs

SCHEDULED: Final = "rewright_scheduled"
# Of PyTorch's partitioner, as its `activation_memory_budget`: where schedules start from.
SHARES: Final = (1.0, 0.8, 0.6, 0.5, 0.3, 0.1)
# An output that takes a larger share of the peak is told of.
LARGE: Final = 0.25


@dataclass(frozen=True)
class ScheduledHalf:
    """A forward or backward that has been through all passes but the last, what it is part of, and
    what a forward checks before it runs."""

    graph: Graph
    part: StepPart
    promise: Promise | None = None

    def __deepcopy__(self, memo: object) -> ScheduledHalf:
        return self


def scheduled_half(gm: fx.GraphModule) -> ScheduledHalf | None:
    """What `partition_within` left in a module."""
    found = gm.meta.get(SCHEDULED)
    return found if isinstance(found, ScheduledHalf) else None


@dataclass(frozen=True)
class Start:
    """PyTorch's partitioner of a step, at a share of the activations (`activation_memory_budget`),
    and what is to be told where its partition is chosen."""

    cut: Callable[[float], Parts]
    notes: tuple[str, ...] = ()


def partition_within(starts: Sequence[Start], returned: int, options: Options) -> Parts:
    """The halves of a step, as PyTorch parts it, as halves that keep the memory budget.

    `starts` are ways to compute the same, the first as it was given; `returned` counts the
    forward's outputs to its caller. Raises BudgetError, and UnsupportedError for a step whose
    halves share more than tensors and sizes.
    """
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    started = time.perf_counter()
    best = _best(starts, returned, options)
    spent = time.perf_counter() - started
    step = best.fused.step
    with unset_fake_temporarily():
        halves = step.halves(best.scheduled, best.found.schedule.order)
        memory, promise = step_memory(halves), None
        if options.budget is not None and memory.symbols:
            promise = Promise(memory, options.budget)
    notes = (*best.start.notes, *_large_outputs(halves, best.found.peak))
    found = replace(best.found, notes=notes)
    spec = str(Remat(Bytes(options.budget or LEAST)))
    scheduling = Scheduling(step, best.fused.as_it_came, best.fused.earlier, found, spec, spent)
    forward, backward = signatures(best.parts, halves)
    parts = scheduling.parts(halves, memory)
    for module, (graph, part) in zip((forward, backward), parts, strict=True):
        module.meta[SCHEDULED] = ScheduledHalf(graph, part, promise if part.forward else None)
    return forward, backward


def _large_outputs(halves: Halves, peak: int) -> Iterator[str]:
    """What stays for the caller, such as logits whose loss is computed outside."""
    for value in values_in(halves.forward.outputs[: halves.returned]):
        if isinstance(value.type, TensorType) and value.type.nbytes_hint > LARGE * peak:
            yield (
                f"%{value.name}, which the forward returns, takes "
                f"{show_bytes(value.type.nbytes_hint)} of {show_bytes(peak)} until the step ends: "
                "compile the loss with the model, and it need not"
            )


@dataclass(frozen=True)
class _Candidate:
    start: Start
    parts: Parts
    fused: FusedStep
    scheduled: Scheduled
    found: Fitted

    def keeps(self, budget: int | None) -> bool:
        return budget is not None and self.found.peak <= budget

    def rank(self, budget: int | None) -> tuple[bool, float, float]:
        """What keeps the budget comes first, then what takes less time, or fewer bytes."""
        kept, seconds, peak = self.keeps(budget), self.found.schedule.seconds, self.found.peak
        return (False, seconds, peak) if kept else (True, peak, seconds)


def _best(starts: Sequence[Start], returned: int, options: Options) -> _Candidate:
    """Of the partitions at some shares, that whose schedule is the best; a smaller share computes
    more again, fused into who reads it, and takes longer before anything is scheduled."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    search, left = _Search(returned, options), list(starts)
    for share in SHARES:
        for start in tuple(left):
            parts = start.cut(share)
            with unset_fake_temporarily():
                if not search.goes_on(start, parts):
                    left.remove(start)
        if search.as_it_stands:
            break  # no start is faster, so no share of it is
    return search.chosen


class _Search:
    """The best candidate so far, and what was found of the first."""

    def __init__(self, returned: int, options: Options) -> None:
        self.returned, self.options, self.budget = returned, options, options.budget
        self.seen: set[tuple[Start, tuple[str, ...]]] = set()
        self.found: list[Fitted] = []
        self.best: _Candidate | None = None

    def goes_on(self, start: Start, parts: Parts) -> bool:
        """Take a candidate when it is better than all before it; False when those of a smaller
        share cannot be."""
        saved = tuple(str(node) for node in outputs_of(parts[0])[self.returned :])
        if (start, saved) in self.seen:
            return True
        self.seen.add((start, saved))
        fused = fused_step(parts, self.returned, self.options)
        scheduled = scheduled_step(fused.step, fused.env)
        if self.best is not None and _is_slower(scheduled, self.best, self.budget):
            return False
        if self.best is None or not _needs_more(scheduled, self.best, self.budget):
            fitted = _fitted(fused, scheduled, self.budget)
            found = _Candidate(start, parts, fused, scheduled, fitted)
            self.found.append(fitted)
            if self.best is None or found.rank(self.budget) < self.best.rank(self.budget):
                self.best = found
        return True

    @property
    def as_it_stands(self) -> bool:
        """True when the best candidate keeps the budget as it stands."""
        best = self.best
        if best is None or not best.keeps(self.budget):
            return False
        return best.found.schedule.seconds <= best.scheduled.problem.seconds

    @property
    def chosen(self) -> _Candidate:
        """Raises BudgetError when no candidate keeps the budget."""
        best = self.best
        assert best is not None
        if self.budget is not None and not best.keeps(self.budget):
            raise refusal(best.scheduled, best.found, self.budget)
        # What is told is told of the step, not of the partition that it starts from.
        bound = min(found.bound for found in self.found)
        return replace(best, found=replace(best.found, first=self.found[0].first, bound=bound))


def _is_slower(scheduled: Scheduled, best: _Candidate, budget: int | None) -> bool:
    """True when nothing that can be made of a step is better than the best one."""
    return best.keeps(budget) and scheduled.problem.seconds >= best.found.schedule.seconds


def _needs_more(scheduled: Scheduled, best: _Candidate, budget: int | None) -> bool:
    """True when no schedule of a step holds fewer bytes than the best one, which holds too many."""
    return not best.keeps(budget) and lower_bound(scheduled.problem) >= best.found.peak


def scheduled_step(step: TrainingStep, env: Env) -> Scheduled:
    """With what its calls take by the cost model, and hold, where they can be run."""
    held = workspaces(step.joined, SMALL) if env.target.device == "cpu" else {}
    return step.scheduled(call_seconds(env.cost, step.joined), held)


def _fitted(fused: FusedStep, scheduled: Scheduled, budget: int | None) -> Fitted:
    def planned(order: Order) -> int:
        return step_memory(fused.step.halves(scheduled, order)).peak

    return fitted(scheduled, budget, planned, fused.env.seed)


@dataclass(frozen=True)
class FusedStep:
    """Both parts after the passes that come before memory is planned, as they came, what the passes
    used, and what each part went through."""

    step: TrainingStep
    as_it_came: TrainingStep
    env: Env
    earlier: tuple[Earlier, Earlier]


def fused_step(parts: Parts, returned: int, options: Options) -> FusedStep:
    from rewright.backend import roles_of

    sizes = SizeTable()
    forward = import_graph(parts[0], "forward", sizes)
    backward = import_graph(parts[1], "backward", sizes, roles_of(parts[1], "backward"))
    _refuse_repeats(forward, backward)
    env, note = environment(forward, options)
    passes = pipeline_of(options, kernels=note is None)
    fusing = Pipeline(tuple(p for p in passes if p.gives != "kernel" and p.name != "remat"))
    first, then = (_earlier(graph, fusing, env) for graph in (forward, backward))
    pinned = frozenset(pinned_outputs(parts[0]))
    as_it_came = TrainingStep(forward, backward, returned, _handed(parts, returned), pinned)
    step = replace(as_it_came, forward=first.graph, backward=then.graph)
    return FusedStep(step, as_it_came, env, (first, then))


def _earlier(graph: Graph, passes: Pipeline, env: Env) -> Earlier:
    """What passes make of a graph; what they say of it is logged apart."""
    result = passes.run(graph, replace(env, log=DecisionLog()), snapshots=EVERY_STAGE)
    return Earlier(graph, result.stages, sum(stage.seconds for stage in result.stages))


def _refuse_repeats(forward: Graph, backward: Graph) -> None:
    """Raises CheckError when a partition does twice what may be done only once."""
    once = {node.name for node in forward.nodes if not may_repeat(node)}
    twice = next((node for node in backward.nodes if node.name in once), None)
    if twice is not None:
        raise CheckError(
            f"PyTorch's partition runs %{twice.name} = {twice.op} in the forward and again in the "
            "backward",
            who="memory_budget",
        )


def _handed(parts: Parts, returned: int) -> Mapping[int, int]:
    """For each input of the backward that the forward hands it, which output that is. Numbers come
    last there and first here; else they come in the same order."""
    given = list(enumerate(outputs_of(parts[0])))[returned:]
    taken = [
        (place, node)
        for place, node in enumerate(placeholders(parts[1]))
        if not node.name.startswith("tangents_")
    ]
    found: dict[int, int] = {}
    for numbers in (False, True):
        outputs = [place for place, node in given if is_number(node) == numbers]
        inputs = [place for place, node in taken if is_number(node) == numbers]
        if len(outputs) != len(inputs):
            raise UnsupportedError(
                "the backward reads what its forward does not hand over", who="memory_budget"
            )
        found |= dict(zip(inputs, outputs, strict=True))
    return found
