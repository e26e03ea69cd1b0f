"""Which composite operators are taken apart when a graph is captured.

torch's core ATen decompositions, without those of operators that we lower whole: every pointwise
operator, reduction, normalization, index operator and contraction in our tables, and a few that
ATen computes better in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

import torch

# Their parts would cost more than one call of the vendor's kernel.
_KEPT: Final = frozenset(
    {
        "aten.embedding_dense_backward.default",
        "aten.native_layer_norm_backward.default",
        "aten.native_group_norm_backward.default",
        "aten._fused_rms_norm_backward.default",
        "aten.native_dropout_backward.default",
        "aten.upsample_bicubic2d.default",
        "aten.grid_sampler_2d.default",
    }
)
# Not core's to take apart, but in inference they are one multiplication and one addition, which
# fuse with what is around them.
_ADDED: Final = ("aten._native_batch_norm_legit_no_training.default",)


@cache
def decomposition_table() -> dict[torch._ops.OperatorBase, Callable[..., Any]]:
    """The table for `aot_autograd(decompositions=...)` and `run_decompositions(...)`."""
    from torch._decomp import core_aten_decompositions
    from torch._decomp import decomposition_table as known

    from rewright.ir.ops import op

    core = core_aten_decompositions()
    table = {o: f for o, f in dict(core.items()).items() if _is_taken_apart(o)}
    return table | {op(name).target: known[op(name).target] for name in _ADDED}
