"""The torch.compile backend on operators of every kind, with kernels of ours or without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from through_backend import Function, X, compiled, same_as_eager

pytestmark = pytest.mark.cpu

ROWS = torch.tensor([2, 0, 3, 2])


def moving(x: Tensor) -> tuple[Tensor, ...]:
    parts = (*x.split(4, 1), *x.chunk(2), x.roll(1, 1) * 2, x.flip(0) + 1, x.repeat(2, 3))
    padded = F.pad(x, (1, 2)).exp(), F.pad(x, (-1, 1), value=3.0), x.unfold(1, 3, 1).sum(-1)
    return torch.cat([x, x * 2], 1), torch.stack([x, x + 1]), *parts, *padded


def indexing(x: Tensor) -> tuple[Tensor, ...]:
    read = x[ROWS, :3].relu() + 1, x.gather(1, ROWS.expand(4, 4)).exp(), F.embedding(ROWS, x)
    written = x.scatter(0, ROWS[None], 2.0), x.index_put((ROWS,), x, accumulate=True) * 2
    return *read, *written, x.tril(), x.masked_fill(x > 0.5, -1.0)


def ordering(x: Tensor) -> tuple[Tensor, ...]:
    return *x.sort(1), *x.topk(2), x.cumsum(1).exp(), x.argmax(1), *x.max(0)


def reducing(x: Tensor) -> tuple[Tensor, ...]:
    sums = x.std(1), x.var(0, unbiased=False), x.mean(), x.prod(1), x.norm(), x.logsumexp(1)
    return *sums, x.amax(1), (x > 1).any(1), x.sum(dtype=torch.float64), F.cross_entropy(x, ROWS)


def convolving(x: Tensor) -> tuple[Tensor, ...]:
    image = x.reshape(1, 2, 3, 4)
    pooled = F.max_pool2d(image, 2), F.avg_pool2d(image, 2), F.adaptive_avg_pool2d(image, 2)
    grown = F.interpolate(image, scale_factor=2, mode="bilinear"), F.group_norm(image, 2)
    return *pooled, *grown, F.conv2d(image, torch.ones(3, 2, 2, 2)).relu()


def drawing(x: Tensor) -> tuple[Tensor, ...]:
    drawn = torch.rand_like(x) + x, torch.bernoulli(x.sigmoid()), torch.randn(3) * 2
    kept = F.dropout(x, 0.3), x[torch.randperm(4)], torch.randint(0, 9, (4,))
    return *drawn, *kept, torch.normal(x, 1.0).exp()


def solving(x: Tensor) -> tuple[Tensor, ...]:
    inverse = torch.linalg.inv(x @ x.t() + torch.eye(4))
    return inverse, torch.linalg.svd(x)[1], torch.fft.rfft(x).abs(), torch.cdist(x, x)


def converting(x: Tensor) -> tuple[Tensor, ...]:
    narrow = (x.half() * 2).float() + x.bfloat16(), x.to(torch.float8_e4m3fn).float() * 2
    return *narrow, x.view(torch.int32) + 1, x.long() // 2, x.double().exp(), x**2, x**0.5, 2**x


GROUPS = (moving, indexing, ordering, reducing, convolving, drawing, solving, converting)


@pytest.mark.parametrize("function", GROUPS)
def test_operators_of_every_kind(function: Function) -> None:
    same_as_eager(function, X.clone())


@pytest.mark.parametrize("function", [moving, indexing, reducing, convolving])
def test_their_gradients(function: Function) -> None:
    """Each output weighed by an uneven pattern, all float ones together."""

    def gradient(call: Function) -> Tensor:
        x = (X / 3 + 0.1).requires_grad_()
        outputs = [y.float() for y in call(x) if y.requires_grad]
        terms = [(y * torch.cos(torch.arange(y.numel()).reshape(y.shape))).sum() for y in outputs]
        return torch.autograd.grad(torch.stack(terms).sum(), x)[0]

    torch.testing.assert_close(gradient(compiled(function)), gradient(function))


def test_attention_with_dropout_in_one_module() -> None:
    module, x = nn.MultiheadAttention(6, 2, dropout=0.5).train(), torch.randn(3, 2, 6)
    with torch.no_grad():
        same_as_eager(module, x, x, x)


def test_nothing_to_compute() -> None:
    same_as_eager(lambda x: (x[:0].sum(), x[:0].softmax(1), x[:0] @ x.t(), x[:, :0].sum(1)), X)
    same_as_eager(lambda x: torch.cat([x[:0], x]), X)
    same_as_eager(lambda x: x, X)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_integers_divided_by_themselves(dtype: torch.dtype) -> None:
    """Compilers see that both operands are one, and gcc 12 drew a wrong conclusion from it."""
    x = torch.tensor([-8, 4, 7, -1, 9, 100, 3, 5, -6]).to(dtype)

    def divided(x: Tensor) -> tuple[Tensor, ...]:
        return torch.fmod(x, x), x % x, x // x, torch.div(x, x, rounding_mode="trunc"), x / x

    same_as_eager(divided, x)


# --- what the sweep of PyTorch's own tables found -------------------------------------------------


def running(x: Tensor) -> tuple[Tensor, ...]:
    """In half types ATen returns statistics of another dtype than torch's shape functions say."""
    mean, variance = torch.zeros(x.shape[1]).half(), torch.ones(x.shape[1]).half()
    weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
    y = F.batch_norm(x.half(), mean, variance, weight, bias, training=True)
    return y, mean, variance


def spacing(x: Tensor) -> tuple[Tensor, ...]:
    return x.sin(), torch.linspace(4.3, 50, 50, dtype=torch.int32), torch.linspace(0.5, 2, 7)


def offsets(x: Tensor) -> tuple[Tensor, ...]:
    """So many that one would be called i8, as the type is."""
    small = (x * 4).to(torch.int8)
    return (torch.diff(small, 6, 0, small[:1], torch.cat([small, small])),)


def without_kernels(x: Tensor) -> tuple[Tensor, ...]:
    return x.cos(), torch.eye(3, dtype=torch.float8_e4m3fnuz).float(), x.take(ROWS) * 2


@pytest.mark.parametrize("function", [running, spacing, offsets, without_kernels])
def test_what_the_sweep_found(function: Function) -> None:
    same_as_eager(function, X.clone())


def test_complex_functions_are_right_at_the_first_call() -> None:
    z = torch.complex(X, X.flip(0))
    ours = torch.compile(torch.linalg.pinv, backend="rewright")(z)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, torch.linalg.pinv(z))


def test_parts_whose_places_data_decide() -> None:
    def parts(x: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        first, second = torch.tensor_split(x, places)
        return first * 2, second

    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        ours = compiled(parts)
        for place in (1, 3):
            found = ours(X, torch.tensor([place]))
            torch.testing.assert_close(found, parts(X, torch.tensor([place])))
