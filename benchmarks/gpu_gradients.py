"""The gradient of attention on a GPU: our kernels, torch's, FlexAttention's.

The gradient that is given is 0 but for some rows, so that float64 takes these rows alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attention import Positions
from benchmarks.device import Call
from benchmarks.gpu_cases import (
    SPARSE,
    Case,
    Setting,
    attention_settings,
    exact,
    flex,
    live_scores,
    spelled,
)

if TYPE_CHECKING:
    from rewright.ir.loops import AttentionBackwardNest, AttentionNest

# Rows with a gradient.
ROWS: Final = 64


def gradients(setting: Setting) -> Iterator[Case]:
    """In bf16. `kernel` is ours by itself; `causal` torch's dense one, which sees half."""
    for name, shape, sees in attention_settings(setting, (4096, SPARSE)):
        yield _gradients(f"gradient, {name}", shape, sees, setting)


def _gradients(
    title: str, shape: tuple[int, ...], sees: Positions | None, setting: Setting
) -> Case:
    *_, heads, length, width = shape
    given = tuple(setting.drawn(*shape) for _ in range(3))
    few = torch.arange(length, device=setting.device)[:: length // ROWS]
    grad = torch.zeros_like(given[0])
    grad[:, :, few] = setting.drawn(1, heads, len(few), width)

    def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        at = torch.arange(query.shape[2], device=query.device)
        seen = None if sees is None else sees(at[:, None], at[None])
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)

    compiled = setting.compiled(masked)
    calls = {name: backward(call, given, grad) for name, call in compiled.items()}
    calls["kernel"] = kernels_of(sees, given, grad)
    causal = partial(F.scaled_dot_product_attention, is_causal=True)
    calls["causal"] = backward(causal, given, grad)
    if not setting.quick:
        calls["flex"] = backward(partial(_called, sees, length), given, grad)
    live = live_scores(sees, length, setting.device)
    return Case(
        title,
        calls,
        partial(_of_rows, sees, few, given, grad),
        tuple(name for name in calls if name != "causal"),
        flops=10.0 * heads * width * live,
        checked=lambda answer: torch.cat([answer[0][:, :, few], *answer[1:]], 2),
        about={"density": live / length**2},
    )


def _called(
    sees: Positions | None, length: int, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    made: Tensor = flex(query, key, value, sees, length)()
    return made


def backward(
    call: Callable[..., Tensor], given: Sequence[Tensor], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """Gradients of all that is given, of a forward that was run before."""
    leaves = [x.detach().requires_grad_() for x in given]
    out = call(*leaves)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def _of_rows(sees: Positions | None, few: Tensor, given: Sequence[Tensor], grad: Tensor) -> Tensor:
    """In float64, as a case looks at answers; of queries, those in `few` alone."""
    query, key, value = (exact(x).requires_grad_() for x in given)
    at = torch.arange(key.shape[2], device=key.device)
    mask = None if sees is None else sees(few[:, None], at[None])
    out = F.scaled_dot_product_attention(query[:, :, few], key, value, attn_mask=mask)
    found = torch.autograd.grad(out, (query, key, value), exact(grad)[:, :, few])
    return torch.cat([found[0][:, :, few], *found[1:]], 2)


# --- our kernels by themselves --------------------------------------------------------------------


def kernels_of(sees: Positions | None, given: tuple[Tensor, ...], grad: Tensor) -> Call:
    """Our gradient, of what our forward gives: of Triton, or of C++ on a CPU."""
    forward, gradient = nests_of(sees, given)
    results = torch.empty_like(given[0])
    sums = torch.empty(results.shape[:3], device=results.device)
    run(forward, (*given, results, sums))()
    made = tuple(map(torch.empty_like, given))
    launch = run(gradient, (grad, *given, results, sums, *made))

    def call() -> tuple[Tensor, ...]:
        launch()
        return made

    return call


def nests_of(
    sees: Positions | None, given: tuple[Tensor, ...]
) -> tuple[AttentionNest, AttentionBackwardNest]:
    """Of an attention that gives the logarithms of its sums, and of its gradient."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from rewright.ir import TensorType, Value, fresh_names
    from rewright.ir.fx_import import from_fx
    from rewright.ir.loops import lower_attention, lower_attention_backward
    from rewright.passes.attention.backward import backward_of, with_sums
    from rewright.passes.emitter import Emitter

    shapes = [torch.empty(x.shape, dtype=x.dtype) for x in given]
    traced = from_fx(make_fx(partial(spelled, sees), tracing_mode="fake")(*shapes), name="body")
    like = traced.nodes[-1]
    forward, backward = (Emitter(fresh_names(()), like) for _ in range(2))
    forward.region("rw.attention", tuple(i.value for i in traced.inputs), traced)
    type = like.result.tensor
    sums = Value("sums", TensorType(torch.float32, type.shape[:3], None, type.device))
    attention = with_sums(forward.nodes[-1], sums)
    backward_of(attention, Value("given", type), (type,) * 3, backward)
    gradient = lower_attention_backward(backward.nodes[-1].graph("body"), "gradient")
    return lower_attention(attention.graph("body"), "attention"), gradient


def run(nest: AttentionNest | AttentionBackwardNest, given: Sequence[Tensor]) -> Call:
    """Launches a nest's kernels on operands and results."""
    if given[0].device.type != "cpu":
        from rewright.codegen.triton import emit, load

        return partial(load(emit(nest, ())), *given)
    from rewright.codegen import cpp

    kernel = cpp.build(cpp.emit([nest])).function(nest.name)
    addresses = [x.data_ptr() for x in given]
    table = (ctypes.c_void_p * len(addresses))(*addresses)

    def call() -> Sequence[Tensor]:
        kernel(table, None)
        return given  # which have to live as long as the table

    return call
