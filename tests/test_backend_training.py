"""The torch.compile backend in training, on threads, and what it keeps alive."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from through_backend import (
    Block,
    Function,
    X,
    compiled,
    gradients,
    the_program,
)

pytestmark = pytest.mark.cpu


# --- training -----------------------------------------------------------------------------------


def test_backward_on_another_thread() -> None:
    block = Block()
    x = torch.randn(4, 16)
    loss = compiled(block)(x).square().mean()
    worker = threading.Thread(target=loss.backward)
    worker.start()
    worker.join()
    found = [p.grad for p in block.parameters()]
    torch.testing.assert_close(found, gradients(block, block, x))


def test_frozen_parameters_get_no_gradient() -> None:
    block = Block()
    block.up.requires_grad_(False)
    x = torch.randn(4, 16, requires_grad=True)
    torch.testing.assert_close(gradients(block, compiled(block), x), gradients(block, block, x))
    compiled(block)(x).sum().backward()
    assert block.up.weight.grad is None
    assert x.grad is not None


def test_a_graph_may_be_walked_back_twice() -> None:
    block, x = Block(), torch.randn(4, 16, requires_grad=True)
    loss = compiled(block)(x).square().mean()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    assert torch.equal(first, second)


def test_recomputed_dropout_draws_the_same_mask_again() -> None:
    from torch.utils.checkpoint import checkpoint

    linear = nn.Linear(16, 16)

    def inner(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(linear(x).relu(), 0.4).square()

    def outer(x: Tensor) -> Tensor:
        y: Tensor = checkpoint(inner, x, use_reentrant=False)
        return y.sum()

    x = torch.randn(8, 16, requires_grad=True)

    def step(function: Function) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        return torch.autograd.grad(function(x), (x, *linear.parameters()))

    torch.testing.assert_close(step(compiled(outer)), step(outer))


def test_under_autocast() -> None:
    block, x = Block(), torch.randn(4, 16)

    def cast(call: Function) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = call(x)
        return y

    step = compiled(block)
    with torch.no_grad():
        ours, eager = cast(step), cast(block)
    assert ours.dtype == eager.dtype
    torch.testing.assert_close(ours, eager, rtol=2e-2, atol=2e-2)


def test_inference_mode() -> None:
    block, x = Block(), torch.randn(4, 16)
    step = compiled(block)
    with torch.inference_mode():
        torch.testing.assert_close(step(x), block(x))
        assert step(x).is_inference()
    with torch.no_grad():
        torch.testing.assert_close(step(x), block(x))


# --- threads, re-entrance, memory ---------------------------------------------------------------


def test_two_threads_compile_at_once() -> None:
    blocks = [Block(), Block()]
    inputs = [torch.randn(4, 16), torch.randn(7, 16)]
    start = threading.Barrier(2)

    def work(i: int) -> list[Tensor]:
        start.wait()
        return gradients(blocks[i], torch.compile(blocks[i], backend="rewright"), inputs[i])

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, range(2)))
    for block, x, ours in zip(blocks, inputs, found, strict=True):
        torch.testing.assert_close(ours, gradients(block, block, x))


def test_two_threads_run_one_program() -> None:
    block = Block().eval()
    step = compiled(block)
    inputs = [torch.randn(4, 16) for _ in range(24)]
    with torch.no_grad():
        step(inputs[0])
        expected = [block(x) for x in inputs]

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = step(x)
        return y

    with ThreadPoolExecutor(4) as pool:
        torch.testing.assert_close(list(pool.map(run, inputs)), expected)


def test_a_call_within_a_call() -> None:
    """A program that calls back into Python, and from there into itself, keeps its buffers."""
    depth = 0

    @torch.library.custom_op("rewright_tests::call_back", mutates_args=())
    def call_back(x: Tensor) -> Tensor:
        nonlocal depth
        depth += 1
        return step(x + 1) + x if depth < 3 else x.clone()

    call_back.register_fake(torch.empty_like)

    def function(x: Tensor) -> Tensor:
        y = (x.sin() @ x.t()).exp()
        inner: Tensor = torch.ops.rewright_tests.call_back(x)
        return y @ inner + (y @ x).tanh()

    step = compiled(function)
    x = X / 10
    with torch.no_grad():
        found, depth = step(x), 0
        torch.testing.assert_close(found, function_by_hand(x))


def function_by_hand(x: Tensor, depth: int = 1) -> Tensor:
    """What `test_a_call_within_a_call` computes."""
    y = (x.sin() @ x.t()).exp()
    inner = function_by_hand(x + 1, depth + 1) + x if depth < 3 else x
    return y @ inner + (y @ x).tanh()


def test_an_input_is_freed_after_its_last_use() -> None:
    """AOTAutograd hands over what nobody else holds: it must not live until the program ends."""
    watched: list[weakref.ref[Tensor]] = []
    alive: list[list[bool]] = []

    @torch.library.custom_op("rewright_tests::look", mutates_args=())
    def look(x: Tensor) -> Tensor:
        alive.append([w() is not None for w in watched])
        return x.clone()

    look.register_fake(torch.empty_like)

    def function(x: Tensor, y: Tensor) -> Tensor:
        seen: Tensor = torch.ops.rewright_tests.look(x.sin().sum(0))
        return seen + y

    compiled(function)(X, X[0])
    args = [X.clone(), X[0].clone()]
    watched += map(weakref.ref, args)
    the_program().executable(args)
    assert args == []
    assert alive[-1] == [False, True]


def test_what_nothing_reads_is_freed_at_once() -> None:
    from rewright.driver import compile_graph
    from rewright.ir.parse import parse
    from rewright.options import Options

    graph = parse(
        "graph f(%x: f32[4], %unread: f32[4]) {\n"
        "  %y = aten.sin.default(%x) : f32[4]\n"
        "  return %y\n}"
    )
    assert "del unread" in compile_graph(graph, Options()).executable.source.split("def run")[1]
