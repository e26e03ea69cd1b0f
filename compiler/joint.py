"""The joint graph of a training step, before it is parted into forward and backward.

What acts on a forward and its gradient together acts here: once parted, the one does not know the
other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from rewright.options import Options


def partition(options: Options) -> Callable[..., tuple[fx.GraphModule, fx.GraphModule]]:
    """PyTorch's min-cut partitioner, after our passes over the joint graph; with a memory budget
    only the start of a schedule of our own."""
    from rewright.torch_compat import forget_checkpoints, min_cut_partition

    part = min_cut_partition()

    def parted(joint: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **given: Any) -> Any:
        if options.memory_budget and overrides_tags(options):
            forget_checkpoints(joint)
        joint = rewritten(joint, inputs, options)
        given["num_fwd_outputs"] = num_fwd_outputs
        if not options.memory_budget:
            return part(joint, inputs, **given)
        from rewright.step_budget import partition_within

        def cut(share: float) -> Any:
            return cut_at(part, joint, inputs, share, **given)

        return partition_within(cut, num_fwd_outputs, options)

    return parted


def cut_at(
    part: Callable[..., Any], joint: fx.GraphModule, inputs: Any, share: float, **given: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """PyTorch's partition of a copy of the joint graph, keeping a share of the activations."""
    from rewright.torch_compat import draw_once

    joint = copy.deepcopy(joint)
    draw_once(joint)
    with torch._functorch.config.patch(activation_memory_budget=share):
        return part(joint, inputs, **given)  # type: ignore[no-any-return]


def overrides_tags(options: Options) -> bool:
    """True when the remat pass is asked to decide what the user's checkpoints have decided."""
    from rewright.driver import pipeline_of
    from rewright.passes.remat import Remat

    return any(isinstance(step, Remat) and step.override_tags for step in pipeline_of(options))


def rewritten(joint: fx.GraphModule, inputs: Any, options: Options) -> fx.GraphModule:
    """The joint graph after the passes that act on pairs; the very one when none applies."""
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp
    from torch.utils._pytree import tree_leaves

    from rewright.costmodel import Roofline
    from rewright.driver import target_of
    from rewright.ir.fx_export import to_fx
    from rewright.ir.fx_import import from_fx
    from rewright.passes import Canonicalize, Cse, Env, Rules
    from rewright.passes.attention import AttentionPairs

    if not any(node.target in _SIGNS for node in joint.graph.nodes):
        return joint
    with unset_fake_temporarily():
        graph = from_fx(joint, name="joint")
        target = target_of(options)
        env = Env(cost=Roofline(target), target=target)
        pairs = AttentionPairs()
        for step in (Canonicalize(), Cse(), Rules()):
            graph = step.run(graph, env)
        found = pairs.run(graph, env)
        if found is graph:
            return joint
        module = to_fx(found)
    # The partitioner goes by sizes, which are those of AOTAutograd's own fake tensors.
    flat = tree_leaves(inputs)
    FakeTensorProp(module, detect_fake_mode(flat)).propagate_dont_convert_inputs(*flat)
    return module


# Without a softmax that is differentiated there is no attention to look for.
_SIGNS = (torch.ops.aten._softmax_backward_data.default,)
