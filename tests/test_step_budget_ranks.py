"""Memory budgets on several ranks: one schedule for all, and none for a step in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ranks import Outcome, Ranks
from test_distributed import assert_trains_alike, train_with_ddp

pytestmark = pytest.mark.cpu


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


def train_within_bytes(split: bool) -> Outcome | str:
    """What it compiled to, or why it would not."""
    try:
        return train_with_ddp(split, memory_budget="min")
    except torch._dynamo.exc.BackendCompilerFailed as error:
        return str(error)


def test_ddp_within_a_memory_budget(two: Ranks) -> None:
    """Both ranks run the same schedule; a step in pieces has no budget to keep."""
    outcomes = two.run(train_within_bytes, False)
    assert_trains_alike(outcomes)
    first, second = outcomes
    assert first.programs == second.programs
    for refused in two.run(train_within_bytes, True):
        assert "DDP, by buckets of gradients" in refused and "optimize_ddp = False" in refused
