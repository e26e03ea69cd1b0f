"""The script that measures on a GPU, where there is none: what it does with what goes wrong, and
its cases at sizes of no interest. No timing is asserted."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.device import Device
from benchmarks.gpu_cases import Case, Setting
from benchmarks.uninstalled import write_tree

ONE = torch.ones(8)


def measured(**calls: Any) -> dict[str, Any]:
    exact = tuple(calls)
    case = Case("case", calls, lambda: ONE.double(), exact, bytes=64, flops=2.0)
    return gpu._measured(case, Device("cpu"), rounds=3)


def test_where_there_is_no_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "torch finds no GPU here: nothing is measured\n"


def test_what_fails_and_what_is_wrong_is_named_and_the_rest_is_timed() -> None:
    def fails() -> None:
        raise RuntimeError("no such kernel")

    row = measured(eager=lambda: ONE, rewright=lambda: 2 * ONE, inductor=fails)
    assert row["error"] == {"inductor": "RuntimeError: no such kernel"}
    assert list(row["wrong"]) == ["rewright"]
    assert list(row["median_seconds"]) == ["eager", "rewright"] == list(row["flops"])
    assert row["bytes_per_second"]["eager"] == 64 / row["median_seconds"]["eager"]
    assert gpu._failed({"cases": [row]})
    assert not gpu._failed({"cases": [measured(eager=lambda: ONE, rewright=lambda: ONE)]})


def test_a_part_that_does_not_end_is_stopped() -> None:
    slow = "import time; print('begun', flush=True); time.sleep(60)"
    assert gpu._ended([sys.executable, "-c", slow], 3) == ["after 3 s", "begun"]
    assert gpu._ended([sys.executable, "-c", "print(1); print(2)"], 60) == ["ended", "2"]
    (code, said) = gpu._ended([sys.executable, "-c", "print(1); raise SystemExit(3)"], 60)
    assert (code, said) == ("exit code 3", "1")


def test_calls_are_timed_by_events_behind_what_fills_the_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def elapsed_time(self, end: Event) -> float:
            return 5.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("wait"), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait for all"))
    facts = SimpleNamespace(L2_cache_size=1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: facts)
    device = Device("cuda")
    device._flushed = torch.empty(4096, dtype=torch.uint8)
    assert device.clock(lambda: done.append("call")) == 0.005
    assert done == ["wait", "event", "call", "event", "wait for all"]
    seconds = device.compare({"a": lambda: None, "b": lambda: None}, rounds=4).seconds
    assert seconds == {"a": [0.005] * 4, "b": [0.005] * 4}


def test_rewright_need_not_be_installed(tmp_path: Path) -> None:
    """Its modules and torch's entry point for it are found in a folder of links."""
    write_tree(tmp_path)
    asked = (
        "import rewright, rewright.ir.loops, rewright.bisect, torch._dynamo\n"
        "print(rewright.__file__); print(torch._dynamo.list_backends(None))"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env={**env, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    place, backends = done.stdout.splitlines()
    assert place == str(tmp_path / "rewright" / "__init__.py") and "'rewright'" in backends
    distribution = next(iter(importlib.metadata.distributions(path=[str(tmp_path)])))
    (entry,) = distribution.entry_points
    assert (entry.group, entry.name) == ("torch_dynamo_backends", "rewright")


@pytest.mark.cpu
@pytest.mark.parametrize("part", gpu.PARTS)
def test_cases_are_right_at_small_sizes(part: str) -> None:
    """With eager alone, and our kernels of attention."""
    cases = list(gpu.PARTS[part](Setting("cpu", ("eager",), quick=True)))
    assert cases
    for case in cases:
        assert case.wrong() == {}
        assert part == "models" or case.bytes or case.flops


@pytest.mark.cpu
def test_a_run_writes_what_each_part_gave(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    small = ["--device", "cpu", "--quick", "--rounds", "2", "--backends", "rewright", "eager"]
    assert gpu.main([*small, "--parts", "tests", "products", "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert set(record["results"]) == {"tests", "products"}
    (case,) = record["results"]["products"]["cases"]
    assert set(case["median_seconds"]) == {"rewright", "eager", "product alone"}
    assert "rewright vs eager" in case["speedup"] and case["flops"]["eager"] > 0
    assert "skipped" in record["results"]["tests"]["said"][0] and record["machine"]["torch"]
