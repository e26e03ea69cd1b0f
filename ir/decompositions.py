"""Which composite operators are taken apart when a graph is captured.

torch's core ATen decompositions, without those of operators that we lower whole (what stands in the
tables of pointwise operators, reductions, index operators and contractions), of a few that ATen
computes better in one piece, and of random ones: these must draw what eager draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

# One pass over the data in ATen's kernel, many in their parts.
KEPT: Final = frozenset(
    {
        "aten.embedding_dense_backward.default",
        "aten.native_layer_norm_backward.default",
        "aten.native_group_norm_backward.default",
        "aten._fused_rms_norm_backward.default",
        # Taken apart it asks for an element of the index, which may not be known while tracing.
        "aten.take.default",
        # Their results have the strides of the input only in one piece.
        "aten.max_unpool2d.default",
        "aten.max_unpool3d.default",
    }
)


Table = dict[torch._ops.OperatorBase, Callable[..., Any]]


@cache
def decomposition_table() -> Table:
    """The table for `run_decompositions(...)` and for graphs that came as text."""
    from torch._decomp import core_aten_decompositions

    return _ours(dict(core_aten_decompositions().items()))


@cache
def autograd_table() -> Table:
    """The table for `aot_autograd(decompositions=...)`: without what torch writes in terms of other
    operators, which AOTAutograd takes apart anyway; listing it takes torch a quarter of a second.
    """
    from torch._decomp import _core_aten_decompositions_post_autograd

    return _ours(dict(_core_aten_decompositions_post_autograd().items()))


def group_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    n: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm over the channels and pixels of a group, then scale and shift per channel, in one
    precision throughout: (normalized, mean [n, groups], 1 / deviation [n, groups]).

    Wu and He, Group Normalization, 2018. Other layouts than row-major stay ATen's.
    """
    if not input.is_contiguous():
        return NotImplemented  # type: ignore[no-any-return]
    wide = torch.promote_types(input.dtype, torch.float32)
    grouped = input.to(wide).reshape(n, groups, channels // groups * pixels)
    normal, mean, rstd = torch.native_layer_norm(grouped, grouped.shape[2:], None, None, eps)
    normal = normal.reshape(input.shape)
    per_channel = [1, channels, *[1] * (input.ndim - 2)]
    if weight is not None:
        normal = normal * weight.to(wide).reshape(per_channel)
    if bias is not None:
        normal = normal + bias.to(wide).reshape(per_channel)
    stored = input.dtype if weight is None else weight.dtype
    mean, rstd = (s.reshape(n, groups).to(stored) for s in (mean, rstd))
    return normal.to(input.dtype), mean, rstd


def may_come_apart(target: object) -> bool:
    """False for what `decomposition_table()` does not hold; says so without making it."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return target in autograd_table() or target._can_decompose()


def _ours(core: Mapping[torch._ops.OperatorBase, Callable[..., Any]]) -> Table:
    table = {target: parts for target, parts in core.items() if _is_taken_apart(target)}
    table[torch.ops.aten._native_batch_norm_legit_no_training.default] = batch_norm_inference
    table[torch.ops.aten.native_group_norm.default] = group_norm
    for loss in (torch.ops.aten.nll_loss_backward, torch.ops.aten.nll_loss2d_backward):
        table[loss.default] = nll_loss_backward
    for name in torch.ops.aten.linspace.overloads():
        if not name.endswith("out"):
            table[getattr(torch.ops.aten.linspace, name)] = linspace
    return table


def linspace(start: Any, end: Any, steps: Any, *, dtype: Any = None, **rest: Any) -> Tensor:
    """Integers lie between integers: ATen, unlike torch's own decomposition, cuts the ends off
    first."""
    if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
        start, end = (x.to(dtype) if isinstance(x, Tensor) else int(x) for x in (start, end))
    made: Tensor = torch._refs.linspace(start, end, steps, dtype=dtype, **rest)
    return made


def nll_loss_backward(
    grad_output: Tensor,
    self: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    total_weight: Tensor,
) -> Tensor:
    """The gradient of every class by comparing it with the target: torch scatters into zeros, which
    fuses with nothing. The same bits; other layouts than row-major stay torch's."""
    if not self.is_contiguous():
        return NotImplemented  # type: ignore[no-any-return]
    channel = 0 if self.dim() < 2 else 1
    if self.dim() == 1 and target.dim() > 0:
        target = target[0]
    if reduction == 1:  # the mean
        grad_output = grad_output / total_weight
    target, each = target.unsqueeze(channel), [1] * self.dim()
    each[channel] = self.shape[channel]
    classes = torch.arange(self.shape[channel], device=self.device).reshape(each)
    counts = target != ignore_index
    chosen = torch.where(classes == torch.where(counts, target, 0), -1.0, 0.0).to(self.dtype)
    if self.dim() > grad_output.dim() > 0:
        grad_output = grad_output.unsqueeze(channel)
    if weight is not None:
        grad_output = grad_output * weight.reshape(each)
    return chosen * torch.where(counts, grad_output, 0)


def batch_norm_inference(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One multiplication and one addition per element, which fuse with what is around them.

    Scale and shift are computed per channel, in one precision, as ATen's CPU kernel does.
    """
    wide = torch.promote_types(running_var.dtype, torch.float32)
    scale = (running_var.to(wide) + eps).rsqrt()
    scale = scale if weight is None else scale * weight.to(wide)
    mean = running_mean.to(wide)
    shift = -mean * scale if bias is None else bias.to(wide) - mean * scale
    channels = [1, -1, *[1] * (input.ndim - 2)]
    normalized = input.to(wide) * scale.reshape(channels) + shift.reshape(channels)
    return normalized.to(input.dtype), input.new_empty(0), input.new_empty(0)


def _is_taken_apart(target: torch._ops.OperatorBase) -> bool:
    from rewright.ir.facts import CONTRACTIONS, INDEXING, REDUCTIONS
    from rewright.ir.pointwise import POINTWISE

    # AOTAutograd never sees what torch itself writes in terms of other operators.
    if not isinstance(target, torch._ops.OpOverload) or target._can_decompose():
        return True
    name = str(target)
    whole = any(name in table for table in (POINTWISE, REDUCTIONS, INDEXING, CONTRACTIONS, KEPT))
    return not whole and torch.Tag.nondeterministic_seeded not in target.tags
