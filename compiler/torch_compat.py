"""Differences between torch versions, 2.11 to 2.15, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def aot_backend(**compilers: Any) -> Callable[..., Any]:
    """`aot_autograd` with the keywords that this torch knows."""
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(**compilers)


def min_cut_partition() -> Callable[..., Any]:
    """PyTorch's min-cut partitioner; aot_autograd's own default keeps every activation."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    return min_cut_rematerialization_partition
