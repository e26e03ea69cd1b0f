"""What AOTAutograd holds a backend to: boxed calls, strides, aliases, writes into inputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

import rewright
from through_backend import Function, X, compiled, same_as_eager
from through_training import leaf, same, trains_as_eager, uneven

pytestmark = pytest.mark.cpu


# --- boxed calls: memory comes back as soon as nothing reads it -----------------------------------

tapped: list[StorageWeakRef] = []
freed: list[list[bool]] = []


@torch.library.custom_op("rewright_tests::tap", mutates_args=())
def tap(x: Tensor) -> Tensor:
    """A tensor that ATen allocates, and that is watched from here on."""
    y = x.clone()
    tapped.append(StorageWeakRef(y.untyped_storage()))
    return y


@torch.library.custom_op("rewright_tests::watch", mutates_args=())
def watch(x: Tensor) -> Tensor:
    """Notes which of the tapped tensors are gone."""
    freed.append([storage.expired() for storage in tapped])
    return x.clone()


tap.register_fake(torch.empty_like)
watch.register_fake(torch.empty_like)
tap.register_autograd(lambda _, gradient: torch.ops.rewright_tests.watch(gradient))


@pytest.fixture(autouse=True)
def nothing_tapped() -> None:
    tapped.clear()
    freed.clear()


def test_the_backward_frees_each_saved_tensor_after_its_last_use() -> None:
    def function(x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.ops.rewright_tests.tap(x).sin()
        return x.sum()

    loss = compiled(function)(leaf(X))
    assert [storage.expired() for storage in tapped] == [False] * 3
    loss.backward()
    assert freed == [[False, False, True], [False, True, True], [True, True, True]]


def test_an_intermediate_is_freed_after_its_last_use() -> None:
    def function(x: Tensor) -> Tensor:
        first = torch.ops.rewright_tests.tap(x)
        second = torch.ops.rewright_tests.tap(first.sin())
        y: Tensor = torch.ops.rewright_tests.watch(second)
        z: Tensor = torch.ops.rewright_tests.watch(y + second)
        return y + z

    compiled(function)(X)
    assert freed == [[True, False], [True, True]]


def test_a_program_holds_neither_inputs_nor_outputs() -> None:
    function = compiled(lambda x: (torch.ops.rewright_tests.tap(x.exp()), x.sin() @ x.t()))
    x = X.clone()
    outputs = function(x)
    watched = [*tapped, *(StorageWeakRef(y.untyped_storage()) for y in (x, *outputs))]
    assert not any(storage.expired() for storage in watched)
    del x, outputs
    assert all(storage.expired() for storage in watched)


# In this namespace an operator counts as one that talks to other processes.
@torch.library.custom_op("c10d_functional::rewright_tests_read_late", mutates_args=())
def read_late(x: Tensor) -> Tensor:
    """Starts a collective: it goes on reading `x` after it returned."""
    being_read.append(x)
    return torch.empty_like(x)


@torch.library.custom_op("c10d_functional::rewright_tests_wait", mutates_args=())
def wait(x: Tensor) -> Tensor:
    """Ends it."""
    return being_read.pop().clone()


read_late.register_fake(torch.empty_like)
wait.register_fake(torch.empty_like)
being_read: list[Tensor] = []


def test_what_a_collective_reads_stays_until_it_is_waited_for() -> None:
    """Its buffer serves nobody else meanwhile."""

    def function(x: Tensor) -> Tensor:
        started = read_late((x.sin() + 1) @ x.t())
        others = ((x.cos() @ x.t()).exp() @ x).softmax(-1)
        y: Tensor = wait(started) + others.sum()
        return y

    same_as_eager(function, X / 4)


# --- strides --------------------------------------------------------------------------------------

IMAGE = torch.linspace(-2, 2, 120).reshape(2, 3, 4, 5)


def laid_out_in_many_ways(x: Tensor) -> tuple[Tensor, ...]:
    y = F.relu(x) + 1
    return (
        y,
        y.permute(0, 2, 3, 1) * 2,
        y.transpose(1, 3).contiguous(),
        y.mean((2, 3)),
        y.flatten(2),
    )


def as_it_is(gradient: Tensor) -> Tensor:
    return gradient


def channels_last(gradient: Tensor) -> Tensor:
    if gradient.ndim != 4:
        return gradient
    return gradient.contiguous(memory_format=torch.channels_last)


def backwards(gradient: Tensor) -> Tensor:
    """Column-major."""
    dims = list(reversed(range(gradient.ndim)))
    return gradient.permute(dims).contiguous().permute(dims)


def all_the_same(gradient: Tensor) -> Tensor:
    """Every stride is zero."""
    return torch.tensor(0.75).expand(gradient.shape)


def among_others(gradient: Tensor) -> Tensor:
    """Every second number of a larger tensor, from an odd address on."""
    larger = torch.zeros(2 * gradient.numel() + 1)[1:].reshape(*gradient.shape, 2)
    larger[..., 0] = gradient
    return larger[..., 0]


ARRANGEMENTS = (as_it_is, channels_last, backwards, all_the_same, among_others)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_may_arrive_in_any_layout(layout: torch.memory_format) -> None:
    ours = compiled(laid_out_in_many_ways)

    def gradient(function: Function, arrange: Function) -> Tensor:
        x = leaf(IMAGE.contiguous(memory_format=layout))
        outputs = function(x)
        given = [arrange(uneven(y)) for y in outputs]
        (found,) = torch.autograd.grad(outputs, x, given)
        return found

    for arrange in ARRANGEMENTS:
        found, expected = (gradient(f, arrange) for f in (ours, laid_out_in_many_ways))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_keeps_eagers_strides(layout: torch.memory_format) -> None:
    convolution = nn.Conv2d(3, 2, 3, padding=1)
    convolution.to(memory_format=layout)  # type: ignore[call-overload]

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = convolution(x)
        normal = F.batch_norm(y, None, None, training=True)
        return y.sigmoid(), normal, *laid_out_in_many_ways(normal)

    x = IMAGE.contiguous(memory_format=layout)
    trains_as_eager(function, leaf(x), module=convolution, rtol=1e-4, atol=1e-5)


def test_inputs_of_odd_layouts_get_gradients() -> None:
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return x.exp() * 2, x.softmax(-1), x.transpose(0, 1).tanh()

    for x in (IMAGE[0].permute(2, 0, 1), IMAGE[:, ::2, 1:, 0], IMAGE[0, :1, :, :1].expand(3, 4, 2)):
        trains_as_eager(function, x.detach().requires_grad_())


# --- what AOTAutograd takes apart -----------------------------------------------------------------


def test_composite_operators_arrive_whole() -> None:
    """In pieces they would round more often, and match no kernel of ATen's."""

    def function(x: Tensor) -> Tensor:
        heads = F.layer_norm(x, (6,)).reshape(1, 2, 4, 3)
        y = F.scaled_dot_product_attention(heads, heads, heads).reshape(4, 6)
        return F.gelu(y.softmax(-1), approximate="tanh") + F.silu(F.mish(y))

    compiled(function)(leaf(X)).sum().backward()
    forward, backward = ({n.op.name for n in p.source.nodes} for p in rewright.programs())
    whole = {"native_layer_norm", "_softmax", "gelu", "silu", "mish"}
    assert {f"aten.{name}.default" for name in whole} <= forward
    assert any("scaled_dot_product" in name for name in forward)
    derived = {"native_layer_norm_backward", "gelu_backward"}
    assert {f"aten.{name}.default" for name in derived} <= backward


# --- aliases, duplicates, None --------------------------------------------------------------------


class Relations(NamedTuple):
    """For each output: the first tensor that shares its memory, whether it is the input itself,
    whether it is a view, whether it takes part in training."""

    shares: list[int]
    is_input: list[bool]
    is_view: list[bool]
    requires_grad: list[bool]


def relations(function: Function) -> Relations:
    x = leaf(X) * 1  # no leaf: its views may be written
    tensors = [x, *(y for y in function(x) if isinstance(y, Tensor))]
    addresses = [y.untyped_storage().data_ptr() for y in tensors]
    return Relations(
        [addresses.index(a) for a in addresses],
        [y is x for y in tensors],
        [y._is_view() for y in tensors],
        [y.requires_grad for y in tensors],
    )


def related_in_many_ways(x: Tensor) -> tuple[Any, ...]:
    y = x.sin()
    of_input = x, x.t(), x[1:].detach()
    return *of_input, y, y.t(), y.view(-1)[2:], y, None, y.detach(), x.shape[0], y


def test_outputs_in_training_alias_what_eagers_alias() -> None:
    assert relations(compiled(related_in_many_ways)) == relations(related_in_many_ways)
    trains_as_eager(related_in_many_ways, leaf(X))


def test_a_write_into_an_output_shows_where_it_shows_in_eager() -> None:
    def after_writing(function: Function) -> list[Tensor]:
        x = leaf(X) * 1
        outputs = [y for y in function(x) if isinstance(y, Tensor)]
        outputs[1].mul_(2)  # a view of the input
        with torch.no_grad():
            outputs[4].mul_(3)  # a view of an intermediate
        return [x, *outputs]

    def function(x: Tensor) -> tuple[Tensor, ...]:
        y = x + 1
        return x.t(), x[1:], y, y.t(), y.view(-1), x * 2

    found, expected = after_writing(compiled(function)), after_writing(function)
    torch.testing.assert_close(found, expected)


def test_gradients_that_nobody_asks_for() -> None:
    """Outputs that stay unused send no gradient, and inputs may want none."""

    def function(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        return x.sin() * y, (x * z).exp(), y.cos()

    def gradient(call: Function) -> tuple[Tensor | None, ...]:
        x, z = leaf(X), leaf(X + 1)
        outputs = call(x, X, z)
        assert not outputs[2].requires_grad
        return torch.autograd.grad(outputs[0].sum(), (x, z), allow_unused=True)

    found, expected = gradient(compiled(function)), gradient(function)
    torch.testing.assert_close(found[0], expected[0])
    assert expected[1] is None
    assert found[1] is None or not found[1].any()  # AOTAutograd may answer zeros


def test_outputs_that_have_no_gradient() -> None:
    def function(x: Tensor) -> tuple[Any, ...]:
        return x.sin(), x > 1, x.argmax(1), x.sum().long(), None, 3, "text", (x > 1).sum()

    trains_as_eager(function, leaf(X))


# --- writes into inputs, while training -----------------------------------------------------------


def update_a_buffer(x: Tensor, total: Tensor) -> Tensor:
    total.mul_(0.9).add_(x.detach().mean(0))
    return x * total.clone()


def write_into_a_view(x: Tensor, table: Tensor) -> Tensor:
    table[1:3].copy_(x.detach()[1:3] * 2)
    return (x * table.clone()).sum(0)


def write_and_return(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    table.add_(1)
    return table, table[1:], x.sin()


def write_twice(x: Tensor, table: Tensor) -> Tensor:
    table.add_(1)
    y = x * table.clone()
    table.mul_(3)
    return y


def descend(x: Tensor, gradient: Tensor) -> Tensor:
    """A parameter is updated where no gradient is recorded."""
    with torch.no_grad():
        x.sub_(gradient * 0.1)
    return x * 2


@pytest.mark.parametrize(
    ("function", "written"),
    [
        (update_a_buffer, torch.ones(6)),
        (write_into_a_view, X.clone()),
        (write_and_return, X.clone()),
        (write_twice, X.clone()),
        (descend, X.flip(0)),
    ],
)
def test_writes_happen_in_training(function: Function, written: Tensor) -> None:
    trains_as_eager(function, leaf(X), written)


def test_an_input_is_written_whose_gradient_is_wanted() -> None:
    def function(x: Tensor, scale: Tensor) -> Tensor:
        x.add_(scale)
        return x.sin()

    def step(call: Function) -> list[Tensor | None]:
        start, scale = leaf(X), leaf(X.flip(0) + 1)
        x = start * 1
        before = x
        y = call(x, scale)
        (y.sum() + (before * before).sum()).backward()
        return [y, before, start.grad, scale.grad]

    for ours, eager in zip(step(compiled(function)), step(function), strict=True):
        same(ours, eager)


def test_inputs_that_share_memory_are_written_in_training() -> None:
    def function(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return w[0] * x.sum() * 1e-3 + (w.sum() * y.exp()).mean()

    def step(call: Function) -> list[Tensor | None]:
        w, numbers = leaf(X), torch.arange(30, dtype=torch.float32) / 30
        y = call(w, numbers[:20], numbers[10:])
        y.sum().backward()
        return [y, numbers, w.grad]

    for ours, eager in zip(step(compiled(function)), step(function), strict=True):
        same(ours, eager)


def test_statistics_of_a_batch_norm_over_three_steps() -> None:
    norm, twin = nn.BatchNorm1d(6).train(), nn.BatchNorm1d(6).train()
    ours = compiled(norm)
    for i in range(3):
        for call in (ours, twin):
            call(leaf(X * (i + 1))).square().sum().backward()
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())
    torch.testing.assert_close(norm.weight.grad, twin.weight.grad)


def test_a_custom_operator_writes_its_argument() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.cos()
        drawn: Tensor = torch.ops.rewright_tests.add_into(total[1:], x[1:].sin())
        return total * 2, drawn

    same_as_eager(function, X)
    trains_as_eager(lambda w, x: function(x)[0] * w, leaf(X), X)


@torch.library.custom_op("rewright_tests::add_into", mutates_args={"total"})
def add_into(total: Tensor, x: Tensor) -> Tensor:
    total.add_(x)
    return x.clone()


add_into.register_fake(lambda total, x: torch.empty_like(x))
