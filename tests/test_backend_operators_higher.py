"""The torch.compile backend on higher-order operators: those that take functions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.map import map as map_rows
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils import checkpoint as checkpoints

import rewright
from rewright.ir import storage_roots
from rewright.ir.parse import parse
from through_backend import Function, X, compiled, same_as_eager, the_program
from through_training import leaf, same_step, trains_as_eager

pytestmark = pytest.mark.cpu


def operators(name: str) -> set[str]:
    """The higher-order operators of the programs for one phase."""
    programs = (p for p in rewright.programs() if p.graph.name == name)
    return {n.op.name for p in programs for n in p.graph.nodes if n.op.namespace == "hop"}


# --- branches and loops ---------------------------------------------------------------------------


class Branches(nn.Module):
    """Each branch has weights of its own; one takes another branch."""

    def __init__(self) -> None:
        super().__init__()
        self.yes, self.no = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        def yes(x: Tensor, y: Tensor) -> Any:
            chosen = torch.cond(y.sum() > 0, lambda y: y * 3, lambda y: y / 3 + 1, (y,))
            return self.yes(x).sin() + chosen, x.mean(0)

        def no(x: Tensor, y: Tensor) -> Any:
            return self.no(x * y).cos(), x.sum(0)

        found = torch.cond(x.sum() > 0, yes, no, (x * 2, y))
        return found[0].exp(), found[1]


def test_branches() -> None:
    branches = Branches()
    ours = compiled(branches)
    for x, y in ((1, 1), (1, -1), (-1, 1)):
        inputs = leaf(X * x / 4), leaf(X.flip(0) * y)
        same_step(ours, branches, *inputs, module=branches)
        with torch.no_grad():
            torch.testing.assert_close(ours(*inputs), branches(*inputs))
    assert operators("inference") == operators("backward") == {"hop.cond"}


def test_branches_at_other_sizes() -> None:
    def function(x: Tensor) -> Tensor:
        y: Tensor = torch.cond(
            x.sum() > 1, lambda x: x.sin() * x.shape[0], lambda x: x + x.shape[1], (x,)
        )
        return y * 2

    ours = compiled(function, dynamic=True)
    for x in (X, -X, torch.ones(9, 2), torch.zeros(3, 5)):
        torch.testing.assert_close(ours(x), function(x))
    assert len(rewright.programs()) == 1


@pytest.mark.parametrize("times", [0, 1, 4])
def test_loops(times: int) -> None:
    """What a loop of no turns returns is a copy of what it was given."""

    def function(x: Tensor, limit: Tensor) -> tuple[Any, ...]:
        def more(i: Tensor, x: Tensor) -> Tensor:
            return (i < limit) & (x.sum() < 1e6)

        start = torch.zeros((), dtype=torch.int64)
        found = while_loop(more, lambda i, x: (i + 1, x * 1.5 + i), (start, x.sin() + 1))
        return *found, x.exp()

    same_as_eager(function, X, torch.tensor(times))


def test_a_loop_that_is_differentiated() -> None:
    def function(x: Tensor) -> Any:
        start = torch.zeros((), dtype=torch.int64)
        return while_loop(lambda i, _: i < 3, lambda i, x: (i + 1, x.sin() + x), (start, x * 2))[1]

    trains_as_eager(function, leaf(X))


def running_mean(x: Tensor) -> Any:
    def combine(mean: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
        return mean * 0.5 + row.tanh(), mean.cos() - row

    return scan(combine, torch.zeros(6), x * 2)


def decays(x: Tensor) -> Any:
    return associative_scan(lambda a, b: a * b + 0.1 * a, x + 1, 0, combine_mode="generic")


def scaled_rows(x: Tensor) -> Any:
    scales: Any = torch.ones(6) / 2
    return map_rows(lambda row, scale: (row.sin() * scale, row.sum()), x, scales)


def test_scans_and_maps() -> None:
    def function(x: Tensor) -> tuple[Any, ...]:
        return *running_mean(x), decays(x[:3]), *scaled_rows(x)

    same_as_eager(function, X)
    assert operators("inference") == {"hop.scan", "hop.map_impl"}
    if torch.__version__ >= "2.12":  # before, torch finds an alias where a scan is differentiated
        trains_as_eager(function, leaf(X), rtol=1e-5, atol=1e-4)


def copies_in_many_ways(x: Tensor) -> tuple[Any, ...]:
    """Functions that do nothing but copy, which the passes must not take for nothing."""
    y, start = x * 2, torch.zeros((), dtype=torch.int64)
    branch = torch.cond(x.sum() > -1e9, lambda y: y.clone(), lambda y: y + 1, (y,))
    looped = while_loop(lambda i, _: i < 1, lambda i, y: (i + 1, y.clone()), (start, y))[1]
    single = associative_scan(lambda a, b: a + b, y[:1] * 1, 0, combine_mode="generic")
    return branch, looped, *scan(lambda c, r: (c.clone(), r.clone()), y[0] * 1, y), single, x.sum()


def test_results_are_not_overwritten_by_the_next_call() -> None:
    """They lie in no buffer of the program, though their operands do."""
    ours = compiled(copies_in_many_ways)
    first = ours(X)
    kept = [y.clone() for y in first]
    ours(X + 100)
    torch.testing.assert_close(list(first), kept)
    torch.testing.assert_close(first, copies_in_many_ways(X))


# --- regions that are compiled once ---------------------------------------------------------------


class Layers(nn.Module):
    """One region, called three times; it also copies what it was given."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        linear = nn.Linear(6, 6)
        self.linear = linear

        @torch.compiler.nested_compile_region
        def layer(x: Tensor) -> tuple[Tensor, Tensor]:
            return F.dropout(linear(x).sin(), dropout), x.t().clone()

        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, _ = self.layer(x * 2)
        z, same = self.layer(y)
        last, turned = self.layer(z)
        return last + 1, same * 3, turned


# The gradients that reach the three calls have several layouts.
@pytest.mark.filterwarnings("ignore:invoke_subgraph traced multiple backward graphs:UserWarning")
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_region_called_several_times(dropout: float) -> None:
    layers = Layers(dropout)
    with torch.no_grad():
        same_as_eager(layers, X)
    assert operators("inference") == {"hop.invoke_subgraph"}
    trains_as_eager(layers, leaf(X), module=layers)
    assert operators("backward") == {"hop.invoke_subgraph"}


def test_what_a_region_returns_of_its_arguments_outlives_the_call() -> None:
    layers = Layers(0.0)
    ours = compiled(layers)
    with torch.no_grad():
        first = ours(X)
        kept = [y.clone() for y in first]
        ours(X + 100)
    torch.testing.assert_close(list(first), kept)


REGION = """graph outer(%x: f32[4, 6]) {
  %y = aten.sin.default(%x) : f32[4, 6]
  %a, %b, %c, %d = hop.invoke_subgraph("@inner", "inner", %y, %x) inner(
      %p: f32[4, 6],
      %q: f32[4, 6]
  ) {
    %s = aten.cos.default(%q) : f32[4, 6]
    %v = aten.permute.default(%s, [1, 0]) : f32[6, 4] strides [1, 6]
    %w = aten.permute.default(%p, [1, 0]) : f32[6, 4] strides [1, 6]
    return %s, %v, %w, %q
  } : f32[4, 6], f32[6, 4] strides [1, 6], f32[6, 4] strides [1, 6], f32[4, 6]
  return %a, %b, %c, %d
}"""


def test_results_of_a_region_share_memory_as_its_graph_says() -> None:
    graph = parse(REGION)
    roots = {value.name: root.name for value, root in storage_roots(graph).items()}
    assert roots == {"x": "x", "y": "y", "a": "a", "b": "a", "c": "y", "d": "x"}


# --- checkpoints ----------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.given = given

    def layer(self, x: Tensor) -> Tensor:
        y: Tensor = F.dropout(self.second(self.first(x).sin().exp()), 0.3)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoints.checkpoint(self.layer, x, use_reentrant=False, **self.given)
        return y * 2


def saves_products(context: Any, operator: Any, *args: Any, **kwargs: Any) -> Any:
    save = operator in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    policy = checkpoints.CheckpointPolicy
    return policy.MUST_SAVE if save else policy.MUST_RECOMPUTE


CONTEXT = functools.partial(checkpoints.create_selective_checkpoint_contexts, saves_products)


def recomputed() -> list[str]:
    """Operators of the backward that belong to the forward."""
    (backward,) = (p.source for p in rewright.programs() if p.graph.name == "backward")
    return sorted(n.op.name for n in backward.nodes if n.phase == "forward")


def test_a_checkpoint_computes_again_what_it_did_not_save() -> None:
    model = Checkpointed()
    trains_as_eager(model, leaf(X), module=model)
    found = recomputed()
    assert found.count("aten.addmm.default") == 2
    assert "hop.run_with_rng_state" in found


def test_a_selective_checkpoint_saves_what_its_policy_says() -> None:
    model = Checkpointed(context_fn=CONTEXT)
    trains_as_eager(model, leaf(X), module=model)
    found = recomputed()
    assert "aten.addmm.default" not in found
    assert "aten.sin.default" in found


# --- attention ------------------------------------------------------------------------------------


def distances(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score + (i - j) * 0.01 * (head + 1)


# Eager, which has no kernel for it either, advises to compile it.
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
def test_flexible_attention() -> None:
    mask = create_block_mask(lambda b, h, i, j: i >= j, 1, 1, 128, 128, device="cpu")
    query, key, value = torch.randn(3, 1, 2, 128, 16)
    slope = torch.rand(2)

    def attention(query: Tensor, key: Tensor, value: Tensor, slope: Tensor) -> tuple[Any, Any]:
        def steep(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score * slope[head]

        causal = flex_attention(query * 2, key, value, score_mod=distances, block_mask=mask)
        return causal, flex_attention(query, key, value, score_mod=steep)

    with torch.no_grad():
        same_as_eager(attention, query, key, value, slope)
    assert operators("inference") == {"hop.flex_attention"}


def test_flexible_attention_on_the_cpu_has_no_backward() -> None:
    query, key, value = torch.randn(3, 1, 2, 128, 16)
    with pytest.raises(Exception, match="does not support backward on CPU"):
        compiled(flex_attention)(leaf(query), key, value)


# --- operators with effects, and kernels of the user's --------------------------------------------

noted: list[float] = []


@torch.library.custom_op("rewright_tests::note", mutates_args=())
def note(x: Tensor) -> Tensor:
    noted.append(float(x.sum()))
    return x.clone()


note.register_fake(torch.empty_like)
note.register_autograd(lambda _, gradient: torch.ops.rewright_tests.note(gradient))


@pytest.fixture
def ordered_effects() -> Iterator[None]:
    """The operator counts as one whose calls have an order that tokens must carry."""
    from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

    handle = _register_effectful_op("rewright_tests::note", _EffectType.ORDERED)
    yield
    handle.destroy()


@pytest.mark.usefixtures("ordered_effects")
def test_effects_happen_once_and_in_order() -> None:
    def function(x: Tensor) -> Tensor:
        first = torch.ops.rewright_tests.note(x * 2)
        torch.ops.rewright_tests.note(x + 1)  # nobody reads it
        y: Tensor = torch.ops.rewright_tests.note(x.sin()) + first
        return y

    def effects(call: Function) -> list[float]:
        noted.clear()
        x = leaf(X)
        call(x).sum().backward()
        with torch.no_grad():
            call(x)
        return list(noted)

    assert effects(compiled(function)) == pytest.approx(effects(function))
    assert operators("inference") == {"hop.with_effects"}


class Launched:
    """Stands for a compiled Triton kernel: notes its launches, and does its work with torch."""

    def __init__(self, kernel: Any) -> None:
        self.arg_names, self.params = kernel.arg_names, kernel.params
        self.launches: list[tuple[Any, set[str]]] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **given: Any) -> None:
            named = dict(zip(self.arg_names, args, strict=False)) | given
            self.launches.append((grid, set(named)))
            named["out"].copy_(named["x"] + named["shift"])

        return launch


@pytest.mark.filterwarnings("ignore")  # torch looks for a GPU's driver
def test_a_triton_kernel_of_the_users_is_launched() -> None:
    """Torch traces such a call only beside a GPU: one is pretended, and the launch replaced."""
    triton = pytest.importorskip("triton")
    from torch._higher_order_ops import triton_kernel_wrap
    from torch.utils import _triton

    from triton_kernel import shift_numbers

    def function(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        shift_numbers[(1,)](x * 2, out, x.numel(), 3.0, BLOCK=32)
        return out.sin()

    target = triton.backends.compiler.GPUTarget("cuda", 80, 32)
    driver = mock.Mock(get_current_target=mock.Mock(return_value=target))
    kernel = Launched(shift_numbers)
    with (
        mock.patch.object(_triton, "has_triton", return_value=True),
        mock.patch.object(triton.runtime.driver, "_active", driver),
        mock.patch.object(triton_kernel_wrap.KernelSideTable, "get_kernel", return_value=kernel),
    ):
        found = compiled(function)(X)
    torch.testing.assert_close(found, (X * 2 + 3).sin())
    assert len(kernel.launches) == 1
    assert any("triton_kernel" in n.op.name for n in the_program().graph.nodes)
