"""Several processes over gloo: torch.distributed runs what it does in eager, once and in order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as fc
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from ranks import (
    NAMESPACES,
    Issued,
    Outcome,
    Ranks,
    compiled_programs,
    equal_to_eager,
    issued_as_in_eager,
    issues,
    lawful,
)
from rewright.calibrate import host as calibrate_host
from rewright.driver import compile_graph, plan_graph
from rewright.ir import Effect, Target, op
from rewright.ir.parse import parse
from rewright.options import Options
from through_backend import Block, Function

pytestmark = pytest.mark.cpu

STEPS = 20
WIDTH = 16  # of a Block
BLOCKS = 2
# How ranks share a Block.
PIECES = {"up": ColwiseParallel(), "down": RowwiseParallel()}


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    ranks = Ranks(4)
    yield ranks
    ranks.close()


# --- what ranks do: whole models ------------------------------------------------------------------


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.randn(2, 8, WIDTH, generator=generator)
    return x, target


def trained(module: nn.Module, call: Function, data: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The loss of each step, and the parameters after the last, whole."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    x, target = data
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (call(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [torch.stack(losses), *(whole(p.detach()) for p in module.parameters())]


def whole(tensor: Tensor) -> Tensor:
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.clone()


def trained_both_ways(
    make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], **options: Any
) -> Outcome:
    eager = make()
    with Issued() as issued:
        x, target = data
        (eager(x) - target).square().mean().backward()
    expected = trained(eager, eager, data)
    module = make()
    ours = trained(module, torch.compile(module, backend="rewright", options=options), data)
    return Outcome(expected, ours, issued.found, compiled_programs())


class Tower(nn.Module):
    """Always the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def train_with_ddp(split: bool, **options: Any) -> Outcome:
    def make() -> nn.Module:
        return DistributedDataParallel(Tower(), bucket_cap_mb=0.005)

    # The first bucket holds a megabyte otherwise, which is all of the model.
    first = patch.object(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 0)
    with first, torch._dynamo.config.patch(optimize_ddp=split):
        return trained_both_ways(make, batch(dist.get_rank()), **options)


def train_with_fsdp() -> Outcome:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def make() -> nn.Module:
        model = Tower()
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    return trained_both_ways(make, batch(dist.get_rank()))


def train_with_tensor_parallel() -> Outcome:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def make() -> nn.Module:
        model = Tower()
        for block in model.blocks:
            parallelize_module(block, mesh, PIECES)
        return model

    return trained_both_ways(make, batch(0))


def train_with_fsdp_and_tensor_parallel() -> Outcome:
    """Two ranks hold a piece of each layer, and two such pairs a piece of that."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def make() -> nn.Module:
        model = Tower()
        for block in model.blocks:
            parallelize_module(block, mesh["tensor"], PIECES)
            fully_shard(block, mesh=mesh["data"])
        return model

    return trained_both_ways(make, batch(mesh["data"].get_local_rank()))


# --- what ranks do: functions with collectives ----------------------------------------------------


def summed(x: Tensor) -> Tensor:
    found: Tensor = fc.all_reduce(x, "sum", world())
    return found


def gathered(x: Tensor) -> Tensor:
    found: Tensor = fc.all_gather_tensor(x, 0, world())
    return found


def scattered(x: Tensor) -> Tensor:
    found: Tensor = fc.reduce_scatter_tensor(x, "sum", 0, world())
    return found


def world() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def among_pointwise(x: Tensor) -> Tensor:
    y = x.relu()
    total = summed(y)
    everything = gathered(y.sin() + 1)
    mine = scattered(everything * 2)
    return (total + mine.cos()).exp() * summed(y.cos())


def unread(x: Tensor) -> Tensor:
    summed(x.sin())
    gathered(x)
    return x.cos()


def twins(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.sin()
    return summed(y) + summed(y), gathered(y) * gathered(y)


def of_constants(x: Tensor) -> Tensor:
    return x + summed(torch.ones(4, 6)) + summed(torch.zeros(4, 6))


def independent(x: Tensor) -> tuple[Tensor, ...]:
    """Nothing but their order says which of these comes first."""
    y = x.exp()
    a = summed(x @ y.t())
    b = fc.all_reduce(x, "max", world())
    c = gathered(y + 1)
    d = summed(x.sin())
    return d.cos() + y, c, b.cos() * y, a


def in_place(x: Tensor) -> Tensor:
    y = x.sin()
    dist.all_reduce(y)
    dist.all_reduce(x)
    z = torch.empty(dist.get_world_size() * 4, 6)
    dist.all_gather_into_tensor(z, x.cos())
    return z.sum(0) + y


def of_many(x: Tensor) -> tuple[Tensor, ...]:
    sums = fc.all_reduce_coalesced([x.sin(), x.cos()], "sum", world())
    n = dist.get_world_size()
    parts = fc.all_gather_into_tensor_coalesced([x + 1, x * 2], world())
    mixed = fc.all_to_all_single(torch.cat([x.exp()] * n), None, None, world())
    return *sums, *parts, mixed + 1, fc.broadcast(x.sin(), 1, world())


CALLED: dict[str, Function] = {
    f.__name__: f
    for f in (among_pointwise, unread, twins, of_constants, independent, of_many, in_place)
}


def call_both_ways(name: str) -> Outcome:
    function, step = CALLED[name], torch.compile(CALLED[name], backend="rewright", fullgraph=True)
    torch.manual_seed(dist.get_rank())
    x = torch.randn(4, 6)
    given = [x.clone(), x.clone(), x.clone()]
    with Issued() as issued:
        expected = function(given[0])
    # The second call finds the buffers of the first.
    found = [step(g) for g in given[1:]]
    ours, again = (list(pytree.tree_leaves((f, g))) for f, g in zip(found, given[1:], strict=True))
    eager = pytree.tree_leaves((expected, given[0]))
    return Outcome([*eager, *eager], [*ours, *again], issued.found, compiled_programs())


class SumOverRanks(torch.autograd.Function):
    """The sum of all ranks' values; its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return summed(gradients[0])


def sum_over_ranks(x: Tensor) -> Tensor:
    found: Tensor = SumOverRanks.apply(x)  # type: ignore[no-untyped-call]
    return found


def needs_sum(x: Tensor, weight: Tensor) -> Tensor:
    h = sum_over_ranks(x @ weight)
    return (h * h.sigmoid()).sin() @ weight.t()


def needs_gathered(x: Tensor, weight: Tensor) -> Tensor:
    """A weight that lies in pieces on all ranks."""
    joined = fc.all_gather_tensor_autograd(weight.sin(), 0, world())
    y: Tensor = (x.repeat(1, dist.get_world_size()) @ joined).tanh() @ joined.t()
    return y


def under_checkpoint(x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = checkpoint(needs_sum, x, weight, use_reentrant=False)
    return y.sin()


def sends_for_nobody(x: Tensor, weight: Tensor) -> Tensor:
    summed(x.sin())
    return x.cos() @ weight


def while_in_flight(x: Tensor) -> tuple[Tensor, ...]:
    """Goes on before gloo, whose few threads wait for other ranks, has read what is sent."""
    ops, name = torch.ops._c10d_functional, world().group_name
    first = [ops.all_reduce(x, "sum", name) for _ in range(8)]
    sent = ops.all_gather_into_tensor(x.sin(), dist.get_world_size(), name)
    y = x.cumsum(0).cumsum(1)
    return y.cos(), *(ops.wait_tensor(t) for t in (*first, sent))


def call_with_others_late() -> Outcome:
    torch.manual_seed(dist.get_rank())
    x = torch.randn(64, 64)
    step = torch.compile(while_in_flight, backend="rewright", fullgraph=True)
    step(x)
    dist.barrier()
    time.sleep(0.5 * dist.get_rank())
    ours = step(x)
    return Outcome([*while_in_flight(x)], [*ours], [], compiled_programs())


def call_on_other_hosts(folder: Path) -> Outcome:
    """Each rank on a machine of its own, measured apart: one of them computes slowly."""
    torch.manual_seed(dist.get_rank())
    measure = calibrate_host.measure

    def slower(cores: int) -> Target:
        host = measure(cores)
        return replace(host, flops=tuple((t, r / 1e4 ** dist.get_rank()) for t, r in host.flops))

    calibrate_host._host.cache_clear()
    cache = patch.dict(os.environ, REWRIGHT_CACHE_DIR=str(folder / str(dist.get_rank())))
    try:
        with cache, patch.object(calibrate_host, "measure", slower):
            step = torch.compile(broadcast_inside, backend="rewright", fullgraph=True)
            x, bias = torch.randn(64, 8), torch.randn(8)
            ours = step(x, bias)
    finally:
        calibrate_host._host.cache_clear()
    return Outcome([broadcast_inside(x, bias)], [ours], [], compiled_programs())


def broadcast_inside(x: Tensor, bias: Tensor) -> Tensor:
    """Whether it pays to compute the few numbers again for each row depends on the machine."""
    return summed(x * (bias + 1)).cos()


DERIVED: dict[str, Function] = {
    f.__name__: f for f in (needs_sum, needs_gathered, under_checkpoint, sends_for_nobody)
}


def derive_both_ways(name: str) -> Outcome:
    function, step = DERIVED[name], torch.compile(DERIVED[name], backend="rewright", fullgraph=True)
    torch.manual_seed(dist.get_rank())
    inputs = [torch.randn(4, 6, requires_grad=True), torch.randn(6, 6, requires_grad=True)]

    def derived(call: Function) -> list[Tensor]:
        y = call(*inputs)
        return [y.detach(), *torch.autograd.grad(y.square().mean(), inputs)]

    with Issued() as issued:
        eager = derived(function)
    return Outcome(eager, derived(step), issued.found, compiled_programs())


# --- tests: whole models --------------------------------------------------------------------------


@pytest.mark.parametrize("split", [True, False])
def test_ddp(two: Ranks, split: bool) -> None:
    """In one piece, or in a piece for each bucket of gradients."""
    outcomes = two.run(train_with_ddp, split)
    assert all((len(outcome.programs) > 2) == split for outcome in outcomes)
    assert_trains_alike(outcomes)


def test_fsdp(two: Ranks) -> None:
    outcomes = two.run(train_with_fsdp)
    assert_trains_alike(outcomes)


def test_tensor_parallel(two: Ranks) -> None:
    outcomes = two.run(train_with_tensor_parallel)
    issued_as_in_eager(outcomes)
    assert_trains_alike(outcomes)


@pytest.mark.slow
def test_tensor_parallel_with_four(four: Ranks) -> None:
    outcomes = four.run(train_with_tensor_parallel, seconds=240)
    issued_as_in_eager(outcomes)
    assert_trains_alike(outcomes)


@pytest.mark.slow
def test_fsdp_and_tensor_parallel_with_four(four: Ranks) -> None:
    outcomes = four.run(train_with_fsdp_and_tensor_parallel, seconds=240)
    assert any(issues(program.schedule) for program in outcomes[0].programs)
    assert_trains_alike(outcomes)


def assert_trains_alike(outcomes: Sequence[Outcome]) -> None:
    lawful(outcomes)
    equal_to_eager(outcomes)
    for outcome in outcomes:
        losses, *parameters = outcome.ours
        assert losses[-1] < losses[0]
        assert all(map(torch.equal, parameters, outcomes[0].ours[1:]))


# --- tests: functions with collectives ------------------------------------------------------------


@pytest.mark.parametrize("name", CALLED)
def test_collectives_run_as_in_eager(two: Ranks, name: str) -> None:
    outcomes = two.run(call_both_ways, name)
    if name == "in_place":  # eager issues what torch.compile replaces by functional collectives
        issued = ["all_reduce[4, 6]", "all_reduce[4, 6]", "all_gather_into_tensor[4, 6]"]
        outcomes = [outcome._replace(issued=issued) for outcome in outcomes]
    issued_as_in_eager(outcomes)
    lawful(outcomes)
    equal_to_eager(outcomes)


@pytest.mark.parametrize("name", DERIVED)
def test_backward_reads_what_forward_received(two: Ranks, name: str) -> None:
    """A collective runs again only where a checkpoint of the model says so, as in eager."""
    outcomes = two.run(derive_both_ways, name)
    issued_as_in_eager(outcomes)
    lawful(outcomes)
    equal_to_eager(outcomes)


def test_what_is_sent_stays_as_it_is_until_it_arrives(two: Ranks) -> None:
    outcomes = two.run(call_with_others_late)
    lawful(outcomes)
    equal_to_eager(outcomes)


def test_ranks_on_unlike_machines_decide_the_same(two: Ranks, tmp_path: Path) -> None:
    outcomes = two.run(call_on_other_hosts, tmp_path)
    equal_to_eager(outcomes)
    lawful(outcomes)


# --- tests: one process ---------------------------------------------------------------------------


def test_operators_that_talk_to_others_are_collectives() -> None:
    every = (n.replace("::", ".") for n in torch._C._dispatch_get_all_op_names())
    names = [n if n.count(".") == 2 else f"{n}.default" for n in every]
    found = {n: op(n).effect for n in names if n.split(".")[0] in NAMESPACES}
    assert {n.split(".")[0] for n in found} == set(NAMESPACES)
    assert set(found.values()) == {Effect.COLLECTIVE}


def test_what_was_waited_for_is_no_buffer() -> None:
    """Waiting returns the tensor it is given, also when nobody sent it."""
    text = """graph f(%x: f32[4]) {
      %a = aten.sin.default(%x) : f32[4]
      %b = _c10d_functional.wait_tensor.default(%a) : f32[4]
      return %b
    }"""
    call = compile_graph(parse(text), Options()).executable
    x = torch.randn(4)
    (first,), (second,) = call([x]), call([x + 1])
    torch.testing.assert_close([first, second], [x.sin(), (x + 1).sin()])


def test_collectives_within_graphs_of_nodes_keep_their_place() -> None:
    """Fusing what is around them would have the second first."""
    text = """graph f(%x: f32[4, 6]) {
      %s = aten.sin.default(%x) : f32[4, 6]
      %t = aten.sum.default(%x) : f32[]
      %positive = aten.gt.Scalar(%t, 0.0) : bool[]
      %first = hop.cond(%positive, "@yes", "@no", [%s]) yes(%v: f32[4, 6]) {
        %sum = _c10d_functional.all_reduce.default(%v, "sum", "0") : f32[4, 6]
        %waited = _c10d_functional.wait_tensor.default(%sum) : f32[4, 6]
        return %waited
      } no(%v: f32[4, 6]) {
        %c = aten.cos.default(%v) : f32[4, 6]
        return %c
      } : f32[4, 6]
      %second = _c10d_functional.all_reduce.default(%x, "sum", "0") : f32[4, 6]
      %waited = _c10d_functional.wait_tensor.default(%second) : f32[4, 6]
      %y = aten.mul.Tensor(%s, %waited) : f32[4, 6]
      return %y, %first
    }"""
    schedule = plan_graph(parse(text), Options()).graph
    order = [node.name for node in schedule.nodes if node.name in ("first", "second")]
    assert order == ["first", "second"]
