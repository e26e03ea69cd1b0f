"""One process, many calls: errors leave it usable, threads and resets do not meet, sizes vary."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.exc import Unsupported as GraphBreak

import rewright
from rewright.ir import OptionError, UnsupportedError
from through_backend import Block, Function, X, compiled, gradients, same_as_eager, the_program
from through_training import leaf, same_step, trains_as_eager

pytestmark = pytest.mark.cpu


# --- errors ---------------------------------------------------------------------------------------


def sort_and_shift(x: Tensor) -> Tensor:
    return torch.sort(x.sin())[0] + 1


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"fallback": "error"}, UnsupportedError), ({"fallbck": "aten"}, OptionError)],
)
def test_what_compiling_raises_is_ours_within_torchs(options: Any, kind: type[Exception]) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        compiled(sort_and_shift, options=options)(X)
    inner = caught.value.inner_exception
    assert isinstance(inner, kind)
    assert str(caught.value).startswith(f"backend='rewright' raised:\n{kind.__name__}: {inner}")
    torch.testing.assert_close(compiled(sort_and_shift)(X), sort_and_shift(X))


def test_a_failure_while_compiling_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the cause: the same function compiles when it is gone."""
    import gc

    from rewright import driver

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("no more")

    ours = compiled(lambda x: x.sin() * 2)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "build_program", fail)
        with pytest.raises(BackendCompilerFailed, match="MemoryError: no more"):
            ours(leaf(X))
    assert gc.isenabled()
    assert torch.is_grad_enabled()
    assert rewright.programs() == ()
    torch.testing.assert_close(ours(X), X.sin() * 2)


def test_a_backward_that_cannot_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewright import driver
    from rewright.building import build_program

    def fail(recipe: Any, **given: Any) -> Any:
        if recipe.graph.name == "backward":
            raise UnsupportedError("no backward today")
        return build_program(recipe, **given)

    monkeypatch.setattr(driver, "build_program", fail)
    y = compiled(lambda x: x.sin() * 2)(leaf(X))
    torch.testing.assert_close(y, X.sin() * 2)
    with pytest.raises(UnsupportedError, match="no backward today"):
        y.sum().backward()


def pick(x: Tensor, places: Tensor) -> Tensor:
    return (x.sin() @ x.t() + 1).index_select(0, places).exp() * 2


def test_an_error_at_run_time_leaves_the_program_usable() -> None:
    """The frame of the failed call serves the next one; no buffer is lost or shared."""
    ours, good, bad = compiled(pick), torch.tensor([1, 3]), torch.tensor([9, 1])
    torch.testing.assert_close(ours(X, good), pick(X, good))
    for _ in range(3):
        with pytest.raises(IndexError, match="index out of range"):
            ours(X, bad)
    torch.testing.assert_close(ours(X, good), pick(X, good))
    (idle,) = the_program().executable._frames._idle.values()
    assert len(idle) == 1
    assert torch.is_grad_enabled()


def test_an_error_in_the_backward_leaves_the_program_usable() -> None:
    armed = True

    class Fuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            if armed:
                raise ValueError("blown")
            return gradient

    block, x = Block(), torch.randn(4, 16)
    ours = compiled(block)
    with pytest.raises(ValueError, match="blown"):
        gradients(block, lambda x: Fuse.apply(ours(x)), x)  # type: ignore[no-untyped-call]
    armed = False
    torch.testing.assert_close(gradients(block, ours, x), gradients(block, block, x))


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="after errors on threads it compiles nothing after a break"
)
def test_errors_on_some_threads_do_not_disturb_the_others() -> None:
    ours, good, bad = compiled(pick), torch.tensor([1, 3]), torch.tensor([9, 1])
    expected = pick(X, good)
    ours(X, good)

    def work(i: int) -> bool:
        if i % 2:
            with pytest.raises(IndexError):
                ours(X, bad)
            return True
        return torch.allclose(ours(X, good), expected, atol=1e-5)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))


# --- threads --------------------------------------------------------------------------------------

FUNCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: (x.cos() + 1) @ x.t(),
    lambda x: x.softmax(-1) * 2,
    lambda x: (x.tanh() - x).sum(0),
)


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="it takes tracing on another thread for tracing on its own"
)
def test_functions_compile_on_threads_while_others_run() -> None:
    # No fullgraph: torch counts the frames of all threads together to see that there is one.
    ready = torch.compile(lambda x: (x.sin() @ x.t()).exp(), backend="rewright")
    small = X / 10
    expected = ready(small)
    compiling = threading.Event()
    compiling.set()

    def run(_: int) -> int:
        wrong = calls = 0
        while compiling.is_set() or calls < 20:
            wrong += not torch.equal(ready(small), expected)
            calls += 1
            time.sleep(1e-3)
        return wrong

    def compile_and_run(function: Function) -> bool:
        x = leaf(small)
        y = torch.compile(function, backend="rewright")(x)
        (ours,) = torch.autograd.grad(y.sum(), x)
        (eager,) = torch.autograd.grad(function(x).sum(), x)
        return torch.allclose(ours, eager, atol=1e-5)

    with ThreadPoolExecutor(2) as runners, ThreadPoolExecutor(3) as compilers:
        running = [runners.submit(run, i) for i in range(2)]
        right = list(compilers.map(compile_and_run, FUNCTIONS))
        compiling.clear()
        assert right == [True] * 3
        assert [r.result() for r in running] == [0, 0]


def test_a_program_runs_on_a_thread_that_never_compiled() -> None:
    """Grad mode is each thread's own; the backward runs on another thread still."""
    block, x = Block(), torch.randn(4, 16)
    ours = compiled(block)
    expected = gradients(block, ours, x)
    found: list[list[Tensor]] = []
    worker = threading.Thread(target=lambda: found.append(gradients(block, ours, x)))
    worker.start()
    worker.join()
    torch.testing.assert_close(found, [expected])


# --- reset, modes, graph breaks -------------------------------------------------------------------


def test_a_function_that_is_held_compiles_again_after_reset() -> None:
    ours = compiled(lambda x: x.sin() + 1)
    first = ours(X)
    (before,) = rewright.programs()
    torch._dynamo.reset()
    assert rewright.programs() == ()
    assert torch.equal(ours(X), first)
    (after,) = rewright.programs()
    assert after.executable is not before.executable


def test_a_step_outlives_reset() -> None:
    x = leaf(X)
    loss = compiled(lambda x: (x.sin() * x).sum())(x)
    torch._dynamo.reset()
    loss.backward()
    torch.testing.assert_close(x.grad, X.cos() * X + X.sin())


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_a_mode_changes_nothing(mode: str) -> None:
    ours = torch.compile(lambda x: x.sin() @ x.t() + 1, backend="rewright", mode=mode)
    torch.testing.assert_close(ours(X), X.sin() @ X.t() + 1)
    assert "ours" in the_program().report.counts()


def broken_in_two(x: Tensor) -> Tensor:
    y = x.sin() * 2
    torch._dynamo.graph_break()
    return y + 1


def test_a_graph_break_gives_two_programs_or_torchs_error() -> None:
    ours = torch.compile(broken_in_two, backend="rewright")
    torch.testing.assert_close(ours(X), X.sin() * 2 + 1)
    assert len(rewright.programs()) == 2
    torch._dynamo.reset()
    with pytest.raises(GraphBreak, match=r"graph_break\(\)"):
        compiled(broken_in_two)(X)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dynamic", "programs"), [(False, [1, 2, 3]), (None, [1, 2, 2]), (True, [1, 1, 1])]
)
def test_dynamic_says_when_sizes_become_symbols(dynamic: bool | None, programs: list[int]) -> None:
    ours = compiled(lambda x: x.sin() * x.shape[0], dynamic=dynamic)
    found = []
    for rows in (3, 4, 5):
        x = torch.rand(rows, 2)
        torch.testing.assert_close(ours(x), x.sin() * rows)
        found.append(len(rewright.programs()))
    assert found == programs


def test_sizes_among_the_outputs_are_plain_numbers() -> None:
    def function(x: Tensor) -> tuple[Any, ...]:
        rows, columns = x.shape
        numbers = rows, rows * columns // 2, x.numel(), x.stride(0), rows > 3, -rows % 3
        return *numbers, x * columns, x.size()

    ours = compiled(function, dynamic=True)
    for shape in ((4, 6), (5, 3), (9, 2)):
        x = torch.rand(shape)
        found, expected = ours(x), function(x)
        assert found[:6] == expected[:6]
        assert found[7] == expected[7]
        assert list(map(type, found)) == list(map(type, expected))


def test_integers_and_floats_among_the_arguments_of_a_step() -> None:
    def function(x: Tensor, n: int, scale: float) -> tuple[Any, ...]:
        return x[:n].sin() * n, n * 2 + x.shape[1], x.mean(0) * scale, scale * 2

    ours = compiled(function, dynamic=True)
    for n, scale in ((2, 0.5), (3, 1.5), (4, -2.0)):
        x, y = leaf(X), leaf(X)
        found, expected = ours(x, n, scale), function(y, n, scale)
        assert found[1] == expected[1]
        assert found[3] == expected[3]
        assert type(found[1]) is int
        (found[0].sum() + found[2].sum()).backward()
        (expected[0].sum() + expected[2].sum()).backward()
        torch.testing.assert_close(x.grad, y.grad)


def unique_and_nonzero(x: Tensor) -> tuple[Any, ...]:
    distinct, large = (x * 3).long().unique(), (x > 1).nonzero()
    rows, total = large.shape[0], (x > 1).sum().item()
    return distinct * 2, large.float().exp(), rows, distinct.shape[0] + rows, total


def numbers_of_an_item(x: Tensor) -> tuple[Any, ...]:
    n = x.argmax().item()
    return x * n, n, n + 1, n * 1.5, float(n)


def masked(x: Tensor) -> tuple[Tensor, ...]:
    chosen = x[x > 1]
    return chosen.exp() * 2, chosen.sum() * x, x[(x.sum(1) > 5).nonzero()[:, 0]].sin()


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("function", [unique_and_nonzero, numbers_of_an_item, masked])
def test_sizes_that_data_decide(function: Function) -> None:
    """They leave the program as plain numbers, and other data decide otherwise."""
    same_as_eager(function, X)
    ours = compiled(function)
    for x in (X, X.flip(0) * 2, X - 3):
        torch.testing.assert_close(ours(x), function(x))
    assert len(rewright.programs()) == 1


@pytest.mark.usefixtures("data_dependent")
def test_gradients_through_sizes_that_data_decide() -> None:
    trains_as_eager(masked, leaf(X))
    trains_as_eager(masked, leaf(X - 3))


def test_a_batch_norm_trains_on_batches_of_every_size() -> None:
    """Its gradient has a factor that is computed from sizes."""
    norm = nn.BatchNorm1d(6)
    ours = compiled(norm, dynamic=True)
    for x in (X, torch.randn(9, 6)):
        norm.reset_running_stats()
        same_step(ours, norm, leaf(x), module=norm)


@pytest.mark.slow
def test_fifty_shapes_take_two_programs() -> None:
    """Forward and backward of a small language model, batches and lengths as they come."""
    model = Language()
    ours = compiled(model, dynamic=True)
    drawn = torch.Generator().manual_seed(1)
    for _ in range(50):
        rows, length = torch.randint(2, 40, (2,), generator=drawn).tolist()
        tokens = torch.randint(0, 50, (rows, length), generator=drawn)
        found, expected = ours(tokens), model(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            gradients(model, lambda _: found, tokens),  # noqa: B023
            gradients(model, lambda _: expected, tokens),  # noqa: B023
            rtol=1e-4,
            atol=1e-5,
        )
    assert [p.graph.name for p in rewright.programs()] == ["forward", "backward"]


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.block = Block()
        self.output = nn.Linear(16, 50)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.block(self.embedding(tokens))
        y: Tensor = self.output((x @ x.transpose(1, 2)).softmax(-1) @ x)
        return y
