"""The joint graph of a training step, before it is parted into forward and backward.

What acts on a forward and its gradient together acts here: once parted, the one does not know the
other.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import fx

from rewright.options import Options

if TYPE_CHECKING:
    from rewright.ir import Graph
    from rewright.ir.target import Target
    from rewright.passes import Pass
    from rewright.step_budget import Start

IN_PARTS: Final = (
    "the loss is computed some rows at a time, and so are gradients that are sums over them: "
    "they are rounded otherwise than without a budget"
)


def partition(options: Options) -> Callable[..., tuple[fx.GraphModule, fx.GraphModule]]:
    """PyTorch's min-cut partitioner, after our passes over the joint graph; with a memory budget
    only the start of a schedule of our own."""
    from rewright import dropouts, losses
    from rewright.driver import target_of
    from rewright.passes import Fuse
    from rewright.torch_compat import forget_checkpoints, min_cut_partition

    part = min_cut_partition()

    def parted(joint: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **given: Any) -> Any:
        if options.memory_budget and overrides_tags(options):
            forget_checkpoints(joint)
        joint = rewritten(joint, inputs, options)
        given["num_fwd_outputs"] = num_fwd_outputs
        has_kernels = _has_kernels(options, target_of(options), Fuse)
        if has_kernels:
            joint = dropouts.opened(joint)
        if not options.memory_budget:
            return part(losses.opened(joint) if has_kernels else joint, inputs, **given)
        from rewright.step_budget import partition_within

        found = starts(part, joint, inputs, options, **given)
        return partition_within(found, num_fwd_outputs, options)

    return parted


def starts(
    part: Callable[..., Any], joint: fx.GraphModule, inputs: Any, options: Options, **given: Any
) -> list[Start]:
    """PyTorch's partitioner of the joint graph, and of that with its losses in parts, if any."""
    from rewright.step_budget import Start

    found = [Start(partial(cut_at, part, joint, inputs, **given))]
    in_parts = chunked(joint, inputs, options)
    if in_parts is not joint:
        found.append(Start(partial(cut_at, part, in_parts, inputs, **given), (IN_PARTS,)))
    return found


class _Captured(Exception):
    """Ends a compilation whose joint graph has been seen."""


def with_joint(
    step: Callable[..., Any], inputs: Sequence[Any], options: Options, see: Callable[..., None]
) -> None:
    """Compile a training step as far as its joint graph, after our passes over it, and call `see`
    with PyTorch's partitioner, that graph, its inputs, and by name what else the partitioner
    takes. Raises ImportFailure for what has no training step, or not in one graph."""
    from torch._dynamo.exc import BackendCompilerFailed, Unsupported

    from rewright.ir import ImportFailure
    from rewright.ir.decompositions import autograd_table
    from rewright.torch_compat import aot_backend, min_cut_partition, without_caching

    seen = False

    def capture(joint: fx.GraphModule, given: Any, **more: Any) -> Any:
        nonlocal seen
        see(min_cut_partition(), rewritten(joint, given, options), given, **more)
        seen = True
        raise _Captured

    backend = aot_backend(
        fw_compiler=None, bw_compiler=None, partition_fn=capture, decompositions=autograd_table()
    )
    torch._dynamo.reset()
    try:
        with without_caching():
            torch.compile(step, backend=backend, fullgraph=True, dynamic=False)(*inputs)
    except BackendCompilerFailed as error:
        if not seen:
            raise ImportFailure(f"there is no training step: {error}") from error
    except Unsupported as error:
        raise ImportFailure(
            f"the step is not one graph: {_graph_break(str(error))}",
            help="rewrite that line, or leave it out of the step",
        ) from error
    finally:
        torch._dynamo.reset()


def _graph_break(message: str) -> str:
    """What Dynamo could not trace, and the innermost line of the user's that it names."""
    reason = message.partition("\n")[0]
    frames = re.findall(r'File "([^"]+)", line (\d+)', message)
    return f"{reason}, at {Path(frames[-1][0]).name}:{frames[-1][1]}" if frames else reason


def cut_at(
    part: Callable[..., Any], joint: fx.GraphModule, inputs: Any, share: float, **given: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """PyTorch's partition of a copy of the joint graph, keeping a share of the activations."""
    from rewright.torch_compat import draw_once

    with warnings.catch_warnings():
        # torch copies its own deprecated tree specifications; nothing a caller could change.
        warnings.simplefilter("ignore", FutureWarning)
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
    from rewright.passes import Canonicalize, ChannelsLast, Cse, Rules

    # Both parts of a step must agree on how images lie between them.
    joint = _after(joint, inputs, options, _is_image, (), lambda target: (ChannelsLast(),))
    before = Canonicalize(), Cse(), Rules()
    return _after(joint, inputs, options, _is_attention, before, partial(_of_attention, options))


def _of_attention(options: Options, target: Target) -> Sequence[Pass]:
    from rewright.passes import FlashAttention
    from rewright.passes.attention import AttentionPairs, FlashAttentionPairs

    ours = (FlashAttentionPairs(),) if _has_kernels(options, target, FlashAttention) else ()
    return AttentionPairs(), *ours


def _is_image(node: fx.Node) -> bool:
    return node.target == torch.ops.aten.convolution_backward.default


def _is_attention(node: fx.Node) -> bool:
    """Whether it may be of attention that is better done otherwise: a softmax that is
    differentiated, or a mask in memory."""
    aten = torch.ops.aten
    if node.target == aten._scaled_dot_product_flash_attention_for_cpu_backward.default:
        return node.kwargs.get("attn_mask") is not None
    return node.target == aten._softmax_backward_data.default


def _has_kernels(options: Options, target: Target, maker: type[Pass]) -> bool:
    """Whether what this pass makes may run in kernels of ours."""
    from rewright.building import compiler_for
    from rewright.codegen.gpu import has_triton
    from rewright.driver import pipeline_of
    from rewright.ir import ToolchainError
    from rewright.passes import Fuse

    chosen = pipeline_of(options)
    steps = [step for step in chosen if not (isinstance(step, Fuse) and step.max_ops == 0)]
    if not any(isinstance(step, maker) for step in steps):
        return False
    if target.device != "cpu":
        return has_triton()
    try:
        compiler_for(target)
    except ToolchainError:
        return False
    return True


def chunked(joint: fx.GraphModule, inputs: Any, options: Options) -> fx.GraphModule:
    """The joint graph with losses over many classes in parts; the very one when there is none."""
    from rewright.passes import Canonicalize, ChunkLoss, Cse, Rules

    def is_loss(node: fx.Node) -> bool:
        return node.target == torch.ops.aten._log_softmax_backward_data.default

    before = Canonicalize(), Cse(), Rules(("joins",))
    return _after(joint, inputs, options, is_loss, before, lambda target: (ChunkLoss(),))


def _after(
    joint: fx.GraphModule,
    inputs: Any,
    options: Options,
    is_sign: Callable[[fx.Node], bool],
    before: Sequence[Pass],
    steps: Callable[[Target], Sequence[Pass]],
) -> fx.GraphModule:
    """The joint graph after the passes for its target, and those that prepare for them, where they
    change something. What has no sign that they may, or has checkpoints of the user, which the IR
    does not know, stays."""
    from torch._guards import detect_fake_mode
    from torch._subclasses.fake_tensor import unset_fake_temporarily
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp
    from torch.utils._pytree import tree_leaves

    from rewright.ir.fx_export import to_fx
    from rewright.torch_compat import is_checkpointed

    nodes = joint.graph.nodes
    if not any(map(is_sign, nodes)) or any(map(is_checkpointed, nodes)):
        return joint
    with unset_fake_temporarily():
        found = _changed(joint, options, before, steps)
        if found is None:
            return joint
        module = to_fx(found, regions=True)
    # The partitioner goes by sizes, which are those of AOTAutograd's own fake tensors.
    flat = tree_leaves(inputs)
    FakeTensorProp(module, detect_fake_mode(flat)).propagate_dont_convert_inputs(*flat)
    return module


def _changed(
    joint: fx.GraphModule,
    options: Options,
    before: Sequence[Pass],
    steps: Callable[[Target], Sequence[Pass]],
) -> Graph | None:
    """What passes make of a graph that others have prepared; None when they leave it."""
    from rewright.costmodel import Roofline
    from rewright.driver import target_for, tools_of
    from rewright.ir import UnsupportedError
    from rewright.ir.fx_import import from_fx
    from rewright.passes import Env

    graph = from_fx(joint, name="joint")
    try:
        target = target_for(graph, options)
    except UnsupportedError:
        return None  # the parts will be refused with the same words
    env = Env(cost=Roofline(target), target=target, tools=tools_of(options, target))
    for preparation in before:
        graph = preparation.run(graph, env)
    found = graph
    for step in steps(target):
        found = step.run(found, env)
    return None if found is graph else found
