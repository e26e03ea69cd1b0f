"""No compile schedules a call that the library has only a reference implementation for: such take
hundreds of times as long. oneDNN is told to do with fewer instructions than the CPU has, and asked
what it runs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "reference_kernels.py"
NO_AMX = "AVX512_CORE_VNNI"
NEEDS_VNNI = pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="this CPU has no AVX-512"
)


@cache
def implementations(instructions: str) -> Mapping[str, list[tuple[str, str]]]:
    """What oneDNN runs while each program is compiled, and then run: primitives, and what
    implements them."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions, "ONEDNN_VERBOSE": "1"}
    ran = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, list[tuple[str, str]]] = {}
    calls: list[tuple[str, str]] = []
    for line in ran.stdout.splitlines():
        if not line.startswith("onednn_verbose"):
            calls = found[line] = []
        elif ",exec," in line:
            primitive, implementation = line.partition(",exec,")[2].split(",")[1:3]
            calls.append((primitive, implementation))
    return found


@NEEDS_VNNI
def test_reference_kernels_are_seen() -> None:
    assert any(by.startswith("ref") for _, by in implementations(NO_AMX)["planted"])


@pytest.mark.parametrize("instructions", ["AVX2", pytest.param(NO_AMX, marks=NEEDS_VNNI)])
def test_none_is_scheduled(instructions: str) -> None:
    ran = {name: calls for name, calls in implementations(instructions).items() if " " in name}
    assert sum(len(calls) > 0 for name, calls in ran.items() if name.startswith("run")) >= 3
    slow = {(name, *call) for name, calls in ran.items() for call in calls if "ref" in call[1]}
    assert slow == set()
