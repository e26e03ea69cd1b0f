"""Whole models: inference and training steps as exact as eager, at any batch size and length."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import rewright
from examples.case import Case
from rewright.ir.parse import parse
from rewright.ir.show import show
from zoo import (
    ZOO,
    loss,
    tiny_bert,
    tiny_convnext,
    tiny_gpt2,
    tiny_llama,
    tiny_mlp,
    tiny_resnet,
    tiny_vae,
)

pytestmark = pytest.mark.cpu

Call = Callable[..., Any]
every_model = pytest.mark.parametrize("make", ZOO.values(), ids=ZOO.keys())


def with_rewright(module: nn.Module, **options: Any) -> Call:
    made: Call = torch.compile(module, backend="rewright", fullgraph=True, **options)
    return made


def infer(call: Call, inputs: Iterable[Tensor]) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return pytree.tree_leaves(call(*inputs))


def train(module: nn.Module, call: Call, inputs: Iterable[Tensor]) -> list[Tensor]:
    """The loss and every gradient of one step, under a fixed seed."""
    torch.manual_seed(0)
    value = loss(call(*inputs))
    return [value.detach(), *torch.autograd.grad(value, list(module.parameters()))]


def in_float64(module: nn.Module, inputs: Iterable[Tensor]) -> tuple[nn.Module, list[Tensor]]:
    exact = [x.double() if x.is_floating_point() else x for x in inputs]
    return copy.deepcopy(module).double(), exact


def relative_l2(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Over all tensors together: some gradients, as those of key biases, are zero but for noise."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, exact, strict=True)]
    error = sum(float((a - b).square().sum()) for a, b in pairs)
    return float((error / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5)


def assert_as_exact_as_eager(
    found: Sequence[Tensor], eager: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """The measure of DESIGN 9; shapes, strides and types are eager's."""
    for ours, its in zip(found, eager, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (its.shape, its.stride(), its.dtype)
    assert relative_l2(found, exact) <= 2 * relative_l2(eager, exact) + 1e-6


def graphs_compiled() -> list[str]:
    """The names of what was compiled; at every level it prints and parses back."""
    programs = rewright.programs()
    for program in programs:
        stages = program.plan.stages.stages
        fused = (s.snapshot for s in stages if s.spec == "fuse" and s.snapshot is not None)
        for graph in (program.source, *fused, program.graph):
            assert parse(show(graph)) == graph
    return [program.source.name for program in programs]


# --- torch.compile ------------------------------------------------------------------------------


@every_model
def test_a_training_step_is_as_exact_as_eager(make: Callable[[], Case]) -> None:
    """A copy of a model draws the same dropout masks in float64, as `test_zoo` shows; so a mask
    that is not eager's, in the forward or in the backward, is an error of order one."""
    module, inputs = make()
    module.train()
    ours = copy.deepcopy(module)
    exact, precise = in_float64(module, inputs)
    assert_as_exact_as_eager(
        train(ours, with_rewright(ours), inputs),
        train(module, module, inputs),
        train(exact, exact, precise),
    )
    state = zip(ours.state_dict().values(), module.state_dict().values(), strict=True)
    for mine, its in state:
        torch.testing.assert_close(mine, its)
    assert graphs_compiled() == ["forward", "backward"]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_resnet, tiny_vae])
def test_inference_is_as_exact_as_eager(make: Callable[[], Case]) -> None:
    """The other models go the same way in `test_optimize_is_as_exact_as_eager`."""
    module, inputs = make()
    exact, precise = in_float64(module, inputs)
    assert_as_exact_as_eager(
        infer(with_rewright(module), inputs), infer(module, inputs), infer(exact, precise)
    )
    assert graphs_compiled() == ["inference"]


def test_dropout_masks_are_eagers_in_every_step() -> None:
    module, inputs = tiny_mlp()
    module.train()

    def three_steps(call: Call) -> list[Tensor]:
        """Outputs and gradients, both with holes where something was dropped."""
        torch.manual_seed(11)
        seen = []
        for _ in range(3):
            x = inputs[0].clone().requires_grad_()
            y = call(x)
            seen += [y.detach(), *torch.autograd.grad(y.sum(), x)]
        return [*seen, torch.get_rng_state()]

    torch.testing.assert_close(three_steps(with_rewright(module)), three_steps(module))


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (tiny_bert, torch.bfloat16),
        (tiny_llama, torch.float16),
        (tiny_convnext, torch.bfloat16),
    ],
)
def test_a_training_step_in_half_precision(make: Callable[[], Case], dtype: torch.dtype) -> None:
    module, inputs = make()
    exact, precise = in_float64(module, inputs)
    half = copy.deepcopy(module).to(dtype)
    given = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    assert_as_exact_as_eager(
        train(half, with_rewright(half), given),
        train(half, half, given),
        train(exact, exact, precise),
    )


# --- dynamic sizes ------------------------------------------------------------------------------


def test_twenty_batch_sizes_and_lengths_take_two_compilations() -> None:
    module, _ = tiny_llama()
    step = with_rewright(module)
    with torch.no_grad():
        for n in range(20):
            tokens = torch.randint(0, 128, (2 + n % 5, 5 + n))
            torch.testing.assert_close(step(tokens), module(tokens), rtol=1e-4, atol=1e-5)
    assert len(graphs_compiled()) <= 2


def test_twenty_lengths_of_a_training_step_take_two_compilations() -> None:
    module, _ = tiny_gpt2()
    module.train()
    step = with_rewright(module)
    for n in range(20):
        tokens = torch.randint(0, 128, (2 + n % 3, 4 + n))
        found, expected = train(module, step, [tokens]), train(module, module, [tokens])
        assert relative_l2(found, expected) < 1e-5
    names = graphs_compiled()
    assert names.count("forward") <= 2 and names.count("backward") <= 2


# --- rewright.optimize --------------------------------------------------------------------------


@every_model
def test_optimize_is_as_exact_as_eager(make: Callable[[], Case]) -> None:
    module, inputs = make()
    exact, precise = in_float64(module, inputs)
    compiled = rewright.optimize(module, inputs)
    assert_as_exact_as_eager(infer(compiled, inputs), infer(module, inputs), infer(exact, precise))
    assert parse(str(compiled.graph)) == compiled.graph
    assert compiled.report.counts()["ours"] > 0


def test_optimize_for_all_batch_sizes_and_lengths() -> None:
    module, inputs = tiny_gpt2()
    sizes = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("length", max=64)}
    compiled = rewright.optimize(module, inputs, dynamic_shapes={"x": sizes})
    for batch, length in ((1, 1), (2, 16), (8, 3), (3, 64), (1, 2)):
        tokens = torch.randint(0, 128, (batch, length))
        torch.testing.assert_close(
            compiled(tokens), infer(module, [tokens])[0], rtol=1e-4, atol=1e-5
        )


def test_optimize_takes_inputs_of_any_layout() -> None:
    module, (x,) = tiny_convnext()
    compiled = rewright.optimize(module, (x,))
    for given in (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3),
        x[:1].expand(2, -1, -1, -1),
    ):
        torch.testing.assert_close(compiled(given), infer(module, [given])[0], rtol=1e-4, atol=1e-5)


class Counter(nn.Module):
    """Writes a buffer and an argument."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        x.mul_(2)
        self.total.add_((x * self.weight).sum(0))
        return {"scaled": x * scale, "total": self.total.clone()}


def test_optimize_writes_what_the_module_writes() -> None:
    eager = Counter()
    ours = copy.deepcopy(eager)
    example = torch.randn(3, 4), torch.tensor(2.0)
    compiled = rewright.optimize(ours, example[:1], example_kwargs={"scale": example[1]})
    for layout in (torch.randn(3, 4), torch.randn(4, 3).t(), torch.randn(6, 4)[::2]):
        mine, its = layout.clone(), layout.clone()
        found, expected = compiled(mine, scale=example[1]), eager(its, scale=example[1])
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(mine, its)
    torch.testing.assert_close(ours.total, eager.total)


def test_optimize_reads_weights_when_it_is_called() -> None:
    module, inputs = tiny_mlp()
    compiled = rewright.optimize(module, inputs)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1)
    torch.testing.assert_close(compiled(*inputs), infer(module, inputs)[0])


def test_autocast_does_not_reach_into_a_program() -> None:
    module, inputs = tiny_gpt2()
    compiled = rewright.optimize(module, inputs)
    expected = compiled(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(*inputs), expected)


def test_a_module_that_cannot_be_exported_is_refused() -> None:
    class Chatty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(rewright.RewrightError, match=r"^Chatty cannot be exported: ") as caught:
        rewright.optimize(Chatty(), (torch.ones(2),))
    assert "torch.compile(backend='rewright') takes what torch.export cannot" in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.ones(9, 16),), "dimension 0 of %x is 9, not 8"),
        ((torch.ones(8, 16, dtype=torch.float64),), "%x is f64, not f32"),
        ((torch.ones(8),), "%x has 1 dimensions, not 2"),
        ((3,), "%x is an int, not a tensor"),
        (
            (torch.ones(8, 16), 1),
            "the program was exported for arguments ((*,), {}), and is called with ((*, *), {})",
        ),
    ],
)
def test_wrong_arguments_are_refused(inputs: tuple[Any, ...], message: str) -> None:
    compiled = optimized_mlp()
    with pytest.raises(rewright.RewrightError) as caught:
        compiled(*inputs)
    assert str(caught.value).splitlines()[0] == message


_KEPT: dict[str, rewright.Compiled] = {}


def optimized_mlp() -> rewright.Compiled:
    if "mlp" not in _KEPT:
        _KEPT["mlp"] = rewright.optimize(*tiny_mlp())
    return _KEPT["mlp"]
