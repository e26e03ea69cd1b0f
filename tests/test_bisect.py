"""rewright bisect: it names planted faults in passes and rules, and makes small what shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from planted import FAULTS, Planted
from rewright.bisect import Finding, bisect, write
from rewright.options import Options

MOST_NODES = 5


@pytest.mark.parametrize("planted", FAULTS, ids=lambda planted: planted.name.replace(" ", "-"))
def test_faults_in_passes_and_rules(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRIGHT_CHECK", "0")
    graph, inputs = planted.model()
    assert len(graph.nodes) > 100
    import time
    t=time.time()
    with monkeypatch.context() as patch:
        planted.plant(patch)
        found = bisect(graph, Options.of({"rules": planted.rules}), inputs)
        assert isinstance(found, Finding), found
        print(found, len(graph.nodes), round(time.time()-t,1))
        print(found.case.graph if found.case else None)
@pytest.mark.cpu
@pytest.mark.parametrize("planted", __import__("planted").KERNELS, ids=lambda planted: planted.name.replace(" ", "-"))
def test_kernels(planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_faults_in_passes_and_rules(planted, tmp_path, monkeypatch)
