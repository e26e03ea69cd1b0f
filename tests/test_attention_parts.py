"""Attention of few queries, and over keys that lie in parts: those of heads that read the same ones
are taken together, and results of pieces are merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F

import rewright
from attention_kernels import (
    MASKS,
    Case,
    Score,
    Shape,
    distance,
    kept,
    nest_of,
    numbers,
    outputs_of,
)
from rewright.api import Compiled
from rewright.driver import Plan
from rewright.ir import Graph
from rewright.ir.loops.show import show_nest
from rewright.ir.target import Target
from through_backend import compiled, the_program

sdpa = F.scaled_dot_product_attention

# One query and several, of one head and many, over keys that are cut into pieces and not.
FEW: Final = (
    Shape(1, 2, 1, 5000, 64, 64),
    Shape(2, 3, 3, 1100, 24, 40),
    Shape(1, 1, 32, 2000, 16, 16),
    Shape(3, 2, 7, 77, 33, 17),
)
DTYPES: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_queries(dtype: torch.dtype) -> None:
    """Under every mask, as near to float64 as eager."""
    cases = []
    for place, name in enumerate(MASKS):
        shape = FEW[place % len(FEW)]
        given = (*numbers(shape, dtype), *MASKS[name].read(shape, dtype))
        cases.append(Case(f"{name} {tuple(shape)}", MASKS[name].score, given))
    for case, found in zip(cases, outputs_of(cases), strict=True):
        wanted = case.eager(torch.float64)
        assert distance(found, wanted) <= 2 * distance(case.eager(), wanted) + 1e-6, case.name


def none_of_some(other: float) -> Score:
    """Rows from the third on see nothing."""
    return kept(lambda i, j: (i < 2) & (j < 100), other)


@pytest.mark.cpu
def test_a_row_that_is_masked_as_a_whole() -> None:
    """0 where its mask is infinite; the mean of all values where it is the least number, though
    pieces in which it has no live score are left out at first."""
    given = numbers(Shape(1, 2, 4, 2000, 16, 16))
    lowest = torch.finfo(torch.float32).min
    cases = [Case("inf", none_of_some(-math.inf), given), Case("low", none_of_some(lowest), given)]
    infinite, finite = outputs_of(cases)
    assert (infinite[:, :, 2:] == 0).all()
    mean = given[2].mean(2, keepdim=True).expand_as(finite[:, :, 2:])
    assert distance(finite[:, :, 2:], mean) < 1e-6
    for case, found in zip(cases, (infinite, finite), strict=True):
        assert distance(found[:, :, :2], case.eager(torch.float64)[:, :, :2]) < 1e-6


# --- shared and joined keys -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """`batch` sequences of `heads` heads, of which `groups` of keys; `prefix` keys that all
    sequences share, `suffix` of their own, and `rows` queries of each."""

    batch: int = 4
    heads: int = 4
    groups: int = 2
    prefix: int = 150
    suffix: int = 70
    rows: int = 1
    width: int = 16

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Queries, keys and values of the prefix, and of the suffix."""
        shapes = (
            (self.batch, self.heads, self.rows, self.width),
            *((1, self.groups, self.prefix, self.width) for _ in "kv"),
            *((self.batch, self.groups, self.suffix, self.width) for _ in "kv"),
        )
        return tuple(torch.randn(shape).to(dtype) for shape in shapes)

    def stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same, keys and values in one, so that they are as many."""
        q, *parts = self.inputs()
        return q, torch.stack(parts[:2]), torch.stack(parts[2:])


def expanded(x: Tensor, batch: int) -> Tensor:
    return x.expand(batch, -1, -1, -1)


def repeated(x: Tensor, batch: int) -> Tensor:
    return x.repeat(batch, 1, 1, 1)


def interleaved(x: Tensor, batch: int) -> Tensor:
    return x.repeat_interleave(batch, 0)


def grouped(x: Tensor, heads: int) -> Tensor:
    """`repeat_kv` of transformers."""
    b, h, t, d = x.shape
    return x[:, :, None].expand(b, h, heads // h, t, d).reshape(b, heads, t, d)


Spread = Callable[[Tensor, int], Tensor]


class Shared(nn.Module):
    """Decoding with a prefix that all sequences share, through PyTorch's attention."""

    def __init__(self, spread: Spread) -> None:
        super().__init__()
        self.spread = spread

    def joined(self, q: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
        first, second = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        keys, values = (
            torch.cat([self.spread(x, q.shape[0]), own], 2)
            for x, own in zip(first, second, strict=True)
        )
        return keys, values

    def forward(self, q: Tensor, *parts: Tensor) -> Tensor:
        return sdpa(q, *self.joined(q, *parts), enable_gqa=True)


class Padded(Shared):
    """Of the suffix, as many keys count as each sequence has."""

    def forward(self, q: Tensor, *parts: Tensor) -> Tensor:
        k, v = self.joined(q, *parts)
        lengths = k.shape[2] - 3 * torch.arange(q.shape[0])
        mask = torch.arange(k.shape[2]) < lengths[:, None, None, None]
        return sdpa(q, k, v, mask, enable_gqa=True)


class Later(Shared):
    """Queries that are the last positions of a causal sequence."""

    def forward(self, q: Tensor, *parts: Tensor) -> Tensor:
        k, v = self.joined(q, *parts)
        t, s = q.shape[2], k.shape[2]
        mask = torch.arange(s) <= torch.arange(s - t, s)[:, None]
        return sdpa(q, k, v, mask, enable_gqa=True)


class Spelled(Shared):
    """In its parts, heads repeated and scores capped."""

    def forward(self, q: Tensor, *parts: Tensor) -> Tensor:
        k, v = (grouped(x, q.shape[1]) for x in self.joined(q, *parts))
        scores = torch.tanh(q @ k.mT * q.shape[-1] ** -0.5 / 5.0) * 5.0
        return torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


class Nested(Shared):
    """A new key is joined to those of the suffix."""

    def joined(self, q: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
        k, v = super().joined(q, *parts)
        return torch.cat([k, q[:, ::2]], 2), torch.cat([v, q[:, 1::2]], 2)


MODELS: Final = {
    "expand": (Shared(expanded), Sizes(), 2),
    "repeat": (Shared(repeated), Sizes(), 2),
    "repeat_interleave": (Shared(interleaved), Sizes(), 2),
    "several queries": (Shared(expanded), Sizes(rows=5), 2),
    "padding": (Padded(expanded), Sizes(), 2),
    "padding, several queries": (Padded(expanded), Sizes(rows=5), 2),
    "causal": (Later(expanded), Sizes(rows=6), 2),
    "spelled": (Spelled(repeated), Sizes(rows=2), 2),
    "three parts": (Nested(expanded), Sizes(), 3),
    "a long prefix": (Shared(expanded), Sizes(prefix=3000, batch=2), 2),
}


def attention_of(plan: Plan) -> str:
    """The log of the choice of a kernel."""
    return "\n".join(d.sentence for d in plan.log if d.pass_ == "flash-attention")


@pytest.mark.cpu
@pytest.mark.parametrize("name", MODELS)
def test_keys_are_read_where_they_lie(name: str) -> None:
    """Neither copies of a prefix nor joined keys are made, and results are those of the whole."""
    model, sizes, parts = MODELS[name]
    inputs = sizes.inputs()
    program = rewright.optimize(model, inputs)
    assert f"keys are read from {parts} parts" in attention_of(program.program.plan)
    names = {n.op.name for n in program.graph.nodes}
    assert not names & {"aten.cat.default", "aten.repeat.default", "aten.clone.default"}
    exact = model(*(x.double() for x in inputs))
    assert distance(program(*inputs), exact) <= 2 * distance(model(*inputs), exact) + 1e-6


class Raced:
    """Races that one of the contestants wins; `seen` are the operators of each."""

    def __init__(self, winner: int) -> None:
        self.winner = winner
        self.seen: list[list[str]] = []

    def __call__(self, calls: Sequence[Graph], target: Target) -> list[float]:
        found = [1.0] * len(calls)
        found[self.winner] = 0.5
        self.seen += [[n.op.name for n in call.nodes] for call in calls]
        return found


@pytest.fixture(scope="module", autouse=True)
def parts_are_quicker() -> Iterator[None]:
    """Whatever the machine is busy with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rewright.calibrate.tools.race", Raced(-1))
        yield


@pytest.mark.cpu
def test_keys_of_many_queries_are_joined() -> None:
    """What comes of parts would be kept for each of them, which no budget of memory knows of."""
    model, inputs = Shared(expanded), Sizes(rows=120).inputs()
    program = rewright.optimize(model, inputs)
    assert "parts" not in attention_of(program.program.plan)
    torch.testing.assert_close(program(*inputs), model(*inputs))


@pytest.mark.cpu
@pytest.mark.parametrize("name", ["repeat", "padding", "spelled", "three parts"])
def test_parts_are_raced_against_joining(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joins are a part of what it takes, as nothing else reads what is joined."""
    model, sizes, _ = MODELS[name]
    inputs = sizes.inputs()
    for winner in (0, -1):
        raced = Raced(winner)
        monkeypatch.setattr("rewright.calibrate.tools.race", raced)
        program = rewright.optimize(model, inputs)
        *joined, parts = raced.seen[: 2 if name == "spelled" else 3]
        assert all("aten.cat.default" in names for names in joined)
        assert parts == ["rw.attention"]
        assert ("are read from" in attention_of(program.program.plan)) == (winner == -1)
        torch.testing.assert_close(program(*inputs), model(*inputs))


@pytest.mark.cpu
def test_halves() -> None:
    model, inputs = Shared(expanded), Sizes().inputs(torch.bfloat16)
    program = rewright.optimize(model, inputs)
    assert "parts" in attention_of(program.program.plan)
    exact = model(*(x.double() for x in inputs))
    assert distance(program(*inputs), exact) <= 2 * distance(model(*inputs), exact) + 1e-6


class Stacked(Padded):
    """Keys and values are one tensor, so that they are as many."""

    def forward(self, q: Tensor, *parts: Tensor) -> Tensor:
        shared, own = parts
        return super().forward(q, *shared.unbind(), *own.unbind())


@pytest.mark.cpu
def test_dynamic_sizes() -> None:
    """One kernel for all numbers of sequences, and lengths of prefixes and suffixes."""
    model = Stacked(expanded)
    run = compiled(model)
    for sizes in (Sizes(), Sizes(batch=3, prefix=700, suffix=65), Sizes(batch=9, suffix=2)):
        inputs = sizes.stacked()
        for given, dims in zip(inputs, ([0], [3], [1, 3]), strict=True):
            for dim in dims:
                torch._dynamo.mark_dynamic(given, dim)
        exact = model(*(x.double() for x in inputs))
        assert distance(run(*inputs), exact) <= 2 * distance(model(*inputs), exact) + 1e-6
    assert "parts" in attention_of(the_program().plan)


# --- nothing of something -------------------------------------------------------------------------


class Capped(nn.Module):
    """Scores are capped, as ATen's kernel cannot; there may be no keys."""

    def forward(self, q: Tensor, keys: Tensor) -> Tensor:
        k, v = keys.unbind()
        return torch.softmax(torch.tanh(q @ k.mT), -1) @ v


class Together(nn.Module):
    """All queries attend to a prefix and a suffix, either of which may be empty."""

    def forward(self, q: Tensor, prefix: Tensor, suffix: Tensor) -> Tensor:
        k, v = Shared(expanded).joined(q, *prefix.unbind(), *suffix.unbind())
        return sdpa(q, k, v, enable_gqa=True)


EMPTY: Final = {
    "batch": Sizes(batch=0),
    "queries": Sizes(rows=0),
    "prefix": Sizes(prefix=0),
    "suffix": Sizes(suffix=0),
    "keys": Sizes(prefix=0, suffix=0),
}


@pytest.fixture(scope="module")
def with_any_sizes() -> Compiled:
    """Compiled once, of sizes from 0 on."""
    dims = {name: Dim(name, min=0, max=4096) for name in ("batch", "rows", "prefix", "suffix")}
    shapes = (
        {0: dims["batch"], 2: dims["rows"]},
        {3: dims["prefix"]},
        {1: dims["batch"], 3: dims["suffix"]},
    )
    program = rewright.optimize(export(Together(), Sizes(rows=3).stacked(), dynamic_shapes=shapes))
    assert "parts" in attention_of(program.program.plan)
    return program


@pytest.mark.cpu
@pytest.mark.parametrize("name", EMPTY)
def test_sizes_that_turn_out_to_be_0(name: str, with_any_sizes: Compiled) -> None:
    """Nothing to attend to gives 0."""
    inputs = EMPTY[name].stacked()
    wanted = Together()(*inputs)
    torch.testing.assert_close(with_any_sizes(*inputs), wanted)


@pytest.mark.cpu
@pytest.mark.parametrize("name", EMPTY)
def test_sizes_that_are_0(name: str) -> None:
    inputs = EMPTY[name].stacked()
    wanted = Together()(*inputs)
    torch.testing.assert_close(rewright.optimize(Together(), inputs)(*inputs), wanted)


@pytest.mark.cpu
def test_few_queries_without_keys() -> None:
    shapes: tuple[dict[int, Dim], ...] = ({}, {3: Dim("keys", min=0, max=4096)})
    some, none = ((torch.randn(2, 4, 3, 16), torch.randn(2, 2, 4, n, 16)) for n in (200, 0))
    program = rewright.optimize(export(Capped(), some, dynamic_shapes=shapes))
    assert "a kernel of ours" in attention_of(program.program.plan)
    assert (program(*none) == 0).all()
    torch.testing.assert_close(program(*some), Capped()(*some))


def test_joined_keys_that_something_else_reads_are_joined() -> None:
    """A cache is returned, and no part of it is shared: reading it whole costs nothing more."""

    class Cache(Shared):
        def forward(self, q: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
            k, v = self.joined(q, *parts)
            return sdpa(q, k, v, enable_gqa=True), k, v

    sizes = Sizes(batch=1)
    model, inputs = Cache(lambda x, _: x), sizes.inputs()
    program = rewright.optimize(model, inputs)
    assert "parts" not in attention_of(program.program.plan)
    for found, wanted in zip(program(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(found, wanted)


def test_keys_and_values_that_are_joined_apart_are_joined() -> None:
    class Apart(Shared):
        def forward(self, q: Tensor, *parts: Tensor) -> Tensor:
            a, b, c, d = parts
            return sdpa(q, torch.cat([a, c], 2), torch.cat([d, b], 2), enable_gqa=True)

    sizes = Sizes(batch=1)
    model, inputs = Apart(expanded), sizes.inputs()
    program = rewright.optimize(model, inputs)
    assert "parts" not in attention_of(program.program.plan)
    torch.testing.assert_close(program(*inputs), model(*inputs))


@pytest.mark.cpu
def test_any_number_of_threads_gives_the_same_bits() -> None:
    model, inputs = Shared(expanded), Sizes(prefix=4000).inputs()
    program = rewright.optimize(model, inputs)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(program(*inputs))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_a_nest_tells_its_parts() -> None:
    def score(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return scores

    nest = nest_of(score, numbers(Shape(1, 2, 3, 40, 8, 8)))
    assert [run.size for run in nest.runs] == [40]
    assert "then" not in show_nest(nest)
