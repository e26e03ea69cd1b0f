"""State around a compiled function is what eager leaves: random numbers, autocast, grad modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rewright
from through_backend import Block, Function, X, compiled, gradients, same_as_eager
from through_training import leaf, same, trains_as_eager, uneven

pytestmark = pytest.mark.cpu


# --- random numbers -------------------------------------------------------------------------------


def many_draws(x: Tensor) -> tuple[Tensor, ...]:
    """Of every kind, with kernels of ours between them."""
    first = torch.rand(3)
    kept = F.dropout(x, 0.2)
    normal = torch.randn_like(x) * kept.exp()
    whole = torch.randint(0, 9, (4,)), torch.randperm(5)
    coin = torch.bernoulli(normal.sigmoid()) + 1
    other = torch.normal(x, 1.0).tanh(), F.alpha_dropout(x, 0.5, training=True) * 2
    last = torch.rand(3) + first, torch.empty(4).exponential_(), torch.empty(3).uniform_(-1, 1)
    return first, kept, normal, *whole, coin, *other, *last, F.rrelu(x - 1, training=True)


def test_random_numbers_come_in_eagers_order() -> None:
    same_as_eager(many_draws, X)
    trains_as_eager(many_draws, leaf(X))


def test_numbers_drawn_for_their_number_alone_are_drawn() -> None:
    """The ones after them would be others. (What nobody reads at all, Dynamo takes out.)"""

    def function(x: Tensor) -> Tensor:
        unread, dropped = torch.rand_like(x), F.dropout(x, 0.5)
        return x + torch.rand_like(x) + unread[:0].sum() + dropped[:, :0].sum()

    same_as_eager(function, X)
    trains_as_eager(function, leaf(X))


def test_numbers_are_drawn_once_though_equal_calls_look_alike() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = torch.rand_like(x), torch.rand_like(x)
        return a - b, F.dropout(x, 0.5) - F.dropout(x, 0.5)

    assert (compiled(function)(X)[0] != 0).all()
    trains_as_eager(function, leaf(X))


def test_what_a_checkpoint_draws_is_drawn_again_in_the_backward() -> None:
    linear = nn.Linear(6, 6)

    def layer(x: Tensor) -> Tensor:
        return F.dropout(linear(x).relu(), 0.4) * torch.rand_like(x)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        before = torch.rand(3)
        y = checkpoint(layer, x, use_reentrant=False)
        between = torch.rand(3)
        z = checkpoint(layer, y, use_reentrant=False)
        return z, before, between, torch.rand(2)

    trains_as_eager(function, leaf(X), module=linear)


def test_draws_of_every_size() -> None:
    ours = compiled(lambda x: F.dropout(x.sin(), 0.5) + torch.rand_like(x), dynamic=True)
    for rows in (4, 7, 2):
        torch.manual_seed(rows)
        found, after = ours(torch.ones(rows, 6)), torch.get_rng_state()
        torch.manual_seed(rows)
        x = torch.ones(rows, 6)
        torch.testing.assert_close(found, F.dropout(x.sin(), 0.5) + torch.rand_like(x))
        assert torch.equal(after, torch.get_rng_state())


def test_a_generator_of_ones_own() -> None:
    def function(x: Tensor, numbers: torch.Generator) -> Tensor:
        return x[0, :3].sin() + torch.rand(3, generator=numbers)

    def called(call: Function) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        numbers = torch.Generator().manual_seed(3)
        return call(X, numbers), numbers.get_state(), torch.get_rng_state()

    # No fullgraph: Dynamo itself leaves such a call to eager.
    ours = torch.compile(function, backend="rewright")
    torch.testing.assert_close(called(ours), called(function))


# --- autocast -------------------------------------------------------------------------------------

CLOSE = 2e-2  # bfloat16 keeps 8 bits


def bfloat16(*, enabled: bool = True) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def test_autocast_inside() -> None:
    linear = nn.Linear(6, 6)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        with bfloat16():
            y = linear(x)
            with bfloat16(enabled=False):
                z = linear(y.float())
        return y, z, y.relu() + z, linear(x)

    trains_as_eager(function, leaf(X), module=linear, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_outside(backward_inside: bool) -> None:
    """The backward computes in the types of its forward, wherever it is called."""
    linear = nn.Linear(6, 6)

    def attention(x: Tensor) -> Tensor:
        y: Tensor = (linear(x) @ x.t()).softmax(-1) @ linear(x)
        return y

    def step(call: Function) -> list[Tensor | None]:
        linear.zero_grad()
        x = leaf(X / 3)
        with bfloat16():
            y = call(x)
            if backward_inside:
                y.backward(uneven(y))
        if not backward_inside:
            y.backward(uneven(y))
        return [y, x.grad, linear.weight.grad, linear.bias.grad]

    ours = compiled(attention)
    for found, expected in zip(step(ours), step(attention), strict=True):
        same(found, expected, CLOSE, CLOSE)
    torch.testing.assert_close(ours(X), attention(X))  # no autocast: single precision again


# --- grad modes -----------------------------------------------------------------------------------


def mixed_modes(x: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        constant = x.sin()
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    also_constant = x * 3
    torch.set_grad_enabled(before)
    with torch.enable_grad():
        recorded = x.exp() * constant
    return constant, x.cos() + also_constant, also_constant, recorded


@torch.no_grad()
def without_gradients(x: Tensor) -> Tensor:
    return x.sin() * 2


def test_grad_modes_inside() -> None:
    trains_as_eager(mixed_modes, leaf(X))
    same_as_eager(without_gradients, leaf(X))
    assert not compiled(without_gradients)(leaf(X)).requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, nullcontext])
def test_grad_modes_outside(mode: Callable[[], AbstractContextManager[None]]) -> None:
    """Each mode has a program of its own; a call in one does not settle the other."""
    ours = compiled(mixed_modes)
    ours(leaf(X))
    with mode():
        found, expected = ours(leaf(X)), mixed_modes(leaf(X))
        enabled = torch.is_grad_enabled()
    assert [y.requires_grad for y in found] == [y.requires_grad for y in expected]
    torch.testing.assert_close(found, expected)
    assert enabled == (mode is not torch.no_grad)


def test_a_change_of_grad_mode_outlives_the_call() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.sin()
        torch.set_grad_enabled(False)
        return y * 2

    ours = torch.compile(function, backend="rewright")
    with torch.enable_grad():
        assert ours(leaf(X)).requires_grad == function(leaf(X)).requires_grad
        assert not torch.is_grad_enabled()


# --- inference mode -------------------------------------------------------------------------------


def test_inference_mode_inside() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            y = x.sin() * 2
        return y, x + 1

    found, expected = torch.compile(function, backend="rewright")(X), function(X)
    torch.testing.assert_close(found, expected)
    assert not found[1].is_inference()


def test_a_model_trains_after_it_ran_in_inference_mode() -> None:
    block, x = Block(), torch.randn(4, 16)
    ours = compiled(block)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), block(x))
    torch.testing.assert_close(gradients(block, ours, x), gradients(block, block, x))
    with torch.inference_mode():
        made = torch.randn(4, 16)
        torch.testing.assert_close(ours(made), block(made))
    with torch.no_grad():
        torch.testing.assert_close(ours(made), block(made))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        ours(made)


# --- deterministic algorithms ---------------------------------------------------------------------


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms() -> None:
    """Memory that nothing was written to is filled, and sums over indices have an order."""
    rows = torch.tensor([0, 1, 0, 3])

    def function(x: Tensor) -> tuple[Tensor, ...]:
        unwritten = torch.empty(3, 4)
        return (
            unwritten,
            x[rows].sin(),
            x.index_add(0, rows, x),
            x.scatter_add(0, rows[:, None].expand(4, 6), x),
        )

    assert compiled(function)(X)[0].isnan().all()
    trains_as_eager(function, leaf(X))


def test_what_has_no_deterministic_form_is_refused_as_in_eager() -> None:
    def function(x: Tensor, places: Tensor) -> Tensor:
        return torch.put(x.sin(), places, torch.ones(2)) * 2

    ours, places = compiled(function), torch.tensor([1, 3])
    torch.testing.assert_close(ours(X, places), function(X, places))
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match=r"put_ .*deterministic"):
            function(X, places)
        with pytest.raises(RuntimeError, match=r"put_ .*deterministic"):
            ours(X, places)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(ours(X, places), function(X, places))


def test_the_number_of_threads_and_the_default_type_stay() -> None:
    before = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        same_as_eager(lambda x: (torch.ones(3) * 2, x.sin() + torch.rand(4, 1)), X)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before[1])
    assert torch.get_num_threads() == before[0]
    assert rewright.programs()
