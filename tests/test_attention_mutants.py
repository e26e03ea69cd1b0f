"""What is nearly attention comes out as it was: a hundred of the graphs of `attention_mutants.py`,
which tries any number of them."""

from __future__ import annotations

import pytest

from attention_mutants import mutant, tried, wrong_kernels
from rewright.passes.attention import site

COUNT = 100


@pytest.mark.cpu
def test_no_result_changes() -> None:
    """Many of them are still attention, and many are not."""
    found = [tried(seed) for seed in range(COUNT)]
    assert [t.name for t in found if t.is_wrong] == []
    assert wrong_kernels(found) == []
    assert COUNT / 4 <= sum(t.is_attention for t in found) <= 3 * COUNT / 4
    assert sum(bool(t.kernels) for t in found) >= COUNT / 5


def test_a_seed_gives_one_graph() -> None:
    assert str(mutant(7)[1]) == str(mutant(7)[1])


def test_what_is_found_too_easily_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were shapes on the way not looked at, one of the graphs would come out changed."""
    seed = 85
    assert "turned" in mutant(seed)[0] and not tried(seed).is_wrong
    monkeypatch.setattr(site, "_misfit", lambda _: None)
    assert tried(seed).is_wrong
