"""Compiled modules stay modules: weights change, copies and files are made, optimizers step."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rewright
from through_backend import Block, Function, X, compiled, gradients, the_program

pytestmark = pytest.mark.cpu


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 16)


def agree(ours: Function, eager: nn.Module, x: Tensor) -> None:
    """In inference and in training."""
    with torch.no_grad():
        torch.testing.assert_close(ours(x), eager(x))
    torch.testing.assert_close(gradients(eager, ours, x), gradients(eager, eager, x))


# --- weights --------------------------------------------------------------------------------------


def scale_in_place(block: Block) -> None:
    with torch.no_grad():
        block.up.weight.mul_(2)


def load(block: Block) -> None:
    block.load_state_dict(Block().state_dict())


def replace(block: Block) -> None:
    block.up.weight = nn.Parameter(torch.randn(32, 16))


def point_elsewhere(block: Block) -> None:
    block.up.weight.data = torch.randn(16, 32).t()


def replace_a_layer(block: Block) -> None:
    block.down = nn.Linear(32, 16)


def tie(block: Block) -> None:
    block.down.weight = nn.Parameter(block.up.weight.detach().t())


CHANGES = (scale_in_place, load, replace, point_elsewhere, replace_a_layer, tie)


def test_a_program_reads_the_weights_of_the_moment(x: Tensor) -> None:
    """Whatever way they changed: a weight is an input, never a constant."""
    block = Block()
    ours = compiled(block)
    agree(ours, block, x)
    for change in CHANGES[:3]:
        change(block)
        agree(ours, block, x)
    assert len(rewright.programs()) == 3  # inference, forward, backward
    for change in CHANGES[3:]:
        change(block)
        agree(ours, block, x)


def test_a_module_in_another_precision(x: Tensor) -> None:
    block = Block()
    ours = compiled(block)
    agree(ours, block, x)
    block.double()
    agree(ours, block, x.double())


def test_one_parameter_in_two_places() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x).relu())
            return y

    tied = Tied()
    agree(compiled(tied), tied, X)


# --- train and eval -------------------------------------------------------------------------------


def test_train_and_eval_have_programs_of_their_own() -> None:
    eager = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    ours = copy.deepcopy(eager)
    call = compiled(ours)
    for training in (True, False, True, False):
        eager.train(training)
        ours.train(training)
        for function in (call, eager):
            torch.manual_seed(0)
            function(X).square().mean().backward()
    torch.testing.assert_close(call(X), eager(X))
    torch.testing.assert_close(ours.state_dict(), eager.state_dict())
    found, expected = ([p.grad for p in m.parameters()] for m in (ours, eager))
    torch.testing.assert_close(found, expected)


def test_gradients_accumulate(x: Tensor) -> None:
    eager = Block()
    ours = copy.deepcopy(eager)
    call = compiled(ours)
    for i in range(3):
        for function in (call, eager):
            (function(x * i).square().mean() / 3).backward()
    found, expected = ([p.grad for p in m.parameters()] for m in (ours, eager))
    torch.testing.assert_close(found, expected)


# --- copies and files -----------------------------------------------------------------------------


class Holder(nn.Module):
    """Holds a module that is compiled already."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.output = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(self.inner(x))
        return y


def test_a_copy_has_weights_of_its_own(x: Tensor) -> None:
    block = Block()
    ours: Any = torch.compile(block, backend="rewright")
    before = ours(x)
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        twin._orig_mod.up.weight.zero_()
    torch.testing.assert_close(twin(x), twin._orig_mod(x))
    assert not torch.allclose(twin(x), before)
    assert torch.equal(ours(x), before)


def test_a_copy_of_a_module_that_holds_a_compiled_one(x: Tensor) -> None:
    holder = Holder(torch.compile(Block(), backend="rewright"))
    before = holder(x)
    twin = copy.deepcopy(holder)
    with torch.no_grad():
        holder.inner._orig_mod.down.bias.add_(1)
    torch.testing.assert_close(twin(x), before)
    assert not torch.allclose(holder(x), before)


def through_pickle(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def through_a_file(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("store", [copy.deepcopy, through_pickle, through_a_file])
def test_a_module_is_stored_after_it_was_compiled_in_place(store: Function, x: Tensor) -> None:
    block = Block()
    block.compile(backend="rewright")
    expected = block(x)
    assert "ours" in the_program().report.counts()
    torch.testing.assert_close(store(block)(x), expected)


def test_state_is_stored_and_loaded(x: Tensor) -> None:
    """Under the names of the module itself, or behind torch's prefix for the compiled one."""
    block = Block()
    ours: Any = torch.compile(block, backend="rewright")
    expected = ours(x)
    file = io.BytesIO()
    torch.save({"plain": block.state_dict(), "compiled": ours.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file)
    assert list(stored["compiled"]) == [f"_orig_mod.{name}" for name in stored["plain"]]
    fresh = Block()
    fresh.load_state_dict(stored["plain"])
    torch.testing.assert_close(fresh(x), expected)
    other: Any = torch.compile(Block(), backend="rewright")
    other.load_state_dict(stored["compiled"])
    assert torch.equal(other(x), expected)


# --- hooks ----------------------------------------------------------------------------------------


def test_hooks_of_modules_and_parameters(x: Tensor) -> None:
    def triple(_: nn.Module, given: Any, received: Any) -> Any:
        return (given[0] * 3,)

    block = Block()
    block.up.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    block.up.register_forward_hook(lambda _, inputs, output: output * 2 + inputs[0].sum())
    block.down.register_full_backward_hook(triple)
    block.norm.weight.register_hook(lambda gradient: gradient * 7)
    # No fullgraph: Dynamo breaks the graph at the backward hook.
    agree(torch.compile(block, backend="rewright"), block, x)
    plain = Block()
    plain.load_state_dict(block.state_dict())
    ratio = gradients(block, block, x)[0] / gradients(plain, plain, x)[0]
    assert not torch.allclose(ratio, torch.ones_like(ratio))  # the hooks do something


def test_hooks_of_a_tensor_inside() -> None:
    def function(x: Tensor) -> Tensor:
        y = x.sin()
        y.register_hook(lambda gradient: gradient * 5)
        return y * 2

    def gradient(call: Function) -> Tensor:
        x = X.clone().requires_grad_()
        return torch.autograd.grad(call(x).sum(), x)[0]

    torch.testing.assert_close(gradient(compiled(function)), gradient(function))


# --- optimizers -----------------------------------------------------------------------------------

Parameters = Iterable[nn.Parameter]

OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, 0.1, foreach=True),
    "adam_with_a_tensor": lambda p: torch.optim.Adam(p, torch.tensor(0.1)),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_a_compiled_optimizer_steps_as_eager_does(
    make: Callable[[Parameters], torch.optim.Optimizer],
) -> None:
    """Parameters of several shapes; one gets no gradient, one is sliced from a larger tensor."""

    def parameters() -> list[nn.Parameter]:
        odd = nn.Parameter(torch.linspace(0, 1, 40).reshape(4, 10)[:, 1:8:2])
        return [nn.Parameter(X.clone()), odd, nn.Parameter(torch.ones(())), nn.Parameter(X[0] + 1)]

    def steps(compile: Function) -> tuple[Any, bool]:
        mine = parameters()
        optimizer = make(mine)
        step = compile(optimizer.step)
        for i in range(3):
            for parameter in mine[:-1]:
                parameter.grad = torch.cos(parameter.detach() + i)
            step()
        return (mine, optimizer.state_dict()["state"]), rewright.programs() != ()

    expected, _ = steps(lambda function: function)
    found, is_compiled = steps(lambda function: torch.compile(function, backend="rewright"))
    assert is_compiled
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_step_of_training_as_one_program(x: Tensor) -> None:
    """Forward, backward through torch.func and update together."""

    def train(weights: dict[str, Tensor], x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            y: Tensor = torch.func.functional_call(block, weights, (x,))
            return y.square().mean()

        found, value = torch.func.grad_and_value(loss)(weights)
        return {name: w - 0.1 * found[name] for name, w in weights.items()}, value

    block = Block()
    weights = {name: p.detach() for name, p in block.named_parameters()}
    torch.testing.assert_close(compiled(train)(weights, x), train(weights, x))
