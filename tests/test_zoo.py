"""The example models are what they claim to be, and good material to test a compiler on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from examples.case import Case
from examples.convnext import ConvNeXt, StochasticDepth
from examples.huggingface import Attention, bert, gpt2
from examples.resnet import ResNet
from examples.vae import VAE, negative_elbo
from zoo import ZOO, loss, tiny_bert, tiny_gpt2, tiny_llama, tiny_t5_encoder, tiny_vit

every_model = pytest.mark.parametrize("make", ZOO.values(), ids=ZOO.keys())


@every_model
def test_a_training_step_reaches_every_weight(make: Callable[[], Case]) -> None:
    """Biases are left out: a softmax does not see the bias of its keys."""
    module, inputs = make()
    gradients = training_step(module, inputs)
    assert all(g.isfinite().all() for g in gradients)
    assert all(g.abs().max() > 0 for g in gradients if g.dim() > 1)


@every_model
def test_float32_gradients_agree_with_float64(make: Callable[[], Case]) -> None:
    """Else an error measured against float64 would say little about the compiler."""
    module, inputs = make()
    exact = training_step(copy.deepcopy(module).double(), [in_float64(x) for x in inputs])
    assert relative_l2(training_step(module, inputs), exact) < 1e-5


@every_model
def test_factories_repeat_themselves_and_keep_the_callers_random_state(
    make: Callable[[], Case],
) -> None:
    before = torch.get_rng_state()
    (one, inputs), (other, same_inputs) = make(), make()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, inputs, same_inputs))
    assert all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_bert, tiny_llama, tiny_t5_encoder, tiny_vit])
def test_both_spellings_of_attention_agree(make: Callable[[Attention], Case]) -> None:
    (fused, inputs), (spelled, _) = make("sdpa"), make("eager")
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs), spelled(*inputs))


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (ResNet, 25_557_032),
        (ConvNeXt, 28_589_128),
        (lambda: gpt2()[0], 124_439_808),
        (lambda: bert()[0], 109_482_240),
    ],
    ids=["resnet50", "convnext_tiny", "gpt2_124m", "bert_base"],
)
def test_full_size_models_have_the_published_size(
    make: Callable[[], nn.Module], parameters: int
) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == parameters


def test_stochastic_depth_drops_whole_samples_in_training_only() -> None:
    layer, x = StochasticDepth(0.5), torch.ones(64, 3, 2, 2)
    torch.manual_seed(0)
    assert torch.equal(layer.eval()(x), x)
    rows = layer.train()(x).flatten(1)
    assert set(rows.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(rows.amin(1), rows.amax(1))


def test_the_vae_loss_of_a_perfect_unit_gaussian_code_is_the_reconstruction_error() -> None:
    x, code = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 3)
    expected = 16 * torch.tensor(2.0).log()
    torch.testing.assert_close(negative_elbo(x, x, code, code), expected)


def test_the_vae_refuses_a_size_it_cannot_halve_twice() -> None:
    with pytest.raises(ValueError, match="multiple of 4, got 30"):
        VAE(size=30)


def training_step(module: nn.Module, inputs: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of one step, in parameter order, under a fixed seed."""
    torch.manual_seed(0)
    parameters = list(module.train().parameters())
    return list(torch.autograd.grad(loss(module(*inputs)), parameters))


def in_float64(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def relative_l2(got: list[Tensor], exact: list[Tensor]) -> float:
    error = sum(float((g.double() - e).square().sum()) for g, e in zip(got, exact, strict=True))
    norm = sum(float(e.square().sum()) for e in exact)
    return float((error / norm) ** 0.5)
