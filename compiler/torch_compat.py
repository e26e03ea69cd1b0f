"""Differences between torch versions, 2.11 to 2.15, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


def aot_backend(**compilers: Any) -> Callable[..., Any]:
    """`aot_autograd` with the keywords that this torch knows."""
    from torch._dynamo.backends.common import aot_autograd

    return aot_autograd(**compilers)


def min_cut_partition() -> Callable[..., Any]:
    """PyTorch's min-cut partitioner; aot_autograd's own default keeps every activation."""
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    return min_cut_rematerialization_partition


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


def donate_nothing() -> None:
    """Called while a backward is compiled: it writes into nothing that the forward saved, so that
    autograd may walk a graph back twice. AOTAutograd would refuse that otherwise."""
    context = torch._guards.TracingContext.try_get()
    if context is not None and context.fw_metadata is not None:
        context.fw_metadata.bw_donated_idxs = []
