"""Differences between torch versions, 2.11 to 2.15, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from torch import fx

from rewright.ir import Op

# What Dynamo calls what is left of a function behind a graph break.
_RESUMED: Final = "torch_dynamo_resume_in_"


def aot_backend(**compilers: Any) -> Callable[..., Any]:
    """`aot_autograd` with the keywords that this torch knows."""
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(**compilers)


def min_cut_partition() -> Callable[..., Any]:
    """PyTorch's min-cut partitioner; aot_autograd's own default keeps every activation."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    def partition(
        joint: fx.GraphModule, inputs: Any, *, num_fwd_outputs: int, **given: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        forward, backward = min_cut_rematerialization_partition(
            joint, inputs, num_fwd_outputs=num_fwd_outputs, **given
        )
        _save_old_values(forward, num_fwd_outputs)
        return forward, backward

    return partition


def _save_old_values(forward: fx.GraphModule, first_saved: int) -> None:
    """Save a copy of an input that the forward overwrites at its end. Torch saves the input itself,
    and its backward, which wants what was there before, silently reads what was written."""
    graph, copy_ = forward.graph, torch.ops.aten.copy_.default
    writes = [node for node in graph.nodes if node.target is copy_]
    if not writes:
        return
    written = {_storage(node.args[0]) for node in writes}
    output: Any = graph.output_node()
    returned = list(output.args[0])
    for i, value in enumerate(returned[first_saved:], first_saved):
        if isinstance(value, fx.Node) and value not in writes and _storage(value) in written:
            with graph.inserting_before(writes[0]):
                returned[i] = graph.call_function(torch.ops.aten.clone.default, (value,))
            returned[i].meta = {**value.meta, "val": value.meta["val"].clone()}
    output.args = (tuple(returned),)
    forward.recompile()


def _storage(node: Any) -> object:
    return storage_of(node.meta.get("val"))


def storage_of(x: object) -> object:
    """What stands for the memory of a tensor, traced or real; None for what has none."""
    if not isinstance(x, torch.Tensor) or x.layout is not torch.strided:
        return None
    return x.untyped_storage()._cdata


def serializable(compiler: Callable[..., Any], output: type) -> Callable[..., Any]:
    """`compiler`, which returns an `output`, as a compiler whose results may be stored."""
    from torch._functorch._aot_autograd.schemas import SerializableAOTDispatchCompiler

    return SerializableAOTDispatchCompiler(output, compiler)


@contextmanager
def caching(tag: str) -> Iterator[None]:
    """Let AOTAutograd store whole programs, under keys that hold `tag`: torch's own say nothing of
    the backend."""
    given = torch.compiler.config.cache_key_tag
    # A backward left for its first call would be compiled, and its step stored, outside of here.
    bundled = {"bundled_autograd_cache": True, "force_non_lazy_backward_lowering": True}
    with (
        torch.compiler.config.patch(cache_key_tag=f"{given} {tag}"),  # type: ignore[attr-defined]
        torch._functorch.config.patch(bundled),
    ):
        yield


def without_caching() -> AbstractContextManager[None]:
    """Keep AOTAutograd from making keys."""
    return torch._functorch.config.patch(enable_autograd_cache=False)  # type: ignore[no-any-return]


def is_custom(operator: Op) -> bool:
    """True for an operator that is not part of torch."""
    from torch._library.utils import is_builtin

    target = operator.target
    return isinstance(target, torch._ops.OpOverload) and not is_builtin(target)


@contextmanager
def without_operator_checks() -> Iterator[None]:
    """Lift, for a program without custom operators, the watch that AOTAutograd keeps on them while
    a program runs for the first time. Under any such mode ATen computes some functions of complex
    tensors wrongly: `torch.linalg.pinv` among them, in torch 2.13."""
    from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode_temporarily

    watches = type(_get_current_dispatch_mode()).__name__ == "_AnalyzeCustomOpInputOutputMode"
    with _pop_mode_temporarily() if watches else nullcontext():
        yield


def argument_names(gm: fx.GraphModule) -> list[str | int | None]:
    """Of a graph of Dynamo's, which argument of the compiled function an input is, by its name, or
    by its place in `*args`; None for what comes from elsewhere, as parameters do."""
    from torch._dynamo.source import GetItemSource, LocalSource

    found: list[str | int | None] = []
    for node in gm.graph.nodes:
        if node.op != "placeholder":
            continue
        source = getattr(node.meta.get("grapharg"), "source", None)
        name: str | int | None = None
        if isinstance(source, LocalSource):
            name = source.local_name
        elif isinstance(source, GetItemSource) and isinstance(source.base, LocalSource):
            name = source.index if isinstance(source.index, int) else None
        found.append(name)
    return found


def static_inputs() -> frozenset[int]:
    """Which inputs of the graph that AOTAutograd is about to hand over are parameters and buffers,
    or were declared to stay where they are."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    if context is None or context.fw_metadata is None:
        return frozenset()
    return frozenset(context.fw_metadata.static_input_indices or ())


def donate_nothing() -> None:
    """Called while a backward is compiled: it writes into nothing that the forward saved, so that
    autograd may walk a graph back twice. AOTAutograd would refuse that otherwise."""
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.fw_metadata is not None:
        context.fw_metadata.bw_donated_idxs = []


def parted_step(gm: fx.GraphModule) -> tuple[str, str] | None:
    """Why Dynamo hands over only a part of a function, and what to do about it; None for a whole
    one, or where nothing says so."""
    reason = getattr(gm, "compile_subgraph_reason", None)
    if (reason is None or reason.graph_break) and _splits_by_buckets():
        return "DDP, by buckets of gradients", "torch._dynamo.config.optimize_ddp = False"
    if reason is None:
        return None
    stack = reason.user_stack
    if reason.graph_break:
        where = f" at {Path(stack[-1].filename).name}:{stack[-1].lineno}" if stack else ""
        return f"a graph break{where}: {reason.reason}", "fullgraph=True finds the others"
    if stack and stack[0].name.startswith(_RESUMED):  # after one that left nothing to compile
        where = f"{Path(stack[0].filename).name}:{stack[0].name.rpartition('_')[2]}"
        return f"a graph break at {where}", "fullgraph=True says what it is"
    return None


def _splits_by_buckets() -> bool:
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch._dynamo.utils import get_optimize_ddp_mode
    from torch.nn.parallel import DistributedDataParallel

    splits = get_optimize_ddp_mode() == "ddp_optimizer"
    return splits and DistributedDataParallel._get_active_ddp_module() is not None


def pinned_outputs(forward: fx.GraphModule) -> Iterator[int]:
    """Places of outputs that a policy of selective checkpointing wants saved."""
    from torch.utils.checkpoint import CheckpointPolicy

    saved = (CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_SAVE)
    outputs: Any = forward.graph.output_node().args[0]
    for place, node in enumerate(outputs):
        if isinstance(node, fx.Node) and node.meta.get("recompute") in saved:
            yield place


def draw_once(joint: fx.GraphModule) -> None:
    """Keep the partitioner from drawing random numbers again in the backward: with a share of the
    activations it takes dropout for something that can be computed again, and silently gets other
    gradients (torch 2.13)."""
    from torch.utils.checkpoint import CheckpointPolicy

    for node in joint.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            node.meta.setdefault("recompute", CheckpointPolicy.MUST_SAVE)


def is_checkpointed(node: fx.Node) -> bool:
    """True for what the user has said to save or to compute again."""
    return "recompute" in node.meta


def forget_checkpoints(joint: fx.GraphModule) -> None:
    """Let a partitioner decide what the user's checkpoints have decided."""
    for node in joint.graph.nodes:
        node.meta.pop("recompute", None)
        node.meta.pop("ac_graph_id", None)


def boxed(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` as AOTAutograd calls what it compiled: with its arguments in a list."""
    from torch._functorch._aot_autograd.utils import make_boxed_func

    return make_boxed_func(run)
