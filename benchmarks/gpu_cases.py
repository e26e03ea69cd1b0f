"""What is measured on a GPU: rows, products, attention and models, each a case with its candidates.

A case says how many bytes it has to move, or how many operations it takes, so that a time can be
compared with what the machine can do.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.attention import MASKS, Positions
from benchmarks.device import Call
from benchmarks.steady import allowed, relative_l2

if TYPE_CHECKING:
    from rewright.ir.loops import AttentionNest


@dataclass(frozen=True)
class Case:
    """`calls` are the candidates by name, of which `exact` are compared with `reference`, in
    float64; `bytes` and `flops` are what the task needs, where that is known. `checked` takes the
    part of an answer that is compared."""

    name: str
    calls: Mapping[str, Call]
    reference: Call | None = None
    exact: Sequence[str] = ()
    bytes: int = 0
    flops: float = 0.0
    checked: Callable[[Any], Any] = lambda answer: answer
    about: Mapping[str, Any] = field(default_factory=dict)

    def restricted(self, working: Mapping[str, Call]) -> Case:
        """To the candidates that work."""
        exact = [name for name in self.exact if name in working]
        return dataclasses.replace(self, calls=working, exact=exact)

    def wrong(self) -> dict[str, str]:
        """The candidates whose answers are too far from float64; eager says what is too far."""
        if self.reference is None:
            return {}
        exact = self.reference()
        limit = allowed(relative_l2(self.checked(self.calls["eager"]()), exact))
        errors = {n: relative_l2(self.checked(self.calls[n]()), exact) for n in self.exact}
        return {n: f"{e:.1e} off, over {limit:.1e}" for n, e in errors.items() if not e <= limit}


@dataclass(frozen=True)
class Setting:
    """`quick` is as small as can be, to try the script and not the machine."""

    device: str
    backends: tuple[str, ...]
    quick: bool

    def drawn(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype)

    def compiled(self, function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
        """By name; eager is the function itself."""
        torch.compiler.reset()
        return {
            name: function if name == "eager" else torch.compile(function, backend=name)
            for name in self.backends
        }


# --- rows -----------------------------------------------------------------------------------------


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(x, target)


# Elements read and written for each of the input's: forward, and backward.
ROWS: Final[Mapping[str, tuple[Callable[..., Tensor], int, int]]] = {
    "softmax": (softmax, 2, 3),
    "layer norm": (layer_norm, 2, 3),
    "rms norm": (rms_norm, 2, 3),
    "cross entropy": (cross_entropy, 1, 2),
}


def rows(setting: Setting) -> Iterator[Case]:
    elements, lengths = 1 << 27, [4096, 8192, 16384, 32768]
    if setting.quick:
        elements, lengths = 1 << 12, [64, 128]
    for length in lengths:
        for name, (function, forward, backward) in ROWS.items():
            inputs = _row_inputs(name, elements // length, length, setting)
            calls = setting.compiled(function)
            title = f"{name}, rows of {length:,}"
            nbytes = elements * inputs[0].element_size()
            yield Case(
                title,
                {n: partial(_without_gradient, call, inputs) for n, call in calls.items()},
                partial(function, *map(exact, inputs)),
                tuple(calls),
                bytes=forward * nbytes,
            )
            yield Case(
                f"{title}, backward",
                {n: _backward(call, inputs) for n, call in calls.items()},
                _backward(function, [exact(x) for x in inputs]),
                tuple(calls),
                bytes=backward * nbytes,
            )


def _row_inputs(name: str, count: int, length: int, setting: Setting) -> list[Tensor]:
    x = setting.drawn(count, length)
    if name == "cross entropy":
        return [x, torch.randint(0, length, (count,), device=setting.device)]
    parameters = {"layer norm": 2, "rms norm": 1}.get(name, 0)
    return [x, *(setting.drawn(length) for _ in range(parameters))]


def exact(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _without_gradient(call: Callable[..., Any], inputs: Sequence[Tensor]) -> Any:
    with torch.no_grad():
        return call(*inputs)


def _backward(call: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Call:
    """The gradient of the first input, of a forward that was run before."""
    given = [inputs[0].detach().requires_grad_(), *inputs[1:]]
    out = call(*given)
    generator = torch.Generator(device=out.device).manual_seed(0)
    drawn = torch.randn(out.shape, device=out.device, generator=generator)
    gradient = drawn.to(inputs[0].dtype).to(out.dtype)
    return lambda: torch.autograd.grad(out, given[0], gradient, retain_graph=True)


# --- products -------------------------------------------------------------------------------------


def products(setting: Setting) -> Iterator[Case]:
    """A product with what is done to its result, and beside it the product alone."""
    sizes = ((64, 64, 64),) if setting.quick else ((4096, 4096, 4096), (8192, 8192, 8192))
    for m, n, k in sizes:
        x, weight, bias = setting.drawn(m, k), setting.drawn(n, k), setting.drawn(n)

        def gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.gelu(F.linear(x, weight, bias), approximate="tanh")

        calls = {
            name: partial(_without_gradient, call, (x, weight, bias))
            for name, call in setting.compiled(gelu).items()
        }
        yield Case(
            f"gelu(x w + b), {m}x{n}x{k}",
            {**calls, "product alone": lambda x=x, w=weight: F.linear(x, w)},  # type: ignore[misc]
            partial(gelu, *map(exact, (x, weight, bias))),
            tuple(calls),
            flops=2.0 * m * n * k,
        )


# --- attention ------------------------------------------------------------------------------------

HEADS: Final = 16
WIDTH: Final = 128


DENSE: Final = ("full", "causal")
SPARSE: Final = 8192  # queries, and keys, of the other masks


def attention_settings(
    setting: Setting, lengths: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, int, int, int], Positions | None]]:
    """For each mask and length: how it is called, the shape of queries, and what they see."""
    heads, width = HEADS, WIDTH
    if setting.quick:
        lengths, heads, width = (128,), 2, 16
    for length in lengths:
        for name in ("full", *MASKS):
            if name in DENSE or length == SPARSE:
                sees = None if name == "full" else MASKS[name](length)
                yield f"{name}, {length:,}", (1, heads, length, width), sees


def attention(setting: Setting) -> Iterator[Case]:
    """Forward, in bf16. `kernel` is ours by itself; `causal` torch's dense one, which sees half."""
    for name, (_, heads, length, width), sees in attention_settings(setting, (4096, SPARSE, 16384)):
        yield _attention(name, length, heads, width, sees, setting)


def _attention(
    title: str, length: int, heads: int, width: int, sees: Positions | None, setting: Setting
) -> Case:
    query, key, value = (setting.drawn(1, heads, length, width) for _ in range(3))
    given = (query, key, value)
    at = torch.arange(length, device=setting.device)
    live = live_scores(sees, length, setting.device)
    few = at[-64:]

    def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        at = torch.arange(query.shape[2], device=query.device)
        seen = None if sees is None else sees(at[:, None], at[None])
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)

    def reference() -> Tensor:
        mask = None if sees is None else sees(few[:, None], at[None])
        rows = exact(query)[:, :, few]
        return F.scaled_dot_product_attention(rows, exact(key), exact(value), attn_mask=mask)

    calls: dict[str, Call] = {
        n: partial(_without_gradient, call, given) for n, call in setting.compiled(masked).items()
    }
    calls |= {"kernel": kernel_of(sees, given), "causal": partial(_causal, *given)}
    if not setting.quick:
        calls["flex"] = flex(query, key, value, sees, length)
    return Case(
        title,
        calls,
        reference,
        tuple(name for name in calls if name != "causal"),
        flops=4.0 * heads * width * live,
        checked=lambda answer: answer[:, :, few],
        about={"density": live / length**2},
    )


def live_scores(sees: Positions | None, length: int, device: str) -> int:
    at = torch.arange(length, device=device)
    if sees is None:
        return length**2
    return sum(int(sees(i[:, None], at[None]).sum()) for i in at.split(1024))


def _causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def flex(query: Tensor, key: Tensor, value: Tensor, sees: Positions | None, length: int) -> Call:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)
    if sees is None:
        return lambda: compiled(query, key, value)

    def seen(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return sees(i, j)

    kept = create_block_mask(seen, None, None, length, length, device=str(query.device))
    return lambda: compiled(query, key, value, block_mask=kept)


def kernel_of(sees: Positions | None, given: tuple[Tensor, ...]) -> Call:
    """Our kernel of an attention by itself: of Triton, or of C++ on a CPU."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from rewright.ir.fx_import import from_fx
    from rewright.ir.loops import lower_attention

    shapes = [torch.empty(x.shape, dtype=x.dtype) for x in given]
    traced = make_fx(partial(spelled, sees), tracing_mode="fake")(*shapes)
    nest = lower_attention(from_fx(traced, name="attention"), "attention")
    if given[0].device.type == "cpu":
        return _on_cpu(nest, given)
    from rewright.codegen.triton import emit, load

    launch, made = load(emit(nest, ())), torch.empty_like(given[0])

    def call() -> Tensor:
        launch(*given, made)
        return made

    return call


def _on_cpu(nest: AttentionNest, given: tuple[Tensor, ...]) -> Call:
    from rewright.codegen.cpp import build, emit

    kernel, made = build(emit([nest])).function(nest.name), torch.empty_like(given[0])
    addresses = [x.data_ptr() for x in (*given, made)]
    table = (ctypes.c_void_p * len(addresses))(*addresses)

    def call() -> Tensor:
        kernel(table, None)
        return made

    return call


def spelled(sees: Positions | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As a kernel computes it: in f32, whatever the operands are."""
    b, h, t, d = query.shape
    q, k, v = (x.float().view(b * h, t, d) for x in (query, key, value))
    scores = torch.bmm(q, k.transpose(1, 2)).view(b, h, t, t) * d**-0.5
    if sees is not None:
        at = torch.arange(t)
        scores = torch.where(sees(at[:, None], at[None]), scores, -math.inf)
    weights = torch.ops.aten._softmax.default(scores, -1, False)
    return torch.bmm(weights.view(b * h, t, t), v).view(b, h, t, d).to(query.dtype)


# --- models ---------------------------------------------------------------------------------------


def models(setting: Setting) -> Iterator[Case]:
    """Language models in bf16: a forward, and a step of training with its optimizer left out."""
    from examples.huggingface import gpt2, llama

    large: Mapping[str, Any] = {"gpt2": (gpt2, 8, 1024, {}), "llama": (llama, 8, 1024, {})}
    small: Mapping[str, Any] = {
        "gpt2": (gpt2, 2, 16, {"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 64}),
    }
    for name, (make, batch, length, sizes) in (small if setting.quick else large).items():
        model, (tokens,) = make(batch, length, **sizes)
        model, tokens = model.to(setting.device, torch.bfloat16), tokens.to(setting.device)
        exact = copy.deepcopy(model).double()
        yield Case(
            f"{name}, {batch}x{length}",
            {
                n: partial(_without_gradient, call, (tokens,))
                for n, call in setting.compiled(model).items()
            },
            partial(_without_gradient, exact, (tokens,)),
            setting.backends,
        )
        del exact
        yield _training(f"{name}, {batch}x{length}, training", model, tokens, setting)


def _training(title: str, model: nn.Module, tokens: Tensor, setting: Setting) -> Case:
    """Dropout is off, so that every candidate computes the same."""

    def step(run: Callable[..., Tensor], model: nn.Module = model) -> list[Tensor]:
        model.zero_grad()
        logits = run(tokens).flatten(0, 1)
        F.cross_entropy(logits, tokens.flatten()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    exact = copy.deepcopy(model).double()
    calls = {name: partial(step, call) for name, call in setting.compiled(model).items()}
    return Case(title, calls, partial(step, exact, exact), setting.backends)
