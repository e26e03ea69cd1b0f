"""The torch.compile backend: everything a caller can see is as eager has it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from through_backend import (
    Function,
    X,
    compiled,
    same_as_eager,
)

pytestmark = pytest.mark.cpu


# --- aliases and mutation -----------------------------------------------------------------------


def add_to_input(x: Tensor) -> Tensor:
    x.add_(1)
    return x * 2


def return_mutated_input(x: Tensor) -> Tensor:
    return x.mul_(3)


def keep_the_old_value(x: Tensor) -> tuple[Tensor, Tensor]:
    old = x.clone()
    x.add_(1)
    return old, x + old


def write_into_a_view(x: Tensor) -> Tensor:
    x[1:3].zero_()
    return x.sum(0)


def swap(x: Tensor, y: Tensor) -> Tensor:
    kept = x.clone()
    x.copy_(y)
    y.copy_(kept)
    return x - y


def rotate_in_place(x: Tensor) -> Tensor:
    x.copy_(x.roll(1, 0))
    return x.sum()


def return_input(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x + 1


def return_views_of_input(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.t(), x[1:], x.view(-1)


def return_one_storage_twice(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = x.exp()
    return y, y.view(-1), y.t()


def return_view_of_intermediate(x: Tensor) -> Tensor:
    return x.exp()[1:, ::2]


def return_same_twice(x: Tensor) -> tuple[Tensor, Tensor, None, int]:
    y = x.sin()
    return y, y, None, 7


def return_constants(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor([1.0, 2.0, 3.0])
    return table, table.expand(2, 3), x * table.sum()


@pytest.mark.parametrize(
    "function",
    [
        add_to_input,
        return_mutated_input,
        keep_the_old_value,
        write_into_a_view,
        rotate_in_place,
        return_input,
        return_views_of_input,
        return_one_storage_twice,
        return_view_of_intermediate,
        return_same_twice,
        return_constants,
    ],
)
def test_mutation_and_aliases_are_eagers(function: Function) -> None:
    same_as_eager(function, X.clone())


def test_two_inputs_swap_their_contents() -> None:
    same_as_eager(swap, X.clone(), -X)


def test_inputs_that_share_memory() -> None:
    storage = torch.arange(30, dtype=torch.float32)

    def both(x: Tensor, y: Tensor) -> Tensor:
        x.add_(1)
        return x + y.exp()

    same_as_eager(both, storage[:20], storage[10:])


def test_a_constant_is_not_the_callers_to_change() -> None:
    function = compiled(return_constants)
    first = function(X)[0]
    first.zero_()
    assert torch.equal(function(X)[0], torch.tensor([1.0, 2.0, 3.0]))


def test_buffers_of_a_module_are_updated() -> None:
    eager = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).train()
    ours = copy.deepcopy(eager)
    step = compiled(ours)
    for _ in range(3):
        torch.testing.assert_close(step(X), eager(X))
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())
    assert int(ours.get_buffer("1.num_batches_tracked")) == 3


# --- odd inputs ---------------------------------------------------------------------------------


def normalize(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nn.functional.gelu(x) * 2 + x.exp(), x.softmax(-1)


BIG = torch.linspace(-3, 3, 2 * 33 * 20).reshape(2, 33, 20)
ODD: dict[str, Tensor] = {
    "transposed": BIG.transpose(1, 2),
    "sliced": BIG[:, ::3, 1:-1],
    "expanded": BIG[:1, :1].expand(4, 5, 20),
    "expanded_last": BIG[:, :, :1].expand(2, 33, 20),
    "empty": torch.empty(0, 5),
    "empty_rows": torch.empty(3, 0),
    "0_dim": torch.tensor(1.5),
    "one": torch.full((1, 1, 1), 0.25),
    "misaligned": torch.linspace(-1, 1, 101)[1:].reshape(4, 25),
    "half_misaligned": torch.linspace(-1, 1, 101, dtype=torch.float16)[1:].reshape(4, 25),
    "channels_last": BIG.reshape(2, 3, 11, 20).to(memory_format=torch.channels_last),
    "permuted": BIG.permute(2, 0, 1),
    "overlapping": torch.linspace(0, 1, 20).as_strided((4, 5), (2, 1)),
    "double": BIG.double(),
    "bfloat16": BIG.bfloat16(),
}


@pytest.mark.parametrize("x", ODD.values(), ids=ODD.keys())
def test_odd_inputs(x: Tensor) -> None:
    same_as_eager(normalize, x)


def test_nan_infinities_and_zeros() -> None:
    x = torch.tensor([[0.0, -0.0, float("inf")], [float("-inf"), float("nan"), 1e30]])
    same_as_eager(lambda x: (x.exp() * x, x.tanh() / x, x.softmax(-1), x.amax(-1), -x, x < 1), x)


def test_a_tensor_seen_negated() -> None:
    """`imag` of a conjugate holds the numbers with the other sign, and a bit that says so."""
    x = torch.complex(X, X + 1).conj().imag
    assert x.is_neg()
    same_as_eager(lambda x: (x * 2).exp(), x)


def integers(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x + y, x * y - 3, x // 5, x % 7, x < y, x.sum(-1), (x & y) | 1, x.float() / 3


def booleans(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return x & y, ~x | y, x.any(), x.all(-1), torch.where(x, 1.5, y), x.sum(), x.long() * 3


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers(dtype: torch.dtype) -> None:
    x = torch.arange(40, dtype=dtype).reshape(5, 8)
    same_as_eager(integers, x, x.flip(0))


def test_booleans() -> None:
    x = torch.arange(40).reshape(5, 8) % 3 == 0
    same_as_eager(booleans, x, ~x.flip(1))


def test_complex_numbers_run_as_aten() -> None:
    z = torch.complex(X, X.flip(0))
    same_as_eager(lambda z: (z * z.conj() + 1j, z.abs().exp(), torch.view_as_real(z) * 2), z)


def strides_of_everything(x: Tensor) -> tuple[Tensor, ...]:
    y = torch.nn.functional.relu(x) + 1
    return y, y.permute(0, 2, 3, 1) * 2, y.transpose(1, 3).contiguous(), y.mean(1), y.flatten(2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_have_eagers_strides(layout: torch.memory_format) -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    convolution.weight.data = convolution.weight.to(memory_format=layout)
    x = torch.randn(2, 3, 8, 10).to(memory_format=layout)
    with torch.no_grad():
        same_as_eager(lambda x: (*strides_of_everything(x), convolution(x).sigmoid()), x)


# --- control flow, sizes that depend on data ----------------------------------------------------


def branches(x: Tensor) -> Tensor:
    y: Tensor = torch.cond(x.sum() > 0, lambda x: x.sin() * 2, lambda x: x.cos() + 1, (x,))
    return y


@pytest.mark.parametrize("sign", [1, -1])
def test_cond(sign: int) -> None:
    same_as_eager(branches, sign * X - sign * 0.01)


def test_while_loop() -> None:
    from torch._higher_order_ops import while_loop

    def count_up(x: Tensor) -> Tensor:
        zero = torch.zeros((), dtype=torch.int64)
        limit, carried = 4, (zero, x.clone())
        _, y = while_loop(lambda i, x: i < limit, lambda i, x: (i + 1, x * 1.5 + i), carried)
        assert isinstance(y, Tensor)
        return y

    same_as_eager(count_up, X)


def rows_that_are_positive(x: Tensor) -> tuple[Tensor, Tensor]:
    chosen = x[x.sum(-1) > 5]
    return chosen.exp() + 1, torch.cat([chosen, x]).softmax(-1)


def count_and_fill(x: Tensor) -> Tensor:
    return torch.full((4,), float((x > 1).sum().item())) + x.sum()


def slice_by_item(x: Tensor, n: Tensor) -> Tensor:
    count = n.item()
    torch._check(count >= 0)
    torch._check(count <= x.shape[0])
    return (x.sin() + 1)[:count] * 2


def unread_indices(x: Tensor) -> Tensor:
    """Only the number of rows is read, twice found."""
    return torch.full((2,), x.nonzero().shape[0] + (x > 1).nonzero().shape[0]) + x.sum()


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("function", [rows_that_are_positive, count_and_fill, unread_indices])
def test_sizes_that_depend_on_data(function: Function) -> None:
    same_as_eager(function, X)


@pytest.mark.usefixtures("data_dependent")
def test_a_slice_of_a_length_known_at_run_time() -> None:
    same_as_eager(slice_by_item, X, torch.tensor(3))
    step = compiled(slice_by_item)
    for n in (3, 1, 4):
        torch.testing.assert_close(step(X, torch.tensor(n)), slice_by_item(X, torch.tensor(n)))


def half_the_size(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=0.3).exp() + 1


def test_sizes_computed_by_way_of_floats() -> None:
    step = compiled(half_the_size, dynamic=True)
    for size in (10, 13, 27):
        x = torch.rand(2, 3, size, size + 1)
        torch.testing.assert_close(step(x), half_the_size(x))


def test_integers_among_the_arguments() -> None:
    def scaled(x: Tensor, n: int) -> tuple[Tensor, int]:
        return x[:n] * n + x.shape[0], n + x.shape[1]

    step = compiled(scaled, dynamic=True)
    for n in (3, 2, 4):
        found, expected = step(X, n), scaled(X, n)
        torch.testing.assert_close(found[0], expected[0])
        assert type(found[1]) is int and found[1] == expected[1]
