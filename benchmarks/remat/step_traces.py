"""What training steps allocate, as a trace to pack: every tensor of a step, from when to when."""

from __future__ import annotations

from typing import Any

from torch import fx

from benchmarks.remat.steps import Training, training
from rewright.ir import hint
from rewright.joint import cut_at, with_joint
from rewright.options import Options
from rewright.passes.memory.problem import Buffer
from rewright.passes.remat import Scheduled
from rewright.step_budget import FusedStep, fused_step, scheduled_step
from rewright.step_memory import step_memory


def traced(found: Training) -> tuple[FusedStep, Scheduled]:
    """A step as it is scheduled where nothing need be computed again."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    options = Options()
    steps: list[tuple[FusedStep, Scheduled]] = []

    def see(part: Any, joint: fx.GraphModule, given: Any, **more: Any) -> None:
        halves = cut_at(part, joint, given, 1.0, **more)
        with unset_fake_temporarily():
            fused = fused_step(halves, more["num_fwd_outputs"], options)
            steps.append((fused, scheduled_step(fused.step, fused.env)))

    with_joint(found.forward, found.inputs, options, see)
    return steps[0]


def buffers(name: str) -> tuple[Buffer, ...]:
    """Of one of `benchmarks.remat.steps`, in the order of its nodes, without recomputation."""
    fused, scheduled = traced(training(name))
    memory = step_memory(fused.step.halves(scheduled, scheduled.problem.given_order))
    spans = (span for span in memory.spans if hint(span.nbytes))
    return tuple(
        Buffer(f"b{i}", span.first, span.last + 1, hint(span.nbytes))
        for i, span in enumerate(spans)
    )
