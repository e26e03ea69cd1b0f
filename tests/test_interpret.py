"""The reference interpreter: what it refuses, and what another precision changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from recorded import assert_close
from rewright.ir.errors import CheckError, InputError
from rewright.ir.fx_import import from_fx
from rewright.ir.graph import Graph
from rewright.ir.interpret import interpret
from rewright.ir.parse import parse

SIZES = """graph f(%x: f32[2*B0, 3], %n: int(B1), %y: f32[B0, B1])
where B0 in [2, 8] hint 3, B1 in [1, inf] hint 4 divisor 2 {
  %v = aten.view.default(%x, [B0, 6]) : f32[B0, 6]
  %z = aten.new_zeros.default(%y, [B0 + B1]) : f32[B0 + B1]
  return %v, %z, B0*B1
}"""


def traced(function: Callable[..., Any], *inputs: Any) -> Graph:
    return from_fx(make_fx(function, tracing_mode="fake")(*inputs))


# --- inputs ---------------------------------------------------------------------------------------


def test_symbols_are_solved_from_the_inputs() -> None:
    view, zeros, product = interpret(parse(SIZES), (torch.ones(10, 3), 4, torch.ones(5, 4)))
    assert (view.shape, zeros.shape, product) == ((5, 6), (9,), 20)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.ones(10, 3), 4), "graph f takes 3 inputs, and got 2"),
        ((torch.ones(10, 3), 4.0, torch.ones(5, 4)), "%n is a float, not a Python int"),
        ((None, 4, torch.ones(5, 4)), "%x is none, not a tensor"),
        ((torch.ones(10, 3, dtype=torch.int32), 4, torch.ones(5, 4)), "%x is i32, not f32"),
        ((torch.ones(10), 4, torch.ones(5, 4)), "%x has 1 dimensions, not 2"),
        ((torch.ones(10, 4), 4, torch.ones(5, 4)), "dimension 1 of %x is 4, not 3"),
        ((torch.ones(9, 3), 4, torch.ones(5, 4)), "dimension 0 of %x is 9, not 2*B0 = 10"),
        (
            (torch.ones(10, 3), 6, torch.ones(5, 4)),
            "dimension 1 of %y is 4, but %n is 6: both are B1",
        ),
        (
            (torch.ones(40, 3), 4, torch.ones(20, 4)),
            "dimension 0 of %y is 20: B0 must be in [2, 8]",
        ),
        ((torch.ones(10, 3), 3, torch.ones(5, 3)), "%n is 3: B1 must be a multiple of 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(inputs: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        interpret(parse(SIZES), inputs)
    assert str(error.value) == message


def test_a_bound_of_a_derived_size_says_where_it_comes_from() -> None:
    graph = parse("graph f(%x: f32[2*B0]) where B0 in [2, 8] {\n  return %x\n}")
    with pytest.raises(InputError, match=r"^dimension 0 of %x is 2, so B0 is 1: B0 must be in"):
        interpret(graph, (torch.ones(2),))


# --- nodes ----------------------------------------------------------------------------------------


def test_a_type_that_a_node_does_not_keep_is_found() -> None:
    wrong_shape = "graph f(%x: f32[4]) {\n  %y = aten.neg.default(%x) : f32[5]\n  return %y\n}"
    with pytest.raises(CheckError, match="%y has a size 4 where 5 is declared"):
        interpret(parse(wrong_shape), (torch.ones(4),))
    wrong_dtype = wrong_shape.replace("f32[5]", "f64[4]")
    with pytest.raises(CheckError, match=r"%y is declared torch.float64 of rank 1, but came out"):
        interpret(parse(wrong_dtype), (torch.ones(4),))


def test_an_error_of_an_operator_says_which_node_raised_it() -> None:
    graph = parse(
        "graph f(%x: f32[2, 3], %y: f32[2, 3]) {\n"
        "  %z = aten.mm.default(%x, %y) : f32[2, 3] @ model.py:7\n  return %z\n}"
    )
    with pytest.raises(RuntimeError) as error:
        interpret(graph, (torch.ones(2, 3), torch.ones(2, 3)))
    assert error.value.__notes__ == ["while interpreting %z = aten.mm.default at model.py:7"]


KERNELS = """graph k(%x: f32[3, 4], %w: f32[4, 5]) {
  %b = rw.alloc(offset=0) : f32[3, 5]
  %m = aten.mm.out(%x, %w, out=%b) : f32[3, 5]
  %c = rw.alloc() : f32[3, 5] strides [1, 3]
  %y = rw.fused(%m, out=%c) body relu(%a: f32[3, 5]) {
    %r = aten.relu.default(%a) : f32[3, 5]
    return %r
  } : f32[3, 5] strides [1, 3]
  rw.free(%b)
  return %y
}"""


def test_kernel_level_nodes_write_into_the_buffers_they_are_given() -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    (y,) = interpret(parse(KERNELS), (x, w))
    assert torch.equal(y, torch.relu(x @ w)) and y.stride() == (1, 3)


def test_a_read_after_a_free_is_found() -> None:
    lines = KERNELS.splitlines()
    early = "\n".join([*lines[:4], "  rw.free(%b)", *lines[4:-3], *lines[-2:]])
    with pytest.raises(CheckError, match="%m is read before it is made"):
        interpret(
            parse(early.replace("rw.free(%b)", "rw.free(%m)")), (torch.ones(3, 4), torch.ones(4, 5))
        )


def test_values_are_dropped_after_their_last_read() -> None:
    """In a chain only what is read and what is made are alive, and what the caller holds."""
    alive: list[int] = []
    live: set[int] = set()

    @torch.library.custom_op("rewright_tests::counted", mutates_args=())
    def counted(x: Tensor) -> Tensor:
        import weakref

        y = x.clone()
        live.add(id(y))
        weakref.finalize(y, live.discard, id(y))
        alive.append(len(live))
        return y

    @counted.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    def chain(x: Tensor) -> Tensor:
        for _ in range(64):
            x = counted(x)
        return x

    graph = traced(chain, torch.ones(4))
    alive.clear()
    interpret(graph, (torch.ones(4),))
    assert len(alive) == 64 and max(alive) <= 4


# --- another precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_float64_reaches_what_a_graph_creates_and_converts(dtype: torch.dtype) -> None:
    def function(x: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        half = torch.full((4,), 1 / 3)
        return (
            x.float().softmax(-1).to(dtype) * torch.tensor(1 / 3),
            torch.softmax(x, -1, dtype=torch.float32),
            half + count / 7,
            torch.arange(0, 1, 0.25) * x.new_ones(4, dtype=torch.float32) / 3,
            x.mean().sqrt() + torch.finfo(dtype).min,
        )

    x, count = torch.rand(4, 4, dtype=dtype), torch.arange(4)
    outputs = interpret(traced(function, x, count), (x, count), dtype=torch.float64)
    exact = x.double()
    softmax = exact.softmax(-1)
    third = torch.tensor(1 / 3).double()
    wanted = (
        softmax * third,
        softmax,
        torch.full((4,), 1 / 3).double() + count.double() / 7,
        torch.arange(0, 1, 0.25).double() / 3,
        exact.mean().sqrt() + torch.finfo(dtype).min,
    )
    for got, expected in zip(outputs, wanted, strict=True):
        assert got.dtype is torch.float64
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


def test_float64_leaves_integers_masks_and_the_default_dtype_alone() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x > 0, (x * 10).to(torch.int32), x.view(torch.int32), torch.fft.fft(x)

    x = torch.randn(8)
    mask, integers, bits, spectrum = interpret(traced(function, x), (x,), dtype=torch.float64)
    assert torch.equal(mask, x > 0) and torch.equal(integers, (x * 10).to(torch.int32))
    assert torch.equal(bits, x.view(torch.int32))
    assert spectrum.dtype is torch.complex128
    assert torch.get_default_dtype() is torch.float32


def test_float64_draws_the_numbers_that_the_graph_draws() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        dropped, mask = torch.native_dropout(x, 0.3, True)
        return dropped, mask, torch.rand_like(x), torch.bernoulli(x.sigmoid()), torch.randn(4)

    x = torch.randn(64, 64)
    graph = traced(function, x)
    torch.manual_seed(3)
    wanted = function(x)
    torch.manual_seed(3)
    for got, expected in zip(interpret(graph, (x,), dtype=torch.float64), wanted, strict=True):
        assert_close(got, expected, 1e-6)


def test_updates_are_written_in_the_inputs_own_type() -> None:
    graph = parse(
        "graph f(%x: f32[3] mutable) {\n  %y = aten.add.Tensor(%x, 1) : f32[3]\n"
        "  update %x <- %y\n  return %x\n}"
    )
    x = torch.zeros(3)
    interpret(graph, (x,), dtype=torch.float64)
    assert torch.equal(x, torch.ones(3))


# --- attention operators of other devices ---------------------------------------------------------

FLASH = """graph f(%q: f16[2, 4, 8, 16], %k: f16[2, 2, 8, 16], %v: f16[2, 2, 8, 16],
                   %g: f16[2, 4, 8, 16]) {
  %o, %l, %cq, %ck, %mq, %mk, %s, %u, %d = aten._scaled_dot_product_flash_attention.default(
    %q, %k, %v, 0.0, true, scale=0.3) :
    f16[2, 4, 8, 16], f32[2, 4, 8], none, none, int(8), int(8), u64[2], u64[], f16[0]
  %dq, %dk, %dv = aten._scaled_dot_product_flash_attention_backward.default(
    %g, %q, %k, %v, %o, %l, none, none, 8, 8, 0.0, true, %s, %u, scale=0.3) :
    f16[2, 4, 8, 16], f16[2, 2, 8, 16], f16[2, 2, 8, 16]
  return %o, %l, %dq, %dk, %dv, %s
}"""

EFFICIENT = """graph f(%q: f32[2, 4, 8, 16], %k: f32[2, 4, 8, 16], %v: f32[2, 4, 8, 16],
                       %b: f32[2, 4, 8, 8], %g: f32[2, 4, 8, 16]) {
  %o, %l, %s, %u = aten._scaled_dot_product_efficient_attention.default(%q, %k, %v, %b, true) :
    f32[2, 4, 8, 16], f32[2, 4, 32], i64[], i64[]
  %dq, %dk, %dv, %db = aten._scaled_dot_product_efficient_attention_backward.default(
    %g, %q, %k, %v, %b, %o, %l, %s, %u, 0.0, [true, true, true, true]) :
    f32[2, 4, 8, 16], f32[2, 4, 8, 16], f32[2, 4, 8, 16], f32[2, 4, 8, 8]
  return %o, %dq, %dk, %dv, %db
}"""


def test_float64_has_references_of_attention_that_only_gpus_run() -> None:
    graph = parse(FLASH)
    inputs = [torch.randn(i.value.tensor.shape).half() for i in graph.inputs]  # type: ignore[arg-type]
    out, logsumexp, *grads, state = interpret(graph, inputs, dtype=torch.float64)
    q, k, v = (x.double().requires_grad_() for x in inputs[:3])
    wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(out, wanted.detach())
    expected = torch.autograd.grad(wanted, (q, k, v), inputs[3].double())
    torch.testing.assert_close(grads, list(expected))
    scores = q @ k.repeat_interleave(2, 1).mT * 0.3
    causal = scores.masked_fill(~torch.ones(8, 8).tril().bool(), -math.inf)
    torch.testing.assert_close(logsumexp, causal.logsumexp(-1).detach())
    assert state.shape == (2,)


def test_float64_gives_the_gradient_of_an_attention_bias() -> None:
    graph = parse(EFFICIENT)
    inputs = [torch.randn(i.value.tensor.shape) for i in graph.inputs]  # type: ignore[arg-type]
    out, *grads = interpret(graph, inputs, dtype=torch.float64)
    q, k, v, bias = (x.double().requires_grad_() for x in inputs[:4])
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(out, wanted.detach())
    expected = torch.autograd.grad(wanted, (q, k, v, bias), inputs[4].double())
    torch.testing.assert_close(grads, list(expected))
