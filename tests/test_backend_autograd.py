"""Differentiation by every road: gradients of all types, torch.func, hooks, subclasses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewright.ir import ImportFailure, OtherType
from rewright.ir.fx_sizes import SizeTable
from through_backend import Function, X, compiled
from through_training import leaf, trains_as_eager

pytestmark = pytest.mark.cpu


# --- types and shapes -----------------------------------------------------------------------------


def many_kinds(x: Tensor) -> tuple[Tensor, ...]:
    rows = F.layer_norm(x, x.shape[-1:]), x.softmax(-1), x.logsumexp(-1)
    return F.gelu(x) * 2, *rows, x.mean(), (x * x).sum(0), x.abs().clamp(0.1, 2).log()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_gradients_of_every_precision(dtype: torch.dtype) -> None:
    trains_as_eager(many_kinds, leaf((X - 1).to(dtype)))


def test_a_step_in_two_precisions() -> None:
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        narrow = x.bfloat16() * y
        return narrow.float().sin() + x, (y.double() @ x.double().t()).float()

    trains_as_eager(function, leaf(X), leaf((X + 1).bfloat16()), rtol=2e-2, atol=2e-2)


def test_scalars_and_empty_tensors() -> None:
    def scalar(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin() * x, x.expand(2, 3).exp().sum(0)

    def empty(x: Tensor) -> tuple[Tensor, ...]:
        return x.exp(), x.softmax(-1), x.sum(), x.sum(0), torch.cat([x, x + 1])

    trains_as_eager(scalar, leaf(torch.tensor(1.5)))
    trains_as_eager(empty, leaf(torch.empty(0, 5)))
    trains_as_eager(empty, leaf(torch.empty(3, 0)))


def test_complex_numbers() -> None:
    def function(z: Tensor) -> tuple[Tensor, ...]:
        return z * z.conj() + 1j, z.abs().exp(), torch.view_as_real(z) * 2, z.real.sin() * z.imag

    trains_as_eager(function, leaf(torch.complex(X, X.flip(0) + 1)))

    def spectrum(x: Tensor) -> Tensor:
        y: Tensor = torch.fft.irfft(torch.fft.rfft(x.sin()) * 2)
        return y.exp()

    trains_as_eager(spectrum, leaf(X))


def test_a_sparse_gradient() -> None:
    """It holds on to its values, which must not lie in memory that serves other calls."""
    table, rows = nn.Embedding(10, 4, sparse=True), torch.tensor([1, 2, 1])

    def gradient(call: Function) -> Tensor | None:
        table.zero_grad(set_to_none=True)
        call(rows).sum().backward()
        return table.weight.grad

    def function(rows: Tensor) -> Tensor:
        y: Tensor = table(rows).sin() * 2
        return y

    ours = compiled(function)
    found, expected = gradient(ours), gradient(function)
    assert found is not None
    assert found.is_sparse
    kept = found.to_dense()
    torch.testing.assert_close(found, expected)
    gradient(ours)
    assert torch.equal(found.to_dense(), kept)


# --- functions of the user's ----------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """With a gradient that nobody would derive: 5 x squared."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**3 * factor, x * 2

    @staticmethod
    def backward(ctx: Any, cubed: Tensor, doubled: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return 5 * x * x * cubed * ctx.factor + doubled, None


# Dynamo makes an instance to trace it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_custom_function() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        cubed, doubled = Cube.apply(x.sin(), 0.5)  # type: ignore[no-untyped-call]
        return cubed + 1, doubled.exp()

    trains_as_eager(function, leaf(X))


def transformed(x: Tensor) -> tuple[Tensor, ...]:
    func = torch.func

    def scalar(row: Tensor) -> Tensor:
        return (row.sin() * row).sum()

    each = func.vmap(func.grad(scalar))(x), func.vmap(torch.dot)(x, x)
    pushed = func.jvp(torch.tanh, (x,), (x * 2,))
    return *each, *pushed, func.vjp(torch.exp, x)[1](x)[0], func.jacrev(torch.sin)(x[0])


# Forward-mode differentiation loads decompositions that are TorchScript.
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_transforms_of_torch_func() -> None:
    trains_as_eager(transformed, leaf(X))


def test_gradients_asked_for_inside() -> None:
    def function(x: Tensor) -> Tensor:
        (inner,) = torch.autograd.grad((x.sin() * x).sum(), x)
        return inner * 2

    ours = torch.compile(function, backend="rewright")
    torch.testing.assert_close(ours(leaf(X)), (X.cos() * X + X.sin()) * 2)


# --- what autograd can be asked for from outside --------------------------------------------------


def product(x: Tensor) -> Tensor:
    return (x.sin() * x.exp()).sum()


def test_saved_tensors_are_packed_and_unpacked() -> None:
    packed: list[tuple[int, ...]] = []

    def pack(saved: Tensor) -> Any:
        packed.append(tuple(saved.shape))
        return saved.detach().numpy().copy()

    x = leaf(X)
    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        y = compiled(product)(x)
    with torch.no_grad():
        x.zero_()  # what was packed does not change with it
    (found,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(found, X.exp() * (X.sin() + X.cos()))
    assert packed


def test_saved_tensors_on_the_cpu() -> None:
    x = leaf(X)
    with torch.autograd.graph.save_on_cpu():
        y = compiled(product)(x)
    (found,) = torch.autograd.grad(y, x)
    torch.testing.assert_close(found, X.exp() * (X.sin() + X.cos()))


def test_a_saved_input_must_not_change() -> None:
    x = leaf(X) * 1
    y = compiled(product)(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_second_derivative_is_refused() -> None:
    x = leaf(X)
    (first,) = torch.autograd.grad(compiled(product)(x), x, create_graph=True)
    torch.testing.assert_close(first, X.exp() * (X.sin() + X.cos()))
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(first.sum(), x)


def test_a_graph_that_was_freed_is_refused() -> None:
    x = leaf(X)
    y = compiled(product)(x)
    y.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


# --- subclasses -----------------------------------------------------------------------------------


class Named(torch.Tensor):
    """A subclass that only has a name."""


def test_a_plain_subclass_stays_one() -> None:
    found = compiled(lambda x: x.sin() * 2)(X.as_subclass(Named))
    assert type(found) is Named
    torch.testing.assert_close(found.as_subclass(Tensor), X.sin() * 2)


def test_a_subclass_of_two_tensors() -> None:
    """AOTAutograd takes it apart: the program sees both, in inference and in training."""
    from torch.testing._internal.two_tensor import TwoTensor

    def function(x: Any) -> Any:
        return x.sin() * x + 1

    def pair() -> Any:
        return TwoTensor(X.clone(), X + 1)

    ours = compiled(function)
    found = ours(pair())
    assert type(found) is TwoTensor
    torch.testing.assert_close((found.a, found.b), (function(X), function(X + 1)))
    trained = pair().requires_grad_()
    ours(trained).sum().backward()
    for part, value in ((trained.grad.a, X), (trained.grad.b, X + 1)):
        torch.testing.assert_close(part, value.cos() * value + value.sin())


def test_a_ragged_tensor() -> None:
    """AOTAutograd takes it apart too; the length that is different in each row goes unread."""
    offsets = torch.tensor([0, 3, 4])

    def function(x: Any) -> Any:
        return torch.softmax(x.sin() * 2, -1)

    rows = leaf(X)
    found = compiled(function)(torch.nested.nested_tensor_from_jagged(rows, offsets))
    assert found.is_nested
    assert torch.equal(found.offsets(), offsets)
    torch.testing.assert_close(found.values(), function(X))
    (gradient,) = torch.autograd.grad(found.values().exp().sum(), rows)
    (expected,) = torch.autograd.grad(function(rows).exp().sum(), rows)
    torch.testing.assert_close(gradient, expected)


def test_a_length_that_differs_from_row_to_row_is_no_size() -> None:
    # Of a copy: torch marks the sizes of what it is given as symbols.
    jagged = torch.nested.nested_tensor_from_jagged(X.clone(), torch.tensor([0, 3, 4]))
    length: Any = jagged.shape[1]
    assert SizeTable().type(length) == OtherType("object")
    with pytest.raises(ImportFailure, match=r"nested \(jagged\) tensor has no form"):
        SizeTable().size(length)
