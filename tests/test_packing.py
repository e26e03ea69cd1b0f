"""The exact search for memory plans: its proofs against brute force, the C against its twin, and
instances that are known to fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TypeAlias

import pytest

from benchmarks.packing import CAPACITY, jigsaw
from rewright.ir.native import native
from rewright.passes.memory import fit
from rewright.passes.memory.fit import MOST_BLOCKS, SHORTEST, Fitter, pack
from rewright.passes.memory.judge import judge
from rewright.passes.memory.problem import Block, Blocks, Buffer, Found, MemoryProblem, lower_bound
from rewright.passes.memory.solve import WORK, blocks_of, smallest, solve, within
from rewright.passes.memory.twin import pack_slowly
from rewright.traces import read_trace

DATA = Path(__file__).parent / "data"
HARD = ["A", "C", "E", "G", "I", "K"]
ENOUGH = 1_000_000  # nodes, for every small instance here

Packed: TypeAlias = tuple[Found, list[int], int]

# As (start, stop, size): the most that is live at one step, and one byte more, which they need.
GAPS = [
    (7, "2 7 1, 4 7 1, 7 8 4, 0 7 1, 2 3 2, 2 4 3, 3 7 1, 3 8 1, 0 2 6, 4 8 2"),
    (9, "5 8 1, 1 7 1, 0 3 2, 5 7 4, 1 3 1, 0 1 2, 2 5 2, 7 8 8, 0 2 3, 3 5 3, 2 7 1, 0 7 2"),
    (8, "0 1 5, 2 6 1, 2 7 1, 6 8 4, 1 2 1, 0 2 3, 1 6 1, 1 6 1, 7 8 4, 2 6 1, 2 7 1, 1 7 2"),
]


def blocks(text: str) -> list[Block]:
    return [Block(*map(int, block.split())) for block in text.split(",")]


def buffers(blocks: Blocks) -> tuple[Buffer, ...]:
    return tuple(Buffer(f"b{i}", *block) for i, block in enumerate(blocks))


def hard(name: str) -> MemoryProblem:
    return MemoryProblem(read_trace(DATA / "minimalloc" / f"{name}.{CAPACITY}.csv"))


def joined(seed: int, pieces: int, steps: int, height: int) -> list[Block]:
    """A jigsaw with pairs of equal size made one, that lay at different offsets perhaps: as many
    bytes are live as before, but it may fit no more."""
    draw = Random(seed)
    found = list(blocks_of(MemoryProblem(jigsaw(seed, pieces, steps, height), 1)))
    for _ in range(draw.randint(0, 3)):
        pairs = [(a, b) for a in found for b in found if a.stop == b.start and a.size == b.size]
        if pairs:
            first, second = draw.choice(pairs)
            found.remove(first)
            found.remove(second)
            found.append(Block(first.start, second.stop, first.size))
    return found


# --- brute force --------------------------------------------------------------------------------


def fits_by_force(blocks: Blocks, capacity: int) -> bool:
    """Whether the blocks fit, by trying every offset of each."""
    placed: list[tuple[Block, int]] = []

    def is_free(block: Block, at: int) -> bool:
        return not any(
            max(block.start, other.start) < min(block.stop, other.stop)
            and max(at, lower) < min(at + block.size, lower + other.size)
            for other, lower in placed
        )

    def rest_fits(rest: Sequence[Block]) -> bool:
        if not rest:
            return True
        for at in range(capacity - rest[0].size + 1):
            if is_free(rest[0], at):
                placed.append((rest[0], at))
                if rest_fits(rest[1:]):
                    return True
                placed.pop()
        return False

    return rest_fits(sorted(blocks))


@pytest.mark.parametrize("seed", range(150))
def test_small_jigsaws_fit_when_brute_force_finds_that_they_do(seed: int) -> None:
    found = joined(seed, 5 + seed % 4, steps=3 + seed % 6, height=4 + seed % 5)
    bound = lower_bound(MemoryProblem(buffers(found), 1))
    for capacity in (bound - 1, bound):
        outcome = Fitter(found).fit(capacity, ENOUGH)
        assert outcome.found is not Found.ENDED
        assert (outcome.found is Found.FITS) == fits_by_force(found, capacity)


@pytest.mark.parametrize(("bound", "text"), GAPS)
def test_what_needs_more_than_is_live_is_proven_to(bound: int, text: str) -> None:
    found = blocks(text)
    assert not fits_by_force(found, bound)
    problem = MemoryProblem(buffers(found), 1)
    assert lower_bound(problem) == bound
    assert Fitter(found).fit(bound, ENOUGH).found is Found.FAILS
    plan, proven = smallest(problem, lambda: math.inf)
    assert judge(problem, plan) is None
    assert plan.nbytes == proven == bound + 1


# --- the twin -----------------------------------------------------------------------------------


@pytest.mark.cpu
@pytest.mark.parametrize("seed", range(60))
def test_the_twin_takes_the_same_decisions(seed: int) -> None:
    assert native("pack") is not None
    draw = Random(seed)
    # Of few steps and bytes many blocks are alike; of many none are, and most searches end early.
    steps, height = draw.choice(((5, 8), (12, 20), (100, 1024)))
    drawn = joined(seed, draw.randint(2, 30), steps, height)
    draw.shuffle(drawn)
    fitter = Fitter(drawn)
    bound = lower_bound(MemoryProblem(buffers(drawn), 1))
    for capacity, nodes in (
        (bound, 3 * len(drawn)),
        (bound, 400),
        (bound + 1, 100),
        (bound - 1, 9),
    ):
        quick = pack(fitter.slabs, fitter.sections, capacity, nodes)
        assert quick == pack_slowly(fitter.slabs, fitter.sections, capacity, nodes)


@pytest.mark.cpu
def test_the_twin_takes_the_same_decisions_on_a_hard_instance() -> None:
    fitter = Fitter(blocks_of(hard("G")))
    quick = pack(fitter.slabs, fitter.sections, CAPACITY, 150)
    assert quick == pack_slowly(fitter.slabs, fitter.sections, CAPACITY, 150)
    assert quick[0] is Found.ENDED and quick[2] == 150


def test_without_a_compiler_the_plan_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = MemoryProblem(jigsaw(3, 30), 1)
    quick = solve(problem)
    assert quick.nbytes < solve(problem, work=0).nbytes
    monkeypatch.setattr(fit, "native", lambda name: None)
    assert solve(problem) == quick


@pytest.mark.parametrize("run", [pack, pack_slowly])
def test_a_tower_is_searched_however_high_it_is(run: Callable[..., Packed]) -> None:
    tower = [Block(0, 1, 1 + i % 3) for i in range(400)]
    fitter, height = Fitter(tower), sum(block.size for block in tower)
    found, offsets, nodes = run(fitter.slabs, fitter.sections, height, ENOUGH)
    assert found is Found.FITS and nodes == len(tower)
    tops = sorted(at + block.size for at, block in zip(offsets, tower, strict=True))
    assert sorted(offsets) == [0, *tops[:-1]] and tops[-1] == height


# --- instances that fit -------------------------------------------------------------------------


@pytest.mark.cpu
@pytest.mark.parametrize("name", HARD)
def test_hard_instances_fit_their_capacity(name: str) -> None:
    problem = hard(name)
    found, plan = within(problem, CAPACITY, lambda: math.inf)
    assert found is Found.FITS and plan is not None
    assert judge(problem, plan) is None and plan.nbytes <= CAPACITY


@pytest.mark.cpu
@pytest.mark.parametrize("seed", range(500, 515))  # the search was made with others
def test_jigsaws_are_put_together(seed: int) -> None:
    problem = MemoryProblem(jigsaw(seed, 45), 1)
    plan, bound = smallest(problem, lambda: math.inf)
    assert judge(problem, plan) is None
    assert plan.nbytes == bound == lower_bound(problem) == 1024


@pytest.mark.cpu
def test_a_trace_of_a_thousand_buffers_at_its_lower_bound() -> None:
    problem = MemoryProblem(read_trace(DATA / "traces" / "resnet50.csv"))
    plan, bound = smallest(problem, lambda: math.inf)
    assert judge(problem, plan) is None
    assert plan.nbytes == bound == lower_bound(problem) < solve(problem).nbytes


@pytest.mark.parametrize("name", ["G_1", "S_1"])
def test_long_traces_within_a_percent_of_the_lower_bound(name: str) -> None:
    problem = MemoryProblem(read_trace(DATA / "traces" / f"{name}.csv"), 1)
    plan = solve(problem)
    assert judge(problem, plan) is None
    assert plan.nbytes <= 1.01 * lower_bound(problem)


@pytest.mark.cpu
def test_a_compile_searches_where_heuristics_leave_a_gap() -> None:
    gaps = [
        [solve(problem, work=work).nbytes / lower_bound(problem) for work in (0, WORK)]
        for problem in (MemoryProblem(jigsaw(seed, 40), 1) for seed in range(600, 610))
    ]
    assert sum(without > 1 for without, _ in gaps) >= 8
    assert sum(found == 1 for _, found in gaps) >= 8
    assert all(found <= without for without, found in gaps)


def test_the_search_takes_as_many_nodes_as_it_may() -> None:
    fitter = Fitter(blocks_of(hard("E")))
    outcome = fitter.fit(CAPACITY, 1_500)
    assert (outcome.found, outcome.offsets, outcome.nodes) == (Found.ENDED, [], 1_500)


def test_time_ends_a_search_and_changes_nothing_else() -> None:
    fitter = Fitter(blocks_of(MemoryProblem(jigsaw(500, 45), 1)))
    assert fitter.fit(1024, ENOUGH, lambda: 0.0).nodes == 0
    assert fitter.fit(1024, ENOUGH, lambda: 1e9) == fitter.fit(1024, ENOUGH)


def test_time_cuts_runs_short() -> None:
    ticks = iter(range(1_000))
    fitter = Fitter(blocks_of(hard("E")))
    outcome = fitter.fit(CAPACITY, ENOUGH, lambda: 10.0 - next(ticks))
    assert outcome.found is Found.ENDED
    assert outcome.nodes < 20 * SHORTEST * len(fitter.slabs)


def test_too_many_blocks_are_left_to_heuristics() -> None:
    many = [Block(i, i + 3, 1 + i % 7) for i in range(MOST_BLOCKS + 1)]
    with pytest.raises(ValueError, match="too many"):
        Fitter(many)
    problem = MemoryProblem(buffers(many), 1)
    assert within(problem, lower_bound(problem) - 1, lambda: math.inf) == (Found.FAILS, None)
    plan, bound = smallest(problem, lambda: math.inf)
    assert judge(problem, plan) is None and bound == lower_bound(problem)
