"""What training steps allocate, as a trace to pack: every tensor of a step, from when to when."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from benchmarks.remat.steps import training
from rewright.ir import hint
from rewright.ir.decompositions import autograd_table
from rewright.joint import cut_at, rewritten
from rewright.options import Options
from rewright.passes.memory.problem import Buffer
from rewright.step_budget import fused_step, scheduled_step
from rewright.step_memory import step_memory
from rewright.torch_compat import aot_backend, min_cut_partition, without_caching


class _Captured(Exception):
    """Ends a compilation whose parts are known."""


def buffers(name: str) -> tuple[Buffer, ...]:
    """Of one of `benchmarks.remat.steps`, in the order of its nodes, without recomputation."""
    found = training(name)
    options = Options()
    traces: list[tuple[Buffer, ...]] = []

    def capture(joint: fx.GraphModule, given: Any, *, num_fwd_outputs: int, **more: Any) -> Any:
        joint = rewritten(joint, given, options)
        more["num_fwd_outputs"] = num_fwd_outputs
        parts = cut_at(min_cut_partition(), joint, given, 1.0, **more)
        traces.append(_spans(parts, num_fwd_outputs, options))
        raise _Captured

    backend = aot_backend(
        fw_compiler=None, bw_compiler=None, partition_fn=capture, decompositions=autograd_table()
    )
    torch._dynamo.reset()
    step = torch.compile(found.forward, backend=backend, fullgraph=True, dynamic=False)
    try:
        with without_caching():
            step(*found.inputs)
    except torch._dynamo.exc.BackendCompilerFailed:
        if not traces:
            raise
    torch._dynamo.reset()
    return traces[0]


def _spans(parts: Any, returned: int, options: Options) -> tuple[Buffer, ...]:
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        step, env = fused_step(parts, returned, options)
        scheduled = scheduled_step(step, env)
        memory = step_memory(step.halves(scheduled, scheduled.problem.given_order))
    spans = (span for span in memory.spans if hint(span.nbytes))
    return tuple(
        Buffer(f"b{i}", span.first, span.last + 1, hint(span.nbytes))
        for i, span in enumerate(spans)
    )
