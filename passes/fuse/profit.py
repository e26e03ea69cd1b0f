"""Should I: what a merge saves in bytes moved and kernels launched. Never looks at legality."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rewright.ir import Value

if TYPE_CHECKING:
    from rewright.ir.target import Target


def saved_seconds(target: Target, shared: Iterable[Value], disappearing: Iterable[Value]) -> float:
    """Seconds saved by one kernel instead of two.

    `shared` are read by both, and once afterwards; `disappearing` are neither written nor read.
    """
    saved = sum(v.tensor.nbytes_hint for v in shared)
    saved += 2 * sum(v.tensor.nbytes_hint for v in disappearing)
    return saved / target.bandwidth + target.launch_seconds
