"""Should I: what a merge saves in bytes moved and kernels launched. Never looks at legality."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import torch

from rewright.ir import hint
from rewright.ir.work import flops

if TYPE_CHECKING:
    from rewright.ir import Node
    from rewright.ir.target import Target

# Elementwise code multiplies and adds in separate instructions, and in chains, where one waits for
# the other: it reaches about this share of the peak.
ELEMENTWISE_SHARE: Final = 0.25

# Kernels this many places apart in the schedule still run at about the same time.
NEIGHBOURHOOD: Final = 32

# How often a reduction goes over its elements; others do so once.
_SWEEPS: Final = {
    **dict.fromkeys(("aten._softmax.default", "aten._log_softmax.default"), 3),
    **dict.fromkeys(("aten.native_layer_norm.default", "aten.var_mean.correction"), 3),
    **dict.fromkeys(("aten.var.correction", "aten.std.correction"), 2),
    **dict.fromkeys(("aten._softmax_backward_data.default", "aten._fused_rms_norm.default"), 2),
    "aten._log_softmax_backward_data.default": 2,
    "aten.logsumexp.default": 2,
}


def saved_seconds(
    target: Target, nbytes: int, nodes: Iterable[Node] = (), times: float = 1
) -> float:
    """Seconds saved by one kernel less that moves `nbytes` less and in return computes `nodes`
    `times` instead of once."""
    work = sum(hint(flops(node)) for node in nodes) if times > 1 else 0
    again = (times - 1) * work / (target.peak(torch.float32) * ELEMENTWISE_SHARE)
    return nbytes / target.bandwidth + target.launch_seconds - again


def sweeps(nodes: Iterable[Node]) -> int:
    """How often a kernel of `nodes` goes over its elements, at least."""
    return max(_SWEEPS.get(node.op.name, 1) for node in nodes)
