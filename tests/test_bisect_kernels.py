"""rewright bisect names faults that are planted in what emits kernels and calls them, and passes
that cost time."""

from __future__ import annotations

from pathlib import Path

import pytest

from planted import SLOW
from planted_kernels import KERNELS, SLOW_KERNEL
from planted_models import Planted
from rewright.bisect import Finding, Healthy, bisect, write
from rewright.options import Options
from test_bisect import MOST_NODES, as_users_have_it, fails, found_in, status

__all__ = ["as_users_have_it"]

pytestmark = pytest.mark.cpu
# Each try takes a run of the C++ compiler, seconds where others compile too; what is measured could
# be made smaller for ever.
SECONDS, MEASURED_SECONDS = 40.0, 5.0


@pytest.mark.parametrize("planted", KERNELS, ids=lambda planted: planted.name.replace(" ", "-"))
def test_a_fault_in_a_kernel_is_named_and_made_small(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        planted.plant(patch)
        found, case = found_in(planted, SECONDS)
        assert planted.place in found.place
        assert planted.what in found.what
        assert planted.node in ("", found.node)
        assert len(case.graph.nodes) <= MOST_NODES
        write(found, case, tmp_path)
        assert status(tmp_path / "repro.py") == 1
    assert not fails(tmp_path)
    assert status(tmp_path / "repro.py", "torch") == 0


def test_a_pass_that_slows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        SLOW.plant(patch)
        found, case = found_in(SLOW, how="predicted")
        assert (found.place, found.fault.kind) == (SLOW.place, "slow")
        assert SLOW.what in found.what
        assert len(case.graph.nodes) <= MOST_NODES
        write(found, case, tmp_path)
        assert fails(tmp_path)
    assert not fails(tmp_path)


def test_a_kernel_that_is_slow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes milliseconds where ATen takes microseconds, in every stage."""
    SLOW_KERNEL.plant(monkeypatch)
    found, case = found_in(SLOW_KERNEL, MEASURED_SECONDS, how="slow")
    assert found.place.startswith("kernel k") and SLOW_KERNEL.place in found.place
    assert (found.node, found.fault.kind) == (SLOW_KERNEL.node, "slow")
    assert SLOW_KERNEL.what in found.what and len(case.graph.nodes) <= MOST_NODES


def test_no_pass_slows_a_model_as_it_is() -> None:
    graph, inputs = SLOW.model()
    found = bisect(graph, Options(), inputs, how="predicted")
    assert isinstance(found, Healthy), str(found)
    assert "no pass costs time, as predicted" in str(found)


def test_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says here, it says it of a pass or a kernel."""
    SLOW.plant(monkeypatch)
    found, _ = found_in(SLOW, MEASURED_SECONDS, how="slow")
    assert isinstance(found, Finding) and found.fault.kind == "slow"
    assert "measured)" in str(found)
