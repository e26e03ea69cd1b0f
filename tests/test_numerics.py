"""What the numbers promise: the same bits however a graph is fused, scheduled and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import rewright
from examples.case import Case
from rewright.comparing import Errors
from rewright.driver import Program, compile_graph
from rewright.ir import Graph, Kind
from rewright.options import Options
from rewright.sources import random_inputs
from through_backend import compiled, the_program
from zoo import loss, tiny_bert, tiny_gpt2, tiny_llama, tiny_mlp

pytestmark = pytest.mark.cpu

# Kernels of one node each, and of few.
FUSIONS = ("fuse{max-ops=1}", "fuse{max-ops=4,horizontal=false}")
BEFORE, AFTER = "decompose,canonicalize,fold,cse,dce,", ",memory"
HALVES = (torch.float32, torch.bfloat16, torch.float16)


def step_graphs(make: Callable[[], Case], dtype: torch.dtype) -> Sequence[Graph]:
    """The forward and backward graphs of a training step in `dtype`."""
    module, inputs = make()
    module.to(dtype)
    given = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    loss(torch.compile(module, backend="rewright")(*given)).backward()
    return [program.source for program in rewright.programs()]


def outputs(program: Program) -> list[object]:
    torch.manual_seed(0)
    return program.executable(random_inputs(program.source))


def assert_same_bits(found: Sequence[object], expected: Sequence[object]) -> None:
    for ours, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor) and isinstance(ours, Tensor):
            assert ours.dtype == other.dtype
            torch.testing.assert_close(ours, other, rtol=0, atol=0, equal_nan=True)
        else:
            assert ours == other


@pytest.mark.parametrize(
    ("make", "dtype"), [(tiny_gpt2, torch.float32), (tiny_llama, torch.bfloat16)]
)
def test_fusion_changes_no_bit(make: Callable[[], Case], dtype: torch.dtype) -> None:
    for graph in step_graphs(make, dtype):
        expected = outputs(compile_graph(graph, Options()))
        for fusion in FUSIONS:
            other = compile_graph(graph, Options(passes=BEFORE + fusion + AFTER))
            assert_same_bits(outputs(other), expected)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reduced(x: Tensor) -> tuple[Tensor, ...]:
    """Sums along rows, along columns and over everything, large enough to be shared out."""
    y = torch.nn.functional.gelu(x)
    return y.sum(0), y.sum(1), y.sum(), y.softmax(0), y.var(1), y.amax(0), y.mean((0, 1))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(1031, 517), (3, 70001), (70001, 3)])
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, step = torch.randn(shape).to(dtype), compiled(reduced)
    with threads(1):
        alone = step(x)
    with threads(2):
        assert_same_bits(step(x), alone)
        assert_same_bits(step(x), alone)


def drawing(x: Tensor) -> tuple[Tensor, ...]:
    """Draws between which there is work that could move them."""
    first = torch.nn.functional.dropout(x.sin() + 1, 0.3)
    second = torch.rand_like(x) * first.sum()
    third = torch.nn.functional.dropout(second.softmax(-1), 0.5)
    unread = torch.randn(3)
    return first, second, third * 2 + torch.bernoulli(x.sigmoid()), unread


@pytest.mark.parametrize("passes", ["default", *(BEFORE + f + AFTER for f in FUSIONS)])
def test_draws_keep_their_order(passes: str) -> None:
    x = torch.randn(33, 20)
    torch.manual_seed(0)
    expected, state = drawing(x), torch.get_rng_state()
    torch.manual_seed(0)
    found = compiled(drawing, options={"passes": passes})(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, expected)


# --- numerics="fast" -----------------------------------------------------------------------------


def chained(x: Tensor, y: Tensor) -> Tensor:
    return ((x * y + x) * y - x).tanh() * y


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fast_keeps_digits_that_eager_rounds_away(dtype: torch.dtype) -> None:
    x, y = torch.randn(2, 64, 65).to(dtype).unbind()
    exact = chained(x.double(), y.double())
    fast = compiled(chained, options={"numerics": "fast"})(x, y)
    assert fast.dtype == dtype
    assert torch.equal(compiled(chained)(x, y), chained(x, y))
    assert error(fast, exact) < 0.7 * error(chained(x, y), exact)


def test_fast_rounds_where_the_user_casts() -> None:
    def through_half(x: Tensor) -> Tensor:
        return (x * 3).half().float() - x * 3

    x = torch.randn(50)
    fast = compiled(through_half, options={"numerics": "fast"})(x)
    assert fast.abs().max() > 0
    torch.testing.assert_close(fast, through_half(x), rtol=0, atol=1e-6)


def test_regions_say_that_they_are_fast() -> None:
    compiled(chained, options={"numerics": "fast"})(torch.ones(4), torch.ones(4))
    regions = [n for n in the_program().graph.nodes if n.op.kind is Kind.REGION]
    assert [n.kwarg("numerics") for n in regions] == ["fast"]


# --- the error report -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_bert, tiny_mlp])
def test_a_program_tells_its_errors_beside_eagers(make: Callable[[], Case]) -> None:
    module, inputs = make()
    with torch.no_grad():
        compiled(module)(*inputs)
    found = the_program().errors()
    assert found.holds and 0 < found.ours < 1e-4 and 0 < found.eager < 1e-4
    assert "relative L2 against float64" in str(found)


def test_errors_are_of_the_inputs_given() -> None:
    compiled(nn.functional.gelu)(torch.randn(10))
    assert the_program().errors([torch.zeros(10)]) == Errors(0.0, 0.0)


def test_an_error_over_the_limit_is_told() -> None:
    assert "OVER" in str(Errors(1e-3, 1e-4)) and not Errors(1e-3, 1e-4).holds
    assert pytree.tree_all(lambda e: e.holds, [Errors(2e-4, 1e-4), Errors(1e-7, 0.0)])
